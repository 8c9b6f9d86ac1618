"""What a launch could cost at best: how many blocks fit on the chip, and the time that products or memory take.

The floor of a network is what no plan with the same fusions can avoid: of every layer its input, its residual input,
its weights and its output, each once.
"""

from __future__ import annotations

from dataclasses import dataclass

from .chips import Arch, Chip
from .network import STEM_TAPS, Conv, Network
from .plan import QUANTISED_DTYPES, Buffer, Launch
from .precisions import precision_of

# How registers and shared memory are handed out from compute capability 8.0 on, as cuda_occupancy.h has it.
_REGISTERS_PER_WARP, _SHARED, _PARTITIONS = 256, 128, 4
# Shared memory per block that the system keeps for itself.
_SYSTEM_SHARED = 1024
# Depthwise 3x3 of TAFE's detail branch, two outputs per channel; and DCIF's 7x7 over two maps.
_DEPTHWISE_TAPS, _SPATIAL_WEIGHTS = 9, 2 * 49
_HALF, _FLOAT = 2, 4


@dataclass(frozen=True)
class Occupancy:
    """blocks: resident per multiprocessor. warps: resident, as a part of what it can hold. waves: how often the chip
    fills, up to the last block (below 1, it never does); None where not even one block fits."""

    blocks: int
    warps: float
    waves: float | None


def blocks_per_multiprocessor(arch: Arch, registers: int, shared_bytes: int, warps: int) -> int:
    """How many blocks run side by side. registers: per thread; shared_bytes: per block. 0: not even one fits."""
    # Warps are dealt to four partitions, each with its own registers.
    per_warp = _rounded(max(registers, 1) * 32, _REGISTERS_PER_WARP)
    warps_by_registers = arch.registers_per_sm // _PARTITIONS // per_warp * _PARTITIONS
    return min(
        arch.blocks_per_sm,
        arch.threads_per_sm // 32 // warps,
        warps_by_registers // _rounded(warps, _PARTITIONS),
        arch.shared_per_sm // _rounded(shared_bytes + _SYSTEM_SHARED, _SHARED),
    )


def occupancy(arch: Arch, chip: Chip, blocks: int, registers: int, shared_bytes: int, warps: int) -> Occupancy:
    """Of a launch of `blocks` blocks of `warps` warps."""
    resident = blocks_per_multiprocessor(arch, registers, shared_bytes, warps)
    waves = blocks / (resident * chip.multiprocessors) if resident else None
    return Occupancy(resident, resident * warps * 32 / arch.threads_per_sm, waves)


def roofline_seconds(chip: Chip, flops: int, nbytes: int, precision: str = "float16") -> float:
    """The longer of the two: all products at the chip's peak for `precision`, all bytes at its memory's."""
    return max(flops / chip.peak(precision), nbytes / chip.bandwidth)


def product_precision(launch: Launch) -> str:
    """In what `launch` multiplies matrices: "int8", "float8", or "float16", also where it has no such product."""
    dtypes = {value.dtype for name, value in launch.args if name.startswith("w_") and isinstance(value, Buffer)}
    return precision_of(next(iter(dtypes & set(QUANTISED_DTYPES)), "f16"))


def floor_bytes(network: Network, batch: int, precision: str = "float16") -> int:
    """Bytes that `batch` images cannot avoid to move: `image_bytes` of each and `weight_bytes`."""
    return batch * image_bytes(network, precision) + weight_bytes(network, precision)


def image_bytes(network: Network, precision: str = "float16") -> int:
    """Of one image, maps in FP16; in int8 and float8 a byte per value of what products read.

    Fused: normalisation, stem and its maximum; the shortcut and ReLU into each convolution; TAFE into split
    (f -> y, x), detail (y -> h) and merge (x, h -> z) with vectors for statistic and gate; all from z to the logits.
    """
    size, side = _itemsize(precision), network.pooled_side
    values = side * side * network.stem
    total = 3 * network.size**2 + size * values
    for block in network.blocks:
        entry = values
        for conv in block.convs:
            side = conv.output_side(side)
            read, values = values, side * side * conv.cout
            total += size * (read + values)
        total += size * entry
    if network.pool is not None:
        # Of the maps f, y and h, of the vectors the statistic; x, z and the gate stay FP16.
        total += (size * (1 + (1 + 1) + (2 + 2)) + _HALF * ((1 + 1) + 1)) * values
        total += 2 * (size + _HALF) * network.channels
    else:
        total += (_HALF - size) * values
    return total + _HALF * values + _FLOAT * network.classes


def weight_bytes(network: Network, precision: str = "float16") -> int:
    """Matrices and filters in FP16 or in eight bits, with a scale per output channel; biases and other vectors in
    float32; of the folded network, nothing padded."""
    channels, hidden, wide, narrow = network.channels, network.hidden, network.wide, network.narrow
    stem, quantised, matrices, vectors, outputs = 3 * STEM_TAPS**2 * network.stem, 0, 0, network.stem, network.stem
    for block in network.blocks:
        for conv in (*block.convs, *([block.project] if block.project else [])):
            quantised += _weights(conv)
            outputs += conv.cout
        # The shortcut's bias joins the last convolution's, but where it is rounded by itself.
        vectors += sum(conv.cout for conv in block.convs)
        outputs += block.cout if block.project else 0
    if network.pool is not None:
        split, detail, gate, merge = 2, 4, 1, 3
        quantised += (split + detail + gate + merge) * channels**2
        matrices += 2 * _DEPTHWISE_TAPS * channels
        # Biases of split, depthwise, detail, gate and merge; factors of the maximum and of the variance.
        vectors += (2 + 2 + 2 + 1 + 1 + 2) * channels
        outputs += (2 + 2 + 1 + 1) * channels
    if hidden:
        matrices += 2 * channels * hidden + _SPATIAL_WEIGHTS
        vectors += hidden + channels
    matrices += channels * wide + wide * narrow + narrow * network.classes
    vectors += wide + narrow + network.classes
    if precision == "float16":
        outputs = 0
    size = _itemsize(precision)
    # The stem of float8 is FP16.
    stem *= size if precision == "int8" else _HALF
    return stem + size * quantised + _HALF * matrices + _FLOAT * (vectors + outputs)


def _itemsize(precision: str) -> int:
    return _HALF if precision == "float16" else 1


def _weights(conv: Conv) -> int:
    return conv.taps**2 * conv.cin * conv.cout


def _rounded(value: int, unit: int) -> int:
    return -(-value // unit) * unit
