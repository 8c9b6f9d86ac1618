"""Atomic writing: buffers, system calls in order, each of them failing, kills, stale files, special files."""

from __future__ import annotations

import errno
import os
import pickle
import random
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tkfnet_engine import atomic
from tkfnet_engine.atomic import open_regular, write_atomically
from tkfnet_engine.errors import FileError, TkfnetError

ROOT = Path(atomic.__file__).parents[1]
POSIX = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals and folders")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "engine.tkf"


def test_buffers_and_chunks(target):
    for data, expected in [
        (b"abc", b"abc"), (bytearray(b"abc"), b"abc"), (memoryview(b"abc"), b"abc"), (b"", b""), ([], b""),
        ([b"a", b"", bytearray(b"bc")], b"abc"), ((c for c in (b"a", b"bc")), b"abc"),
        (np.arange(3, dtype="<u2"), b"\0\0\1\0\2\0"), (np.zeros((2, 0)), b""), (np.array(1, "<u2"), b"\1\0"),
    ]:  # fmt: skip
        write_atomically(target, data)
        assert target.read_bytes() == expected
    for wrong in ("text", 5, [1, 2], ["a"]):
        with pytest.raises(TypeError):
            write_atomically(target, wrong)
    assert target.read_bytes() == b"\1\0" and os.listdir(target.parent) == [target.name]


def test_an_error_of_the_chunks_passes_and_leaves_nothing(target):
    def chunks(error):
        yield b"some"
        raise error

    for error in (KeyError("x"), ValueError("x"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            write_atomically(target, chunks(error))
        assert os.listdir(target.parent) == []


def test_a_relative_path_and_paths_that_cannot_be(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_atomically("here.json", b"{}")
    with pytest.raises(FileError, match=r"absent.*No such file.*ENOENT.* 2 bytes"):
        write_atomically("absent/here.json", b"{}")
    for path in ("nul\0byte", "", "x" * 300):
        with pytest.raises(FileError, match="cannot write it"):
            write_atomically(path, b"{}")
    assert os.listdir() == ["here.json"]


def test_the_error_is_ours_and_the_systems(target):
    with pytest.raises(FileError) as caught:
        write_atomically(target / "absent", b"")
    for error in (caught.value, pickle.loads(pickle.dumps(caught.value))):
        assert isinstance(error, TkfnetError) and isinstance(error, OSError) and error.exit_code == 8
        assert str(error).startswith(f"{target / 'absent'}: cannot write it: ") and str(error) == error.args[0]
    assert isinstance(caught.value.__cause__, OSError) and caught.value.__cause__.errno


@POSIX
@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_mode_follows_the_umask(target, umask, mode):
    before = os.umask(umask)
    try:
        write_atomically(target, b"abc")
    finally:
        os.umask(before)
    assert stat.S_IMODE(target.stat().st_mode) == mode


@POSIX
def test_special_files_and_links(tmp_path):
    fifo, link = tmp_path / "fifo", tmp_path / "link"
    os.mkfifo(fifo)
    for special in (fifo, Path(os.devnull), tmp_path):
        with pytest.raises(FileError, match="expected a file to replace"):
            write_atomically(special, b"x")
        with pytest.raises(FileError):
            open_regular(special)  # and does not wait
    assert stat.S_ISFIFO(fifo.stat().st_mode) and stat.S_ISCHR(os.stat(os.devnull).st_mode)
    (tmp_path / "file").write_bytes(b"old")
    link.symlink_to(tmp_path / "file")
    with open_regular(link) as file:
        assert file.read() == b"old"
    write_atomically(link, b"new")
    assert (tmp_path / "file").read_bytes() == b"old" and link.read_bytes() == b"new" and not link.is_symlink()


# --- system calls ----------------------------------------------------------------------------------------

CALLS = ("open", "write", "fsync", "close", "replace")


@POSIX
def test_the_order_of_system_calls(target, monkeypatch):
    calls: list[str] = []
    for name in CALLS:
        real = getattr(os, name)

        def spy(*args, _name=name, _real=real, **more):
            kind = "folder" if _name == "fsync" and stat.S_ISDIR(os.fstat(args[0]).st_mode) else "file"
            calls.append(f"{_name} {kind}" if _name == "fsync" else _name)
            return _real(*args, **more)

        monkeypatch.setattr(os, name, spy)
    write_atomically(target, (b"abc", b"de"))
    assert calls == ["open", "write", "write", "fsync file", "close", "replace", "open", "fsync folder", "close"]


@POSIX
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EACCES])
def test_the_kth_call_fails(target, monkeypatch, number):
    """Fails each system call of a write in turn, with writes cut to 97 bytes so that there are many."""
    calls, failing = 0, 0
    trouble: list[str] = []
    real = {name: getattr(os, name) for name in CALLS}

    def faulty(name):
        def call(*args, **more):
            nonlocal calls
            calls += 1
            if calls == failing:
                trouble.append(name)
                if name == "close":
                    real["close"](*args)  # as Linux does: closed, and the error reported
                raise OSError(number, os.strerror(number))
            if name == "write":
                args = (args[0], args[1][:97])
            return real[name](*args, **more)

        return call

    for name in CALLS:
        monkeypatch.setattr(os, name, faulty(name))
    old, new = b"old", [bytes(range(250)), bytes(250)]
    open_files = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
    outcomes = []
    while True:
        failing += 1
        calls = -(10**9)
        target.write_bytes(old)
        calls = 0
        try:
            write_atomically(target, new)
            break
        except FileError as error:
            calls = -(10**9)
            message = str(error)
        assert str(target) in message and "500 bytes" in message and os.strerror(number) in message
        assert errno.errorcode[number] in message
        assert os.listdir(target.parent) == [target.name], trouble
        kept = target.read_bytes()
        outcomes.append(kept == old)
        assert kept == old or (kept == b"".join(new) and "is in place" in message), trouble
    calls = -(10**9)
    assert target.read_bytes() == b"".join(new)
    # Only what follows the replacement (the folder's open, fsync, close) may leave the new file.
    after = trouble[trouble.index("replace") + 1 :]
    assert outcomes == [True] * (len(outcomes) - len(after)) + [False] * len(after)
    assert after == ["open", "fsync", "close"] and trouble.count("write") > 5
    if open_files:
        assert len(os.listdir("/proc/self/fd")) == open_files


@POSIX
def test_a_folder_that_cannot_be_flushed_is_no_error(target, monkeypatch):
    real = os.fsync

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_atomically(target, b"abc")
    assert target.read_bytes() == b"abc"


def test_a_system_that_accepts_nothing_is_an_error(target, monkeypatch):
    monkeypatch.setattr(os, "write", lambda descriptor, view: 0)
    with pytest.raises(FileError, match="accepted no bytes"):
        write_atomically(target, b"abc")
    assert os.listdir(target.parent) == []


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="needs a file size limit")
def test_a_real_size_limit(target):
    script = (
        "import resource, signal, sys\n"
        "from tkfnet_engine.atomic import FileError, write_atomically\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "try: write_atomically(sys.argv[1], bytes(20000))\n"
        "except FileError as error: print(error)\n"
    )
    target.write_bytes(b"old")
    result = subprocess.run([sys.executable, "-c", script, target], capture_output=True, text=True, cwd=ROOT)
    assert "File too large (EFBIG)" in result.stdout and not result.stderr
    assert target.read_bytes() == b"old" and os.listdir(target.parent) == [target.name]


# --- several writers -------------------------------------------------------------------------------------


def test_threads_may_write_one_target(target):
    errors: list[BaseException] = []

    def work(value: int):
        try:
            for _ in range(10):
                write_atomically(target, bytes([value]) * 5000)
                content = target.read_bytes()
                assert content == content[:1] * 5000
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and os.listdir(target.parent) == [target.name]


WRITER = """
import itertools, sys
from tkfnet_engine.atomic import write_atomically
print("ready", flush=True)
for turn in itertools.count():
    write_atomically(sys.argv[1], bytes([turn % 256]) * (1 << 20))
"""


@POSIX
def test_killed_writers_leave_the_old_file_or_the_new(target):
    rng = random.Random(20_000)
    for _ in range(20):
        command = [sys.executable, "-c", WRITER, target]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as child:
            assert child.stdout.readline() == b"ready\n"
            time.sleep(rng.random() * 0.05)
            child.kill()
            child.wait()
        left = set(os.listdir(target.parent)) - {target.name}
        assert all(re.fullmatch(rf"\.engine\.tkf\.{child.pid}\.[0-9a-f]{{8}}\.tmp", name) for name in left)
        if target.exists():
            content = target.read_bytes()
            assert content == content[:1] * (1 << 20)
        write_atomically(target, b"\7" * (1 << 20))
        assert os.listdir(target.parent) == [target.name]


@POSIX
def test_only_stale_files_of_the_same_target_go(target):
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    folder = target.parent
    dead, ours, token = ended.pid, os.getpid(), "0123abcd"
    stay = [
        f".other.tkf.{dead}.{token}.tmp",  # another target's
        f".engine.tkf.{os.getppid()}.{token}.tmp",  # its writer lives
        f".engine.tkf.{dead}.{token}",
        f".engine.tkf.{dead}.xyz.tmp",
        f"engine.tkf.{dead}.{token}.tmp",
        f".engineXtkf.{dead}.{token}.tmp",
        f".engine.tkf.{'9' * 30}.{token}.tmp",
    ]
    for name in [*stay, f".engine.tkf.{dead}.{token}.tmp", f".engine.tkf.{ours}.{token}.tmp"]:
        (folder / name).write_bytes(b"x")
    write_atomically(target, b"abc")
    assert set(os.listdir(folder)) == {target.name, *stay}
