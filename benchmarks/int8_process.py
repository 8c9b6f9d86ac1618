"""Running a command: its messages pass through to the person, and its last one is the reason if it fails."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from tkfnet_engine.console import say
from tkfnet_engine.errors import BackendError


def output(what: str, command: Sequence[str | os.PathLike[str]]) -> str:
    """Standard output of `command`, once it has ended. `BackendError` with its last message if it fails.

    The process ends with this one: Ctrl-C leaves nothing running.
    """
    say(what)
    last = "it said nothing"
    # Standard output goes to a file: nobody reads it while the messages are read.
    with tempfile.TemporaryFile() as kept:
        process = subprocess.Popen(list(map(os.fspath, command)), stdout=kept, stderr=subprocess.PIPE)
        try:
            for raw in process.stderr:
                line = raw.decode(errors="replace").rstrip()
                last = line or last
                print(f"    {line}", file=sys.stderr, flush=True)
            code = process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise
        finally:
            process.stderr.close()
        if code:
            raise BackendError(f"{what}: ended with {code}: {last}")
        kept.seek(0)
        return kept.read().decode()
