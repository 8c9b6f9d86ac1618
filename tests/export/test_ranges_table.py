"""The calibration table: its file is strict and small, and refused when changed, stale or of something else."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tkfnet_engine.errors import UsageError
from tkfnet_engine.export.calibration_table import CalibrationData, CalibrationTable, read_table, short
from tkfnet_engine.export.histogram import Histogram
from tkfnet_engine.export.ranges_from_data import range_of_histogram
from tkfnet_engine.export.scales_from_histogram import KINDS, METHODS
from tkfnet_engine.kernels.network import network_of
from tkfnet_engine.kernels.placement import placement_of
from tkfnet_engine.model.equalise import Shifts
from tkfnet_engine.model.fold import fold
from tkfnet_engine.model.net import TKFNet
from tkfnet_engine.spec import LABELS, Preprocessing, TKFNetConfig
from tkfnet_engine.strict_json import canonical

SHA256 = hashlib.sha256(b"checkpoint").hexdigest()
DATA = CalibrationData(
    "faces-train", hashlib.sha256(b"").hexdigest(), 134, dict.fromkeys(LABELS, 19) | {"fear": 20}, ("odd",)
)
# An eighth of the width: 64 channels.
SHIFTS = Shifts(tuple(range(-8, 9)) + (0,) * 47, (1,) * 64)


def _network(**changes):
    return network_of(fold(TKFNet(TKFNetConfig(width=0.125, **changes)), Preprocessing(size=64)))


@pytest.fixture(scope="module")
def network():
    return _network()


@pytest.fixture(scope="module")
def table(network):
    points = {}
    for number, point in enumerate(placement_of(network).points):
        values = torch.randn(3000, generator=torch.Generator().manual_seed(number)) * (number + 0.3)
        histogram = Histogram(point.name)
        histogram.add(values.relu() if point.positive else values + 0.1)
        points[point.name] = range_of_histogram(point, histogram)
    return CalibrationTable(SHA256, Preprocessing(size=64), DATA, SHIFTS, points)


def _sealed(content: dict) -> str:
    """With a digest that fits, as one who knows how would write it."""
    rest = {k: v for k, v in content.items() if k != "digest"}
    return json.dumps(rest | {"digest": hashlib.sha256(canonical(rest).encode()).hexdigest()})


def _leaves(value, path=()):
    if isinstance(value, (dict, list)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(inner, (*path, key))
    else:
        yield path


def _changed(content: dict, path: tuple, value) -> dict:
    content = copy.deepcopy(content)
    place = content
    for key in path[:-1]:
        place = place[key]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return content


# --- the file ----------------------------------------------------------------------------------------------


def test_the_file_comes_back_equal(table, tmp_path):
    text = table.to_json()
    assert CalibrationTable.from_json(text) == table and CalibrationTable.from_json(text.encode()).to_json() == text
    (tmp_path / "t.json").write_text(text)
    assert read_table(tmp_path / "t.json") == table
    # Spaces and the order of the keys are nobody's business.
    assert CalibrationTable.from_json(json.dumps(json.loads(text), sort_keys=True)) == table


def test_the_file_is_small_and_readable(table, network):
    text = table.to_json()
    names = [point.name for point in placement_of(network).points]
    assert [point["name"] for point in json.loads(text)["points"]] == names == list(table.points)
    assert len(text) < 1000 * len(names) and text.count("\n") < 60 + 4 * len(names)
    assert max(map(len, text.splitlines())) < 240 and text.endswith("}\n") and "0000000" not in text
    assert json.loads(text) == table.to_dict() and json.loads(text)["digest"] == table.digest


def test_floats_are_short_and_exactly_those_of_float32():
    draw = np.random.default_rng(0)
    for value in draw.integers(0, 0x7F800000, 2000, dtype=np.uint32).view(np.float32):
        found = short(float(value))
        assert np.float32(found) == value and found == float(f"{found:.9g}")


def test_what_backends_read(table):
    for kind in KINDS:
        scales = table.scales(kind)
        assert list(scales) == list(table.points)
        assert all(
            scale == float(np.float32(scale)) == table.points[p].scales[kind].scale for p, scale in scales.items()
        )
    for name, found in table.points.items():
        scale, zero_point = table.affine(name)
        assert scale == table.scales("uint8")[name] and (zero_point == 0) == (found.minimum >= 0)
    with pytest.raises(UsageError, match="got kind 'int4', expected one of int8, uint8, float8"):
        table.scales("int4")
    with pytest.raises(UsageError, match=r"got no point 'layer9\.0', expected one of stem\.output, layer1\.0, "):
        table.affine("layer9.0")


# --- changed -----------------------------------------------------------------------------------------------


def test_a_change_of_any_value_is_refused(table):
    content = json.loads(table.to_json())
    # Of the points, which are alike, the first and the last.
    content["points"] = [content["points"][0], content["points"][-1]]
    content = json.loads(_sealed(content))
    assert CalibrationTable.from_json(json.dumps(content)).points.keys() <= table.points.keys()
    leaves = list(_leaves(content))
    assert len(leaves) > 2 * len(KINDS) * len(METHODS)
    for path in leaves:
        value = content
        for key in path:
            value = value[key]
        other = (
            value + "0" if isinstance(value, str) else value * 1.001 + 1e-9 if isinstance(value, float) else value + 1
        )
        for change in (other, ...):
            with pytest.raises(UsageError):
                CalibrationTable.from_json(json.dumps(_changed(content, path, change)))
    with pytest.raises(UsageError, match="does not match its digest"):
        CalibrationTable.from_json(json.dumps(_changed(content, ("points", 0, "int8", "scale"), 0.5)))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.floats(0, 1, exclude_max=True), put=st.characters(codec="utf-8"))
def test_a_change_of_any_character_is_refused_or_changes_nothing(table, at, put):
    text = table.to_json()
    place = int(at * len(text))
    text = text[:place] + put + text[place + 1 :]
    with suppress(UsageError):
        assert CalibrationTable.from_json(text) == table


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("format",), "tkfnet-checkpoint", "the format: got tkfnet-checkpoint, expected 'tkfnet-calibration'"),
        (("format",), ..., "the format: got None"),
        (("format_version",), 2, "format_version: got 2, expected 1"),
        (("format_version",), True, "format_version: got True"),
        (("extra",), 1, "the file: got unknown fields ['extra'], missing fields []"),
        (("checkpoint",), ..., "missing fields ['checkpoint']"),
        (("checkpoint",), "ABC", "checkpoint: got ABC, expected 64 hexadecimal digits"),
        (("preprocessing", "size"), 16, "Preprocessing.size: got 16"),
        (("preprocessing", "more"), 16, "unknown fields ['more']"),
        (("data",), [], "data: got [], expected an object"),
        (("data", "fingerprint"), 5, "data.fingerprint: got 5"),
        (("data", "images"), 0, "data.images: got 0, expected a whole number from 1"),
        (("data", "images"), 135, "data.classes: got 134 images, expected 135"),
        (("data", "images"), 134.0, "data.images: got 134.0"),
        (("data", "classes", "fear"), -1, "data.classes: got -1"),
        (("data", "classes", "joy"), 1, "data.classes: got unknown fields ['joy']"),
        (("data", "name"), "", "data.name: got , expected a name"),
        (("data", "warnings"), [1], "data.warnings: got [1]"),
        (("equalisation",), ..., "missing fields ['equalisation']"),
        (("equalisation", "gated"), ..., "equalisation: got unknown fields [], missing fields ['gated']"),
        (("equalisation", "gated"), 3, "equalisation.gated: got 3, expected a list of whole numbers"),
        (("equalisation", "gated", 0), -9, "equalisation.gated: got -9, expected a whole number from -8 to 8"),
        (("equalisation", "statistics", 0), 1.0, "equalisation.statistics: got 1.0, expected a whole number"),
        (("points",), [], "points: got [], expected a list"),
        (("points",), {}, "points: got {}, expected a list"),
        (("points", 0), "layer1.0", "points[0]: got layer1.0, expected an object"),
        (("points", 0, "name"), "layer1.1", "points: got"),
        (("points", 0, "name"), None, "points[0].name: got None"),
        (("points", 0, "count"), 0, "stem.output.count: got 0"),
        (("points", 0, "minimum"), 1e9, "stem.output.maximum: got"),
        (("points", 0, "int8"), ..., "points[0]: got unknown fields [], missing fields ['int8']"),
        (("points", 0, "int8", "scale"), 0.0, "stem.output.int8.scale: got 0.0"),
        (("points", 0, "int8", "scale"), -0.1, "stem.output.int8.scale: got -0.1"),
        (("points", 0, "int8", "scale"), 1e-60, "stem.output.int8.scale: got 0.0"),
        (("points", 0, "int8", "scale"), 1e60, "stem.output.int8.scale: got inf"),
        (("points", 0, "int8", "scale"), 1, "stem.output.int8.scale: got 1, expected a number"),
        (("points", 0, "int8", "scale"), "0.1", "stem.output.int8.scale: got 0.1"),
        (("points", 0, "int8", "zero_point"), 0, "stem.output.int8: got unknown fields ['zero_point']"),
        (("points", 0, "uint8", "zero_point"), 256, "stem.output.uint8.zero_point: got 256"),
        (("points", 0, "uint8", "zero_point"), ..., "missing fields ['zero_point']"),
        (("points", 0, "float8", "method"), "best", "stem.output.float8.method: got best, expected one of max, "),
        (("points", 0, "float8", "sqnr_db", "mse"), 201.0, "stem.output.float8.sqnr_db: got 201.0"),
        (("points", 0, "float8", "sqnr_db", "max"), ..., "missing fields ['max']"),
    ],
)
def test_another_form_is_refused_though_its_digest_fits(table, path, value, message):
    content = json.loads(table.to_json())
    with pytest.raises(UsageError) as error:
        CalibrationTable.from_json(_sealed(_changed(content, path, value)), "t.json")
    assert str(error.value).startswith("t.json: ") and message in str(error.value)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"images": 134', '"images": 134, "images": 134'),
        ('"images": 134', '"images": NaN'),
        ('"count": 3000', '"count": 1e999'),
        ('"tkfnet-calibration"', '"\\ud800"'),
        ("\n}\n", "\n"),
        ("{\n", "["),
    ],
)
def test_what_is_not_strict_json_is_refused(table, old, new):
    text = table.to_json()
    assert old in text
    with pytest.raises(UsageError, match=r"t\.json: got .*; it is no calibration table: make it with"):
        CalibrationTable.from_json(text.replace(old, new, 1), "t.json")


@pytest.mark.parametrize("text", ["", "3", "[]", "null", '{"format": ["tkfnet-calibration"]}', "\x00", b"\xff\xfe"])
def test_what_is_no_table_at_all(text):
    with pytest.raises(UsageError, match="calibrat"):
        CalibrationTable.from_json(text)


def test_a_file_that_cannot_be_read(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"none\.json: cannot be read \(No such file or directory\)"):
        read_table(tmp_path / "none.json")
    with pytest.raises(UsageError, match=r"cannot be read \(a folder, not a file\)"):
        read_table(tmp_path)
    monkeypatch.setattr("tkfnet_engine.export.calibration_table.MAX_BYTES", 10)
    (tmp_path / "long.json").write_text(" " * 11)
    with pytest.raises(UsageError, match="got more than 10 bytes"):
        read_table(tmp_path / "long.json")


# --- stale -------------------------------------------------------------------------------------------------


def test_a_table_of_this_network_is_taken(table, network):
    table.check(SHA256, Preprocessing(size=64), network)


def test_a_table_of_another_checkpoint_is_refused(table, network):
    with pytest.raises(
        UsageError, match=rf"{SHA256[:12]}\.\., expected one of {'0' * 12}\.\.; make it with .* for this"
    ):
        table.check("0" * 64, Preprocessing(size=64), network)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 96}, r"size 64 \(expected 96\)"),
        ({"mean": (0.5, 0.5, 0.5)}, "mean"),
        ({"std": (1.0, 1.0, 1.0)}, "std"),
    ],
)
def test_a_table_of_another_preprocessing_is_refused(table, network, change, message):
    with pytest.raises(UsageError, match=f"another preprocessing: {message}.*make it with"):
        table.check(SHA256, dataclasses.replace(Preprocessing(size=64), **change), network)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "resnet34"}, r"missing layer1\.2, [^,]+, [^,]+ and [0-9]+ more; unknown none"),
        ({"backbone": "resnet50"}, r"missing layer1\.0\.conv3, .*; unknown none"),
        ({"tafe": False}, r"missing none; unknown tafe\.detail, .* and 5 more"),
    ],
)
def test_a_table_of_other_points_is_refused(table, changes, message):
    with pytest.raises(
        UsageError, match=rf"got {len(table.points)} points, expected the network's [0-9]+ .*\({message}\)"
    ):
        table.check(SHA256, Preprocessing(size=64), _network(**changes))


def test_a_table_that_shifts_another_width_is_refused(table, network):
    for shifts in (Shifts(SHIFTS.gated[1:], SHIFTS.statistics), Shifts(SHIFTS.gated, (1,) * 65), Shifts()):
        with pytest.raises(UsageError, match=r"equalisation: got [0-9]+ and [0-9]+ shifts, expected 64 of each"):
            dataclasses.replace(table, shifts=shifts).check(SHA256, Preprocessing(size=64), network)


def test_a_missing_an_unknown_and_a_misplaced_point_are_refused(table, network):
    names = list(table.points)
    for order, message in (
        (names[:-1], "missing tafe.merge.output; unknown none"),
        ([*names[:-1], "x"], "missing tafe.merge.output; unknown x"),
        (names[1:] + names[:1], "missing none; unknown none"),
    ):
        points = {name: table.points.get(name, table.points[names[0]]) for name in order}
        with pytest.raises(UsageError, match=message):
            dataclasses.replace(table, points=points).check(SHA256, Preprocessing(size=64), network)


def test_a_point_behind_a_relu_has_no_zero_point(table, network):
    signed = table.points["tafe.detail"]
    with pytest.raises(UsageError, match=r"layer1\.0: got values below zero, expected none after a ReLU"):
        dataclasses.replace(table, points={**table.points, "layer1.0": signed}).check(
            SHA256, Preprocessing(size=64), network
        )
