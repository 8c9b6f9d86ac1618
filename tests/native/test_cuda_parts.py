"""Parts of the C++ engine for CUDA against their Python counterparts, and its declarations against cuda.h."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tkfnet_engine.backends import golden
from tkfnet_engine.backends.fused import chosen_arch
from tkfnet_engine.errors import BackendError

from .conftest import NATIVE
from .cuda_engines import fused_parts

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def parts(native_build):
    """parts("arch", lines): what the program prints for each line."""
    return lambda what, lines: fused_parts(native_build, what, lines)


def test_the_machine_code_is_chosen_as_in_python(parts):
    archs = ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_103", "sm_120"]
    rng = random.Random(3)
    cases = [
        (capability, sorted(rng.sample(archs, rng.randint(0, 5))))
        for capability in [(7, 5), (8, 0), (8, 6), (8, 7), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0), (12, 1)]
        for _ in range(12)
    ]
    lines = [" ".join(map(str, (*capability, *held))) for capability, held in cases]
    found = 0
    for (capability, held), answer in zip(cases, parts("arch", lines)):
        try:
            expected = chosen_arch(capability, held, "A GPU")
        except BackendError:
            refused = json.loads(answer)
            assert refused["status"] == 6, refused  # TKF_ERROR_DEVICE
            assert "A GPU has compute capability {}.{}".format(*capability) in refused["refused"]
            remedy = "--backend openvino" if capability < (8, 0) else "--arch sm_{}{}".format(*capability)
            assert remedy in refused["refused"] and (capability < (8, 0) or all(a in refused["refused"] for a in held))
        else:
            assert answer == expected
            found += 1
    assert 30 < found < 100


def test_golden_answers_are_judged_as_in_python(parts):
    """Answers around every bound: errors near what 40 dB allows, near-ties, one image, no spread, no number."""
    rng = np.random.default_rng(5)
    cases = []
    for i in range(600):
        images, classes = int(rng.integers(1, 7)), int(rng.integers(2, 9))
        expected = rng.normal(0, 3, (images, classes)).astype(np.float32)
        if i % 7 == 0:
            expected[:] = expected[:1]  # no spread
        if i % 3 == 0:  # two classes close together in the first image
            first, second = rng.permutation(classes)[:2]
            expected[0, first] = expected[0].max() + 1
            expected[0, second] = expected[0, first] - np.float32(rng.uniform(0, 0.3))
        scale = rng.choice([0, 0.001, 0.02, 0.03, 0.05, 0.1, 1])
        got = (expected + rng.normal(0, scale, expected.shape)).astype(np.float32)
        if i % 5 == 0:  # one error, small among all, that exchanges two classes
            expected = rng.normal(0, 3, (12, 8)).astype(np.float32)
            got = expected.copy()
            best, chosen = np.argsort(-expected[3])[:2]
            spread = np.sqrt(((expected - expected.mean(0)) ** 2).mean())
            expected[3, chosen] = expected[3, best] - np.float32(rng.uniform(0.03, 0.06) * spread)
            got[3, chosen] = expected[3, best] + np.float32(0.001)
        if i % 41 == 0:
            got[-1, 0] = rng.choice([np.nan, np.inf, -np.inf])
        cases.append((expected, got))
    lines = [f"{e.shape[1]} {e.tobytes().hex()} {g.tobytes().hex()}" for e, g in cases]
    kinds = {"": 0, "SQNR": 0, "label": 0, "on one image": 0}
    for (expected, got), answer in zip(cases, parts("golden", lines)):
        fault = golden._fault(expected, got, 40.0) or ""
        if "nan" in fault:  # of one image; Python names no number, nor do we
            assert "inf" in answer
            continue
        assert answer == fault, (expected, got)
        kinds[next(kind for kind in reversed(kinds) if kind in fault)] += 1
    assert min(kinds.values()) > 5, kinds


# --- the driver API's declarations -----------------------------------------------------------------------


def cuda_headers() -> list[Path]:
    """Folders with NVIDIA's cuda.h."""
    found = [Path(p) for p in ("/usr/local/cuda/include", "/usr/include") if Path(p, "cuda.h").is_file()]
    found += [path.parent for path in Path("/usr/local").glob("cuda-*/include/cuda.h")]
    try:
        import triton
    except ImportError:
        return found
    inside = Path(triton.__file__).parent / "backends/nvidia/include"
    return [*found, inside] if (inside / "cuda.h").is_file() else found


def test_our_declarations_are_those_of_cuda_h():
    program = HERE / "programs" / "cuda_layouts.cpp"
    declared = set(re.findall(r"\(\*(cu\w+)\)\(", (NATIVE / "src/cuda_driver.h").read_text()))
    assert declared == set(re.findall(r"SAME\((cu\w+)\)", program.read_text())) and len(declared) > 40
    looked_up = set(re.findall(r'find\(driver\.(cu\w+), "(cu\w+)"', (NATIVE / "src/cuda_driver.cpp").read_text()))
    assert looked_up == {(name, name) for name in declared}
    if not (headers := cuda_headers()):
        pytest.skip("no cuda.h here; pip install triton")
    if shutil.which("g++") is None:
        pytest.skip("g++ not found")
    for folder in headers:
        command = ["g++", "-std=c++17", "-fsyntax-only", "-isystem", folder, "-I", NATIVE / "include", "-I"]
        done = subprocess.run([*command, NATIVE / "src", program], capture_output=True, text=True)
        assert done.returncode == 0, f"{folder}\n{done.stderr[:3000]}"
