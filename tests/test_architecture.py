"""Imports flow one way, heavy libraries are imported where they are used, files stay short. Read from the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "tkfnet_engine"
# Top-level folders and the names they are imported by; the design fixes both.
FOLDERS = {"tkfnet_engine": PACKAGE, "kernels": f"{PACKAGE}.kernels", "export": f"{PACKAGE}.export"}

# The first name below the package -> its layer. A module may import its own layer and those before it.
LAYERS = (
    ("errors",),
    ("spec",),
    (
        "preprocess",
        "faces",
        "face",
        "face_boxes",
        "face_crops",
        "compare",
        "bundle",
        "metrics",
        "console",
        "atomic",
        "strict_json",
        "hardware",
        "cache_folder",
        "trust",
        "native",
    ),
    ("kernels", "model"),
    ("data", "backends", "training"),
    ("engine",),
    ("pipeline", "explain"),
    ("serving",),
    ("export",),
)
# Modules directly in the package that are not named above: one command each. `__init__` re-exports up to `pipeline`.
COMMANDS = len(LAYERS)
LAYER_OF = {unit: number for number, units in enumerate(LAYERS) for unit in units} | {"": 6}

OPTIONAL = (
    "torch",
    "triton",
    "onnx",
    "openvino",
    "cv2",
    "pandas",
    "matplotlib",
    "accelerate",
    "tensorrt",
    "pycuda",
    "cuda",
    "tritonclient",
)
MAX_LINES = 400


def _modules() -> dict[str, Path]:
    """Every module of ours by the name it is imported by."""
    found = {}
    for folder, name in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = (name, *path.relative_to(ROOT / folder).with_suffix("").parts)
            found[".".join(p for p in parts if p != "__init__")] = path
    return found


MODULES = _modules()
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def _imported(name: str, node: ast.AST, is_package: bool, known: set[str]) -> Iterator[str]:
    """Absolute names that one statement of module `name` imports; a submodule where `from x import y` names one."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            parts = name.split(".")
            parents = parts[: len(parts) - node.level + is_package]
            base = ".".join([*parents, *([node.module] if node.module else [])])
        for alias in node.names:
            inner = f"{base}.{alias.name}"
            yield inner if inner in known else base


def _all_imports(name: str) -> Iterator[tuple[int, str]]:
    """(line, imported name), also inside functions."""
    is_package = MODULES[name].name == "__init__.py"
    for node in ast.walk(TREES[name]):
        yield from ((node.lineno, i) for i in _imported(name, node, is_package, set(MODULES)))


def _at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """The statements that run when the module is imported: no function bodies, no `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            continue
        yield node
        yield from _at_import(node)


def _unit(name: str) -> str:
    return name.removeprefix(PACKAGE).removeprefix(".").partition(".")[0]


def _layer(name: str) -> int:
    return LAYER_OF.get(_unit(name), COMMANDS)


def _ours(name: str) -> bool:
    return name == PACKAGE or name.startswith(f"{PACKAGE}.")


def test_the_table_fits_the_tree():
    assert {_unit(name) for name in MODULES} >= {"errors", "spec", "model", "data", "backends", "kernels", "export"}
    folders = {_unit(name) for name, path in MODULES.items() if path.name == "__init__.py"}
    unknown = folders - set(LAYER_OF)
    assert not unknown, f"folders without a layer: {sorted(unknown)}; add them to LAYERS"


@pytest.mark.parametrize(
    ("name", "is_package", "source", "expected"),
    [
        ("tkfnet_engine.model.net", False, "from ..spec import A", ["tkfnet_engine.spec"]),
        ("tkfnet_engine.model.net", False, "from . import fold", ["tkfnet_engine.model.fold"]),
        (
            "tkfnet_engine.model.net",
            False,
            "from .. import errors, spec",
            ["tkfnet_engine.errors", "tkfnet_engine.spec"],
        ),
        ("tkfnet_engine.data", True, "from .faceset import B", ["tkfnet_engine.data.faceset"]),
        ("tkfnet_engine.data", True, "from ..errors import E", ["tkfnet_engine.errors"]),
        ("tkfnet_engine.export.x", False, "from tkfnet_engine import Engine", ["tkfnet_engine"]),
        ("tkfnet_engine.train", False, "import tkfnet_engine.bundle as b, os", ["tkfnet_engine.bundle", "os"]),
    ],
)
def test_imports_are_resolved(name, is_package, source, expected):
    assert list(_imported(name, ast.parse(source).body[0], is_package, set(MODULES))) == expected


def test_imports_flow_one_way():
    wrong = [
        f"{MODULES[name].relative_to(ROOT)}:{line} imports {target}"
        for name in MODULES
        for line, target in _all_imports(name)
        if _ours(target) and _layer(target) > _layer(name)
    ]
    assert not wrong, "\n".join(wrong)


def test_no_two_units_import_each_other():
    """Within a layer as well: `training` uses `data`, so `data` must not use `training`."""
    uses: dict[str, set[str]] = {}
    for name in MODULES:
        targets = {_unit(target) for _, target in _all_imports(name) if _ours(target)}
        uses.setdefault(_unit(name), set()).update(targets - {_unit(name)})

    def reached(start: str) -> set[str]:
        seen, todo = set(), [start]
        while todo:
            new = uses.get(todo.pop(), set()) - seen
            seen |= new
            todo += new
        return seen

    assert not [unit for unit in uses if unit in reached(unit)]


def test_imports_of_our_own_exist():
    wrong = [
        f"{name}:{line} imports {target}"
        for name in MODULES
        for line, target in _all_imports(name)
        if _ours(target) and target not in MODULES
    ]
    assert not wrong, "\n".join(wrong)


def test_kernels_import_only_errors_and_strict_json_of_ours():
    for name in MODULES:
        if _unit(name) == "kernels":
            targets = {_unit(t) for _, t in _all_imports(name) if _ours(t)}
            assert targets <= {"errors", "strict_json", "kernels"}, name


def test_engine_and_backends_import_neither_export_nor_data():
    for name in MODULES:
        if _unit(name) in ("", "engine", "backends"):
            assert not {_unit(t) for _, t in _all_imports(name)} & {"export", "data", "training"}, name


def test_kernels_and_export_are_never_imported_bare():
    """Another distribution owns the name `kernels`."""
    paths = [*MODULES.values(), *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            assert not {n.partition(".")[0] for n in names} & {"kernels", "export"}, f"{path}:{node.lineno}"


def _may_import(name: str, library: str) -> bool:
    """Where an optional library may be imported at module level."""
    unit, leaf = _unit(name), name.rpartition(".")[2]
    if unit in ("model", "training", "export") or name == f"{PACKAGE}.data.transforms":
        return True
    # A Triton kernel is a decorated function at module level, and its reference is plain PyTorch.
    if unit == "kernels":
        return library in ("triton", "torch")
    return unit == "backends" and leaf in (library, {"tensorrt": "trt"}.get(library))


def test_optional_libraries_are_imported_where_they_are_used():
    wrong = []
    for name, tree in TREES.items():
        for node in _at_import(tree):
            for target in _imported(name, node, MODULES[name].name == "__init__.py", set(MODULES)):
                top = target.partition(".")[0]
                library = "tensorrt" if top.startswith("tensorrt") else top
                if library in OPTIONAL and not _may_import(name, library):
                    wrong.append(f"{MODULES[name].relative_to(ROOT)}:{node.lineno} imports {target}")
    assert not wrong, "\n".join(wrong)


def test_the_runtime_imports_without_any_optional_library():
    """Indirectly as well: what is below `export`, but for the parts that are PyTorch, with those libraries blocked."""
    names = [
        n for n in MODULES
        if _layer(n) < LAYER_OF["export"]
        and _unit(n) not in ("kernels", "model", "training")
        and n != f"{PACKAGE}.data.transforms"
        and not (_unit(n) == "backends" and any(_may_import(n, library) for library in OPTIONAL))
    ]  # fmt: skip
    code = f"""
import importlib, importlib.abc, sys
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in {OPTIONAL!r} or top.startswith("tensorrt"):
            raise ImportError(name + " is blocked", name=name)
sys.meta_path.insert(0, Block())
for name in {names!r}:
    importlib.import_module(name)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_files_stay_short():
    lengths = {path.relative_to(ROOT): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES.values()}
    long = [f"{path}: {count} lines" for path, count in lengths.items() if count > MAX_LINES]
    assert not long, "\n".join(long)
