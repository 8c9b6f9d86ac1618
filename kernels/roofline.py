"""What a launch could cost at best: how many blocks fit on the chip, and the time that products or memory take.

The floor of a network is what no plan with the same fusions can avoid: of every layer its input, its residual input,
its weights and its output, each once.
"""

from __future__ import annotations

from dataclasses import dataclass

from .chips import Arch, Chip
from .network import STEM_TAPS, Conv, Network

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


def roofline_seconds(chip: Chip, flops: int, nbytes: int) -> float:
    """The longer of the two: all products at the chip's peak, all bytes at its memory's."""
    return max(flops / chip.fp16_flops, nbytes / chip.bandwidth)


def floor_bytes(network: Network, batch: int) -> int:
    """Bytes that `batch` images cannot avoid to move: `image_bytes` of each and `weight_bytes`."""
    return batch * image_bytes(network) + weight_bytes(network)


def image_bytes(network: Network) -> int:
    """Of one image, maps in FP16.

    Fused: normalisation, stem and its maximum; the shortcut and ReLU into each convolution; TAFE into split
    (f -> y, x), detail (y -> h) and merge (x, h -> z) with vectors for statistic and gate; all from z to the logits.
    """
    side = network.pooled_side
    values = side * side * network.stem
    total = 3 * network.size**2 + _HALF * values
    for block in network.blocks:
        entry = values
        for conv in block.convs:
            side = conv.output_side(side)
            read, values = values, side * side * conv.cout
            total += _HALF * (read + values)
        total += _HALF * entry
    if network.pool is not None:
        maps = (1 + 2) + (1 + 2) + (3 + 1)
        total += _HALF * (maps * values + (2 + 2) * network.channels)
    return total + _HALF * values + _FLOAT * network.classes


def weight_bytes(network: Network) -> int:
    """Matrices and filters in FP16, biases and other vectors in float32; of the folded network, nothing padded."""
    channels, hidden, wide, narrow = network.channels, network.hidden, network.wide, network.narrow
    matrices = 3 * STEM_TAPS**2 * network.stem
    vectors = network.stem
    for block in network.blocks:
        for conv in (*block.convs, *([block.project] if block.project else [])):
            matrices += _weights(conv)
        # The shortcut's bias joins the last convolution's.
        vectors += sum(conv.cout for conv in block.convs)
    if network.pool is not None:
        split, detail, gate, merge = 2, 4, 1, 3
        matrices += (split + detail + gate + merge) * channels**2 + 2 * _DEPTHWISE_TAPS * channels
        # Biases of split, depthwise, detail, gate and merge; factors of the maximum and of the variance.
        vectors += (2 + 2 + 2 + 1 + 1 + 2) * channels
    if hidden:
        matrices += 2 * channels * hidden + _SPATIAL_WEIGHTS
        vectors += hidden + channels
    matrices += channels * wide + wide * narrow + narrow * network.classes
    vectors += wide + narrow + network.classes
    return _HALF * matrices + _FLOAT * vectors


def _weights(conv: Conv) -> int:
    return conv.taps**2 * conv.cin * conv.cout


def _rounded(value: int, unit: int) -> int:
    return -(-value // unit) * unit
