"""`tkfnet COMMAND ..` and `python -m tkfnet_engine COMMAND ..`: the commands by name."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from . import __version__
from .console import run_command, say
from .errors import UsageError

# Modules; `tkfnet` takes their names with "-" for "_" as well, and shows them so.
COMMANDS = {
    "predict": "name the expression on face images",
    "build": "make a verified engine file from a checkpoint",
    "evaluate": "score an engine on labelled faces",
    "info": "show what an engine file is",
    "bench": "time an engine on this machine",
    "train": "train the reference network",
    "tune": "measure the fused kernels' tiles on this GPU",
    "calibrate": "measure the scales of INT8 engines",
    "native": "tell where libtkfnet, the C library, is",
    "serve": "serve engines with Triton Inference Server",
    "export_plan": "write an engine's TensorRT plan for trtexec, C++ or Triton",
}


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name.replace('_', '-'):<{width}}  {what}" for name, what in COMMANDS.items()]
    return "\n".join(["usage: tkfnet COMMAND .. (tkfnet COMMAND --help tells more)", "", *lines])


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] in (["--version"], ["-V"]):
        print(f"tkfnet-engine {__version__}")
        return 0
    if arguments[:1] in (["--help"], ["-h"]):
        print(usage())
        return 0
    name = arguments[0].replace("-", "_") if arguments else ""
    if name not in COMMANDS:
        say(usage())
        known = ", ".join(COMMANDS).replace("_", "-")
        raise UsageError(f"command: got {arguments[0] if arguments else 'none'!r}, expected {known}")
    return importlib.import_module(f".{name}", __package__).main(arguments[1:]) or 0


def run() -> None:
    run_command(main)


if __name__ == "__main__":
    run()
