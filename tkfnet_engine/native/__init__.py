"""`python -m tkfnet_engine.native`: where this installation has libtkfnet, for the tools that compile against it.

A wheel carries the library, its headers, its CMake package and its pkg-config file. In a source tree `make native`
builds them into this folder. docs/native.md tells how to use them.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from ..console import Parser
from ..errors import BackendError

FOLDER = Path(__file__).parent
LIBRARY = "libtkfnet.so"


def include_dir() -> Path:
    """The folder of `tkfnet.h` and `tkfnet.hpp`."""
    return FOLDER / "include"


def lib_dir() -> Path:
    """The folder of `libtkfnet.so` and `libtkfnet.a`. `BackendError` where this installation has none."""
    return _built(FOLDER / "lib", LIBRARY)


def cmake_dir() -> Path:
    """What CMake wants as `tkfnet_DIR`. `BackendError` as `lib_dir`."""
    return _built(FOLDER / "lib" / "cmake" / "tkfnet", "tkfnetConfig.cmake")


def pkgconfig_dir() -> Path:
    """What pkg-config wants in PKG_CONFIG_PATH. `BackendError` as `lib_dir`."""
    return _built(FOLDER / "lib" / "pkgconfig", "tkfnet.pc")


def openvino_library() -> Path:
    """OpenVINO's C library in this environment, for TKFNET_OPENVINO_LIBRARY. `BackendError` where there is none."""
    package = importlib.util.find_spec("openvino")
    folder = Path(package.origin).parent / "libs" if package and package.origin else None
    found = sorted(folder.glob("libopenvino_c.so*")) if folder else []
    if not found:
        raise BackendError(
            f"OpenVINO's C library: got none in {folder or 'this environment'}, expected libopenvino_c.so; "
            "pip install 'tkfnet-engine[openvino]'"
        )
    return found[-1]


def _built(folder: Path, file: str) -> Path:
    if not (folder / file).is_file():
        raise BackendError(
            f"{folder / file} is not there: this installation was made without the C library; in a source tree build "
            "it with `make native`, else install a wheel built where CMake, a C++ compiler and nlohmann-json are"
        )
    return folder


FLAGS = {
    "--cmake-dir": (cmake_dir, "the folder for tkfnet_DIR: find_package(tkfnet)"),
    "--include-dir": (include_dir, "the folder of tkfnet.h and tkfnet.hpp"),
    "--lib-dir": (lib_dir, "the folder of libtkfnet.so and libtkfnet.a"),
    "--pkgconfig-dir": (pkgconfig_dir, "the folder for PKG_CONFIG_PATH"),
    "--openvino-library": (openvino_library, "OpenVINO's C library, for TKFNET_OPENVINO_LIBRARY"),
}


def parser() -> Parser:
    made = Parser(
        prog="python -m tkfnet_engine.native",
        description="Tells where libtkfnet is. Each flag prints one path on a line of its own, in this order.",
    )
    for flag, (_, what) in FLAGS.items():
        made.add_argument(flag, action="store_true", help=what)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    flags = parser()
    asked = vars(flags.parse_args(argv))
    wanted = [find for flag, (find, _) in FLAGS.items() if asked[flag[2:].replace("-", "_")]]
    if not wanted:
        flags.error("nothing asked for")
    for find in wanted:
        print(find())
    return 0
