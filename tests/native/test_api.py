"""The C API over a stand-in for OpenVINO: every function, every failure of the backend, sanitized and not."""

from __future__ import annotations

import numpy as np
import pytest

from .conftest import NATIVE, ROOT
from .standins import SIZE, engine_facts, run_program, standin_answers, standin_engine


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return standin_engine(tmp_path_factory.mktemp("standin") / "e.tkf")


@pytest.fixture(scope="module")
def standin(native_build):
    return native_build / "programs" / "libfake_openvino.so"


def run(build_folder, name, *arguments, **settings):
    return run_program(
        build_folder, name, *arguments, openvino=build_folder / "programs/libfake_openvino.so", **settings
    )


def test_c99_calls_every_function(native_build, engine, tmp_path):
    header = (NATIVE / "include" / "tkfnet.h").read_text()
    program = (ROOT / "tests/native/programs/c_api.c").read_text()
    declared = {
        line.split("(")[0].split()[-1].lstrip("*") for line in header.splitlines() if line.startswith("TKF_API")
    }
    assert len(declared) > 20 and [name for name in declared if f"{name}(" not in program] == []

    damaged = tmp_path / "damaged.tkf"
    damaged.write_bytes(engine.read_bytes()[:-1] + b"x")
    foreign = standin_engine(tmp_path / "foreign.tkf", backend="onnxruntime")
    text = run(native_build, "c_api", engine, damaged, foreign, tmp_path / "none.tkf")
    first, *refused = text.splitlines()
    assert first == "float32 on openvino, Stand-in CPU, 7 labels from surprise"
    assert "TKF_ERROR_FILE" in refused[0] and "SHA-256" in refused[0]
    assert "TKF_ERROR_BACKEND" in refused[1] and "onnxruntime" in refused[1] and "--backend openvino" in refused[1]
    assert "TKF_ERROR_FILE" in refused[2] and "no such file" in refused[2]


def test_the_answers_are_the_backends(native_build, engine, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (9, SIZE, SIZE, 3), np.uint8)  # in three parts
    (tmp_path / "pixels").write_bytes(images.tobytes())
    run(native_build, "stress", "answers", engine, tmp_path / "pixels", tmp_path / "out")
    got = np.frombuffer((tmp_path / "out").read_bytes(), np.float32).reshape(-1, 7)
    np.testing.assert_array_equal(got, standin_answers(images))


def test_bfloat16_is_given_or_refused(native_build, engine, tmp_path):
    (tmp_path / "pixels").write_bytes(bytes(SIZE * SIZE * 3))
    arguments = ("stress", "answers", engine, tmp_path / "pixels", tmp_path / "out", "--bf16")
    run(native_build, *arguments, FAKE_OV_BF16="1")
    assert "computes in f32" in run(native_build, *arguments, expect=1)


def test_an_answer_that_is_no_number_is_refused(native_build, engine):
    assert "not finite" in run(native_build, "stress", "cycles", engine, 1, expect=1, FAKE_OV_NAN="1")


EVERY_CALL = ("threads", 1, 2)  # opens, runs, submits, waits


def test_every_failure_of_openvino_is_told(native_build, engine, tmp_path):
    what, *numbers = EVERY_CALL
    run(native_build, "stress", what, engine, *numbers, FAKE_OV_LOG=str(tmp_path / "log"))
    made = (tmp_path / "log").read_text().split()
    assert {"ov_core_create", "ov_infer_request_infer", "ov_infer_request_wait"} <= set(made)
    for i, name in enumerate(made):
        number = made[: i + 1].count(name)
        for code, status in ((-1, "TKF_ERROR_BACKEND"), (-10, "TKF_ERROR_MEMORY")):
            failing = f"{name}:{number}:{code}"
            text = run(native_build, "stress", what, engine, *numbers, expect=1, FAKE_OV_FAIL=failing)
            assert "OpenVINO failed while" in text and f"{name} fails \\xff" in text, f"{name}: {text}"
            assert text.startswith(status), f"{name}: {text}"


def test_openvino_is_looked_for_where_the_documentation_says(native_build, engine, tmp_path, standin):
    arguments = ("stress", "cycles", engine, 1)
    assert "pip install openvino" in run_program(native_build, *arguments, expect=1)
    assert "TKFNET_OPENVINO_LIBRARY" in run_program(native_build, *arguments, openvino=tmp_path / "no.so", expect=1)
    folder = tmp_path / "lib"
    folder.mkdir()
    (folder / "libopenvino_c.so.2641").symlink_to(standin)
    run_program(native_build, *arguments, LD_LIBRARY_PATH=str(folder))
    packages = tmp_path / "venv" / "lib" / "python3.11" / "site-packages" / "openvino" / "libs"
    packages.mkdir(parents=True)
    (packages / "libopenvino_c.so.2520").symlink_to(standin)
    run_program(native_build, *arguments, VIRTUAL_ENV=str(tmp_path / "venv"))
    (folder / "libopenvino_c.so.2641").unlink()
    (folder / "libopenvino_c.so").symlink_to(native_build / "libtkfnet.so")  # some other library
    assert "no function ov_core_create" in run_program(native_build, *arguments, expect=1, LD_LIBRARY_PATH=str(folder))


def test_an_eight_bit_engine_wants_the_processor_that_its_build_had(native_build, tmp_path):
    from tkfnet_engine.hardware import has_exact_byte_products

    facts = engine_facts(precision="int8", quantisation={"weight_bits": 8})
    engine = standin_engine(tmp_path / "int8.tkf", **facts)
    if has_exact_byte_products():
        run(native_build, "stress", "cycles", engine, 1)
    else:
        assert "saturate" in run(native_build, "stress", "cycles", engine, 1, expect=1)
