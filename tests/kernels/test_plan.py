"""The plan as data: what is written is read again, damage is refused, and no two buffers that live together overlap."""

from __future__ import annotations

import copy
import itertools
import json
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tkfnet_engine.errors import BundleError
from tkfnet_engine.kernels.builder import PlanBuilder
from tkfnet_engine.kernels.plan import ALIGNMENT, BUCKETS, DTYPES, Buffer, Plan, bucket_for, buckets_up_to

FACTS = {"precision": "float16", "arch": "sm_90", "size": 8, "classes": 7}
SHAPE = {"kernel": "k_kernel", "grid": (2, 3, 1), "warps": 4, "stages": 3, "flops": 1, "reads": 2, "writes": 3}


def _plan() -> Plan:
    """Every kind of argument, in three launches."""
    builder = PlanBuilder({"w": Buffer("weights", 256, "f16", 32)}, 512)
    x, y, counters = builder.buffer("f16", 100), builder.buffer("f32", 7), builder.counters(5)
    pixels, logits = Buffer("pixels", 0, "u8", 2 * 8 * 8 * 3), Buffer("logits", 0, "f32", 14)
    builder.launch({"p": pixels, "x": x, "n": -3}, {"BLOCK": 64, "PDL": True}, name="first", loads=9, **SHAPE)
    args = {"x": x, "w": builder.weights["w"], "other": None, "y": y, "counter": counters}
    builder.launch(args, {"SPLIT": 2}, name="second", loads=9, **SHAPE)
    builder.launch({"y": y, "logits": logits}, {}, name="third", loads=9, **SHAPE)
    return builder.finish(batch=2, **FACTS)


def _chain(sizes: list[int]) -> Plan:
    """Each launch reads the buffer that the one before it wrote."""
    builder = PlanBuilder({}, 1)
    buffers = [builder.buffer("f16", n) for n in sizes]
    for x, y in itertools.pairwise(buffers):
        builder.launch({"x": x, "y": y}, {}, name="n", loads=0, **SHAPE)
    return builder.finish(batch=1, **FACTS)


# --- form ------------------------------------------------------------------------------------------------


def test_what_is_written_is_read_again():
    plan = _plan()
    data = plan.to_json()
    assert Plan.from_json(data) == plan and Plan.from_json(data).to_json() == data
    assert Plan.from_json(memoryview(data)) == plan  # as a mapped file gives it
    first, second, third = Plan.from_json(data).launches
    assert first.args[-1] == ("n", -3) and first.constexprs == (("BLOCK", 64), ("PDL", True))
    assert second.constexprs == (("other", None), ("SPLIT", 2)) and "other" not in dict(second.args)
    assert second.signature == (("x", "*fp16"), ("w", "*fp16"), ("y", "*fp32"), ("counter", "*i32"))
    assert first.signature == (("p", "*u8"), ("x", "*fp16"), ("n", "i32"))
    assert third.blocks == 6 and third.bytes == 5
    assert (plan.flops, plan.bytes) == (3, 15)


def test_equal_plans_give_equal_bytes():
    assert _plan().to_json() == _plan().to_json()
    assert json.loads(_plan().to_json()) and b" " not in _plan().to_json()


def test_a_variant_is_what_the_code_depends_on():
    first = _plan().launches[0]
    changed = copy.copy(vars(first))

    def variant(**changes):
        return type(first)(**changed | changes).variant

    assert first.variant == variant() and first.variant.startswith("k_kernel-")
    # Not on what a launch is called, how large it is or where its memory lies.
    moved = tuple((n, Buffer("arena", 512, v.dtype, 1) if isinstance(v, Buffer) else 5) for n, v in first.args)
    assert first.variant == variant(name="else", grid=(1, 1, 1), flops=0, reads=0, writes=0, loads=0, args=moved)
    others = [
        variant(kernel="j_kernel"), variant(warps=8), variant(stages=2), variant(constexprs=()),
        variant(constexprs=(("BLOCK", 32), ("PDL", True))), variant(constexprs=(("BLOCK", 64), ("PDL", 1))),
        variant(args=first.args[:2]), variant(args=(("p", Buffer("arena", 0, "i8", 1)), *first.args[1:])),
    ]  # fmt: skip
    assert len({first.variant, *others}) == 1 + len(others)


def test_bytes_of_a_space():
    plan = _plan()
    assert plan.nbytes("pixels") == 2 * 8 * 8 * 3 and plan.nbytes("logits") == 2 * 7 * 4
    assert plan.nbytes("weights") == 512 and plan.nbytes("arena") == 512 and plan.nbytes("counters") == 256
    assert {dtype: Buffer("arena", 0, dtype, 3).nbytes for dtype in DTYPES} == {
        "u8": 3, "i8": 3, "f8": 3, "f16": 6, "i32": 12, "f32": 12
    }  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_compiler_may_contract_where_nothing_is_quantised(dtype):
    first = _plan().launches[0]
    args = (("p", Buffer("arena", 0, dtype, 1)), *first.args[1:])
    launch = type(first)(**vars(first) | {"args": args})
    assert launch.quantised == (dtype in ("i8", "f8")) and launch.fp_fusion == (dtype not in ("i8", "f8"))
    assert launch.signature[0] == ("p", {"f8": "*fp8e4nv", "i8": "*i8"}.get(dtype, f"*{DTYPES[dtype][1]}"))


# --- damage ----------------------------------------------------------------------------------------------

WHOLE = {
    "nothing": b"",
    "text": b"plan",
    "half": _plan().to_json()[:-9],
    "not-utf8": b'{"format":"\xff"}',
    "list": b"[]",
    "null": b"null",
    "nested": b'{"format":' + b"[" * 100_000,
    "twice": _plan().to_json()[:-1] + b',"format":1}',
    "not-finite": _plan().to_json().replace(b'"flops":1', b'"flops":NaN'),
    "a-long-number": _plan().to_json().replace(b'"flops":1', b'"flops":' + b"1" * 40),
    "a-mark": b"\xef\xbb\xbf" + _plan().to_json(),
}

# Where -> values that must not stand there. "a" is the first launch's list of arguments.
FIELDS = {
    "format": [0, 2, "1", None, True, 1.0],
    "batch": [0, -1, 1.0, True, "2", None, 2**63, float("nan")],
    "size": [0, 8.0, None],
    "classes": [0, True],
    "weight_bytes": [0, -256],
    "arena_bytes": [-1, 0, 256, 283, 0.5],
    "counter_bytes": [-1, 0, 19],
    "arch": [90, None, ["sm_90"]],
    "precision": [16, None],
    "launches": [[], None, {}, [1], [[]], 3],
}
LAUNCH = {
    "name": [None, 3, ["n"]],
    "kernel": [None, "", "a b", "../k", "k-1", 7, "k\u00e9", "\uff4b"],
    "grid": [[2, 3], [2, 3, 1, 1], [0, 3, 1], [2, 65536, 1], [2, 3, 65536], [2**31, 1, 1], [2.0, 3, 1], [True, 3, 1],
             6, None, {"2": 3}],
    "warps": [0, 3, 64, -4, "4", None, 4.0, True],
    "stages": [0, 11, -1, "3", None, 3.0, True],
    "flops": [-1, 1.5, None, float("inf")],
    "reads": [-1, "2"],
    "writes": [-1, False],
    "loads": [-1, None],
    "constexprs": [None, [["A"]], [[1, 2]], [["A", 1, 2]], [["A", []]], [["A", {}]], [["A", float("nan")]], {}, "",
                   [["\u00c5", 1]], [["A", 2**63]], [["A", -(2**63) - 1]], [["A", 1.0]], [["A", "1"]]],
    "args": [None, [["n"]], [["n", 1, 2]], [[1, 2]], [["n", None]], [["n", "x"]], [["n", 1.5]], [["n", True]],
             [["n", 2**31]], [["n", -(2**31) - 1]], [["n", [1]]], [["\u00f1", 1]], {}, ""],
}  # fmt: skip
BUFFER = {
    "space": ["heap", None, 3, ["arena"]],
    "offset": [-256, 1, 128, 256, 2**62, 0.0, True, None],
    "dtype": ["f64", "", None, 2],
    "count": [0, -1, 385, 2**62, 1.0, True, None],
}
DAMAGE = {
    **{f"{k}={v!r}": ((k,), v) for k, values in FIELDS.items() for v in values},
    **{f"launch.{k}={v!r}": (("launches", 0, k), v) for k, values in LAUNCH.items() for v in values},
    **{f"buffer.{k}={v!r}": (("launches", 0, "args", 0, 1, k), v) for k, values in BUFFER.items() for v in values},
    **{f"added to {where}": ((*where, "more"), 1) for where in ((), ("launches", 0), ("launches", 0, "args", 0, 1))},
}


@pytest.mark.parametrize("data", WHOLE.values(), ids=WHOLE)
def test_what_is_no_plan_is_refused(data):
    with pytest.raises(BundleError, match="launch plan") as refusal:
        Plan.from_json(data)
    assert refusal.value.code == "plan" and "build the engine again" in str(refusal.value)


@pytest.mark.parametrize(("path", "value"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_refused(path, value):
    fields = json.loads(_plan().to_json())
    *parents, last = path
    at = fields
    for step in parents:
        at = at[step]
    at[last] = value
    with pytest.raises(BundleError, match="launch plan"):
        Plan.from_json(json.dumps(fields).encode())


@pytest.mark.parametrize("where", ["plan", "launch", "buffer"])
def test_a_missing_field_is_refused(where):
    sound = json.loads(_plan().to_json())
    names = {"plan": sound, "launch": sound["launches"][0], "buffer": sound["launches"][0]["args"][0][1]}[where]
    for name in names:
        fields = json.loads(_plan().to_json())
        at = {"plan": fields, "launch": fields["launches"][0], "buffer": fields["launches"][0]["args"][0][1]}[where]
        del at[name]
        with pytest.raises(BundleError, match="launch plan"):
            Plan.from_json(json.dumps(fields).encode())


def test_constants_of_64_bits_are_read():
    fields = json.loads(_plan().to_json())
    edges = [["A", 2**63 - 1], ["B", -(2**63)], ["C", False], ["D", None]]
    fields["launches"][0]["constexprs"] = edges
    assert Plan.from_json(json.dumps(fields).encode()).launches[0].constexprs == tuple(map(tuple, edges))


def test_a_builder_refuses_what_a_reader_would():
    builder = PlanBuilder({}, 1)
    builder.launch({"x": Buffer("pixels", 0, "u8", 193)}, {}, name="n", loads=0, **SHAPE)
    with pytest.raises(ValueError, match="not within its space"):
        builder.finish(batch=1, **FACTS)


# --- memory ----------------------------------------------------------------------------------------------

SIZES = st.one_of(st.integers(1, 2000), st.sampled_from([64, 127, 128, 129, 256, 100_000]))


@st.composite
def _schedules(draw):
    """(dtype, count, is a counter) of each buffer, and which of them each launch names."""
    kinds = st.tuples(st.sampled_from(sorted(DTYPES)), SIZES, st.booleans())
    buffers = draw(st.lists(kinds, min_size=1, max_size=12))
    names = st.lists(st.integers(0, len(buffers) - 1), max_size=4, unique=True)
    return buffers, draw(st.lists(names, min_size=1, max_size=15))


@settings(max_examples=300, deadline=None)
@given(_schedules())
def test_buffers_that_live_together_never_overlap(schedule):
    buffers, launches = schedule
    builder = PlanBuilder({}, 1)
    handles = [builder.counters(n) if counter else builder.buffer(dtype, n) for dtype, n, counter in buffers]
    for named in launches:
        builder.launch({f"b{i}": handles[i] for i in named}, {}, name="n", loads=0, **SHAPE)
    plan = builder.finish(batch=1, **FACTS)
    placed: dict[int, Buffer] = {}
    for launch, named in zip(plan.launches, launches, strict=True):
        for i in named:
            buffer = dict(launch.args)[f"b{i}"]
            assert placed.setdefault(i, buffer) == buffer  # one place for all its life
    for i, buffer in placed.items():
        dtype, count, counter = buffers[i]
        assert (buffer.space, buffer.dtype) == (("counters", "i32") if counter else ("arena", dtype))
        assert buffer.count == count and buffer.offset % ALIGNMENT == 0
        assert buffer.offset >= 0 and buffer.offset + buffer.nbytes <= plan.nbytes(buffer.space)
    alive = {i: [n for n, named in enumerate(launches) if i in named] for i in placed}
    for i, j in itertools.combinations(placed, 2):
        a, b = placed[i], placed[j]
        together = alive[i][0] <= alive[j][-1] and alive[j][0] <= alive[i][-1]
        # A launch that resets its counter late must not reset another's: counters never share.
        if a.space == b.space and (together or a.space == "counters"):
            assert a.offset + a.nbytes <= b.offset or b.offset + b.nbytes <= a.offset
    assert plan.arena_bytes <= sum(-(-b.nbytes // ALIGNMENT) * ALIGNMENT for b in placed.values() if b.space == "arena")
    assert Plan.from_json(plan.to_json()) == plan


def test_the_arena_is_used_again():
    assert _chain([1000] * 10).arena_bytes == 2 * 2048
    # Falling maps, as a backbone has: the first two decide.
    assert _chain([4096, 2048, 2048, 1024, 1024, 512]).arena_bytes == 2 * (4096 + 2048)
    assert _chain([512, 1024, 1024, 2048, 2048, 4096]).arena_bytes == 2 * (4096 + 2048)


def test_counters_are_added_up():
    builder = PlanBuilder({}, 1)
    for _ in range(3):
        builder.launch({"c": builder.counters(65)}, {}, name="n", loads=0, **SHAPE)
    plan = builder.finish(batch=1, **FACTS)
    assert plan.counter_bytes == 3 * 512 and plan.arena_bytes == 0
    assert [dict(launch.args)["c"].offset for launch in plan.launches] == [0, 512, 1024]


def test_a_buffer_that_nobody_names_takes_nothing():
    builder = PlanBuilder({}, 1)
    builder.buffer("f32", 10**6)
    builder.launch({"x": builder.buffer("f16", 1)}, {}, name="n", loads=0, **SHAPE)
    assert builder.finish(batch=1, **FACTS).arena_bytes == 256


# --- buckets ---------------------------------------------------------------------------------------------


def test_buckets():
    assert buckets_up_to(1) == (1,) and buckets_up_to(256) == BUCKETS
    assert buckets_up_to(3) == (1, 2, 3) and buckets_up_to(32) == (1, 2, 4, 8, 16, 32)
    assert buckets_up_to(300) == (*BUCKETS, 300)


@given(st.integers(1, 1000), st.data())
def test_a_bucket_holds_its_images_and_the_one_below_does_not(max_batch, data):
    images = data.draw(st.integers(1, max_batch))
    buckets = buckets_up_to(max_batch)
    assert list(buckets) == sorted(set(buckets)) and buckets[-1] == max_batch
    chosen = bucket_for(images, buckets)
    assert chosen >= images and all(b < images for b in buckets if b < chosen)


# --- real plans ------------------------------------------------------------------------------------------

_OF_A_NETWORK = """
import hashlib
from tkfnet_engine.kernels.planner import plan_from_network
from tkfnet_engine.plan_report import network_of_config
from tkfnet_engine.spec import Preprocessing, TKFNetConfig
network = network_of_config(TKFNetConfig(), Preprocessing())
for arch in ("sm_80", "sm_90", "sm_120"):
    for batch in (1, 3, 256):
        print(hashlib.sha256(plan_from_network(network, batch, "float16", arch).to_json()).hexdigest())
"""


def test_plans_are_the_same_in_every_process_and_folder(tmp_path):
    def digests(seed, folder):
        done = subprocess.run(
            [sys.executable, "-c", _OF_A_NETWORK],
            cwd=folder,
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    first = digests("1", tmp_path)
    assert len(set(first)) == 9 and first == digests("2", "/")
