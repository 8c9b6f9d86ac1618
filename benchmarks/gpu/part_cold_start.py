"""How long a fresh process takes from an engine file to its first logits: five processes, the median.

The clock starts where the CUDA context exists, and where the process was begun. A process imports what an engine needs,
makes the context, then opens the file (every byte is checked, the machine code is loaded, and the verification images
in the file are run) and asks for the logits of one image.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time

PROCESSES = 5


def child(engine: str, began: float) -> None:
    """Runs in the fresh process. began: `time.monotonic()` of the parent, which all processes share on Linux."""
    times = {"python": time.monotonic()}
    import numpy as np

    from tkfnet_engine import Engine
    from tkfnet_engine.backends.cuda_driver import Gpu

    times["imports"] = time.monotonic()
    gpu = Gpu()
    with gpu:
        gpu.check_free(0, "nothing")
        times["context"] = time.monotonic()
        opened = Engine.load(engine)
        times["load"] = time.monotonic()
        image = np.random.default_rng(0).integers(0, 256, (1, opened.input_size, opened.input_size, 3), np.uint8)
        logits = opened.logits(image)
        times["first"] = time.monotonic()
        same = bool((opened.logits(image) == logits).all())
        times["second"] = time.monotonic()
    heavy = sorted({"torch", "triton"} & sys.modules.keys())
    steps = {name: 1e3 * (at - before) for (name, at), before in zip(times.items(), [began, *times.values()])}
    print(
        json.dumps(
            {
                "context_to_first": 1e3 * (times["first"] - times["context"]),
                "start_to_first": 1e3 * (times["first"] - began),
                "steps": steps,
                "same": same,
                "heavy": heavy,
            }
        )
    )


def main() -> int:
    from gpu_common import part_parser
    from gpu_state import ENGINE, RIGHT, WRONG, write_json

    p = part_parser(__doc__)
    p.add_argument("--processes", type=int, default=PROCESSES)
    args = p.parse_args()
    found = []
    for number in range(args.processes):
        command = [sys.executable, __file__, "--child", str(args.out / ENGINE), repr(time.monotonic())]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=120)
        if done.returncode:
            write_json(args.result, {"reason": f"a fresh process ended with {done.returncode}; see the log"})
            return WRONG
        found.append(json.loads(done.stdout.strip().splitlines()[-1]))
        print(f"process {number + 1}: {found[-1]}", flush=True)
    result = {f"{name}_ms": over([one[name] for one in found]) for name in ("context_to_first", "start_to_first")}
    steps = {name: over([one["steps"][name] for one in found]) for name in found[0]["steps"]}
    first = result["context_to_first_ms"]
    result |= {
        "steps_ms": steps,
        "processes": len(found),
        "summary": f"first logits {first['median']} ms ({first['lowest']} to {first['highest']}) after the context, "
        f"{result['start_to_first_ms']['median']} ms after the start; load {steps['load']['median']} ms",
    }
    wrong = [] if all(one["same"] for one in found) else ["two runs of one image differ"]
    if heavy := sorted({name for one in found for name in one["heavy"]}):
        wrong.append(f"the engine imported {', '.join(heavy)}")
    if wrong:
        result["reason"] = "; ".join(wrong)
    write_json(args.result, result)
    return WRONG if wrong else RIGHT


def over(values: list[float]) -> dict[str, float]:
    """Of milliseconds."""
    return {
        "median": round(statistics.median(values), 1),
        "lowest": round(min(values), 1),
        "highest": round(max(values), 1),
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], float(sys.argv[3]))
    else:
        sys.exit(main())
