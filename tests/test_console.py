"""What every command shares: exit codes, JSON alone on standard output, progress, interruption, closed pipes."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from tkfnet_engine import console, errors
from tkfnet_engine.console import Interruptible, Parser, emit_json, progress, run_command, say

ROOT = Path(__file__).parents[1]


def _process(body: str, **options) -> subprocess.Popen:
    code = "from tkfnet_engine.console import *\nfrom tkfnet_engine.errors import *\nimport sys, time\n"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.Popen([sys.executable, "-c", code + textwrap.dedent(body)], cwd=ROOT, text=True, **pipes)


def _code(command, argv=None) -> int:
    with pytest.raises(SystemExit) as caught:
        run_command(command, argv)
    return caught.value.code


# --- exit codes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (2, 2), (5, 5)])
def test_a_commands_own_code(returned, code, capsys):
    assert _code(lambda argv: returned) == code
    assert capsys.readouterr() == ("", "")


def test_arguments_are_passed_on():
    seen = []
    _code(seen.append, ["--x", "1"])
    assert seen == [["--x", "1"]]


@pytest.mark.parametrize(
    ("kind", "code"),
    [("TkfnetError", 1), ("VerificationError", 2), ("BundleError", 3), ("ImageError", 4), ("DataError", 5),
     ("CheckpointError", 6), ("BackendError", 7), ("FileError", 8), ("TrustError", 9), ("UsageError", 64)],
)  # fmt: skip
def test_errors_are_one_line_and_their_code(kind, code, capsys):
    def command(argv):
        raise getattr(errors, kind)("got 3, expected 4; give 4")

    assert _code(command) == code
    assert capsys.readouterr() == ("", "error: got 3, expected 4; give 4\n")


def test_every_error_has_a_code_of_its_own():
    kinds = [v for v in vars(errors).values() if isinstance(v, type) and issubclass(v, errors.TkfnetError)]
    assert len({kind.exit_code for kind in kinds}) == len(kinds) >= 8


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_command(lambda argv: 1 // 0)


def test_ctrl_c_in_the_command(capsys):
    def command(argv):
        raise KeyboardInterrupt

    assert _code(command) == 130
    assert capsys.readouterr() == ("", "stopped\n")


def test_ctrl_c_from_outside():
    # A shell starts its background jobs with this signal ignored, and so would be the process here.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    process = _process(f"{heed}\nsay('ready')\nrun_command(lambda argv: time.sleep(60))")
    assert process.stderr.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    # A signal between the line and the command would be Python's own traceback.
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) in ((130, ""), (-signal.SIGINT, ""))
    assert process.returncode < 0 or err == "stopped\n"


def test_a_wrong_flag_is_not_mistaken_for_a_failed_verification(capsys):
    parser = Parser(prog="tkfnet")
    parser.add_argument("--n", type=int)
    for wrong in (["--m"], ["--n", "x"], ["stray"]):
        assert _code(lambda argv: parser.parse_args(argv) and None, wrong) == 64
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("usage: tkfnet") and err.endswith("; see --help\n")
    assert _code(lambda argv: parser.parse_args(argv) and None, ["--help"]) == 0


# --- standard output ---------------------------------------------------------------------------------------


def test_json_stands_alone_on_standard_output():
    process = _process(
        """
        def command(argv):
            say("working")
            for _ in progress([1, 2], "step"):
                say("more")
            emit_json({"label": "fé", "p": [0.25, 1]})
        run_command(command)
        """
    )
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert json.loads(out) == {"label": "fé", "p": [0.25, 1]} and out.endswith("}\n")
    assert err == "working\nmore\nmore\n"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [-float("inf")]}], ids=str)
def test_json_is_strict(value):
    with pytest.raises(ValueError, match="not JSON compliant"):
        emit_json(value)


def test_say_goes_to_the_person(capsys):
    say("hello")
    assert capsys.readouterr() == ("", "hello\n")


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX pipes")
@pytest.mark.parametrize("body", ["print('x' * 200_000)", "print('short')", "emit_json(list(range(99_999)))"])
def test_a_closed_pipe_is_no_traceback(body):
    reader, writer = os.pipe()
    os.close(reader)
    process = _process(f"run_command(lambda argv: {body})", stdout=writer)
    os.close(writer)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (141, "")


# --- progress ----------------------------------------------------------------------------------------------


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves when told to."""
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])

    def advance(seconds: float) -> None:
        now[0] += seconds

    return advance


def test_progress_yields_everything_and_a_fast_loop_is_silent(capsys):
    assert list(progress(range(5), "x")) == [0, 1, 2, 3, 4]
    assert list(progress(iter("abc"), "x", total=3)) == ["a", "b", "c"]
    assert list(progress([], "x")) == []
    assert capsys.readouterr() == ("", "")


def test_progress_in_a_log_is_a_line_now_and_then(capsys, clock):
    for _ in progress(range(30), "reading"):
        clock(1)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "reading: 10/30 (33%), 1/s, 20 s left",
        "reading: 20/30 (67%), 1/s, 10 s left",
        "reading: 30/30 (100%), 1/s, 0 s left",
    ]


def test_progress_on_a_terminal_redraws_one_line_and_removes_it(monkeypatch, clock):
    stream = _Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    for _ in progress(range(4), "reading"):
        clock(0.5)
    text = stream.getvalue()
    assert "\n" not in text and text.count("\r\x1b[K") == 5 and text.endswith("\r\x1b[K")
    assert "reading: 2/4 (50%), 2/s, 1 s left" in text


def test_progress_of_more_items_than_announced(capsys, clock):
    for _ in progress(iter(range(3)), "x", total=0):
        clock(11)
    assert "x: 1/0 (100%)" in capsys.readouterr().err


def test_progress_of_an_unknown_total_is_count_and_rate(capsys, clock):
    for _ in progress(iter(range(3)), "frames", lambda: None):
        clock(20)
    assert capsys.readouterr().err.splitlines() == [f"frames: {n}, 0.05/s" for n in (1, 2, 3)]


def test_a_total_may_become_known(capsys, clock):
    total = [2]
    for n in progress(iter(range(4)), "frames", lambda: total[0]):
        total[0] = 2 if n < 2 else 10
        clock(10)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "frames: 1/2 (50%), 0.1/s, 10 s left" and lines[3] == "frames: 4/10 (40%), 0.1/s, 60 s left"


def test_a_line_wipes_the_progress_away(monkeypatch, clock):
    stream = _Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    say("before")
    for _ in progress(range(1), "reading"):
        say("meanwhile")
    say("after")
    assert stream.getvalue() == "before\n\r\x1b[Kmeanwhile\n\r\x1b[Kafter\n"


def test_progress_needs_a_total():
    with pytest.raises(TypeError):
        list(progress(iter([1]), "x"))


# --- Ctrl-C between two items ------------------------------------------------------------------------------


class _Items:
    """Counts from 0; `press` sends Ctrl-C where it is asked for that item. Notes that it was closed."""

    def __init__(self, press_at=None):
        self.press_at, self.next, self.closed = press_at, 0, False

    def __iter__(self):
        return self

    def __next__(self):
        if self.next == self.press_at:
            signal.raise_signal(signal.SIGINT)
        if self.next == 9:
            raise StopIteration
        self.next += 1
        return self.next - 1

    def close(self):
        self.closed = True


@pytest.fixture
def heeds_signals():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_while_an_item_is_worked_on_lets_it_finish(heeds_signals):
    items, done = _Items(), []
    with Interruptible() as interrupt:
        for item in interrupt.until_pressed(items):
            if item == 4:
                signal.raise_signal(signal.SIGINT)
            done.append(item)
    assert done == [0, 1, 2, 3, 4] and interrupt.pressed and items.closed


def test_ctrl_c_while_an_item_is_awaited_drops_it(heeds_signals):
    items, done = _Items(press_at=4), []
    with Interruptible() as interrupt:
        done += interrupt.until_pressed(items)
    assert done == [0, 1, 2, 3] and interrupt.pressed and items.closed


def test_a_second_ctrl_c_is_as_always(heeds_signals):
    with pytest.raises(KeyboardInterrupt), Interruptible() as interrupt:
        for _ in interrupt.until_pressed(_Items()):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)


def test_without_ctrl_c_everything_comes_and_errors_pass(heeds_signals):
    with Interruptible() as interrupt:
        assert list(interrupt.until_pressed(range(3))) == [0, 1, 2] and not interrupt.pressed
        with pytest.raises(ZeroDivisionError):
            list(interrupt.until_pressed(1 // n for n in (1, 0)))
        # Someone else's, and not the person's.
        with pytest.raises(KeyboardInterrupt):
            list(interrupt.until_pressed(_raising(KeyboardInterrupt)))


def _raising(kind):
    yield 1
    raise kind


def test_it_leaves_signals_alone_where_they_are_not_its_own():
    seen = []
    before = signal.signal(signal.SIGINT, lambda *_: seen.append(1))
    try:
        with Interruptible() as interrupt:
            signal.raise_signal(signal.SIGINT)
        assert seen == [1] and not interrupt.pressed
    finally:
        signal.signal(signal.SIGINT, before)
    entered = []
    thread = threading.Thread(target=lambda: entered.append(Interruptible().__enter__()))
    thread.start()
    thread.join()
    assert entered
