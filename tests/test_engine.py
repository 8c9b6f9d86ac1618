"""The engine: the reference's answers from every backend, refusals, threads, memory, closing."""

from __future__ import annotations

import math
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from tkfnet_engine import Engine, Prediction
from tkfnet_engine.backends.registry import BACKENDS, GRAPH, WEIGHTS
from tkfnet_engine.bundle import read_bundle, write_bundle
from tkfnet_engine.engine import softmax
from tkfnet_engine.errors import BackendError, BundleError, ImageError, UsageError
from tkfnet_engine.spec import LABELS

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
GRAPH_BACKENDS = ("onnxruntime", "openvino")


@pytest.fixture(scope="module")
def weights_path(build, checkpoint_path, session_folder):
    """The network of `engine_path`, built for eager."""
    build(checkpoint_path, session_folder / "eager.tkf", backend="eager")
    return session_folder / "eager.tkf"


def _furthest(got, expected) -> float:
    return float(np.abs(got - expected).max())


def _artefact(backend, engine_path, weights_path):
    return engine_path if BACKENDS[backend].artefact == GRAPH else weights_path


@pytest.fixture(scope="module")
def engine(engine_path):
    with Engine.load(engine_path, threads=1) as opened:
        yield opened


# --- answers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "eager", "compiled"])
def test_logits_equal_the_reference(backend, engine_path, weights_path, reference, noise):
    # The compiled backend takes long to compile for each batch size.
    batches = (2,) if backend == "compiled" else (1, 2, 7, 33)
    with Engine.load(_artefact(backend, engine_path, weights_path), backend=backend, threads=1) as engine:
        assert (engine.backend, engine.device) == (backend, "cpu")
        for batch in batches:
            images = noise(batch, 224, seed=batch)
            expected, got = reference(images), engine.logits(images)
            assert got.dtype == np.float32 and got.shape == (batch, 7)
            assert _furthest(got, expected) <= 1e-4
            # Else agreement would say little.
            assert batch == 1 or expected.std(0).min() > 1e-2


@pytest.mark.parametrize("backend", GRAPH_BACKENDS)
def test_more_than_max_batch_runs_in_parts(backend, tampered, small_engine_path, small_reference, noise):
    images = noise(11, 64)
    with Engine.load(tampered(small_engine_path, max_batch=4), backend=backend, threads=1) as engine:
        sizes, run = [], engine._runner.run
        engine._runner = SimpleNamespace(run=lambda part: sizes.append(len(part)) or run(part), close=lambda: None)
        assert _furthest(engine.logits(images), small_reference(images)) <= 1e-4
        assert sizes == [4, 4, 3]
        assert np.array_equal(
            engine.predict(list(images)).labels, [LABELS[i] for i in small_reference(images).argmax(1)]
        )


def test_crops_of_any_size(engine, reference, noise):
    from tkfnet_engine.preprocess import resize_crop

    crops = [noise(1, side, seed=side)[0] for side in (1, 31, 224, 500)] + [noise(1, 300)[0][:, :97]]
    resized = np.stack([resize_crop(crop, 224) for crop in crops])
    expected = softmax(reference(resized))
    assert _furthest(engine.predict(crops).probabilities, expected) <= 1e-4
    assert np.array_equal(engine.predict(tuple(crops)).probabilities, engine.predict(resized).probabilities)
    assert np.array_equal(engine.predict(crop for crop in crops).probabilities, engine.predict(resized).probabilities)
    one_size = noise(3, 100)
    assert np.array_equal(engine.predict(one_size).probabilities, engine.predict(list(one_size)).probabilities)


@pytest.mark.parametrize("nothing", [[], np.empty((0, 224, 224, 3), np.uint8), np.empty((0, 9, 9, 3), np.uint8)])
def test_no_images_give_an_empty_prediction(engine, nothing):
    prediction = engine.predict(nothing)
    assert len(prediction) == 0 and prediction.labels == [] and prediction.top(7) == []
    assert prediction.probabilities.shape == (0, 7) and prediction.probabilities.dtype == np.float32


def test_probabilities_sum_to_one(engine, noise):
    probabilities = engine.predict(noise(9, 224)).probabilities
    assert probabilities.dtype == np.float32 and (probabilities >= 0).all()
    assert np.abs(probabilities.sum(1, dtype=np.float64) - 1).max() <= 7 * 2.0**-24


def test_softmax_holds_for_large_logits():
    extreme = np.array([[3e38, -3e38, 0], [-1e4, -1e4, -1e4], [88, 89, 90]], np.float32)
    got = softmax(extreme)
    assert got.dtype == np.float32 and np.isfinite(got).all()
    e = [math.exp(-2), math.exp(-1), 1]
    assert np.allclose(got, [[1, 0, 0], [1 / 3] * 3, [v / sum(e) for v in e]], rtol=0, atol=1e-7)


def test_prediction():
    prediction = Prediction(np.array([[0.2, 0.5, 0.3], [0.4, 0.4, 0.2]], np.float32), ("a", "b", "c"))
    assert len(prediction) == 2 and prediction.labels == ["b", "a"]
    assert [[name for name, _ in row] for row in prediction.top(2)] == [["b", "c"], ["a", "b"]]
    assert prediction.top(1)[0] == [("b", 0.5)] and type(prediction.top(1)[0][0][1]) is float
    assert [len(row) for row in prediction.top()] == [3, 3]
    for k in (0, 4, -1):
        with pytest.raises(UsageError, match=f"k={k}, expected 1 to 3"):
            prediction.top(k)


def test_labels_and_info(engine, engine_path):
    assert engine.labels == LABELS
    info = engine.info
    assert info.pop("running") == {"backend": "onnxruntime", "device": "cpu"}
    assert info == read_bundle(engine_path).facts
    info["max_batch"] = 1
    assert engine.info["max_batch"] == 32


# --- arrays ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "eager"])
def test_the_input_is_left_alone_and_may_be_read_only_or_strided(backend, engine_path, weights_path, noise):
    images = noise(3, 224)
    before, locked = images.copy(), images.copy()
    locked.flags.writeable = False
    wide = np.zeros((6, 224, 224, 4), np.uint8)
    wide[::2, ..., :3] = images
    with Engine.load(_artefact(backend, engine_path, weights_path), backend=backend, threads=1) as engine:
        expected = engine.logits(images)
        assert np.array_equal(images, before)
        for same in (locked, np.asfortranarray(images), wide[::2, ..., :3], images[::-1].copy()[::-1]):
            assert np.array_equal(engine.logits(same), expected)
            assert np.array_equal(engine.predict(same).probabilities, softmax(expected))
        assert np.array_equal(wide[::2, ..., :3], before) and not wide[1::2].any()
        mirrored = engine.logits(images[:, :, ::-1])
        assert np.array_equal(mirrored, engine.logits(images[:, :, ::-1].copy())) and not np.array_equal(
            mirrored, expected
        )


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "eager"])
def test_an_answer_outlives_the_next_call(backend, engine_path, weights_path, noise):
    images = noise(2, 224)
    with Engine.load(_artefact(backend, engine_path, weights_path), backend=backend, threads=1) as engine:
        first = engine.logits(images)
        kept = first.copy()
        second = engine.logits(255 - images)
        assert np.array_equal(first, kept) and not np.array_equal(first, second)
        assert not np.shares_memory(first, second)
        first[:] = np.nan  # the answer is the caller's
        assert np.array_equal(engine.logits(images), kept)
    assert np.isfinite(second).all()


WRONG = {
    "float, 0..1": (
        lambda: [np.zeros((8, 8, 3), np.float32)],
        r"float32 \[8, 8, 3\], expected .*uint8 \[H, W, 3\].*255",
    ),
    "float, normalised": (lambda: [np.full((8, 8, 3), -2.0)], r"float64 \[8, 8, 3\], expected .*uint8.*undo the norm"),
    "float, 0..255, array": (lambda: np.full((2, 8, 8, 3), 99.5), r"crop 0 .*float64 \[8, 8, 3\], expected .*round"),
    "BGR floats from OpenCV": (
        lambda: [np.full((8, 8, 3), 200.0, np.float32)[..., ::-1]],
        r"float32 .*expected .*uint8.*RGB",
    ),
    "int64": (lambda: [np.zeros((8, 8, 3), np.int64)], r"int64 \[8, 8, 3\], expected .*uint8"),
    "grey": (lambda: [np.zeros((8, 8), np.uint8)], r"uint8 \[8, 8\], expected .*\[H, W, 3\].*grey"),
    "alpha": (lambda: [np.zeros((8, 8, 4), np.uint8)], r"uint8 \[8, 8, 4\], expected .*alpha"),
    "channels first": (lambda: [np.zeros((3, 8, 8), np.uint8)], r"uint8 \[3, 8, 8\], expected .*transpose"),
    "no pixels": (lambda: [np.zeros((0, 8, 3), np.uint8)], r"uint8 \[0, 8, 3\], expected .*empty"),
    "batch in a list": (lambda: [np.zeros((1, 8, 8, 3), np.uint8)], r"uint8 \[1, 8, 8, 3\], expected .*\[H, W, 3\]"),
    "one crop": (lambda: np.zeros((8, 8, 3), np.uint8), r"one array \[8, 8, 3\], expected \[N, H, W, 3\].*list"),
    "the second": (lambda: [np.zeros((8, 8, 3), np.uint8), "b.jpg"], r"crop 1 .*got str, expected .*decode_image"),
    "a path": (lambda: "face.jpg", r"got str, expected \[N, H, W, 3\]"),
    "None": (lambda: None, r"got NoneType, expected"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_images_are_named(engine, name):
    make, message = WRONG[name]
    with pytest.raises(ImageError, match=message):
        engine.predict(make())


@pytest.mark.parametrize(
    ("batch", "got"),
    [
        (np.zeros((2, 224, 224, 3), np.float32), r"float32 \[2, 224, 224, 3\]"),
        (np.zeros((2, 3, 224, 224), np.uint8), r"uint8 \[2, 3, 224, 224\]"),
        (np.zeros((2, 112, 112, 3), np.uint8), r"uint8 \[2, 112, 112, 3\]"),
        (np.zeros((224, 224, 3), np.uint8), r"uint8 \[224, 224, 3\]"),
        (np.array(7, np.uint8), r"uint8 \[\]"),
        ([np.zeros((224, 224, 3), np.uint8)], "list"),
    ],
)
def test_logits_takes_its_one_shape_only(engine, batch, got):
    with pytest.raises(ImageError, match=rf"batch: got {got}, expected a uint8 array \[N, 224, 224, 3\].*predict\(\)"):
        engine.logits(batch)


# --- threads -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", GRAPH_BACKENDS)
def test_many_threads_share_one_engine(backend, small_engine_path, noise):
    images = noise(40, 64)
    with Engine.load(small_engine_path, backend=backend, threads=1) as engine:
        alone = np.concatenate([engine.predict(images[i : i + 1]).probabilities for i in range(40)])
        assert len(np.unique(alone, axis=0)) == 40
        start = threading.Barrier(32)

        def caller(number: int) -> int:
            draw = np.random.default_rng(number)
            start.wait(timeout=60)
            picked = draw.integers(0, 40, 200)
            return sum(not np.array_equal(engine.predict(images[i : i + 1]).probabilities[0], alone[i]) for i in picked)

        with ThreadPoolExecutor(32) as pool:
            assert sum(pool.map(caller, range(32))) == 0


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "eager"])
def test_closing_while_others_predict_ends_in_an_answer_or_a_refusal(backend, engine_path, weights_path, noise):
    """A batch runs in 24 parts; the engine closes between two of them."""
    images, outcome = noise(24, 224), []
    engine = Engine.load(_artefact(backend, engine_path, weights_path), backend=backend, threads=1)
    engine._facts["max_batch"] = 1
    runner, begun = engine._runner, threading.Event()
    run = runner.run
    runner.run = lambda part: (run(part), begun.set())[0]

    def caller() -> None:
        try:
            outcome.append(engine.logits(images).shape)
        except Exception as error:
            outcome.append(error)

    threads = [threading.Thread(target=caller, daemon=True) for _ in range(6)]
    for thread in threads:
        thread.start()
    assert begun.wait(60)
    engine.close()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads), "a caller hangs after close"
    assert len(outcome) == 6
    assert all(o == (24, 7) or (isinstance(o, BackendError) and "closed" in str(o)) for o in outcome), outcome


# --- opening and closing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "eager"])
def test_a_closed_engine_says_so(backend, engine_path, weights_path, noise):
    path, images = _artefact(backend, engine_path, weights_path), noise(1, 224)
    with Engine.load(path, backend=backend, threads=1) as engine:
        engine.predict(images)
        runner = engine._runner
    for _ in range(2):
        engine.close()
        runner.close()
        with pytest.raises(BackendError, match="closed; load it again"):
            engine.predict(images)
        with pytest.raises(BackendError, match="closed; load it again"):
            runner.run(images)
    assert engine.labels == LABELS and engine.info["backend"]


def test_an_engine_closes_on_an_error(engine_path):
    with pytest.raises(ZeroDivisionError), Engine.load(engine_path, threads=1) as engine:
        raise ZeroDivisionError
    with pytest.raises(BackendError, match="closed"):
        engine.predict([np.zeros((8, 8, 3), np.uint8)])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"backend": "tensorflow"},
            UsageError,
            "backend: got 'tensorflow', expected one of onnxruntime, openvino, eager",
        ),
        ({"device": "gpu"}, UsageError, "device: got 'gpu', expected one of auto, cpu, cuda"),
        ({"device": "cuda"}, BackendError, "backend onnxruntime: got device 'cuda', expected cpu"),
        ({"device": "cuda", "backend": "openvino"}, BackendError, "backend openvino: got device 'cuda', expected"),
        ({"threads": 0}, UsageError, "threads: got 0, expected 1 to 1024"),
        ({"threads": -1}, UsageError, "threads: got -1, expected 1 to 1024"),
        ({"threads": 5000}, UsageError, "threads: got 5000, expected 1 to 1024"),
        ({"threads": 2.0}, UsageError, r"threads: got 2\.0, expected a whole number"),
        ({"threads": True}, UsageError, "threads: got True, expected a whole number"),
        ({"threads": "2"}, UsageError, "threads: got '2', expected a whole number"),
    ],
)
def test_wrong_arguments_are_named(engine_path, arguments, error, message):
    with pytest.raises(error, match=message):
        Engine.load(engine_path, **arguments)


def test_a_graph_engine_does_not_open_with_eager(engine_path, weights_path):
    with pytest.raises(BackendError, match=rf"eager: .*built for onnxruntime and lacks '{WEIGHTS}'.*--backend eager"):
        Engine.load(engine_path, backend="eager")
    with pytest.raises(
        BackendError, match=rf"openvino: .*built for eager and lacks '{re.escape(GRAPH)}'.*--backend openvino"
    ):
        Engine.load(weights_path, backend="openvino")


def test_an_engine_for_openvino_opens_with_onnxruntime(
    quick_build, small_checkpoint_path, small_reference, tmp_path, noise
):
    quick_build(small_checkpoint_path, tmp_path / "vino.tkf", backend="openvino")
    images = noise(2, 64)
    for backend in (None, "onnxruntime"):
        with Engine.load(tmp_path / "vino.tkf", backend=backend, threads=1) as engine:
            assert engine.backend == (backend or "openvino")
            assert _furthest(engine.logits(images), small_reference(images)) <= 1e-4


@pytest.mark.parametrize("backend", GRAPH_BACKENDS)
def test_a_graph_the_library_cannot_read_is_a_backend_error(backend, engine_path, tmp_path):
    write_bundle(tmp_path / "junk.tkf", {GRAPH: b"\x08\x07junk" * 40}, read_bundle(engine_path).facts)
    with pytest.raises(BackendError, match=f"{backend} .* refuses the engine's graph"):
        Engine.load(tmp_path / "junk.tkf", backend=backend)


@pytest.mark.parametrize("change", ["drop", "shape", "extra"])
def test_weights_that_do_not_fit_are_a_backend_error(change, weights_path, tmp_path):
    bundle = read_bundle(weights_path)
    tensors = {name: bundle.array(name) for name in bundle.names()}
    name = f"{WEIGHTS}head.2.bias"
    if change == "drop":
        del tensors[name]
    else:
        tensors[name if change == "shape" else f"{WEIGHTS}head.9.bias"] = np.zeros(3, np.float32)
    write_bundle(tmp_path / "odd.tkf", tensors, bundle.facts)
    with pytest.raises(BackendError, match="weights do not fit the network"):
        Engine.load(tmp_path / "odd.tkf")


@pytest.mark.parametrize(
    "answer",
    [
        np.full((2, 7), np.nan, np.float32),
        np.array([[0] * 7, [0] * 6 + [np.inf]], np.float32),
        np.zeros((2, 6), np.float32),
        np.zeros((1, 7), np.float32),
    ],
)
def test_an_answer_that_is_no_finite_number_is_refused(engine_path, answer):
    facts = read_bundle(engine_path).facts
    engine = Engine(facts, SimpleNamespace(run=lambda images: answer, close=lambda: None), "fake", "cpu")
    with pytest.raises(BackendError, match=r"backend fake .*not finite numbers \[2, 7\]"):
        engine.predict(np.zeros((2, 224, 224, 3), np.uint8))


# --- facts -------------------------------------------------------------------------------------------------


def _other(facts, part, **changes):
    return {**facts[part], **changes}


BAD_FACTS = {
    "too few labels": (lambda f: {"labels": f["labels"][:6]}, "labels"),
    "labels that are no text": (lambda f: {"labels": [1, 2, 3, 4, 5, 6, 7]}, "labels"),
    "no labels": (lambda f: {"labels": ...}, "labels"),
    "a zero in a label": (lambda f: {"labels": ["a\0b", *f["labels"][1:]]}, "labels"),
    "labels as text": (lambda f: {"labels": "1234567"}, "labels"),
    "unknown backend": (lambda f: {"backend": "tensorflow"}, "backend.*'tensorflow'"),
    "backend of another type": (lambda f: {"backend": ["onnxruntime"]}, "backend"),
    "backend as an object": (lambda f: {"backend": {}}, "backend"),
    "unknown device": (lambda f: {"device": "tpu"}, "device.*'tpu'"),
    "device as a list": (lambda f: {"device": ["cpu"]}, "device"),
    "device auto": (lambda f: {"device": "auto"}, "device.*'auto'"),
    "max_batch 0": (lambda f: {"max_batch": 0}, "max_batch.*0"),
    "max_batch true": (lambda f: {"max_batch": True}, "max_batch"),
    "max_batch 1.5": (lambda f: {"max_batch": 1.5}, "max_batch"),
    "max_batch huge": (lambda f: {"max_batch": 10**9}, "max_batch"),
    "precision fp8": (lambda f: {"precision": "fp8"}, "precision.*'fp8'"),
    "no model": (lambda f: {"model": ...}, "TKFNetConfig"),
    "model with an unknown field": (lambda f: {"model": _other(f, "model", depth=3)}, "unknown fields .'depth'"),
    "model with more classes": (lambda f: {"model": _other(f, "model", classes=8)}, "labels"),
    "model with no width": (lambda f: {"model": _other(f, "model", width=0)}, "width"),
    "no preprocessing": (lambda f: {"preprocessing": ...}, "Preprocessing"),
    "BGR": (lambda f: {"preprocessing": _other(f, "preprocessing", color="BGR")}, "color='BGR'"),
    "size 0": (lambda f: {"preprocessing": _other(f, "preprocessing", size=0)}, "size: got 0"),
    "std 0": (lambda f: {"preprocessing": _other(f, "preprocessing", std=[1, 0, 1])}, "std > 0"),
    "mean of words": (lambda f: {"preprocessing": _other(f, "preprocessing", mean=["a", "b", "c"])}, "mean"),
    "int8 with no bits": (lambda f: {"precision": "int8", "quantisation": {}}, "quantisation"),
    "int8 of 8.0 bits": (lambda f: {"precision": "int8", "quantisation": {"weight_bits": 8.0}}, "quantisation"),
    "two faults": (lambda f: {"precision": "fp8", "device": "tpu"}, "device, precision"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FACTS)
def test_bad_facts_under_a_right_digest_are_refused(name, tampered, engine_path, command):
    changes, message = BAD_FACTS[name]
    path = tampered(engine_path, **changes(read_bundle(engine_path).facts))
    with pytest.raises(BundleError, match=rf"tampered\.tkf: .*{message}") as caught:
        Engine.load(path)
    assert caught.value.code == "facts"
    shown = command("info", path)
    assert shown.code == 3 and shown.out == "" and shown.err.count("\n") == 1


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999"])
def test_facts_poisoned_with_nan_are_refused(engine_path, tmp_path, value):
    import hashlib
    import json
    import struct

    raw = engine_path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    text = re.sub(r'"mean":\[[^,]*', f'"mean":[{value}', header["__metadata__"]["tkfnet"])
    assert value in text
    header["__metadata__"]["tkfnet"] = text
    new = json.dumps(header).encode()
    body = struct.pack("<Q", len(new)) + new + raw[8 + length : -32]
    (tmp_path / "nan.tkf").write_bytes(body + hashlib.sha256(body).digest())
    with pytest.raises(BundleError, match=r"in the facts: the (number|constant)") as caught:
        Engine.load(tmp_path / "nan.tkf")
    assert caught.value.code == "not-finite"


def test_a_damaged_or_missing_file_is_refused(engine_path, tmp_path, checkpoint_path):
    raw = bytearray(engine_path.read_bytes())
    raw[len(raw) // 2] ^= 1
    (tmp_path / "bit.tkf").write_bytes(raw)
    for path, message in (
        (tmp_path / "bit.tkf", "SHA-256"),
        (tmp_path / "none.tkf", "no such file"),
        (tmp_path, "a folder, not a file"),
        (checkpoint_path, "is it a checkpoint"),
    ):
        with pytest.raises(BundleError, match=message):
            Engine.load(path)


# --- what a process that only predicts pays -----------------------------------------------------------------

PREDICT = """
import sys
import numpy as np
from tkfnet_engine import Engine
with Engine.load(sys.argv[1], backend=sys.argv[2], threads=2) as engine:
    assert len(engine.predict([np.zeros((50, 60, 3), np.uint8)]).labels) == 1
"""
HEAVY = "print(sorted({name.partition('.')[0] for name in sys.modules} & set('torch onnx onnxscript'.split())))"
# Not ru_maxrss: it survives exec, so it would tell the memory of the process that started this one.
PEAK = "print([line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')][0])"


def _script(text, *argv):
    done = subprocess.run([sys.executable, "-c", text, *map(str, argv)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("backend", GRAPH_BACKENDS)
def test_prediction_imports_no_torch(backend, engine_path):
    assert _script(PREDICT + HEAVY, engine_path, backend) == "[]"


@pytest.fixture(scope="module")
def full_width_path(session_folder):
    """The published network with random parameters, lowered and written without verification."""
    import torch

    from tkfnet_engine.export.engine_from_checkpoint import Request, _lower
    from tkfnet_engine.model.checkpoint import Checkpoint
    from tkfnet_engine.model.fold import fold
    from tkfnet_engine.model.net import TKFNet
    from tkfnet_engine.spec import Preprocessing

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = TKFNet().eval()
    checkpoint = Checkpoint(model, LABELS, Preprocessing(), {}, "0" * 64)
    draft = _lower(fold(model), "onnxruntime", checkpoint, Request("float32", "onnxruntime", "cpu", 32), None)
    path = session_folder / "full.tkf"
    write_bundle(path, draft.tensors, draft.facts)
    yield path
    path.unlink()


@LINUX
@pytest.mark.parametrize("backend", GRAPH_BACKENDS)
def test_the_full_network_needs_little_memory(backend, full_width_path):
    assert int(_script(PREDICT + PEAK, full_width_path, backend)) / 1024 < 320
