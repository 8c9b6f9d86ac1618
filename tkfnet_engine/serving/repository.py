"""Triton model repositories of engines. docs/serving.md shows what they hold.

Of an engine NAME clients use two models, the same for every kind: NAME takes crops, `images` uint8 [N, S, S, 3], and
NAME_jpeg takes pictures, `jpeg` bytes [N, 1]. Both give `probabilities` float32 [N, classes] and `class` int32 [N, 1].
"""

from __future__ import annotations

import io
import os
import re
import secrets
import shutil
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from ..atomic import write_atomically
from ..backends.registry import GRAPH, TENSORRT_PLAN
from ..bundle import Bundle, read_bundle
from ..engine import checked_facts
from ..errors import FileError, UsageError
from .config import (
    ANSWER_MAP,
    JPEG_INPUT,
    LABELS_FILE,
    Options,
    answer_config,
    decode_config,
    engine_config,
    ensemble,
    images,
    instances,
    logits,
    max_batch,
    parameters,
    scheduling,
    warm_up,
)
from .pbtxt import pbtxt
from .plan_config import describe, fixed_batch, triton_config

ENGINE_FILE = "engine.tkf"
DECODE, JPEG, NETWORK, ANSWER = "_decode", "_jpeg", "_network", "_answer"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


def write_repository(folder: str | os.PathLike[str], engines: Sequence[str], options: Options) -> list[str]:
    """Writes a new folder with the models of all `engines` (paths): all of it or nothing. The engines' names.

    An engine is called as its file, less the suffix. `UsageError` for a name that cannot be or is there twice, and for
    an engine that `options.kind` cannot serve; `BundleError` for a bad file; `FileError` where `folder` is there
    already, unless empty, or cannot be written.
    """
    target = os.path.abspath(os.fsdecode(folder))
    names = [_name(path) for path in engines]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UsageError(f"engines: got {', '.join(sorted(twice))} twice, expected different names; rename a file")
    if os.path.lexists(target) and not (os.path.isdir(target) and not os.listdir(target)):
        raise FileError(
            f"{target}: it is there already, expected a new folder; a server may be using it: choose another"
        )
    parent, last = os.path.split(target)
    if not os.path.isdir(parent):
        raise FileError(f"{parent}: no such folder, expected one to write {last} in; make it first")
    beside = os.path.join(parent, f".{last}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        os.mkdir(beside)
        for name, path in zip(names, engines):
            _write_engine(beside, name, path, options)
        _sync_folders(beside)
        os.rename(beside, target)
    except OSError as error:
        if isinstance(error, FileError):
            raise
        raise FileError(
            f"{target}: cannot write it: {error.strerror}; nothing was written: choose another folder"
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return names


def _name(path: str) -> str:
    name = os.path.splitext(os.path.basename(os.fsdecode(path)))[0]
    if not _NAME.fullmatch(name) or name.endswith((DECODE, JPEG, NETWORK, ANSWER)):
        raise UsageError(
            f"{path}: got {name!r}, expected a model's name: up to 100 of A-Z a-z 0-9 _ . -, and no ending of ours "
            f"({DECODE}, {JPEG}, {NETWORK}, {ANSWER}); rename the file"
        )
    return name


def _sync_folders(top: str) -> None:
    for folder, _, _ in os.walk(top, topdown=False):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# --- the models of one engine ------------------------------------------------------------------------------


def _write_engine(top: str, name: str, path: str, options: Options) -> None:
    """The file is copied first and then checked, so that what is served is what was checked."""
    version = os.path.join(top, name, "1")
    os.makedirs(version)
    copy = os.path.join(version, ENGINE_FILE)
    bundle = _copied(path, copy)
    facts = checked_facts(path, bundle.facts)
    if options.kind == "python":
        _write(top, name, "1/model.py", _model_py("EngineModel"))
        _write(top, name, "config.pbtxt", pbtxt(engine_config(facts, options)))
    else:
        os.unlink(copy)
        network = os.path.join(name + NETWORK, "1")
        os.makedirs(os.path.join(top, network))
        file, config = _NETWORKS[options.kind](path, bundle, facts, options)
        _write(top, network, *file)
        _write(top, name + NETWORK, "config.pbtxt", config)
        os.makedirs(os.path.join(top, name + ANSWER, "1"))
        _write(top, name + ANSWER, "1/model.py", _model_py("AnswerModel"))
        _write(top, name + ANSWER, "config.pbtxt", pbtxt(answer_config(facts, options)))
        steps = [
            (name + NETWORK, {"images": "images"}, {"logits": "logits"}),
            (name + ANSWER, {"logits": "logits"}, ANSWER_MAP),
        ]
        _write(top, name, "config.pbtxt", pbtxt(ensemble(images(facts), steps, facts, options)))
    os.makedirs(os.path.join(top, name + DECODE, "1"))
    _write(top, name + DECODE, "1/model.py", _model_py("DecodeModel"))
    _write(top, name + DECODE, "config.pbtxt", pbtxt(decode_config(facts, options)))
    os.makedirs(os.path.join(top, name + DECODE, "warmup"))
    _write(top, name + DECODE, "warmup/picture", _warm_picture(facts["preprocessing"]["size"]))
    os.makedirs(os.path.join(top, name + JPEG, "1"))
    steps = [(name + DECODE, {"jpeg": "jpeg"}, {"images": "images"}), (name, {"images": "images"}, ANSWER_MAP)]
    _write(top, name + JPEG, "config.pbtxt", pbtxt(ensemble(JPEG_INPUT, steps, facts, options)))
    for model in (name, name + JPEG, *([] if options.kind == "python" else [name + ANSWER])):
        _write(top, model, LABELS_FILE, "".join(f"{' '.join(label.split())}\n" for label in facts["labels"]))


def _copied(path: str, copy: str) -> Bundle:
    read_bundle(path)  # its refusals name the file that was given
    shutil.copyfile(path, copy)
    with open(copy, "rb") as file:
        os.fsync(file.fileno())
    return read_bundle(copy)


def _write(top: str, folder: str, name: str, content: str | bytes) -> None:
    data = content.encode() if isinstance(content, str) else content
    write_atomically(os.path.join(top, folder, name), data)


def _model_py(kind: str) -> str:
    return (
        '"""Run by Triton\'s Python backend; tkfnet-engine has to be installed in its environment."""\n\n'
        f"from tkfnet_engine.serving.models import {kind} as TritonPythonModel  # noqa: F401\n"
    )


def _warm_picture(size: int) -> bytes:
    """One element of a tensor of bytes: its length, and a grey picture."""
    file = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), 128, np.uint8)).save(file, "JPEG")
    return struct.pack("<I", file.tell()) + file.getvalue()


def _onnx_network(
    path: str, bundle: Bundle, facts: Mapping[str, Any], options: Options
) -> tuple[tuple[str, bytes], str]:
    if GRAPH not in bundle:
        raise UsageError(
            f"{path}: got an engine for {facts['backend']}, which holds no graph, expected one that does; build one "
            "with `python -m tkfnet_engine.build --backend onnxruntime`, or take another kind"
        )
    if facts["precision"] == "int8" and facts["backend"] != "onnxruntime":
        raise UsageError(
            f"{path}: got an INT8 engine for {facts['backend']}, expected one for onnxruntime: an INT8 graph is made "
            "for one runtime; build one with `python -m tkfnet_engine.build --int8 --backend onnxruntime`"
        )
    batch = max_batch(facts, options)
    threads = {} if options.threads is None else {"intra_op_thread_count": options.threads}
    config = {
        "backend": "onnxruntime",
        "max_batch_size": batch,
        "input": [images(facts)],
        "output": [logits(facts)],
        **scheduling(batch, options),
        **instances(options.instances, facts["device"] == "cuda"),
        # This backend takes plain numbers.
        **parameters(**threads),
        **warm_up(images(facts), (1, batch)),
    }
    return ("model.onnx", bundle.pop(GRAPH)), pbtxt(config)


def _tensorrt_network(
    path: str, bundle: Bundle, facts: Mapping[str, Any], options: Options
) -> tuple[tuple[str, bytes], str]:
    if facts["backend"] != "tensorrt" or TENSORRT_PLAN not in bundle:
        raise UsageError(
            f"{path}: got an engine for {facts['backend']}, expected one for tensorrt, whose plan Triton runs; build "
            "one with `python -m tkfnet_engine.build --backend tensorrt`, or take another kind"
        )
    plan = bundle.pop(TENSORRT_PLAN)
    about = describe(path, bundle, plan)
    if fixed := fixed_batch(about):
        raise UsageError(
            f"{path}: got a plan for batches of {fixed} alone, of which Triton makes none, expected one from 1 on; "
            f"build it with `python -m tkfnet_engine.build --backend tensorrt --min-batch 1 --max-batch {fixed}`"
        )
    smallest = min(p["min"] for p in about["tensorrt"]["profiles"])
    if smallest > 1:
        raise UsageError(
            f"{path}: got a plan for batches from {smallest} on, expected from 1; build it with --min-batch 1"
        )
    batch = max_batch(facts, options)
    rest = {
        **scheduling(batch, options),
        **instances(options.instances, gpu=True),
        **warm_up(images(facts), (1, batch)),
    }
    return ("model.plan", plan), triton_config({**about, "max_batch": batch}, "model.plan") + pbtxt(rest)


_NETWORKS: dict[str, Callable[..., tuple[tuple[str, bytes], str]]] = {
    "onnxruntime": _onnx_network,
    "tensorrt": _tensorrt_network,
}
