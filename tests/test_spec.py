"""The specs: round trips through JSON, and every value that has to be refused by name."""

from __future__ import annotations

import dataclasses
import json

import pytest

from tkfnet_engine.errors import UsageError
from tkfnet_engine.spec import CROPS, INPUT_SIZE, LABELS, PRECISIONS, Preprocessing, TKFNetConfig

SPECS = [
    TKFNetConfig(),
    TKFNetConfig("resnet50", 0.25, "nearest", False, True, 2),
    TKFNetConfig("resnet34", width=4, dcif=False, classes=1000),
    Preprocessing(),
    Preprocessing(size=96, mean=(0.5, 0.25, 0), std=(1, 0.5, 0.25)),
    *(Preprocessing(crop=crop) for crop in CROPS),
]


def test_the_facts():
    assert LABELS == ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")
    assert INPUT_SIZE == 224 and PRECISIONS == ("float32", "float16", "int8", "float8")
    assert CROPS == ("given", "margin", "five-point")
    facts = Preprocessing()
    assert (facts.size, facts.color, facts.crop) == (224, "RGB", "given")
    assert (facts.mean, facts.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert TKFNetConfig() == TKFNetConfig("resnet18", 1.0, "max", True, True, 7)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_round_trip_through_json(spec):
    facts = spec.to_dict()
    again = type(spec).from_dict(json.loads(json.dumps(facts, allow_nan=False)))
    assert again == spec and hash(again) == hash(spec)
    assert again.to_dict() == facts


def test_specs_are_frozen():
    for spec in (TKFNetConfig(), Preprocessing()):
        with pytest.raises(dataclasses.FrozenInstanceError):
            spec.width = 2


@pytest.mark.parametrize("spec", [TKFNetConfig(), Preprocessing()], ids=lambda s: type(s).__name__)
def test_keys(spec):
    facts, what = spec.to_dict(), type(spec).__name__
    with pytest.raises(UsageError, match=rf"{what}: unknown fields \['later'\], missing fields \[\].*another version"):
        type(spec).from_dict({**facts, "later": 1})
    for key in facts:
        with pytest.raises(UsageError, match=rf"unknown fields \[\], missing fields \['{key}'\]"):
            type(spec).from_dict({k: v for k, v in facts.items() if k != key})
    for other in (None, [], "x", 3, [facts]):
        with pytest.raises(UsageError, match=f"{what}: got .*, expected an object"):
            type(spec).from_dict(other)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("backbone", 18), ("backbone", None), ("backbone", ["resnet18"]), ("width", "1"), ("width", None),
        ("width", True), ("width", float("nan")), ("width", float("inf")), ("width", -float("inf")), ("width", 10**400),
        ("width", [1.0]), ("pool", 1), ("tafe", 1), ("tafe", "true"), ("dcif", 0), ("dcif", None),
        ("classes", 7.0), ("classes", True),
        ("classes", "7"), ("classes", None),
    ],
    ids=lambda v: str(v)[:12],
)  # fmt: skip
def test_config_types(key, value):
    with pytest.raises(UsageError, match=rf"TKFNetConfig\.{key}: got .*, expected"):
        TKFNetConfig.from_dict({**TKFNetConfig().to_dict(), key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [("size", 224.0), ("size", True), ("size", "224"), ("mean", 0.5), ("mean", None), ("mean", {"r": 1}),
     ("mean", "abc"), ("mean", [0.5, 0.5, "x"]), ("mean", [0.5, 0.5, True]), ("std", [1, 1, float("nan")]),
     ("std", [[1], 1, 1]),
     ("std", [1, 1, 10**400]), ("color", 3), ("resize", None), ("crop", False)],
    ids=lambda v: str(v)[:20],
)  # fmt: skip
def test_preprocessing_types(key, value):
    with pytest.raises(UsageError, match=rf"Preprocessing\.{key}: got .*, expected"):
        Preprocessing.from_dict({**Preprocessing().to_dict(), key: value})


@pytest.mark.parametrize(
    "change",
    [{"backbone": "resnet101"}, {"backbone": ""}, {"pool": "avg"}, {"width": 0.06}, {"width": 4.01}, {"width": 0},
     {"width": -1}, {"width": float("nan")}, {"classes": 1}, {"classes": 1001}, {"classes": -7}],
    ids=str,
)  # fmt: skip
def test_config_ranges(change):
    (key,) = change
    with pytest.raises(UsageError, match=f"{key}: got .*expected"):
        TKFNetConfig(**change)


@pytest.mark.parametrize(
    "change",
    [{"size": 31}, {"size": 481}, {"size": 0}, {"size": -224}, {"color": "BGR"}, {"resize": "bilinear"},
     {"crop": "detected"}, {"crop": ""}, {"crop": "Margin"},
     {"mean": (0.5, 0.5)}, {"mean": ()}, {"std": (1.0,) * 4}, {"std": (1, 1, 0)},
     {"std": (1, -1, 1)}],
    ids=str,
)  # fmt: skip
def test_preprocessing_ranges(change):
    with pytest.raises(UsageError, match=r"Preprocessing.*got .*expected"):
        Preprocessing(**change)


def test_limits_are_allowed():
    for change in ({"width": 0.0625}, {"width": 4}, {"classes": 2}, {"classes": 1000}):
        TKFNetConfig(**change)
    for size in (32, 480):
        Preprocessing(size=size)


def test_integers_are_taken_where_floats_are_expected():
    width = TKFNetConfig.from_dict({**TKFNetConfig().to_dict(), "width": 2}).width
    assert width == 2 and type(width) is float
    mean = Preprocessing.from_dict({**Preprocessing().to_dict(), "mean": [0, 1, 0.5]}).mean
    assert mean == (0, 1, 0.5) and {type(v) for v in mean} == {float}


@pytest.mark.parametrize(
    ("width", "expected"), [(1, (64, 512)), (0.5, (32, 256)), (0.125, (8, 64)), (0.0625, (8, 32)), (1.1, (72, 560))]
)
def test_scaled_channels(width, expected):
    config = TKFNetConfig(width=width)
    assert (config.scaled(64), config.features) == expected
    assert TKFNetConfig("resnet50", width=width).features == 4 * expected[1]
