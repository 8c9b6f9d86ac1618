"""What a run of the GPU parts remembers: which parts there are, which are done, for which sources. Standard library.

A part is a script beside this file. It is given `--out FOLDER --result FILE --seconds N`, writes its numbers to FILE as
JSON (as often as it likes: what is there when it is stopped is kept) and ends with `RIGHT`, `WRONG` or `SKIPPED`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# Exit codes of a part. Python's own for an exception is 1, and that is a crash.
RIGHT, WRONG, SKIPPED = 0, 10, 77
# What the numbers depend on: a change of any of these files makes every part undone.
SOURCES = ("tkfnet_engine", "kernels", "export", "benchmarks/gpu", "tests/gpu")
_SUFFIXES = {".py", ".json", ".safetensors", ".cpp", ".h", ".hpp"}
# Files of the output folder: an engine for each precision; rendered faces with float32 logits; what engines in eight
# bits are calibrated by; and the labelled faces that judge whether they keep their accuracy.
ENGINES = {"float16": "engine.tkf", "int8": "engine-int8.tkf", "float8": "engine-float8.tkf"}
ENGINE, FACES, TABLE, LABELLED = ENGINES["float16"], "faces.npz", "calibration.json", "labelled.npz"
# The part that builds each.
BUILDS = {"float16": "build", "int8": "build-int8", "float8": "build-float8"}
# The parts that build TensorRT's, of each precision two: "small" and "large".
TENSORRT_BUILDS = {"float16": "build-trt", "int8": "build-trt-int8"}
TENSORRT_SIZES = ("small", "large")
# The largest batch of a small one.
SMALL_MOST = 8
# Of the output folder: what was unpacked of the wheels that a run was given.
WHEELS = "wheels"


def tensorrt_file(precision: str, size: str) -> str:
    """Of the output folder. size: of `TENSORRT_SIZES`."""
    return f"trt-{precision}-{size}.tkf"


@dataclass(frozen=True)
class Part:
    """script: beside this file. least_s: it is not begun with less time left. products: files in the output folder
    without which it is not done. needs: parts that must be done first. takes: parts that must have been tried first; it
    is told which of them are done (`--took a,b`), and is done only with the same."""

    name: str
    script: str
    arguments: tuple[str, ...] = ()
    least_s: float = 20
    products: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()


_EIGHT_BITS = ("int8", "float8")
_TAKEN = (*(BUILDS[precision] for precision in _EIGHT_BITS), *TENSORRT_BUILDS.values())


def _build(precision: str) -> Part:
    of = ("--precision", precision)
    return Part(BUILDS[precision], "part_build.py", of, 150, products=(ENGINES[precision],), needs=("calibrate",))


def _launches(precision: str) -> Part:
    of = ("--precision", precision)
    return Part(f"launches-{precision}", "part_launches.py", of, 60, needs=("build", BUILDS[precision]))


def _tensorrt(precision: str) -> Part:
    products = tuple(tensorrt_file(precision, size) for size in TENSORRT_SIZES)
    needs = ("build",) if precision == "float16" else ("calibrate",)
    of = ("--precision", precision)
    return Part(TENSORRT_BUILDS[precision], "part_tensorrt.py", of, 120, products=products, needs=needs)


def _network(batch: int) -> Part:
    return Part(f"network-{batch}", "part_network.py", ("--batch", str(batch)), 60, needs=("build",), takes=_TAKEN)


def _sanitizer(tool: str, precision: str = "float16") -> Part:
    name = f"sanitizer-{tool}" + ("" if precision == "float16" else f"-{precision}")
    arguments = ("--tool", tool, "--precision", precision)
    return Part(name, "part_sanitizer.py", arguments, 60, needs=(BUILDS[precision],))


# The most valuable first.
PARTS = (
    Part("build", "part_build.py", least_s=60, products=(ENGINE, FACES)),
    Part("launches", "part_launches.py", needs=("build",)),
    Part("calibrate", "part_calibrate.py", least_s=90, products=(TABLE, LABELLED)),
    *(part(precision) for precision in _EIGHT_BITS for part in (_build, _launches)),
    *map(_tensorrt, TENSORRT_BUILDS),
    *map(_network, (1, 256, 8, 32)),
    Part("tests", "part_tests.py", least_s=180, needs=("build",), takes=_TAKEN),
    Part("cold_start", "part_cold_start.py", needs=("build",)),
    Part("native", "part_native.py", least_s=60, needs=("build",)),
    *map(_sanitizer, ("memcheck", "racecheck", "synccheck")),
    Part("soak", "part_soak.py", needs=("build",)),
    *map(_network, (2, 4, 16, 64, 128)),
    *(_sanitizer(tool, precision) for precision in _EIGHT_BITS for tool in ("memcheck", "racecheck")),
)


def write_json(path: Path, value: Any) -> None:
    """In one step: a reader, or a kill, never meets half a file."""
    text = json.dumps(value, indent=1, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".new")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)


def read_json(path: Path) -> Any:
    """None where there is no such file, or it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def source_hash(root: Path = ROOT, folders: Iterable[str] = SOURCES) -> str:
    """SHA-256 of names and contents of the sources."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in _SUFFIXES and path.is_file():
                content = path.read_bytes()
                digest.update(f"{path.relative_to(root).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()


class State:
    """`state.json` of the output folder: one record a part. A record counts for the key that it was made under.

    A record is {"key", "status", "seconds", "at", "clocks", "reason", "result", "took"}; status is "done", "wrong",
    "skipped", "crashed" or "stopped" (it ran past its limit).
    """

    def __init__(self, out: Path, key: str):
        self._path, self._out, self._key = out / "state.json", out, key
        records = read_json(self._path)
        self._records: dict[str, dict[str, Any]] = records if isinstance(records, dict) else {}

    def record(self, part: Part) -> dict[str, Any] | None:
        """What is known of the part, for this key."""
        return self._record(part.name)

    def _record(self, name: str) -> dict[str, Any] | None:
        found = self._records.get(name)
        return found if isinstance(found, dict) and found.get("key") == self._key else None

    def done(self, part: Part) -> bool:
        """Whether the part was right, with what there is to take, and what it made is still there."""
        found = self.record(part)
        if found is None or found["status"] != "done" or found.get("took", []) != self.took(part):
            return False
        return all((self._out / product).exists() for product in part.products)

    def took(self, part: Part) -> list[str]:
        """Those of the parts that it takes which are done."""
        found = {name: self._record(name) for name in part.takes}
        return [name for name, record in found.items() if record and record["status"] == "done"]

    def untried(self, part: Part) -> list[str]:
        """Those of the parts that it takes which never ran."""
        return [name for name in part.takes if self._record(name) is None]

    def put(self, part: Part, record: dict[str, Any]) -> None:
        self._records[part.name] = {"key": self._key, **record}
        write_json(self._path, self._records)

    def forget(self, part: Part) -> None:
        if self._records.pop(part.name, None) is not None:
            write_json(self._path, self._records)
