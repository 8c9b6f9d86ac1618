"""Which tile each product gets: a measured one where `tiles.json` has it, else the least by a cost model.

`tiles.json` is written by `python -m tkfnet_engine.tune` on a GPU; the model below only has to be reasonable there
where nobody has measured yet.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from .chips import ARCHS, CHIPS, default_chip

TABLE = Path(__file__).with_name("tiles.json")
# tl.dot of Triton reduces over at least so many channels.
LEAST_K = 16
# Bytes of shared memory that the compiler keeps for itself, reductions and layout changes (seen in cubins: up to 1 KiB).
RESERVED_SHARED = 2048


@dataclass(frozen=True)
class Product:
    """A product [m, taps * channels + extra] x [.., n]; `kind` names the kernel family that computes it.

    extra: channels of a second operand that joins the sum (a projected shortcut).
    """

    kind: str
    m: int
    n: int
    channels: int
    taps: int
    extra: int = 0

    def steps(self, block_k: int) -> int:
        return self.taps * -(-self.channels // block_k) + -(-self.extra // block_k)

    @property
    def key(self) -> str:
        """The shape as `tiles.json` names it."""
        return f"{self.kind}:{self.m}x{self.n}x{self.taps}x{self.channels}+{self.extra}"


@dataclass(frozen=True)
class Tile:
    """block_m x block_n of the output per program, block_k channels per step, `split` programs per tile."""

    block_m: int
    block_n: int
    block_k: int
    split: int
    warps: int
    stages: int


def choose_tile(product: Product, precision: str, arch: str, rows: int | None = None) -> Tile:
    """The tile of `product` on `arch`. rows: block_m, where the kernel needs a certain one."""
    measured = _table().get((product.key, precision, arch))
    if measured is not None and rows in (None, measured.block_m):
        return measured
    return min(candidates(product, arch, rows), key=lambda tile: (cost(product, tile, arch), astuple_key(tile)))


def astuple_key(tile: Tile) -> tuple[int, ...]:
    """Breaks a tie between equal costs, the same way everywhere."""
    return tuple(asdict(tile).values())


def candidates(product: Product, arch: str, rows: int | None = None) -> Iterator[Tile]:
    """Tiles that `arch` can hold and that `product` can use."""
    if product.kind == "stem":
        for strip in (1, 2, 4, 7, 8, 14):
            for block_n in (32, 64) if product.n > 32 else (32,):
                yield Tile(strip * 64, block_n, 32, split=1, warps=8 if block_n > 32 else 4, stages=3)
        return
    block_k = max(LEAST_K, min(64, _power_of_two(product.channels)))
    widest = max(32, _power_of_two(product.n))
    for block_m in (rows,) if rows else (64, 128):
        for block_n in (n for n in (32, 64, 128) if n <= widest):
            # TAFE's split keeps four accumulators, for the detail; one of 64 registers a thread leaves room for the rest.
            accumulators = 4 if product.kind == "split" else 1
            warps = 8 if accumulators * block_m * block_n > 64 * 128 else 4
            if accumulators * block_m * block_n > 128 * 256:
                continue
            for split in (1, 2, 4, 8, 16):
                steps = -(-product.steps(block_k) // split)
                stages = _stages(2 * (block_m + block_n) * block_k, steps, arch)
                if stages and (split == 1 or steps >= 2):
                    yield Tile(block_m, block_n, block_k, split, warps, stages)


def _stages(step_bytes: int, steps: int, arch: str) -> int:
    """K-steps in flight: up to four, while two blocks find room on a multiprocessor, else what one block may have."""
    limits = ARCHS[arch]
    for available in (limits.shared_per_sm // 2, limits.shared_per_block):
        stages = min(4, max(2, steps), (available - RESERVED_SHARED) // step_bytes)
        if stages >= 2:
            return stages
    return 0


# The model's unit is a clock of one SM. Tensor cores: FP16 multiply-adds per clock and SM, dense, of Hopper; what
# matters is the ratio to the 64 bytes per clock that an SM draws from L2.
_FMA, _L2 = 2048, 64
# A block's start, first loads and epilogue; one round of "write my part, count, maybe read all parts"; and a K-step of
# a block that is alone on its multiprocessor, which waits for L2 with some loads in flight.
_BLOCK, _SPLIT, _STEP = 2000, 600, 256
_BLOCKS_PER_SM = 2


def cost(product: Product, tile: Tile, arch: str) -> float:
    """Clocks until the last block ends."""
    multiprocessors = CHIPS[default_chip(arch)].multiprocessors
    rows = tile.block_m
    steps = -(-product.steps(tile.block_k) // tile.split)
    if product.kind == "stem":
        # 2 n + 1 rows of the convolution for n pooled ones, their even and odd columns side by side.
        steps, rows = steps * (2 * tile.block_m // 64 + 1), 2 * 64
    blocks = -(-product.m // tile.block_m) * -(-product.n // tile.block_n) * tile.split
    step = max(rows * tile.block_n * tile.block_k / _FMA, 2 * (rows + tile.block_n) * tile.block_k / _L2)
    area = tile.block_m * tile.block_n
    clocks = -(-blocks // multiprocessors) * (steps * max(step, _STEP) + 2 * area / _L2)
    clocks += -(-blocks // (multiprocessors * _BLOCKS_PER_SM)) * _BLOCK
    if tile.split > 1:
        clocks += _SPLIT + (1 + tile.split) * 4 * area / _L2
    return clocks


def _power_of_two(n: int) -> int:
    """The least power of two that is at least `n`."""
    return 1 << (n - 1).bit_length()


@functools.lru_cache(maxsize=1)
def _table() -> dict[tuple[str, str, str], Tile]:
    """`tiles.json`: (product, precision, arch) -> tile."""
    entries = json.loads(TABLE.read_text(encoding="utf-8"))["tiles"]
    return {(e["product"], e["precision"], e["arch"]): Tile(**e["tile"]) for e in entries}
