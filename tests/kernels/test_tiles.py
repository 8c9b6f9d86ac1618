"""Tiles: what may be chosen, what is chosen, and the table of measured ones."""

from __future__ import annotations

import dataclasses
import json

import pytest

from tkfnet_engine.errors import UsageError
from tkfnet_engine.kernels import tiles
from tkfnet_engine.kernels.chips import ARCHS
from tkfnet_engine.kernels.tile_table import PATH, Measured, TileTable
from tkfnet_engine.kernels.tiles import Product, Tile, candidates, choose_tile, ranked_candidates

LAYER4 = Product("conv", 49, 512, 512, 9)
LAYER1 = Product("conv", 256 * 3136, 64, 64, 9)
MEASURED = Measured("Chip", "13.0", "2026-01-02", "3.6.0")
TILE = Tile(128, 32, 64, 2, 8, 3)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("precision", ["float16", "int8"])
@pytest.mark.parametrize(
    "product",
    [
        LAYER4, LAYER1, Product("split", 64, 1024, 512, 1), Product("conv", 9, 8, 8, 9),
        Product("conv", 49, 512, 512, 9, extra=256), Product("merge", 64, 512, 512, 1, 1024),
    ],
)  # fmt: skip
def test_every_candidate_fits_the_chip(product, arch, precision):
    product = dataclasses.replace(product, precision=precision)
    size = 2 if precision == "float16" else 1
    rows = 64 if product.kind in ("split", "merge") else None
    found = list(candidates(product, arch, rows))
    assert found and len(set(found)) == len(found)
    for tile in found:
        # What is multiplied by its gate comes in FP16 and is quantised then.
        of_row = 2 if product.kind == "merge" else size
        held = tile.stages * (of_row * tile.block_m + size * tile.block_n) * tile.block_k
        assert held <= ARCHS[arch].shared_per_block
        assert tile.stages >= 2 and 32 * tile.warps <= 512
        assert tile.block_k * size >= 32 and tile.block_m >= 64 and tile.block_n >= 32
        # 64 accumulators a thread, four times as many in TAFE's split, twice beside a shortcut rounded by itself.
        sums = 4 if product.kind == "split" else 2 if product.separate else 1
        assert tile.block_m * tile.block_n * sums <= 64 * 32 * tile.warps
        assert tile.split == 1 or product.steps(tile.block_k) / tile.split > 1
        assert rows is None or tile.block_m == rows


def test_a_small_batch_is_split_and_a_large_one_is_not():
    assert choose_tile(LAYER4, "sm_90").split >= 8
    large = choose_tile(dataclasses.replace(LAYER4, m=49 * 256), "sm_90")
    assert large.split == 1 and large.block_m * large.block_n >= 128 * 128


def test_the_parts_of_a_split_stay_in_half_of_l2():
    for tile in candidates(dataclasses.replace(LAYER4, m=49 * 256), "sm_90"):
        parts = 4 * tile.split * -(-49 * 256 // tile.block_m) * tile.block_m * 512
        assert tile.split == 1 or parts <= 25 * 2**20


def test_ranking_is_by_cost_and_repeatable():
    ranked = ranked_candidates(LAYER4, "sm_90")
    costs = [tiles.cost(LAYER4, tile, "sm_90") for tile in ranked]
    assert costs == sorted(costs) and ranked == ranked_candidates(LAYER4, "sm_90")
    assert ranked[0] == choose_tile(LAYER4, "sm_90")


def test_steps_count_taps_and_the_second_operand():
    assert Product("conv", 1, 1, 64, 9).steps(64) == 9
    assert Product("conv", 1, 1, 40, 9, extra=65).steps(32) == 9 * 2 + 3


def test_a_rounded_shortcut_is_computed_once():
    """By the program that ends a tile: splitting makes only the other steps fewer."""
    product = Product("conv", 49, 512, 512, 9, extra=256, precision="int8")
    assert product.separate and product.steps(128) == 36 and product.steps(128, split=8) == 5
    assert dataclasses.replace(product, precision="float16").steps(128, split=2) == 19
    assert not dataclasses.replace(product, kind="merge").separate
    tile = Tile(64, 32, 128, 8, 4, 3)
    assert tiles.cost(product, tile, "sm_90") > tiles.cost(dataclasses.replace(product, extra=0), tile, "sm_90")


@pytest.mark.parametrize("precision", ["int8", "float8"])
@pytest.mark.parametrize("m", [49, 49 * 256])
def test_eight_bits_cost_less(precision, m):
    half = dataclasses.replace(LAYER4, m=m)
    eight = dataclasses.replace(half, precision=precision)
    assert eight.key == half.key  # tables tell them apart by the precision beside it
    tile = choose_tile(eight, "sm_90")
    assert tile.block_k == 128 and choose_tile(half, "sm_90").block_k == 64
    costs = [tiles.cost(p, choose_tile(p, "sm_90"), "sm_90") for p in (eight, half)]
    assert costs[0] < (0.95 if m == 49 else 0.65) * costs[1]
    # FP8 sums twice, int8 converts its sum: the largest tiles would not stay in registers.
    assert max(t.block_m * t.block_n for t in candidates(eight, "sm_90")) == 128 * 128


def test_keys_tell_products_apart():
    products = [LAYER4, dataclasses.replace(LAYER4, residual=True), dataclasses.replace(LAYER4, extra=256)]
    products += [dataclasses.replace(LAYER4, **{name: 1}) for name in ("m", "n", "channels", "taps")]
    assert len({product.key for product in products}) == len(products)


@pytest.fixture
def table(tmp_path, monkeypatch):
    found = TileTable.read(tmp_path / "tiles.json", MEASURED)
    monkeypatch.setattr(tiles, "_table", lambda: found)
    return found


def test_a_measured_tile_wins_where_it_was_measured(table):
    before = choose_tile(LAYER4, "sm_80")
    table.put(LAYER4.key, "float16", "sm_90", TILE, 1.5)
    assert choose_tile(LAYER4, "sm_90") == TILE
    assert choose_tile(LAYER4, "sm_80") == before
    # Nor is it measured for other operands.
    assert choose_tile(dataclasses.replace(LAYER4, precision="int8"), "sm_90") != TILE
    # A kernel that needs tiles of other rows does not take it.
    assert choose_tile(LAYER4, "sm_90", rows=64).block_m == 64


def test_the_table_is_read_as_it_was_written(table):
    table.put("b", "float16", "sm_90", TILE, 1.23456)
    table.put("a", "float16", "sm_90", TILE, 2.0)
    table.put("a", "float16", "sm_90", dataclasses.replace(TILE, split=4), 1.0)
    text = table.to_json()
    table.path.write_bytes(text)
    again = TileTable.read(table.path)
    assert again.get("a", "float16", "sm_90").split == 4 and again.get("b", "float16", "sm_90") == TILE
    assert again.get("a", "float16", "sm_80") is None and not again.has("c", "float16", "sm_90")
    assert again.to_json() == text
    entry = json.loads(text)["tiles"][1]
    assert entry["us"] == 1.235 and (entry["chip"], entry["date"]) == ("Chip", "2026-01-02")
    # One entry a line, in order.
    assert [json.loads(line.rstrip(","))["product"] for line in text.decode().splitlines()[1:-1]] == ["a", "b"]


@pytest.mark.parametrize("text", ["", "[]", '{"format": 2, "tiles": []}', '{"format": 1, "tiles": [{"product": "a"}]}'])
def test_another_table_is_refused(tmp_path, text):
    path = tmp_path / "tiles.json"
    path.write_text(text)
    with pytest.raises(UsageError, match="tile table"):
        TileTable.read(path)


def test_the_committed_table_says_where_it_was_measured():
    """Empty until somebody measures; then every entry names a chip and a date, and is a tile that compiles there."""
    for entry in json.loads(PATH.read_text())["tiles"]:
        assert entry["chip"] and entry["date"] and entry["us"] > 0 and entry["arch"] in ARCHS
