"""The library as it is built, installed and found: what it needs, what it shows, and how others link to it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import tkfnet_engine

from .conftest import NATIVE
from .standins import standin_engine

HEADER = NATIVE / "include" / "tkfnet.h"
EXAMPLES = NATIVE / "examples"
# The C and C++ runtimes, by whatever path.
RUNTIME = {"libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "libstdc++.so.6", "libgcc_s.so.1"}
LIMIT = 1_500_000


def run(*command: object, cwd: Path | None = None, **environment: str) -> str:
    settings = {"PATH": "/usr/bin:/bin:/usr/local/bin", **environment} if environment else None
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=settings, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def installed(native_build, tmp_path_factory) -> Path:
    """Installed to one place and moved to another: nothing may remember the first."""
    folder = tmp_path_factory.mktemp("installed")
    run("cmake", "--install", native_build, "--prefix", folder / "first")
    return (folder / "first").rename(folder / "moved")


def declared() -> set[str]:
    """The functions of tkfnet.h."""
    return set(re.findall(r"^TKF_API [^;(]*?\b(tkf_\w+)\(", HEADER.read_text(), re.MULTILINE))


def test_it_is_small_and_needs_the_c_and_c_plus_plus_runtime_alone(native_build, tmp_path):
    library = tmp_path / "libtkfnet.so"
    run("strip", "-o", library, native_build / "libtkfnet.so")
    assert library.stat().st_size < LIMIT
    needed = set(re.findall(r"NEEDED.*\[(.*)\]", run("readelf", "-d", library)))
    assert "libstdc++.so.6" in needed and needed <= RUNTIME | {"ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}
    names = {line.split()[0].rpartition("/")[2] for line in run("ldd", library).splitlines()}
    assert {n for n in names if not n.startswith(("linux-vdso", "ld-linux"))} <= RUNTIME


def test_it_shows_its_functions_and_nothing_else(native_build):
    lines = run("nm", "-D", "--defined-only", native_build / "libtkfnet.so").splitlines()
    shown = {line.split()[-1].partition("@")[0] for line in lines}
    assert shown == declared() and len(shown) > 20


def test_it_is_hardened(native_build):
    dynamic, segments = (
        run("readelf", "-d", native_build / "libtkfnet.so"),
        run("readelf", "-lW", native_build / "libtkfnet.so"),
    )
    assert "BIND_NOW" in dynamic and "RPATH" not in dynamic and "RUNPATH" not in dynamic
    assert "GNU_RELRO" in segments
    stack = next(line for line in segments.splitlines() if "GNU_STACK" in line)
    assert "E" not in stack.split()[-2]
    assert "__stack_chk_fail" in run("nm", "-D", native_build / "libtkfnet.so")


def test_versions_agree(native_build):
    text = HEADER.read_text()
    version = re.search(r'TKF_VERSION "(.*)"', text).group(1)
    abi = re.search(r"TKF_ABI_VERSION (\d+)", text).group(1)
    cmake = (NATIVE / "CMakeLists.txt").read_text()
    assert version == tkfnet_engine.__version__ == re.search(r"project\(tkfnet VERSION (\S+)", cmake).group(1)
    assert (
        re.search(r"SONAME.*\[libtkfnet\.so\.(\d+)\]", run("readelf", "-d", native_build / "libtkfnet.so")).group(1)
        == abi
    )


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_the_header_is_c99_and_the_wrapper_c_plus_plus_17(compiler, tmp_path):
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} not found")
    strict = ["-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror", "-fsyntax-only"]
    (tmp_path / "a.c").write_text('#include "tkfnet.h"\nint main(void) { return tkf_abi_version() == 0; }\n')
    run(compiler, "-std=c99", *strict, "-I", HEADER.parent, tmp_path / "a.c")
    (tmp_path / "a.cpp").write_text('#include "tkfnet.hpp"\nint main() { return tkf_abi_version() == 0; }\n')
    for standard in ("c++17", "c++20"):
        run(
            {"gcc": "g++", "clang": "clang++"}[compiler],
            f"-std={standard}",
            *strict,
            "-I",
            HEADER.parent,
            tmp_path / "a.cpp",
        )
    assert "#include" not in re.sub(r"#include <std(def|int)\.h>", "", HEADER.read_text())


def test_clang_compiles_it_without_a_warning(tmp_path):
    if shutil.which("clang++") is None:
        pytest.skip("clang++ not found; apt-get install clang")
    for source in sorted((NATIVE / "src").glob("*.cpp")):
        strict = ["-std=c++17", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror", "-fsyntax-only"]
        run("clang++", *strict, "-I", HEADER.parent, source)


def test_cmake_finds_what_was_installed(installed, native_build, tmp_path):
    run("cmake", "-G", "Ninja", "-S", EXAMPLES, "-B", tmp_path, f"-DCMAKE_PREFIX_PATH={installed}")
    run("cmake", "--build", tmp_path)
    library = run("ldd", tmp_path / "one_image")
    assert str(installed) in library
    engine = standin_engine(tmp_path / "e.tkf")
    (tmp_path / "face.ppm").write_bytes(b"P6 40 30 255\n" + bytes(range(240)) * 15)
    openvino = native_build / "programs" / "libfake_openvino.so"
    for box in ([], [5, 3, 20, 20]):
        text = run(tmp_path / "one_image", engine, tmp_path / "face.ppm", *box, TKFNET_OPENVINO_LIBRARY=str(openvino))
        assert text.count("%") == 7 and "surprise" in text
    text = run(tmp_path / "four_threads", engine, "20", TKFNET_OPENVINO_LIBRARY=str(openvino))
    assert text.startswith("float32 on Stand-in CPU") and "4 threads" in text


@pytest.mark.parametrize("kind", ["shared", "static"])
def test_pkg_config_finds_what_was_installed(kind, installed, tmp_path):
    if shutil.which("pkg-config") is None:
        pytest.skip("pkg-config not found; apt-get install pkg-config")
    where = {"PKG_CONFIG_PATH": str(installed / "lib" / "pkgconfig")}
    if not (installed / "lib" / "pkgconfig").is_dir():
        (found,) = installed.glob("lib*/**/pkgconfig")
        where = {"PKG_CONFIG_PATH": str(found)}
    asked = ["pkg-config", "--cflags", "--libs", *(["--static"] if kind == "static" else []), "tkfnet"]
    flags = run(*asked, **where).split()
    if kind == "static":
        library = next(installed.rglob("libtkfnet.a"))
        flags = [str(library) if flag == "-ltkfnet" else flag for flag in flags]
    (tmp_path / "a.c").write_text(
        "#include <tkfnet.h>\nint main(void) { return tkf_abi_version() != TKF_ABI_VERSION; }\n"
    )
    run("gcc", "-o", tmp_path / "a", tmp_path / "a.c", *flags)
    run(tmp_path / "a", LD_LIBRARY_PATH=str(next(installed.rglob("libtkfnet.so")).parent))


def test_a_video_is_annotated(native_build, tmp_path):
    cv2 = pytest.importorskip("cv2")
    program = native_build / "examples" / "annotate_video"
    if not program.exists():
        pytest.skip("built without OpenCV; apt-get install libopencv-dev")
    import numpy as np

    video = cv2.VideoWriter(str(tmp_path / "in.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 25, (160, 120))
    for i in range(21):  # two batches of 8, and one of 5
        video.write(np.full((120, 160, 3), 10 * i, np.uint8))
    video.release()
    engine = standin_engine(tmp_path / "e.tkf", max_batch=8)
    openvino = native_build / "programs" / "libfake_openvino.so"
    out = tmp_path / "out.mp4"
    assert run(program, engine, tmp_path / "in.avi", out, TKFNET_OPENVINO_LIBRARY=str(openvino)) == "21 frames\n"
    written = cv2.VideoCapture(str(out))
    count = 0
    while written.read()[0]:
        count += 1
    assert count == 21
