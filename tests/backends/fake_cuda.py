"""The stand-in for the GPU driver (fake_cuda.c), and small engines whose kernels it knows. Children import this too."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from tkfnet_engine import Engine
from tkfnet_engine.errors import BackendError, BundleError, ImageError, UsageError
from tkfnet_engine.kernels.plan import Buffer, Launch, Plan
from tkfnet_engine.spec import Preprocessing, TKFNetConfig

HERE = Path(__file__).parent
SIZE, CLASSES, BIAS = 32, 7, 3
SIGNATURES = {"pack_pixels_kernel": "ppiii", "conv_kernel": "ppppi", "classify_kernel": "ppii"}
# A plan's two maps stand so many bytes apart: room for 1024 int32.
STEP = 4096
# What the children's code uses besides what stands here: `from fake_cuda import *` gives it to them.
FOR_CHILDREN = (Engine, BackendError, BundleError, ImageError, UsageError)


def compiler() -> str | None:
    return shutil.which("gcc") or shutil.which("cc")


def build(folder: Path) -> Path:
    """Compiles the stand-in into `folder`, to be put on LD_LIBRARY_PATH."""
    options = ["-shared", "-fPIC", "-O1", "-pthread", "-Wl,-soname,libcuda.so.1", "-o"]
    subprocess.run([compiler(), *options, folder / "libcuda.so.1", HERE / "fake_cuda.c", "-ldl"], check=True)
    return folder


def child(library: Path | None, folder: Path, code: str, **settings: object) -> list[dict]:
    """Runs `code` in a new process over the stand-in; gives what the stand-in logged. The code's asserts count."""
    log = folder / "log.jsonl"
    log.unlink(missing_ok=True)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("FAKE_CUDA_")}
    environment |= {f"FAKE_CUDA_{k.upper()}": str(v) for k, v in settings.items()}
    environment |= {"FAKE_CUDA_LOG": str(log), "LD_LIBRARY_PATH": str(library or "")}
    prelude = f"import sys; sys.path.insert(0, {str(HERE)!r})\nfrom fake_cuda import *\n"
    command = [sys.executable, "-c", f"{prelude}from cuda.bindings import driver\n{code}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def runs(log: list[dict], kernel: str | None = None) -> list[dict]:
    """The kernels that ran, in order."""
    return [entry for entry in log if "run" in entry and kernel in (None, entry["run"])]


def freed(log: list[dict]) -> list[list[int]]:
    """What was alive when a context was released: device and pinned memory, streams, events, modules, graphs twice."""
    return [entry["left"] for entry in log if "released" in entry]


# --- small engines ---------------------------------------------------------------------------------------


def launch(name: str, grid: int, args: dict, constexprs: dict, warps: int) -> Launch:
    return Launch(name, name, (grid, 1, 1), tuple(args.items()), tuple(constexprs.items()), warps, 1, 0, 0, 0, 0)


def plan(batch: int, arch: str = "sm_90", pdl: bool = True, warps: int = 4) -> Plan:
    """Checksums of the images (0 in a spare slot), plus BIAS from the weights, times 1 to CLASSES."""
    sums, mixed = Buffer("arena", 0, "i32", batch), Buffer("arena", STEP, "i32", batch)
    pixels = Buffer("pixels", 0, "u8", batch * SIZE * SIZE * 3)
    logits = Buffer("logits", 0, "f32", batch * CLASSES)
    weights, counters = Buffer("weights", 256, "i32", 1), Buffer("counters", 256, "i32", 1)
    late = {"PDL": pdl}
    launches = (
        launch(
            "pack_pixels_kernel",
            batch,
            {"pixels_ptr": pixels, "out_ptr": sums, "images": batch, "batch": batch, "image_bytes": SIZE * SIZE * 3},
            {"PDL": False},
            warps,
        ),
        launch(
            "conv_kernel",
            batch,
            {"x_ptr": sums, "w_ptr": weights, "out_ptr": mixed, "counters_ptr": counters, "batch": batch},
            late,
            warps,
        ),
        launch(
            "classify_kernel",
            batch,
            {"x_ptr": mixed, "logits_ptr": logits, "images": batch, "classes": CLASSES},
            late,
            1,
        ),
    )
    return Plan(batch, "float16", arch, SIZE, CLASSES, launches, 2 * STEP, 512, 512)


def answers(images: np.ndarray) -> np.ndarray:
    """What the stand-in's kernels compute."""
    flat = images.reshape(len(images), -1).astype(np.int64)
    sums = (flat @ (np.arange(flat.shape[1]) % 251 + 1)) % 9973 + BIAS
    return (sums[:, None] * np.arange(1, CLASSES + 1)).astype(np.float32)


def faces(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)


def tensors(
    plans: list[Plan] | None = None, driver: int = 12030, golden: int = 0, shared_bytes: int = 1024
) -> dict[str, np.ndarray]:
    """A fused engine's tensors; by default for batches 1, 2 and 4 on sm_90."""
    plans = plans or [plan(b) for b in (1, 2, 4)]
    weights = np.zeros(plans[0].weight_bytes, np.uint8)
    weights[256] = BIAS
    made = {"weights.packed": weights}
    for arch in {p.arch for p in plans}:
        own = [p for p in plans if p.arch == arch]
        index = {}
        for one in (one for p in own for one in p.launches):
            index[one.variant] = {"entry": one.kernel, "registers": 32, "shared_bytes": shared_bytes}
            code = f"{one.kernel} {SIGNATURES[one.kernel]}\0".encode()
            made[f"cubins/{arch}/{one.variant}"] = np.frombuffer(code, np.uint8)
        text = json.dumps({"driver": driver, "cubins": index}).encode()
        made[f"cubins/{arch}/index"] = np.frombuffer(text, np.uint8)
        made |= {f"plans/{arch}/{p.batch}": np.frombuffer(p.to_json(), np.uint8) for p in own}
    if golden:
        made["golden/pixels"] = faces(golden, seed=99)
        made["golden/logits"] = answers(made["golden/pixels"])
    return made


def facts(max_batch: int = 4) -> dict:
    return {
        "backend": "fused",
        "device": "cuda",
        "precision": "float16",
        "max_batch": max_batch,
        "model": TKFNetConfig().to_dict(),
        "labels": [f"label {i}" for i in range(CLASSES)],
        "preprocessing": Preprocessing(size=SIZE).to_dict(),
    }


def artefacts(made: dict[str, np.ndarray]) -> SimpleNamespace:
    held = dict(made)
    return SimpleNamespace(names=lambda: list(held), pop=lambda n: held.pop(n).tobytes(), array=held.__getitem__)


def opened(made: dict[str, np.ndarray] | None = None, max_batch: int = 4):
    """A runner, opened as an engine file's is."""
    from tkfnet_engine.backends.registry import open_backend

    return open_backend("fused", facts(max_batch), artefacts(made or tensors()), "cuda", None)


def refused(call, error: type[Exception], *words: str) -> str:
    """The message of the error that `call` must raise, with every one of `words` in it."""
    try:
        call()
    except error as caught:
        text = str(caught)
        assert all(word in text for word in words), (words, text)
        assert "\n" not in text, text
        return text
    raise AssertionError(f"no {error.__name__}")


# --- a caller's arrays on the "GPU" ----------------------------------------------------------------------


class OnGpu:
    """A copy of `array` in the stand-in's device memory. offset: bytes from the start of the allocation."""

    def __init__(self, array: np.ndarray, offset: int = 0, device: int = 0, stream: int | None = None):
        from cuda.bindings import driver

        driver.cuInit(0)
        _, context = driver.cuDevicePrimaryCtxRetain(device)
        driver.cuCtxPushCurrent(context)
        status, base = driver.cuMemAlloc(array.nbytes + offset)
        assert not status
        driver.cuCtxPopCurrent()
        self.address, self.shape, self.dtype = int(base) + offset, array.shape, array.dtype
        self.numpy()[...] = array
        self.interface = {"shape": array.shape, "typestr": array.dtype.str, "version": 3, "stream": stream}
        self.interface |= {"data": (self.address, False), "strides": None}

    def numpy(self) -> np.ndarray:
        """The memory itself: what the GPU has done to it so far."""
        count = int(np.prod(self.shape)) * self.dtype.itemsize
        raw = np.frombuffer((ctypes.c_uint8 * count).from_address(self.address), np.uint8)
        return raw.view(self.dtype).reshape(self.shape)

    @property
    def __cuda_array_interface__(self) -> dict:
        return self.interface

    def but(self, **changes: object) -> SimpleNamespace:
        """Something that shows this memory in another way."""
        return SimpleNamespace(__cuda_array_interface__=self.interface | changes, owner=self)


class ByDlpack:
    """The same memory, shown through DLPack only."""

    def __init__(self, array: OnGpu, device: tuple[int, int] = (2, 0)):
        self.array, self.device, self.asked = array, device, []

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(self, stream: int | None = None):
        self.asked.append(stream)
        capsule = self.array.numpy().__dlpack__()
        # As some owners do: a base address (the first field) and an offset (behind 40 bytes).
        pointer_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
            ("PyCapsule_GetPointer", ctypes.pythonapi)
        )
        tensor = pointer_of(capsule, b"dltensor")
        ctypes.c_uint64.from_address(tensor).value -= 64
        ctypes.c_uint64.from_address(tensor + 40).value += 64
        return capsule


def at(array: object) -> np.ndarray:
    """The memory behind a float32 `__cuda_array_interface__`."""
    interface = array.__cuda_array_interface__
    assert (interface["typestr"], interface["version"], interface["strides"]) == ("<f4", 3, None)
    count = int(np.prod(interface["shape"]))
    raw = np.frombuffer((ctypes.c_float * count).from_address(interface["data"][0]), np.float32)
    return raw.reshape(interface["shape"])


def stream() -> int:
    """A caller's stream."""
    from cuda.bindings import driver

    with current():
        return int(driver.cuStreamCreate(1)[1])


def synchronise(handle: int) -> None:
    from cuda.bindings import driver

    with current():
        status = driver.cuStreamSynchronize(handle)[0]
    assert not status, status


class current:
    """The primary context, as PyTorch would hold it."""

    def __enter__(self) -> None:
        from cuda.bindings import driver

        driver.cuInit(0)
        driver.cuCtxPushCurrent(driver.cuDevicePrimaryCtxRetain(0)[1])

    def __exit__(self, *_: object) -> None:
        from cuda.bindings import driver

        driver.cuCtxPopCurrent()
