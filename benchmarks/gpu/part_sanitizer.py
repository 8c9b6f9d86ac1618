"""One tool of NVIDIA's compute-sanitizer over an engine that is opened and runs batches 1 and 5.

Left out, with the reason, where the tool is not installed or cannot work on this machine's GPU.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from gpu_common import add_precision, part_parser
from gpu_state import ENGINES, RIGHT, SKIPPED, WRONG, write_json

# What the script under the tool prints last.
RAN = "sanitized: all runs done"
BATCHES = (1, 5)
_SCRIPT = f"""
import sys
import numpy as np
from tkfnet_engine import Engine
with Engine.load(sys.argv[1]) as engine:
    draw = np.random.default_rng(0)
    for batch in {BATCHES}:
        images = draw.integers(0, 256, (batch, engine.input_size, engine.input_size, 3), np.uint8)
        first, second = engine.logits(images), engine.logits(images)
        assert (first == second).all(), f"batch {{batch}}: two runs differ"
print({RAN!r}, flush=True)
"""
_SUMMARY = re.compile(r"ERROR SUMMARY: (?P<errors>\d+) error|RACECHECK SUMMARY: (?P<hazards>\d+) hazard")
_REFUSED = re.compile(
    r"device (is )?not supported|unsupported (device|gpu|driver)|driver version|insufficient permission"
    r"|failed to initialize|unable to (find|load|attach)|error (code )?\(?999",
    re.IGNORECASE,
)


def tool_path() -> str | None:
    """compute-sanitizer on the path, or where CUDA installs it."""
    if found := shutil.which("compute-sanitizer"):
        return found
    roots = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    roots += [Path("/usr/local/cuda"), *sorted(Path("/usr/local").glob("cuda-*"), reverse=True)]
    places = [root / part / "compute-sanitizer" for root in roots for part in ("bin", "compute-sanitizer")]
    return next((str(place) for place in places if place.is_file() and os.access(place, os.X_OK)), None)


def judged(output: str, code: int) -> tuple[int, dict]:
    """The part's exit code and result, from what the tool and the script printed and the tool's exit code."""
    summaries = [int(m["errors"] or m["hazards"] or 0) for m in _SUMMARY.finditer(output)]
    found = sum(summaries)
    said = [line.strip("= \t") for line in output.splitlines() if line.startswith("=========") and line.strip("= \t")]
    if RAN in output and summaries:
        if not found:
            return RIGHT, {"found": 0, "summary": "clean"}
        text = f"{found} found: {said[0] if said else ''}"
        return WRONG, {"found": found, "summary": text, "reason": text, "said": said[:40]}
    if refused := next((line for line in said if _REFUSED.search(line)), None):
        return SKIPPED, {"reason": f"compute-sanitizer does not work here: {refused}"}
    last = output.strip().splitlines()[-1:] or ["nothing"]
    reason = f"the run did not come to its end (exit code {code}): {(said or last)[0][:200]}"
    return WRONG, {"found": found or None, "reason": reason, "said": said[:40]}


def main() -> int:
    p = part_parser(__doc__)
    p.add_argument("--tool", required=True)
    add_precision(p)
    args = p.parse_args()
    tool = tool_path()
    if tool is None:
        write_json(args.result, {"reason": "compute-sanitizer is not installed here"})
        return SKIPPED
    # API errors are the engine's to report; cuda-bindings provokes some of its own, asking the driver what it knows.
    command = [tool, "--tool", args.tool, "--report-api-errors", "no", "--print-limit", "20"]
    command += [sys.executable, "-c", _SCRIPT, str(args.out / ENGINES[args.precision])]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    print(done.stdout, flush=True)
    code, result = judged(done.stdout, done.returncode)
    write_json(args.result, {"tool": args.tool, "precision": args.precision, **result})
    return code


if __name__ == "__main__":
    sys.exit(main())
