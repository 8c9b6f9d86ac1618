"""The facts that an engine cannot run without: libtkfnet demands what the Python engine demands."""

from __future__ import annotations

import copy
import json
import random
from contextlib import suppress
from typing import Any

import pytest

from tkfnet_engine.backends.registry import BACKENDS
from tkfnet_engine.bundle import write_bundle
from tkfnet_engine.spec import CROPS, PRECISIONS, TKFNetConfig

from ..engine_files import OURS, craft
from .readers import ask, pythons_facts, without_messages
from .standins import engine_facts

INT8 = engine_facts(precision="int8", quantisation={"weight_bits": 8})


def many(count: int) -> dict:
    return engine_facts(model={**TKFNetConfig().to_dict(), "classes": count}, labels=[f"{i}" for i in range(count)])


def changed(facts: dict, path: str, value: Any) -> dict:
    """`facts` with another value at a path such as "model.width"; ... removes it."""
    facts = copy.deepcopy(facts)
    *folders, name = path.split(".")
    inner = facts
    for folder in folders:
        inner = inner[folder]
    if value is ...:
        del inner[name]
    else:
        inner[name] = value
    return facts


SOUND = {
    "plain": engine_facts(),
    "two-classes": many(2),
    "thousand-classes": many(1000),
    "same-label-twice": engine_facts(labels=["x"] * 7),
    "labels-of-any-text": engine_facts(labels=["", " ", "\u00e9\U0001f600", "\n", "\x01", "\u2028", '"\\']),
    "more-facts": engine_facts(archs=["sm_90"], choice=None, quantisation=[1], unknown={"a": [1.5]}),
    "largest-batch": engine_facts(max_batch=65536),
    "one-image": engine_facts(max_batch=1),
    "int8": INT8,
    "seven-bits": changed(INT8, "quantisation.weight_bits", 7),
    "bits-of-float-are-not-looked-at": engine_facts(quantisation={"weight_bits": 3}),
    "whole-width": changed(engine_facts(), "model.width", 1),
    "widths": changed(engine_facts(), "model.width", 0.0625),
    "wide": changed(engine_facts(), "model.width", 4),
    "whole-means": changed(engine_facts(), "preprocessing.mean", [0, -1, 10**31]),
    "large-deviation": changed(engine_facts(), "preprocessing.std", [1, 10**31, 5e-324]),
    **{f"size-{n}": changed(engine_facts(), "preprocessing.size", n) for n in (32, 480)},
    **{f"backend-{name}": engine_facts(backend=name) for name in BACKENDS},
    **{f"precision-{name}": {**INT8, "precision": name} for name in PRECISIONS},
    **{f"backbone-{n}": changed(engine_facts(), "model.backbone", n) for n in TKFNetConfig.BACKBONES},
    **{f"pool-{n}": changed(engine_facts(), "model.pool", n) for n in TKFNetConfig.POOLS},
    **{f"crop-{n}": changed(engine_facts(), "preprocessing.crop", n) for n in CROPS},
}
UNSOUND = {
    **{f"{path} {value!r}"[:60]: changed(engine_facts(), path, value) for path, values in {
        "labels": (..., None, "surprise", [], ["a"] * 6, ["a"] * 8, ["a"] * 6 + [1], ["a"] * 6 + ["a\0b"], {"a": 1}),
        "backend": (..., None, 1, "", "cuda", "Openvino", "openvino\0", ["openvino"], "tensorrt_rtx"),
        "device": (..., None, "auto", "cpu ", "gpu", ["cpu"], 0),
        "precision": (..., None, "bfloat16", "float", "int4", True, ["int8"]),
        "max_batch": (..., None, 0, -1, 65537, 2**63, 2**64, 10**30, 1.0, 4.5, True, "4", [4]),
        "model": (..., None, [], "resnet18", {}, 1),
        "model.backbone": (..., None, "resnet101", 18, ["resnet18"]),
        "model.width": (..., None, 0, 0.06, 4.0001, 5, -1, 2**64, 10**30, True, "1", [1.0]),
        "model.pool": (..., None, "average", 1),
        "model.tafe": (..., None, 1, 0, "true", 1.0),
        "model.dcif": (..., None, 1, "false"),
        "model.classes": (..., None, 1, 0, -7, 6, 8, 7.0, True, "7", 1001, 1025, 2**64),
        "model.more": (1,),
        "preprocessing": (..., None, [], {}),
        "preprocessing.size": (..., None, 31, 481, 224.0, "224", True, -32, 2**64),
        "preprocessing.color": (..., None, "BGR", "rgb", 1),
        "preprocessing.mean": (..., None, 0.5, [], [0.5] * 2, [0.5] * 4, ["0", 0, 0], [True, 0, 0], [[0], 0, 0], {}),
        "preprocessing.std": (..., None, [0.0, 1, 1], [1, -1, 1], [1, 1, 0], [1, 1, -0.0], [1, 1], [1, 1, -(10**30)]),
        "preprocessing.resize": (..., None, "bilinear", "nearest"),
        "preprocessing.crop": (..., None, "detected", "five_point", ["margin"]),
        "preprocessing.more": (None,),
    }.items() for value in values},
    **{f"int8 {value!r}": {**INT8, "quantisation": value} for value in (
        None, 8, [], {}, {"weight_bits": 6}, {"weight_bits": 9}, {"weight_bits": 8.0}, {"weight_bits": True},
        {"weight_bits": "8"}, {"weight_bits": None}, {"weight_bits": 2**64}, [{"weight_bits": 8}],
    )},
    "int8 ...": engine_facts(precision="int8"),
    "one class": many(1),
    "too many": many(1001),
    "nothing": {},
}  # fmt: skip


def verdicts(native_build, folder, cases: list[dict]) -> list[tuple[dict, dict]]:
    """What Python and C++ say of each."""
    paths = [folder / f"{i}.tkf" for i in range(len(cases))]
    for path, facts in zip(paths, cases):
        path.write_bytes(craft(facts=json.dumps({**facts, **OURS})))
    both = []
    for path, facts, answer in zip(paths, cases, ask(native_build, paths), strict=True):
        answer.pop("memory")
        both.append((pythons_facts(path, json.loads(json.dumps(facts))), without_messages(answer, str(path))["facts"]))
    return both


@pytest.mark.parametrize(("cases", "code"), [(SOUND, "ok"), (UNSOUND, "facts")], ids=["sound", "unsound"])
def test_each_fact(native_build, tmp_path, cases, code):
    for name, (python, native) in zip(cases, verdicts(native_build, tmp_path, list(cases.values())), strict=True):
        assert native == python and python["code"] == code, name


LEAVES = [None, True, 0, 1, 7, 8, 2**63, 0.5, 1.0, "", "cpu", "float32", "int8", "max", "fused", [], {}, ["a"]]


def test_random_facts(native_build, tmp_path):
    """One to three changes anywhere: the value of another engine, of another fact, or of another type."""
    rng = random.Random(4)
    engines = list(SOUND.values())

    def change(facts: dict) -> dict:
        places = [*facts, *(f"{f}.{name}" for f in ("model", "preprocessing") for name in facts[f])]
        for path in rng.sample(places, rng.randint(1, 3)):
            other = rng.choice(engines)
            for name in path.split("."):
                other = other.get(name)
            value = rng.choice([..., *LEAVES]) if rng.random() < 0.2 else other
            with suppress(KeyError, TypeError):  # inside of what is gone
                facts = changed(facts, path, value)
        return facts

    cases = [change(rng.choice(engines)) for _ in range(4000)]
    codes = {"ok": 0, "facts": 0}
    for case, (python, native) in zip(cases, verdicts(native_build, tmp_path, cases), strict=True):
        assert native == python, case
        codes[native["code"]] += 1
    assert min(codes.values()) > 100, codes


def test_what_a_refusal_says(native_build, tmp_path):
    write_bundle(tmp_path / "e.tkf", {}, engine_facts(device="gpu", max_batch=0))
    [answer] = ask(native_build, [tmp_path / "e.tkf"])
    message = answer["facts"]["message"]
    assert "device, max_batch mean nothing to this version" in message and "build it again" in message
    assert "labels" not in message and answer["facts"]["status"] == 2
