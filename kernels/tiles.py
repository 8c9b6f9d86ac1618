"""Which tile each product gets: a measured one where `tiles.json` has it, else the least by a cost model.

`tiles.json` is written by `python -m tkfnet_engine.tune` on a GPU; the model below only has to be reasonable there
where nobody has measured yet.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import astuple, dataclass

from .chips import ARCHS, CHIPS, default_chip
from .tile_table import Tile, TileTable

# tl.dot of Triton reduces over at least so many bytes.
LEAST_K_BYTES = 32
# Bytes of shared memory that the compiler keeps for itself, reductions and layout changes (seen: up to 1 KiB).
RESERVED_SHARED = 2048


@dataclass(frozen=True)
class Product:
    """A product [m, taps * channels + extra] x [.., n]; `kind` names the kernel family that computes it.

    extra: channels of a second operand that joins the sum (a projected shortcut). residual: a map is added in the end.
    precision: of the operands, "float16", "int8" or "float8".
    """

    kind: str
    m: int
    n: int
    channels: int
    taps: int
    extra: int = 0
    residual: bool = False
    precision: str = "float16"

    @property
    def itemsize(self) -> int:
        """Bytes of an operand's element."""
        return 2 if self.precision == "float16" else 1

    @property
    def least_k(self) -> int:
        return LEAST_K_BYTES // self.itemsize

    @property
    def separate(self) -> bool:
        """Whether the second operand has a sum of its own, which the program that ends a tile computes alone."""
        return self.kind == "conv" and self.extra > 0 and self.precision != "float16"

    def steps(self, block_k: int, split: int = 1) -> int:
        """K-steps that a program of `split` has at most, but for those of a separate second operand."""
        extra = 0 if self.separate else self.extra
        return -(-(self.taps * -(-self.channels // block_k) + -(-extra // block_k)) // split)

    def bytes_per_channel(self, rows: int, columns: int, reuse: int = 1) -> float:
        """What a tile reads of a channel if it reads its rows 1 / reuse times: shared memory holds it all."""
        # One operand of the merge is quantised only as it is loaded.
        of_row = 2 if self.kind == "merge" else self.itemsize
        return of_row * rows / reuse + self.itemsize * columns

    @property
    def key(self) -> str:
        """The shape as `tiles.json` names it."""
        return f"{self.kind}:{self.m}x{self.n}x{self.taps}x{self.channels}+{self.extra}{'r' * self.residual}"


def choose_tile(product: Product, arch: str, rows: int | None = None) -> Tile:
    """The tile of `product` on `arch`. rows: block_m, where the kernel needs a certain one."""
    measured = _table().get(product.key, product.precision, arch)
    if measured is not None and rows in (None, measured.block_m):
        return measured
    return ranked_candidates(product, arch, rows)[0]


def ranked_candidates(product: Product, arch: str, rows: int | None = None) -> list[Tile]:
    """All candidates, the cheapest by the model first; equal costs in the same order everywhere."""
    return sorted(candidates(product, arch, rows), key=lambda tile: (cost(product, tile, arch), astuple(tile)))


@functools.lru_cache(maxsize=1)
def _table() -> TileTable:
    return TileTable.read()


def candidates(product: Product, arch: str, rows: int | None = None) -> Iterator[Tile]:
    """Tiles that `arch` can hold and that `product` can use."""
    if product.kind == "stem":
        for strip in (1, 2, 4, 7, 8, 14):
            for block_n in (32, 64) if product.n > 32 else (32,):
                yield Tile(strip * 64, block_n, 64, split=1, warps=8 if block_n > 32 else 4, stages=3)
        return
    block_k = max(product.least_k, min(128 // product.itemsize, power_of_two(product.channels)))
    widest = max(32, power_of_two(product.n))
    # TAFE's split has four accumulators, for the detail. 64 registers of them a thread leave room for the rest.
    accumulators = 4 if product.kind == "split" else 2 if product.separate else 1
    # wgmma leaves registers for the tallest tiles, but not beside the addresses of a projected shortcut; on sm_100
    # Triton uses the tensor memory for 64 or 128 rows only.
    tall = ARCHS[arch].wgmma and product.kind == "conv" and not product.extra
    for block_m in (rows,) if rows else (64, 128, 256) if tall else (64, 128):
        for block_n in (n for n in (32, 64, 128) if n <= widest):
            if block_m * block_n > 256 * 64 and product.itemsize == 1:
                continue  # spills 44 to 588 bytes (layer 2 at batch 32, sm_90): FP8 sums twice, int8 converts its sum
            warps = max(4, accumulators * block_m * block_n // (64 * 32))
            if product.extra and ARCHS[arch].operands_in_registers and block_m * block_n > 64 * 64:
                warps = max(8, warps)
            for split in (1, 2, 4, 8, 16):
                parts = -(-product.m // block_m) * -(-product.n // block_n) * split * block_m * block_n * 4
                if split > 1 and parts > CHIPS[default_chip(arch)].l2_bytes // 2:
                    break  # the parts would leave L2, and cost more than the multiprocessors they fill
                steps = product.steps(block_k, split)
                # A second operand has addresses of its own, which four stages push out of registers.
                step_bytes = int(product.bytes_per_channel(block_m, block_n)) * block_k
                stages = min(3 if product.extra else 4, _stages(step_bytes, steps, arch))
                if stages == 3 and _three_spill(product, block_k, arch):
                    stages = 2
                # An image of more than 128 pixels leaves TAFE's split no smaller tile.
                if warps <= (16 if tall or rows == 256 else 8) and stages and (split == 1 or steps >= 2):
                    yield Tile(block_m, block_n, block_k, split, warps, stages)


def _three_spill(product: Product, block_k: int, arch: str) -> bool:
    """With three K-steps in flight sm_120's assembler keeps some of these to 128 registers a thread and spills 8 to 16
    bytes for it (layers 2 and 3 at batches from 2 on); with two or four it does not."""
    return product.precision == "float8" and arch == "sm_120" and (product.separate or block_k < 128)


def _stages(step_bytes: int, steps: int, arch: str) -> int:
    """K-steps in flight: three or four while two blocks find room on a multiprocessor, else what one block may have."""
    limits = ARCHS[arch]
    for available, least in ((limits.shared_per_sm // 2, 3), (limits.shared_per_block, 2)):
        stages = min(4, max(2, steps), (available - RESERVED_SHARED) // step_bytes)
        if stages >= min(least, steps):
            return max(2, stages)
    return 0


# The model's unit is a clock of one SM. Tensor cores: FP16 multiply-adds per clock and SM, dense, of Hopper; of eight
# bits twice as many. L2: bytes per clock that one SM can draw, and that each gets when all do (5.5 to 6.5 TB/s on
# H100). A 3x3 window finds about two of three pixels in L1.
_FMA, _L2_ALONE, _L2_SHARED, _L1_REUSE = 2048, 64, 28, 3
# A block's start, first loads and epilogue; the barrier and the count of a split tile; and a K-step of a block that is
# alone on its multiprocessor, which waits for L2 with some loads in flight.
_BLOCK, _SPLIT, _STEP = 2000, 450, 256


def cost(product: Product, tile: Tile, arch: str) -> float:
    """Clocks until the last block ends."""
    multiprocessors = CHIPS[default_chip(arch)].multiprocessors
    rows, steps, size = tile.block_m, product.steps(tile.block_k, tile.split), product.itemsize
    if product.separate:
        steps += -(-product.extra // tile.block_k)
    if product.kind == "stem":
        # 2 n + 1 rows of the convolution for n pooled ones, their even and odd columns side by side.
        steps, rows = steps * (2 * tile.block_m // 64 + 1), 2 * 64
    blocks = -(-product.m // tile.block_m) * -(-product.n // tile.block_n) * tile.split
    l2 = _L2_ALONE if blocks <= multiprocessors else _L2_SHARED
    reuse = _L1_REUSE if product.taps > 1 else 1
    fetched = product.bytes_per_channel(rows, tile.block_n, reuse) * tile.block_k
    step = max(rows * tile.block_n * tile.block_k * size / (2 * _FMA), fetched / l2)
    area = tile.block_m * tile.block_n
    # Out, or a part of four bytes out and in again.
    epilogue = (size if tile.split == 1 else 8) * area / l2
    shared = tile.stages * product.bytes_per_channel(rows, tile.block_n) * tile.block_k + RESERVED_SHARED
    resident = 2 if tile.warps <= 8 and 2 * shared <= ARCHS[arch].shared_per_sm else 1
    clocks = -(-blocks // multiprocessors) * (steps * max(step, _STEP) + epilogue)
    clocks += -(-blocks // (multiprocessors * resident)) * _BLOCK
    if tile.split > 1:
        clocks += _SPLIT + tile.split * 4 * area / l2
    return clocks


def power_of_two(n: int) -> int:
    """The least power of two that is at least `n`."""
    return 1 << (n - 1).bit_length()
