"""What a TensorRT plan says of itself against the machine: pure functions, no GPU and no TensorRT."""

from __future__ import annotations

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest

from tkfnet_engine.backends.trt_compatibility import (
    Here,
    PlanFacts,
    check_compatible,
    known_capabilities,
    rebuild_command,
)
from tkfnet_engine.errors import BackendError, BundleError

FACTS = {
    "backend": "tensorrt",
    "max_batch": 8,
    "hardware": {"machine": "x86_64"},
    "tensorrt": {
        "version": "10.3.0",
        "driver": 12040,
        "gpu": "NVIDIA A10",
        "capability": "8.6",
        "capabilities": ["8.6"],
        "profiles": [{"min": 1, "opt": 4, "max": 8}] * 2,
        "options": {"version_compatible": False, "hardware_compatible": False},
    },
}
HERE = Here("10.3.0", "x86_64", "NVIDIA A10", (8, 6), 12040, None)
REBUILD = "python -m tkfnet_engine.build --from 'my engine.tkf' --out NEW.tkf"


def plan(**options: bool) -> PlanFacts:
    return replace(PlanFacts.from_facts(FACTS), **options)


def test_the_machine_that_built_it_runs_it():
    check_compatible(plan(), HERE, REBUILD)
    check_compatible(plan(), replace(HERE, driver=13000, gpu="another"), REBUILD)
    check_compatible(replace(plan(), driver=None, gpu=None), replace(HERE, driver=11080), REBUILD)


@pytest.mark.parametrize(
    ("here", "words"),
    [
        ({"version": "10.3.1"}, "TensorRT 10.3.0 built it, and 10.3.1 is installed"),
        ({"machine": "aarch64"}, "built on x86_64, and this machine is aarch64"),
        (
            {"capability": (8, 9), "gpu": "NVIDIA L4"},
            "for compute capability 8.6 (NVIDIA A10), and NVIDIA L4 has compute capability 8.9",
        ),
        ({"driver": 12020}, "a driver for CUDA 12.4, and the one here is for 12.2"),
    ],
)
def test_a_mismatch_names_both_sides_and_the_command(here, words):
    with pytest.raises(BackendError) as caught:
        check_compatible(plan(), replace(HERE, **here), REBUILD)
    assert words in str(caught.value) and f"`{REBUILD}`" in str(caught.value) and "\n" not in str(caught.value)
    assert str(caught.value).count(";") == 1


def test_all_mismatches_stand_in_one_message():
    other = Here("11.0.0", "aarch64", "Thor", (11, 0), 12020, None)
    with pytest.raises(BackendError) as caught:
        check_compatible(plan(), other, REBUILD)
    assert str(caught.value).count(";") == 4
    assert all(word in str(caught.value) for word in ("11.0.0", "aarch64", "Thor", "12.2"))


@pytest.mark.parametrize(
    ("version", "fits"),
    [
        *(("10.3.0", True), ("10.3.0.26", True), ("10.13.2", True), ("11.0.0", True), ("11.9.1", True)),
        *(("10.2.9", False), ("12.0.0", False), ("9.99.0", False)),
    ],
)
def test_a_version_compatible_plan_runs_up_to_the_next_major_version(version, fits):
    _fits(plan(version_compatible=True), replace(HERE, version=version), fits)


@pytest.mark.parametrize(("capability", "fits"), [((8, 0), True), ((9, 0), True), ((12, 1), True), ((7, 5), False)])
def test_a_hardware_compatible_plan_runs_from_8_0_on(capability, fits):
    _fits(plan(hardware_compatible=True), replace(HERE, capability=capability), fits)


def test_a_plan_for_an_older_gpu_is_compatible_with_no_other():
    _fits(plan(hardware_compatible=True, capabilities=((7, 5),)), HERE, False)


def _fits(wanted: PlanFacts, here: Here, fits: bool) -> None:
    if fits:
        check_compatible(wanted, here, REBUILD)
    else:
        with pytest.raises(BackendError, match="does not fit this machine"):
            check_compatible(wanted, here, REBUILD)


def test_a_gpu_that_the_library_does_not_know_gets_the_alternatives():
    hopper = replace(HERE, gpu="NVIDIA H200", capability=(9, 0), known=((8, 6), (12, 0)))
    rtx = PlanFacts.from_facts(FACTS | {"backend": "tensorrt-rtx"})
    # Building it again would not help, whatever else is wrong.
    with pytest.raises(BackendError) as caught:
        check_compatible(rtx, replace(hopper, version="0"), REBUILD)
    text = str(caught.value)
    assert text.startswith("NVIDIA H200 has compute capability 9.0, which TensorRT for RTX 0 does not support")
    assert "(it supports 8.6, 12.0)" in text and "--backend fused" in text and "--backend tensorrt" in text
    assert REBUILD not in text


def test_the_real_library_names_the_gpus_it_supports():
    module = pytest.importorskip("tensorrt_rtx")
    known = known_capabilities(module)
    assert {(8, 6), (8, 9), (12, 0)} <= set(known) and (9, 0) not in known
    assert all(major in range(7, 20) and minor in range(10) for major, minor in known)
    assert known_capabilities(SimpleNamespace(__name__="tensorrt")) is None


def test_the_command_is_one_for_a_shell():
    assert rebuild_command("my engine.tkf") == REBUILD
    assert rebuild_command(None) == "python -m tkfnet_engine.build --from ENGINE.tkf --out NEW.tkf"


# --- facts -----------------------------------------------------------------------------------------------


def test_facts_are_read():
    found = plan()
    assert (found.module, found.product, found.least, found.most, found.static) == ("tensorrt", "TensorRT", 1, 8, False)
    assert found.capabilities == ((8, 6),) and found.driver == 12040


@pytest.mark.parametrize(("profile", "static"), [((8, 8, 8), True), ((1, 8, 8), False)])
def test_one_profile_of_one_batch_is_static(profile, static):
    one = dict(zip(("min", "opt", "max"), profile))
    found = PlanFacts.from_facts(FACTS | {"tensorrt": FACTS["tensorrt"] | {"profiles": [one]}})
    assert found.static is static
    twice = PlanFacts.from_facts(FACTS | {"tensorrt": FACTS["tensorrt"] | {"profiles": [one, one]}})
    assert not twice.static


@pytest.mark.parametrize(
    ("path", "value"),
    [
        *((("backend",), "fused"), (("hardware",), {}), (("hardware", "machine"), None), (("tensorrt",), None)),
        *((("tensorrt", "version"), 10), (("tensorrt", "driver"), "12040"), (("tensorrt", "capabilities"), [])),
        *((("tensorrt", "capabilities"), ["8"]), (("tensorrt", "capabilities"), [8.6]), (("tensorrt", "options"), {})),
        *((("tensorrt", "profiles", 0, "min"), "1"), (("tensorrt", "profiles", 0), {})),
        (("tensorrt", "options", "version_compatible"), "no"),
    ],
)
def test_facts_that_say_nothing_are_refused(path, value):
    facts = copy.deepcopy(FACTS)
    where = facts
    for step in path[:-1]:
        where = where[step]
    where[path[-1]] = value
    with pytest.raises(BundleError, match="does not say what its TensorRT plan is for") as caught:
        PlanFacts.from_facts(facts)
    assert caught.value.code == "plan"


@pytest.mark.parametrize(
    "profiles", [[], [(1, 4, 4)], [(1, 4, 8), (1, 2, 8)], [(1, 9, 8)], [(0, 4, 8)], [(4, 2, 8)], [(1, 4, 16)]]
)
def test_profiles_that_contradict_the_largest_batch_or_each_other_are_refused(profiles):
    listed = [dict(zip(("min", "opt", "max"), p)) for p in profiles]
    with pytest.raises(BundleError, match="do not fit its largest batch, 8"):
        PlanFacts.from_facts(FACTS | {"tensorrt": FACTS["tensorrt"] | {"profiles": listed}})
