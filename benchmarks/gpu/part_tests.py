"""The GPU tests (`tests/gpu`) with this Python's own pytest."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from gpu_common import add_took, part_parser
from gpu_state import BUILDS, ENGINES, RIGHT, ROOT, TENSORRT_BUILDS, WRONG, tensorrt_file, write_json

# How the tests find the engines that were built, so that they need not build one, and whose network they are.
ENGINE_VARIABLES = {
    "float16": "TKFNET_GPU_ENGINE",
    "int8": "TKFNET_GPU_ENGINE_INT8",
    "float8": "TKFNET_GPU_ENGINE_FLOAT8",
}
TENSORRT_VARIABLES = {"float16": "TKFNET_GPU_TENSORRT", "int8": "TKFNET_GPU_TENSORRT_INT8"}
CHECKPOINT_VARIABLE = "TKFNET_GPU_CHECKPOINT"


def counted(path: Path) -> dict[str, Any]:
    """What pytest's JUnit file says: how many passed, failed, were skipped, and which."""
    found: dict[str, Any] = {"passed": 0, "failed": [], "skipped": []}
    for case in ElementTree.parse(path).iter("testcase"):
        name = f"{case.get('classname', '')}.{case.get('name', '')}".removeprefix("tests.gpu.")
        outcome = {child.tag: child for child in case}
        if "failure" in outcome or "error" in outcome:
            said = outcome.get("failure", outcome.get("error"))
            found["failed"].append(f"{name}: {(said.get('message') or '').partition(chr(10))[0][:200]}")
        elif "skipped" in outcome:
            found["skipped"].append(f"{name}: {(outcome['skipped'].get('message') or '')[:200]}")
        else:
            found["passed"] += 1
    return found


def engines_of(out: Path, took: list[str]) -> dict[str, str]:
    """The variables that name the engines which were built. took: the parts that are done, beside FP16's."""
    built = [precision for precision, part in BUILDS.items() if part in ("build", *took)]
    found = {ENGINE_VARIABLES[precision]: str(out / ENGINES[precision]) for precision in built}
    of_tensorrt = [precision for precision, part in TENSORRT_BUILDS.items() if part in took]
    return found | {TENSORRT_VARIABLES[p]: str(out / tensorrt_file(p, "small")) for p in of_tensorrt}


def main() -> int:
    p = part_parser(__doc__)
    add_took(p)
    args = p.parse_args()
    report = args.out / "tests.xml"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "tests/gpu", "-m", "gpu", "-p", "no:cacheprovider", "--tb=short"]
    command += ["-v", "--durations=10", f"--junitxml={report}"]
    environment = os.environ | engines_of(args.out, args.took) | {CHECKPOINT_VARIABLE: str(args.checkpoint)}
    environment["TRITON_INTERPRET"] = "0"  # which the tests without a GPU would turn on
    done = subprocess.run(command, cwd=ROOT, env=environment)
    if not report.exists():
        write_json(args.result, {"reason": f"pytest ended with {done.returncode} and no report; see the log"})
        return WRONG
    found = counted(report)
    failed, skipped = found["failed"], found["skipped"]
    text = f"{found['passed']} passed, {len(failed)} failed, {len(skipped)} skipped"
    result = {"summary": text, **found}
    if done.returncode or failed or not found["passed"]:
        result["reason"] = f"{text}; {failed[0] if failed else f'pytest ended with {done.returncode}'}"
    write_json(args.result, result)
    return WRONG if "reason" in result else RIGHT


if __name__ == "__main__":
    sys.exit(main())
