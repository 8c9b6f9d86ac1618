"""Notes of the plans that were built here: whose they are, for which machine, and which of them count as none."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tkfnet_engine import trust
from tkfnet_engine.errors import FileError
from tkfnet_engine.trust import remember, why_not_own

pytestmark = pytest.mark.skipif(os.name != "posix", reason="a note has a POSIX owner and mode")

PLAN = bytes(range(256)) * 4
UNKNOWN = "this user has not built it on this machine"


@pytest.fixture
def state(tmp_path, monkeypatch) -> Path:
    """The folder that holds ours; there only once something is noted."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def note(state) -> Path:
    """The note on `PLAN`, made."""
    assert remember(PLAN) is None
    (path,) = (state / "tkfnet-engine" / "plans").iterdir()
    return path


def test_what_was_noted_is_own_and_nothing_else(state):
    assert why_not_own(PLAN) == UNKNOWN and not state.exists()
    assert remember(PLAN) is None and why_not_own(PLAN) is None
    for same in (bytearray(PLAN), memoryview(PLAN), np.frombuffer(PLAN, np.uint8)):
        assert why_not_own(same) is None
    for other in (PLAN[:-1], PLAN + b"\0", b"", PLAN[:-1] + b"\0"):
        assert why_not_own(other) == UNKNOWN


def test_a_note_is_a_small_file_of_its_own_that_only_its_user_reads_and_writes(state):
    before = os.umask(0)
    try:
        assert remember(PLAN) is None and remember(PLAN) is None and remember(b"another") is None
    finally:
        os.umask(before)
    ours = state / "tkfnet-engine"
    assert [stat.S_IMODE(p.stat().st_mode) for p in (ours, ours / "plans")] == [0o700, 0o700]
    notes = sorted((ours / "plans").iterdir())
    assert {n.name.split("-")[0] for n in notes} == {hashlib.sha256(p).hexdigest() for p in (PLAN, b"another")}
    for found in notes:
        assert stat.S_IMODE(found.stat().st_mode) == 0o600 and found.stat().st_size < 128


def test_the_folder_is_below_home_by_default_and_a_relative_one_is_ignored(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for value in (None, "", "relative"):
        if value is None:
            monkeypatch.delenv("XDG_STATE_HOME", raising=False)
        else:
            monkeypatch.setenv("XDG_STATE_HOME", value)
        plan = repr(value).encode()
        assert remember(plan) is None and why_not_own(plan) is None
    assert os.listdir(tmp_path) == [".local"]
    assert len(os.listdir(tmp_path / ".local" / "state" / "tkfnet-engine" / "plans")) == 3


# --- machines ----------------------------------------------------------------------------------------------


def test_a_note_holds_for_one_machine(note, tmp_path, monkeypatch):
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(trust.platform, "node", lambda: "another-host")
        assert why_not_own(PLAN) == UNKNOWN
        assert remember(PLAN) is None and why_not_own(PLAN) is None
    (tmp_path / "machine-id").write_text("0123456789abcdef\n")
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(trust, "_MACHINE_ID", str(tmp_path / "machine-id"))
        assert why_not_own(PLAN) == UNKNOWN
        # The note of one machine under the name of another's: only its content tells.
        os.link(note, note.with_name(trust._name(PLAN)))
        assert "damaged" in why_not_own(PLAN)
    assert why_not_own(PLAN) is None and len(os.listdir(note.parent)) == 3


def test_a_machine_without_a_number_has_its_name(state, tmp_path, monkeypatch):
    monkeypatch.setattr(trust, "_MACHINE_ID", str(tmp_path / "none"))
    assert remember(PLAN) is None and why_not_own(PLAN) is None
    monkeypatch.setattr(trust.platform, "node", lambda: "odd\udcff")
    assert why_not_own(PLAN) == UNKNOWN


# --- notes that count as none ------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666, 0o660])
def test_a_note_that_others_can_write_is_none(note, mode):
    note.chmod(mode)
    assert why_not_own(PLAN) == f"others can write {note} (mode {mode:04o}); delete it"
    note.chmod(0o644)
    assert why_not_own(PLAN) is None


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777, 0o770])
@pytest.mark.parametrize("above", [0, 1])
def test_a_note_in_a_folder_that_others_can_write_is_none(note, above, mode):
    folder = note.parents[above]
    folder.chmod(mode)
    assert why_not_own(PLAN) == f"others can write {folder} (mode {mode:04o}); chmod go-w {folder}"
    # To write it again is no remedy, and is not said to have been one.
    assert remember(PLAN).startswith(f"others can write {folder} ")
    folder.chmod(0o755)
    assert why_not_own(PLAN) is None


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_note_of_another_user_is_none(note, monkeypatch, index):
    """Also where only the note, or only a folder, is another's."""
    foreign = [note.parents[1], note.parent, note][index].stat().st_ino
    real = os.fstat

    def fstat(descriptor):
        found = real(descriptor)
        if found.st_ino != foreign:
            return found
        return os.stat_result((*found[:4], found.st_uid + 1, *found[5:]))

    monkeypatch.setattr(trust.os, "fstat", fstat)
    me = os.geteuid()
    assert f"belongs to user {me + 1}, expected {me}" in why_not_own(PLAN)
    if foreign == note.stat().st_ino:
        assert (
            remember(PLAN) is None and why_not_own(PLAN) is None
        )  # in a folder of one's own, another's file gives way
    else:
        assert f"belongs to user {me + 1}, expected {me}" in remember(PLAN)


def test_links_lead_nowhere(note, tmp_path):
    for original in (note, note.parent, note.parents[1]):
        moved = tmp_path / "moved"
        original.rename(moved)
        original.symlink_to(moved)
        assert why_not_own(PLAN).startswith(f"{original} cannot be read: ")
        original.unlink()
        moved.rename(original)
        assert why_not_own(PLAN) is None


def test_a_folder_exchanged_while_it_is_read_leads_nowhere(note, monkeypatch):
    """Once `plans` is open, its path names another folder, with a good note on another plan."""
    planted = note.parents[1] / "planted"
    planted.mkdir(0o700)
    name = trust._name(b"another")
    (planted / name).write_bytes(f"{name}\n".encode())
    (planted / name).chmod(0o600)
    real, plans = os.fstat, note.parent.stat().st_ino

    def fstat(descriptor):
        found = real(descriptor)
        if found.st_ino == plans:
            note.parent.rename(note.parent.with_name("before"))
            planted.rename(note.parent)
        return found

    monkeypatch.setattr(trust.os, "fstat", fstat)
    assert why_not_own(b"another") == UNKNOWN and not planted.exists()
    assert why_not_own(b"another") is None


def test_what_is_no_note(note):
    good = note.read_bytes()
    for damaged in (b"", good[:-1], good + b"\0", good.replace(good[:1], b"x"), bytes(300)):
        note.write_bytes(damaged)
        assert why_not_own(PLAN) == f"the note {note} is damaged; delete it"
    assert remember(PLAN) is None and why_not_own(PLAN) is None
    note.unlink()
    os.mkfifo(note, 0o600)
    assert why_not_own(PLAN) == f"{note} is no file; delete it"
    assert remember(PLAN).startswith(f"{note.parent} cannot be written: ")
    note.unlink()
    note.mkdir(0o700)
    assert why_not_own(PLAN) == f"{note} is no file; delete it"
    note.rmdir()
    note.parent.rmdir()
    note.parent.write_bytes(b"")
    assert why_not_own(PLAN) == f"{note.parent} is no folder; delete it"
    assert remember(PLAN).startswith(f"{note.parent} cannot be written: ")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_descriptor_stays_open(note):
    count = len(os.listdir("/proc/self/fd"))
    for mode in (0o600, 0o666):
        note.chmod(mode)
        why_not_own(PLAN)
        why_not_own(b"another")
    note.parent.chmod(0o777)
    why_not_own(PLAN)
    assert len(os.listdir("/proc/self/fd")) == count


# --- where nothing can be noted ----------------------------------------------------------------------------


def test_a_folder_that_cannot_be_made_is_said_and_not_raised(state, monkeypatch):
    state.write_bytes(b"")
    assert remember(PLAN) == f"{state / 'tkfnet-engine' / 'plans'} cannot be written: File exists"
    assert why_not_own(PLAN).endswith("cannot be read: Not a directory")


def test_a_full_disk_is_said_and_not_raised(state, monkeypatch):
    def full(path, data, mode):
        raise FileError(f"{path}: of many words") from OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(trust, "write_atomically", full)
    assert remember(PLAN) == f"{state / 'tkfnet-engine' / 'plans'} cannot be written: No space left on device"
    assert why_not_own(PLAN) == UNKNOWN


def test_without_a_home_folder(monkeypatch):
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr(trust.os.path, "expanduser", lambda path: path)
    for why in (remember(PLAN), why_not_own(PLAN)):
        assert why == "there is no home folder to note it in; set XDG_STATE_HOME"


def test_without_user_numbers_nothing_is_own(note, monkeypatch):
    monkeypatch.delattr(os, "geteuid")
    for why in (remember(PLAN), why_not_own(PLAN)):
        assert why == "this system has no user numbers to tell a note's author by"


# --- many, and large ---------------------------------------------------------------------------------------


def test_builds_at_the_same_time(state):
    plans = [PLAN, b"one", b"two", b"three"] * 16
    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(remember, plans)) == {None}
    assert {why_not_own(plan) for plan in plans} == {None}
    assert len(os.listdir(state / "tkfnet-engine" / "plans")) == 4


def test_a_plan_is_not_copied(state):
    plan = bytes(16 << 20)
    tracemalloc.start()
    try:
        assert remember(plan) is None and why_not_own(plan) is None
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
