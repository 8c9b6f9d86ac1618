"""Asking libtkfnet's readers about many inputs at once: `programs/read_files.cpp`, one process per few thousand."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tkfnet_engine.bundle import read_bundle
from tkfnet_engine.engine import checked_facts
from tkfnet_engine.errors import BundleError

AT_ONCE = 2000


def lines_of(native_build: Path, lines: Iterable[str], *mode: str, prepare: Callable[[], None] | None = None) -> list:
    """What `read_files MODE` says of each line, one line each. prepare: called in the process before it starts."""
    lines = list(lines)
    command, given = [native_build / "programs" / "read_files", *mode], "".join(f"{line}\n" for line in lines)
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=300, preexec_fn=prepare)
    assert done.returncode == 0, done.stderr[-3000:]
    answers = done.stdout.splitlines()
    assert len(answers) == len(lines)
    return answers


def ask(native_build: Path, paths: Iterable[Path], *disturbance: str, **more: Any) -> list[dict[str, Any]]:
    """What libtkfnet says of engine files."""
    return [json.loads(line) for line in lines_of(native_build, map(str, paths), "engine", *disturbance, **more)]


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def pythons_answer(path: Path) -> dict[str, Any]:
    """The same of the Python reader, in the same form, but for messages and status."""
    try:
        bundle = read_bundle(path)
    except BundleError as error:
        return {"code": error.code}
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    tensors = {
        name: {"dtype": header[name]["dtype"], "shape": header[name]["shape"], "sha256": _sha256(bundle.bytes(name))}
        for name in bundle.names()
    }
    return {
        "code": "ok",
        "sha256": bundle.sha256,
        "facts_sha256": _sha256(header["__metadata__"]["tkfnet"].encode()),
        "tensors": tensors,
        "facts": pythons_facts(path, bundle.facts),
    }


def pythons_facts(path: Path, facts: dict[str, Any]) -> dict[str, Any]:
    try:
        checked_facts(path, facts)
    except BundleError as error:
        return {"code": error.code}
    return {
        "code": "ok",
        **{name: facts[name] for name in ("labels", "precision", "backend", "device", "max_batch")},
        "size": facts["preprocessing"]["size"],
        "weight_bits": facts["quantisation"]["weight_bits"] if facts["precision"] == "int8" else 0,
    }


STATUS = {"ok": None, "version-newer": 3, "memory": 7}


def without_messages(answer: dict[str, Any], path: str) -> dict[str, Any]:
    """A native answer in the form of `pythons_answer`, once its status and messages are seen to be sound."""
    left = dict(answer)
    assert left.pop("status", None) == STATUS.get(answer["code"], 2)
    if answer["code"] == "ok":
        assert left.pop("name") == path
        left["facts"] = dict(left["facts"])
        assert left["facts"].pop("status", None) == STATUS.get(left["facts"]["code"], 2)
        assert left["facts"].pop("message", f"{path}: ").startswith(f"{path}: ")
        assert list(left["tensors"]) == list(answer["tensors"])
    else:
        message = left.pop("message")
        assert message.startswith(f"{path}: ") and "; expected " in message and "\n" not in message
        assert message.isascii() and len(message) < 600
    return left


def compare(native_build: Path, folder: Path, contents: Iterable[bytes]) -> dict[str, int]:
    """Both readers, from a path and from memory, say the same of every content. How many of each code."""
    codes: dict[str, int] = {}
    paths: list[Path] = []

    def check() -> None:
        for path, answer in zip(paths, ask(native_build, paths), strict=True):
            memory, expected = answer.pop("memory"), pythons_answer(path)
            assert without_messages(answer, str(path)) == expected, path.read_bytes().hex()[:4000]
            assert without_messages(memory, "<memory>") == expected, path.read_bytes().hex()[:4000]
            assert list(answer.get("tensors", {})) == list(expected.get("tensors", {}))  # in file order
            codes[expected["code"]] = codes.get(expected["code"], 0) + 1
        paths.clear()

    for number, content in enumerate(contents):
        path = folder / f"{number % AT_ONCE}.tkf"
        path.write_bytes(content)
        paths.append(path)
        if len(paths) == AT_ONCE:
            check()
    check()
    return codes
