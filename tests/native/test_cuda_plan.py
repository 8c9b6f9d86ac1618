"""Launch plans, kernel indexes and golden answers: the C++ readers take, refuse and judge as the Python ones do."""

from __future__ import annotations

import copy
import json
import random
import re
from pathlib import Path

import pytest

from tkfnet_engine.errors import BundleError
from tkfnet_engine.kernels.chips import ARCHS
from tkfnet_engine.kernels.cubin_index import index_from_json
from tkfnet_engine.kernels.plan import SPACES, Buffer, Plan, buckets_up_to
from tkfnet_engine.kernels.planner import plan_from_network
from tkfnet_engine.plan_report import network_of_config
from tkfnet_engine.spec import Preprocessing, TKFNetConfig

from .cuda_engines import fused_parts

HERE = Path(__file__).parent
PRECISIONS = ("float16", "int8", "float8")


@pytest.fixture(scope="module")
def parts(native_build):
    """parts("plan", lines): what the program prints for each line."""
    return lambda what, lines: fused_parts(native_build, what, lines)


def shown(plan: Plan) -> dict:
    """As fused_parts.cpp shows it."""

    def argument(name, value):
        if isinstance(value, Buffer):
            return [SPACES.index(value.space), value.offset]
        return ["images", value] if name == "images" else value

    def launch(one):
        arguments = [argument(*pair) for pair in one.args]
        return [one.variant, list(one.grid), one.warps, ("PDL", True) in one.constexprs, arguments]

    return {
        "batch": plan.batch,
        "size": plan.size,
        "classes": plan.classes,
        "precision": plan.precision,
        "arch": plan.arch,
        "bytes": [min(plan.nbytes(space), 2**64 - 1) for space in SPACES],
        "launches": [launch(one) for one in plan.launches],
    }


def real_plans(**config) -> list[Plan]:
    size = config.pop("size", 224)
    network = network_of_config(TKFNetConfig(**config), Preprocessing(size=size))
    return [
        plan_from_network(network, batch, precision, arch.name)
        for arch in ARCHS.values()
        for precision in PRECISIONS
        if arch.fp8 or precision != "float8"
        for batch in buckets_up_to(256)
    ]


def test_every_plan_is_read_and_each_kernel_named_as_in_python(parts):
    plans = real_plans()
    assert {p.arch for p in plans} == set(ARCHS) and len(plans) == 144
    for plan, answer in zip(plans, parts("plan", [p.to_json().hex() for p in plans])):
        assert json.loads(answer) == shown(plan), (plan.arch, plan.precision, plan.batch)


# --- what is refused -------------------------------------------------------------------------------------


def taken(data: bytes) -> Plan | None:
    """The plan, if Python takes it."""
    try:
        return Plan.from_json(data)
    except BundleError:
        return None


def changed_tree(rng: random.Random, tree: dict) -> None:
    """One change somewhere in it."""
    parent, key, value = None, None, tree
    while isinstance(value, (dict, list)) and value and (parent is None or rng.random() < 0.85):
        parent, key = value, rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
        value = parent[key]
    other = rng.choice([None, True, False, 0, 1, -1, 3, 256, 2**31 - 1, 2**31, -(2**31), -(2**31) - 1, 65535, 65536,
                        2**62, 2**62 + 1, 2**63, 2**64, 10**30, 0.5, 1.0, "", "x", "ab", "\u00e9", "\U0001f600",
                        "\"\\\n\x7f",
                        [], {}, [1], ["a", 1], {"a": 1}, copy.deepcopy(value)])  # fmt: skip
    kind = rng.randrange(8)
    if kind < 3 and type(value) is int:
        parent[key] = rng.choice(
            [value + 1, value - 1, value * 2, value + 256, value - 256, -value, value * 1.0, value + 4]
        )
    elif kind == 3 and isinstance(parent, dict):
        del parent[key]
    elif kind == 4 and isinstance(parent, dict):
        parent[rng.choice(["more", "stages", "images", ""])] = parent.pop(key) if rng.random() < 0.5 else other
    elif kind == 5 and isinstance(parent, list):
        parent.insert(key, copy.deepcopy(value)) if rng.random() < 0.5 else parent.pop(key)
    else:
        parent[key] = other


def mutated(rng: random.Random, plan: bytes) -> bytes:
    if rng.random() < 0.7:
        tree = json.loads(plan)
        for _ in range(rng.choice([1, 1, 1, 2])):
            changed_tree(rng, tree)
        return json.dumps(tree, ensure_ascii=rng.random() < 0.5).encode()
    data = bytearray(plan)
    at = rng.randrange(len(data))
    kind = rng.randrange(5)
    if kind == 0:
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del data[at : at + rng.randint(1, 4)]
    elif kind == 2:
        data[at:at] = rng.choice(
            [b" ", b"0", b"-", b"1e0", b"NaN", b"null", b",", b'"', b"{", b"]", b"\\ud800", b"\xff"]
        )
    elif kind == 3:  # other digits
        found = rng.choice(list(re.finditer(rb"\d+", plan)))
        data[found.start() : found.end()] = rng.choice(
            [b"-0", b"00", b"1.0", b"1e2", b"9" * 33, b"4294967296", b"true"]
        )
    else:  # a key twice
        found = rng.choice(list(re.finditer(rb'"\w+":', plan)))
        data[found.start() : found.start()] = found.group() + b"1,"
    return bytes(data)


def test_plans_are_taken_and_refused_as_by_python(parts):
    """Real plans, cut to a few launches so that many changes can be tried."""
    rng = random.Random(7)
    originals = []
    for plan in rng.sample(real_plans(width=0.125, size=64), 12):
        launches = [plan.launches[0], *rng.sample(plan.launches[1:], 2)]
        tree = json.loads(plan.to_json())
        tree["launches"] = [one for one in tree["launches"] if one["name"] in {launch.name for launch in launches}]
        originals.append(json.dumps(tree, sort_keys=True, separators=(",", ":")).encode())
    mutants = [mutated(rng, rng.choice(originals)) for _ in range(4000)]
    good = 0
    for mutant, answer in zip(mutants, parts("plan", [m.hex() for m in mutants])):
        found, plan = json.loads(answer), taken(mutant)
        if plan is None:
            assert found.get("code") == "plan" and "build the engine again" in found["refused"], (mutant, found)
        else:
            assert found == shown(plan), mutant
            good += 1
    assert 400 < good < 3600


def with_launch(tree: dict, **changes) -> bytes:
    tree = copy.deepcopy(tree)
    tree["launches"][0].update(changes)
    return json.dumps(tree).encode()


def test_limits_are_exact(parts):
    (plan, *_) = real_plans(width=0.125, size=64)
    tree = json.loads(plan.to_json())
    tree["launches"] = tree["launches"][:1]
    room = tree["weight_bytes"]

    def buffer(**changes):
        value = {"space": "weights", "offset": 0, "dtype": "f32", "count": 1} | changes
        return with_launch(tree, args=[["a", value]])

    last = room // 256 * 256
    cases = {
        "whole space": (buffer(dtype="u8", count=room), True),
        "one byte more": (buffer(dtype="u8", count=room + 1), False),
        "behind the start": (buffer(offset=256, dtype="u8", count=room - 256), True),
        "over the end": (buffer(offset=256, dtype="u8", count=room - 255), False),
        "unaligned": (buffer(offset=128), False),
        "at the end": (buffer(offset=last, dtype="u8", count=1), last < room),
        "wraps around in 64 bits": (buffer(offset=256, count=2**62), False),
        "wraps around to little": (buffer(offset=2**62, dtype="i32", count=3 * 2**60), False),
        "count 0": (buffer(count=0), False),
        "another space": (buffer(space="stack"), False),
        "another dtype": (buffer(dtype="f64"), False),
        "grid at its limit": (with_launch(tree, grid=[2**31 - 1, 65535, 65535]), True),
        "grid beyond": (with_launch(tree, grid=[2**31, 1, 1]), False),
        "grid y beyond": (with_launch(tree, grid=[1, 65536, 1]), False),
        "grid of two": (with_launch(tree, grid=[1, 1]), False),
        "warps 32": (with_launch(tree, warps=32), True),
        "warps 64": (with_launch(tree, warps=64), False),
        "warps 3": (with_launch(tree, warps=3), False),
        "stages 11": (with_launch(tree, stages=11), False),
        "int32 at its limits": (with_launch(tree, args=[["a", 2**31 - 1], ["b", -(2**31)]]), True),
        "int32 beyond": (with_launch(tree, args=[["a", 2**31]]), False),
        "any constant": (with_launch(tree, constexprs=[["A", -(2**63)], ["B", None], ["C", True]]), True),
        "a constant beyond 64 bits": (with_launch(tree, constexprs=[["A", 2**63]]), False),
        "a constant with a point": (with_launch(tree, constexprs=[["A", 1.0]]), False),
        "dependent by a number": (with_launch(tree, constexprs=[["PDL", 1]]), True),
        "not dependent": (with_launch(tree, constexprs=[["PDL", 2]]), True),
        "a kernel named 1a": (with_launch(tree, kernel="1a"), False),
        "a name of any text": (with_launch(tree, name="\x00\"\U0001f600", args=[["\x00\"\x7f\\", 1]]), True),
        "a parameter beyond ASCII": (with_launch(tree, args=[["\u00e9", 1]]), False),
        "no launches": (json.dumps(tree | {"launches": []}).encode(), False),
        "batch 0": (json.dumps(tree | {"batch": 0}).encode(), False),
        "a batch that no memory holds": (json.dumps(tree | {"batch": 2**62, "size": 2**62}).encode(), True),
        "format 2": (json.dumps(tree | {"format": 2}).encode(), False),
        "an array": (b"[1]", False),
        "nothing": (b"", False),
    }  # fmt: skip
    answers = parts("plan", [data.hex() for data, _ in cases.values()])
    for (name, (data, good)), answer in zip(cases.items(), answers):
        plan = taken(data)
        assert (plan is not None) == good, name
        found = json.loads(answer)
        assert found == shown(plan) if good else found.get("code") == "plan", (name, found)


KERNEL = {"entry": "k", "registers": 9, "shared_bytes": 1024, "tensor_core": {}}
INDEX = {"driver": 12080, "cubins": {"k-1": KERNEL, "j-2": KERNEL | {"shared_bytes": 2**30}}}


def with_kernel(**changes) -> str:
    return json.dumps(INDEX | {"cubins": {"k-1": {k: v for k, v in (KERNEL | changes).items() if v is not ...}}})


@pytest.mark.parametrize(
    ("text", "good"),
    [
        (json.dumps(INDEX), True),
        (json.dumps(INDEX | {"more": 1}), True),
        (json.dumps(INDEX | {"cubins": {}}), True),
        (json.dumps(INDEX | {"driver": "12080"}), False),
        (json.dumps(INDEX | {"driver": -1}), False),
        (json.dumps(INDEX | {"driver": 2**31}), False),
        (json.dumps(INDEX | {"driver": True}), False),
        (json.dumps(INDEX | {"cubins": []}), False),
        (json.dumps(INDEX | {"cubins": {"k": None}}), False),
        (with_kernel(shared_bytes=...), False),
        (with_kernel(registers=...), False),
        (with_kernel(entry=1), False),
        (with_kernel(entry="a/b"), False),
        (with_kernel(entry="\u00e9"), False),
        (with_kernel(entry="a\0"), False),
        (with_kernel(registers=-1), False),
        (with_kernel(registers=1.0), False),
        (with_kernel(shared_bytes=-1), False),
        (with_kernel(shared_bytes=2**30 + 1), False),
        (with_kernel(shared_bytes=0), True),
        ('{"cubins": {}}', False),
        ('{"driver": 1}', False),
        ('{"driver": 1, "driver": 2, "cubins": {}}', False),
        ("[]", False),
        ("{", False),
    ],
)
def test_an_index_of_kernels_is_read_or_refused_as_by_python(text, good, parts):
    (answer,) = parts("index", [text.encode().hex()])
    found = json.loads(answer)
    try:
        index = index_from_json(text.encode())
    except BundleError:
        assert not good and found["code"] == "cubins" and "index of kernels is damaged" in found["refused"]
    else:
        cubins = sorted((name, about["entry"], about["shared_bytes"]) for name, about in index["cubins"].items())
        assert good and found == {"driver": index["driver"], "cubins": [list(one) for one in cubins]}
