"""Everything that needs an NVIDIA GPU, in one command that goes on where it was cut off: `make gpu`.

    python benchmarks/gpu/run.py --out gpu-out [--minutes 9] [--only PART ..] [--again] [--list] [--wheels DIR]

Installs nothing from a network and leaves the GPU's settings alone. Each part (`gpu_state.PARTS`) runs in a process of
its own and is recorded as soon as it ends; it is done once for the same sources, GPU and PyTorch. Exit codes: 0 every
part is done and right, 1 some are not (yet), 7 no GPU, 64 wrong flag.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from gpu_machine import clocks, commit, make_importable, probe
from gpu_report import date_now, markdown, record_name, table, verdicts
from gpu_state import PARTS, RIGHT, ROOT, SKIPPED, WHEELS, WRONG, Part, State, read_json, source_hash, write_json
from gpu_wheels import unpack

# Of errors.BackendError and errors.UsageError; the package may not be importable yet.
NO_GPU, USAGE = 7, 64
_STATUS = {RIGHT: "done", WRONG: "wrong", SKIPPED: "skipped"}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"{self.prog}: {message}; see --help\n")


def parser() -> argparse.ArgumentParser:
    p = _Parser(prog="benchmarks/gpu/run.py", description=__doc__.partition("\n")[0])
    p.add_argument("--out", type=Path, default=Path("gpu-out"), help="folder for state, logs, engine (default gpu-out)")
    p.add_argument("--minutes", type=float, default=9.0, help="stop after so long (default 9)")
    p.add_argument("--part-timeout", type=float, default=540.0, metavar="S", help="seconds for a part (default 540)")
    p.add_argument("--only", action="append", metavar="PART", choices=[part.name for part in PARTS], help="repeatable")
    p.add_argument("--again", action="store_true", help="also what is done already")
    p.add_argument("--list", action="store_true", help="say which parts there are, and what is known of them")
    p.add_argument("--record", action=argparse.BooleanOptionalAction, default=True, help="copy to benchmarks/results/")
    p.add_argument("--checkpoint", type=Path, help="whose network (default: the shipped reference)")
    p.add_argument("--wheels", type=Path, metavar="DIR", help="unpack the wheels in it, for this run and later ones")
    return p


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def run_part(part: Part, out: Path, limit_s: float, more: Sequence[str] = ()) -> dict[str, Any]:
    """Runs the part for at most `limit_s` seconds; its record."""
    result, log = out / "parts" / f"{part.name}.json", out / "logs" / f"{part.name}.log"
    for path in (result, log):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
    script = str(ROOT / "benchmarks" / "gpu" / part.script)
    command = [sys.executable, script, "--out", str(out), "--result", str(result), "--seconds", f"{limit_s:.0f}"]
    before, start = clocks(), time.monotonic()
    code = _bounded([*command, *more, *part.arguments], log, limit_s, _environment(out))
    seconds = time.monotonic() - start
    found = read_json(result)
    status = "stopped" if code is None else _STATUS.get(code, "crashed")
    if status == "done" and found is None:
        status = "crashed"
    reason = (found or {}).get("reason")
    if status == "stopped":
        reason = f"ran past its {limit_s:.0f} s"
    elif status == "crashed":
        reason = f"ended with {code}: {_last_line(log)}"
    return {
        "status": status,
        "seconds": round(seconds, 1),
        "at": date_now(),
        "clocks": {"before": before, "after": clocks()},
        "reason": None if reason is None else reason.replace(f"{ROOT}/", ""),
        "result": found,
    }


def _environment(out: Path) -> dict[str, str]:
    """The parts': nothing is interpreted, what is compiled for PyTorch stays for the next run, and the wheels that were
    unpacked are found first."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    if (out / WHEELS).is_dir():
        kept["PYTHONPATH"] = os.pathsep.join(filter(None, (str(out / WHEELS), kept.get("PYTHONPATH"))))
    return kept | {"PYTHONUNBUFFERED": "1", "TORCHINDUCTOR_CACHE_DIR": str(out / "inductor")}


def _bounded(command: list[str], log: Path, limit_s: float, environment: dict[str, str]) -> int | None:
    """The exit code, or None if the command ran past its limit; no process of its group is left."""
    with open(log, "wb") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, env=environment,
            process_group=0,
        )  # fmt: skip
        try:
            return process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            with suppress(ProcessLookupError):  # all have ended by themselves
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "it said nothing"


def run_parts(
    parts: Sequence[Part], every: Sequence[Part], state: State, out: Path, deadline: float, part_timeout: float,
    publish: Callable[[], None], more: Sequence[str] = (),
) -> None:  # fmt: skip
    """Runs those of `parts` that are not done, until `deadline` (of the monotonic clock). every: with what they need.
    publish: called after each. more: flags for each."""
    for number, part in enumerate(parts, 1):
        where = f"[{number}/{len(parts)}] {part.name}"
        if state.done(part):
            say(f"{where}: done before")
            continue
        left = deadline - time.monotonic()
        missing = [need.name for need in every if need.name in part.needs and not state.done(need)]
        if missing := missing + state.untried(part):
            say(f"{where}: not begun, needs {', '.join(missing)}")
        elif left < part.least_s:
            say(f"{where}: not begun, {max(left, 0):.0f} s left of the {part.least_s:.0f} s it wants")
        else:
            say(f"{where}: running, at most {min(left, part_timeout):.0f} s")
            took = state.took(part)
            told = ["--took", ",".join(took)] if part.takes else []
            record = run_part(part, out, min(left, part_timeout), [*more, *told]) | {"took": took}
            state.put(part, record)
            said = record["reason"] or (record["result"] or {}).get("summary", "")
            say(f"{where}: {record['status']} after {record['seconds']} s: {said}")
            publish()


def results_of(state: State, environment: dict[str, Any], parts: Sequence[Part]) -> dict[str, Any]:
    """Everything that is known, as it is written down."""
    known = {part.name: record for part in parts if (record := state.record(part)) is not None}
    by_part = {name: {k: v for k, v in record.items() if k != "key"} for name, record in known.items()}
    results = {"date": date_now(), "environment": environment, "parts": by_part}
    return results | {"verdicts": verdicts(by_part)}


def settled(state: State, part: Part) -> bool:
    """Done, or left out for a reason that lies in this machine."""
    record = state.record(part)
    return state.done(part) or (record is not None and record["status"] == "skipped")


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    deadline = time.monotonic() + 60 * args.minutes
    out = args.out.resolve()
    parts = [part for part in PARTS if not args.only or part.name in args.only]
    if args.list:
        records = read_json(out / "state.json") or {}
        for part in parts:
            print(f"{part.name:<27} {records.get(part.name, {}).get('status', 'not begun')}")
        return 0
    if args.wheels:
        try:
            say(f"--wheels: {unpack(args.wheels, out / WHEELS)}")
        except ValueError as error:
            say(f"--wheels {args.wheels}: {error}")
            return USAGE
    environment = probe(_environment(out))
    if reason := environment.get("no_gpu"):
        say(f"make gpu needs an NVIDIA GPU, and {reason}; run it where `nvidia-smi` shows one, or name a Python whose "
            "PyTorch sees it: make gpu GPU_PYTHON=..")  # fmt: skip
        return NO_GPU
    if failed := make_importable():
        say(f"tkfnet_engine cannot be imported from this tree: {failed}")
        return 1
    out.mkdir(parents=True, exist_ok=True)
    environment |= {"sources": source_hash()} | commit()
    checkpoint = args.checkpoint and args.checkpoint.resolve()
    network = hashlib.sha256(checkpoint.read_bytes()).hexdigest() if checkpoint else "the shipped reference"
    environment["network"] = network
    named = [environment.get(name) for name in ("sources", "network", "chip", "torch", "triton")]
    state = State(out, hashlib.sha256(repr(named).encode()).hexdigest())
    for part in parts if args.again else ():
        state.forget(part)

    def publish() -> None:
        results = results_of(state, environment, PARTS)
        write_json(out / "results.json", results)
        if args.record:
            folder = ROOT / "benchmarks" / "results"
            write_json(folder / f"{record_name(results)}.json", results)
            (folder / f"{record_name(results)}.md").write_text(markdown(results), encoding="utf-8")

    more = ["--checkpoint", str(checkpoint)] if checkpoint else []
    run_parts(parts, PARTS, state, out, deadline, args.part_timeout, publish, more)
    results = results_of(state, environment, PARTS)
    print(table(results))
    left = [part.name for part in parts if not settled(state, part)]
    if left:
        print(f"not done: {', '.join(left)}; run it again to go on")
    return 1 if left else 0


def _stop(number: int, _: object) -> NoReturn:
    # As an exception, so that the part that runs is ended as well.
    sys.exit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stop)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        say("stopped; run it again to go on")
        sys.exit(130)
