"""libtkfnet on the real OpenVINO: the Python engine's answers, thread by thread, and no memory that grows."""

from __future__ import annotations

import numpy as np
import pytest

from tkfnet_engine import Engine
from tkfnet_engine.bundle import write_bundle
from tkfnet_engine.export.qdq_from_onnx import FLAVOURS, qdq_from_onnx
from tkfnet_engine.hardware import has_exact_byte_products
from tkfnet_engine.kernels.placement import placement_of
from tkfnet_engine.native import openvino_library
from tkfnet_engine.spec import Preprocessing

from ..export.quantised_network import small_network
from .standins import engine_facts, run_program

pytest.importorskip("openvino")


@pytest.fixture(scope="module")
def float_engine(build, small_checkpoint_path, tmp_path_factory):
    path = tmp_path_factory.mktemp("openvino") / "float32.tkf"
    build(small_checkpoint_path, path, "openvino")
    return path


@pytest.fixture(scope="module")
def int8_engine(small_checkpoint_path, noise, tmp_path_factory):
    """The graph that `build --int8` makes for OpenVINO, of a network too small to pass the build's gate."""
    small = small_network(str(small_checkpoint_path), noise)
    placement = placement_of(small.network)
    graph = qdq_from_onnx(small.model, small.folded, small.network, placement, small.table, FLAVOURS["unsigned"])
    path = tmp_path_factory.mktemp("openvino-int8") / "int8.tkf"
    size = small.network.size
    bits = {"weight_bits": 8 if has_exact_byte_products() else 7}
    facts = engine_facts(precision="int8", quantisation=bits, preprocessing=Preprocessing(size=size).to_dict())
    write_bundle(path, {"graph.onnx": graph.SerializeToString()}, facts)
    return path


def run(native_build, *arguments, **settings):
    return run_program(native_build, "stress", *arguments, openvino=openvino_library(), **settings)


def native_logits(native_build, engine, images, folder, *flags) -> np.ndarray:
    (folder / "pixels").write_bytes(images.tobytes())
    run(native_build, "answers", engine, folder / "pixels", folder / "logits", *flags)
    return np.frombuffer((folder / "logits").read_bytes(), np.float32).reshape(len(images), -1)


def test_float32_logits_are_pythons(native_build, float_engine, noise, tmp_path):
    images = noise(70, 64)  # in three parts of 32, 32 and 6
    with Engine.load(float_engine) as engine:
        expected = engine.logits(images)
    got = native_logits(native_build, float_engine, images, tmp_path)
    assert np.abs(got - expected).max() <= 1e-5 and np.ptp(expected) > 1


def test_c99_calls_every_function(native_build, float_engine):
    text = run_program(native_build, "c_api", float_engine, openvino=openvino_library())
    assert text.startswith("float32 on openvino") and "7 labels from surprise" in text


def test_the_wrapper(native_build, float_engine):
    run_program(native_build, "wrapper", float_engine, openvino=openvino_library())


def test_int8_labels_are_pythons(native_build, int8_engine, noise, tmp_path):
    with Engine.load(int8_engine) as engine:
        images = noise(64, engine.input_size)
        expected = engine.logits(images)
    got = native_logits(native_build, int8_engine, images, tmp_path)
    np.testing.assert_array_equal(got.argmax(1), expected.argmax(1))
    assert len(set(expected.argmax(1))) > 1


def test_bfloat16_is_what_openvino_makes_of_it(native_build, float_engine, noise, tmp_path):
    import openvino

    supported = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    images = noise(16, 64)
    if "BF16" not in supported:
        (tmp_path / "pixels").write_bytes(images.tobytes())
        arguments = ("answers", float_engine, tmp_path / "pixels", tmp_path / "logits", "--bf16")
        assert "cpu_math" in run(native_build, *arguments, expect=1)
        return
    exact = native_logits(native_build, float_engine, images, tmp_path)
    got = native_logits(native_build, float_engine, images, tmp_path, "--bf16")
    assert 0 < np.abs(got - exact).max() < 0.1 * np.ptp(exact)


def test_sixteen_threads_give_one_threads_answers(native_build, float_engine):
    assert run(native_build, "threads", float_engine, 16, 1000) == "16000 runs, 0 wrong\n"


def test_engines_may_be_opened_at_once(native_build, float_engine):
    run(native_build, "creating", float_engine, 16)


@pytest.mark.parametrize("cycles", [50, pytest.param(500, marks=pytest.mark.soak)])
def test_memory_stays_flat(native_build, float_engine, cycles):
    """KiB after each tenth of the cycles; the first tenths fill caches that every process of OpenVINO's has."""
    resident = [int(line) for line in run(native_build, "cycles", float_engine, cycles).split()]
    settled = resident[len(resident) // 2 :]
    assert max(settled) - min(settled) < 10 * 1024, resident
