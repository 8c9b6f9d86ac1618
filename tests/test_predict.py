"""`predict`: from pictures, folders and videos to tables, JSON, CSV, drawn pictures, heat maps; stopped and resumed."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tkfnet_engine import Engine
from tkfnet_engine.faces import open_detector
from tkfnet_engine.pipeline.results import columns
from tkfnet_engine.preprocess import crop_box, decode_image
from tkfnet_engine.spec import LABELS

from .scenes import group_picture, moving_scene, write_video

ROOT = Path(__file__).parents[1]
KEYS = [
    "source", "frame", "seconds", "face", "track", "box", "landmarks", "score", "crop", "label", "probabilities",
]  # fmt: skip
NONE = ("--detector", "none")


@pytest.fixture
def folder(tmp_path, noise):
    """A folder of five good pictures, one below."""
    root = tmp_path / "photos"
    (root / "sub").mkdir(parents=True)
    for n, name in enumerate(("a.png", "b.jpg", "c.png", "d.png", "sub/e.png")):
        Image.fromarray(noise(1, 64, seed=n)[0]).save(root / name)
    return root


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    path = tmp_path_factory.mktemp("group") / "group.png"
    Image.fromarray(group_picture(4, size=(640, 480))[0]).save(path)
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    pytest.importorskip("cv2")
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    write_video(path, moving_scene(1.2, 10, (160, 120), people=1), 10, (160, 120))
    return path


def refused(shown, code, *words):
    assert shown.code == code, shown.err
    assert shown.out == "" and "Traceback" not in shown.err
    *_, last = shown.err.splitlines()
    assert last.startswith("error: ") and all(word in last for word in words), shown.err
    return shown.err.count("\n") == 1


def rows_of(shown, code=0):
    assert shown.code == code, shown.err
    return json.loads(shown.out)


def read_csv(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# --- face crops --------------------------------------------------------------------------------------------


def test_json(command, small_engine_path, pictures):
    names = [str(pictures / n) for n in ("a.png", "b.jpg", "c.webp", "a.png")]
    shown = command("predict", small_engine_path, *names, *NONE, "--json", "--threads", "1")
    assert shown.code == 0 and shown.err == ""
    rows = json.loads(shown.out)
    assert [row["source"] for row in rows] == names and rows[0] == rows[3]
    with Engine.load(small_engine_path, threads=1) as engine:
        expected = engine.predict([decode_image(n) for n in names]).probabilities
    for row, probabilities, side in zip(rows, expected, (80, 120, 64, 80), strict=True):
        assert list(row) == KEYS and tuple(row["probabilities"]) == LABELS
        assert np.allclose(list(row["probabilities"].values()), probabilities, rtol=0, atol=2e-5)
        assert row["label"] == max(row["probabilities"], key=row["probabilities"].get)
        assert (row["box"], row["crop"], row["frame"], row["face"]) == ([0, 0, side, side], "given", 0, 0)
        assert [row[k] for k in ("seconds", "track", "landmarks", "score")] == [None] * 4


def test_table(command, small_engine_path, pictures):
    names = [str(pictures / n) for n in ("a.png", "b.jpg")]
    rows = rows_of(command("predict", small_engine_path, *names, *NONE, "--json"))
    shown = command("predict", small_engine_path, *names, *NONE)
    assert shown.code == 0 and shown.err == ""
    for line, row in zip(shown.out.splitlines(), rows, strict=True):
        ranked = sorted(row["probabilities"].items(), key=lambda item: -item[1])
        (first, p), (second, q), (third, r) = ranked[:3]
        assert line.split() == [row["source"], first, f"{p:.1%}", f"({second}", f"{q:.1%},", third, f"{r:.1%})"]


def test_many_pictures(command, small_engine_path, pictures):
    names = list(itertools.islice(itertools.cycle(str(pictures / n) for n in ("a.png", "b.jpg", "c.webp")), 40))
    rows = rows_of(command("predict", small_engine_path, *names, *NONE, "--json"))
    assert [row["source"] for row in rows] == names
    assert all(row["label"] == rows[i % 3]["label"] for i, row in enumerate(rows))


def test_a_name_that_is_no_text(command, small_engine_path, tmp_path, pictures):
    path = os.path.join(os.fsencode(tmp_path), b"caf\xe9 \n.png")
    with open(path, "wb") as file:
        file.write((pictures / "a.png").read_bytes())
    shown = command("predict", small_engine_path, os.fsdecode(path), *NONE)
    assert shown.code == 0 and "caf\\xe9 \\n.png" in shown.out and shown.out.count("\n") == 1


def test_standard_input(small_engine_path, pictures):
    argv = [sys.executable, "-m", "tkfnet_engine.predict", small_engine_path, "-", *NONE, "--json"]
    done = subprocess.run(argv, input=(pictures / "a.png").read_bytes(), capture_output=True, cwd=ROOT)
    (row,) = json.loads(done.stdout)
    assert done.returncode == 0 and row["source"] == "-" and row["box"] == [0, 0, 80, 80]


# --- boxes -------------------------------------------------------------------------------------------------


def test_within_a_box(command, small_engine_path, pictures, tmp_path):
    path = str(pictures / "b.jpg")
    Image.fromarray(crop_box(decode_image(path), (10, 20, 50, 60))).save(tmp_path / "cut.png")
    run = lambda *argv: rows_of(command("predict", small_engine_path, *argv, "--json"))  # noqa: E731
    boxed, cut, whole = run(path, "--box", "10,20,50,60"), run(tmp_path / "cut.png", *NONE), run(path, *NONE)
    assert boxed[0]["probabilities"] == cut[0]["probabilities"] != whole[0]["probabilities"]
    assert (boxed[0]["box"], boxed[0]["crop"]) == ([10, 20, 50, 60], "given")
    assert run(path, "--box", "0,0,120,120") == whole


@pytest.mark.parametrize("box", ["", "1,2,3", "1,2,3,4,5", "a,b,c,d", "1.5,2,3,4", "1 2 3 4", ",,,"])
def test_a_box_that_is_no_box(command, small_engine_path, pictures, box):
    shown = command("predict", small_engine_path, pictures / "a.png", f"--box={box}")
    assert refused(shown, 64, "--box: got ", repr(box), "expected four whole numbers X,Y,W,H such as")


@pytest.mark.parametrize("box", ["0,0,81,80", "80,0,1,1", "-1,0,5,5", "0,0,0,5", "0,0,5,-5", "0,0,99999999999,1"])
def test_a_box_outside_the_image(command, small_engine_path, pictures, box):
    shown = command("predict", small_engine_path, pictures / "a.png", f"--box={box}", "--json")
    assert refused(shown, 4, "box: got", "inside the 80 x 80 pixels")


def test_boxes_from_a_file(command, small_engine_path, pictures, tmp_path):
    content = {"b.jpg": [[60, 0, 50, 50], [0, 0, 50, 50]], "misspelt.png": [[0, 0, 5, 5]]}
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    argv = [pictures / "a.png", pictures / "b.jpg", "--boxes", tmp_path / "boxes.json"]
    shown = command("predict", small_engine_path, *argv, "--json")
    rows = rows_of(shown)
    assert [(os.path.basename(r["source"]), r["face"], r["box"][0]) for r in rows] == [
        ("b.jpg", 0, 0),
        ("b.jpg", 1, 60),
    ]
    assert "misspelt.png" in shown.err and shown.err.count("\n") == 1
    same = command("predict", small_engine_path, *argv[:2], "--detector", f"boxes:{tmp_path / 'boxes.json'}", "--json")
    assert same.out == shown.out


@pytest.mark.parametrize("pair", [("--box", "0,0,9,9"), ("--boxes", "x.json")])
def test_one_way_to_find_faces(command, small_engine_path, pictures, pair):
    shown = command("predict", small_engine_path, pictures / "a.png", *NONE, *pair)
    assert shown.code == 64 and "not allowed with argument" in shown.err


# --- detection ---------------------------------------------------------------------------------------------


def test_faces_are_found_by_default(command, small_engine_path, group):
    pytest.importorskip("cv2")
    shown = command("predict", small_engine_path, group, "--json")
    rows = rows_of(shown)
    expected = open_detector("haar").find_faces(decode_image(group))
    assert len(rows) == len(expected) >= 2 and [r["face"] for r in rows] == list(range(len(rows)))
    for row, face in zip(rows, expected):
        assert (
            row["box"] == pytest.approx(face.box, abs=0.06) and row["score"] == face.score and row["crop"] == "margin"
        )
    wide = rows_of(command("predict", small_engine_path, group, "--json", "--margin", "0.6"))
    assert [r["box"] for r in wide] == [r["box"] for r in rows]
    assert [r["probabilities"] for r in wide] != [r["probabilities"] for r in rows]
    table = command("predict", small_engine_path, group)
    assert table.code == 0 and len(table.out.splitlines()) == len(rows)
    assert table.out.split()[:2] == [str(group), f"1/{len(rows)}"]


def test_no_face_is_a_hint_and_no_error(command, small_engine_path, tmp_path):
    pytest.importorskip("cv2")
    for name in ("a.png", "b.png"):
        Image.new("RGB", (90, 90), (90, 120, 90)).save(tmp_path / name)
    shown = command("predict", small_engine_path, tmp_path / "a.png", tmp_path / "b.png", "--json")
    assert shown.code == 0 and json.loads(shown.out) == []
    assert shown.err.count("\n") == 1 and "a.png: no face found" in shown.err and "--detector none" in shown.err
    table = command("predict", small_engine_path, tmp_path / "a.png")
    assert table.out == f"{tmp_path / 'a.png'}  no face\n"


def test_without_opencv(command, small_engine_path, pictures, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    shown = command("predict", small_engine_path, pictures / "a.png")
    assert refused(shown, 7, "pip install 'tkfnet-engine[faces]'", "--detector none")
    assert len(rows_of(command("predict", small_engine_path, pictures / "a.png", *NONE, "--json"))) == 1


def test_it_says_where_crops_are_not_the_training_s(command, tampered, small_engine_path, group):
    pytest.importorskip("cv2")
    from tkfnet_engine.bundle import read_bundle

    preprocessing = {**read_bundle(small_engine_path).facts["preprocessing"], "crop": "five-point"}
    shown = command("predict", tampered(small_engine_path, preprocessing=preprocessing), group, "--json")
    assert shown.code == 0 and shown.err.count("\n") == 1 and "aligned by five points" in shown.err


# --- what cannot be read -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none.jpg", "no such file"),
        ("damaged.jpg", "damaged or truncated"),
        ("text.png", "HTML"),
        ("empty.png", "empty"),
        ("*.tiff", "no file fits this pattern"),
    ],
)
@pytest.mark.parametrize("output", ["--json", "--threads=1"])
def test_a_picture_that_cannot_be_read(command, small_engine_path, pictures, name, words, output):
    shown = command("predict", small_engine_path, pictures / "a.png", pictures / name, *NONE, output)
    assert refused(shown, 4, str(pictures / name), words)


def test_in_a_folder_the_rest_is_done(command, small_engine_path, folder):
    (folder / "b2.png").write_bytes((folder / "a.png").read_bytes()[:200])
    (folder / "notes.txt").write_text("x")
    shown = command("predict", small_engine_path, folder, *NONE, "--json")
    rows = rows_of(shown, code=4)
    assert [os.path.relpath(r["source"], folder) for r in rows] == ["a.png", "b.jpg", "c.png", "d.png", "sub/e.png"]
    first, last = shown.err.splitlines()
    assert "b2.png: damaged or truncated" in first and last == "1 of 7 sources could not be read, or not to their end"


def test_a_folder_of_other_things(command, small_engine_path, tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    assert refused(
        command("predict", small_engine_path, tmp_path, *NONE, "--json"), 4, "no picture or video among 1 files"
    )


def test_sources_and_flags_in_any_order(command, small_engine_path, pictures):
    shown = command(
        "predict", small_engine_path, pictures / "a.png", *NONE, pictures / "c.webp", "--json", pictures / "a.png"
    )
    assert len(rows_of(shown)) == 3


def test_patterns_are_expanded(command, small_engine_path, folder):
    rows = rows_of(command("predict", small_engine_path, f"{folder}/*.png", *NONE, "--json"))
    assert [os.path.basename(r["source"]) for r in rows] == ["a.png", "c.png", "d.png"]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--every", "0"], "every: got 0"), (["--smooth", "0"], "smooth: got 0"), (["--margin", "9"], "margin: got 9"),
        (["--resume"], "--resume: got no file"), (["--resume", "--annotate", "x.mp4"], "a video cannot be continued"),
        (["--csv", "no/such/x.csv"], "no/such/x.csv: cannot write"), (["0"], "give it alone"),
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_argument(command, small_engine_path, folder, argv, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = command("predict", small_engine_path, folder, *NONE, *argv)
    assert shown.code in (8, 64) and refused(shown, shown.code, words)
    assert sorted(os.listdir(tmp_path)) == ["photos"]


# --- videos ------------------------------------------------------------------------------------------------


def test_a_video(command, small_engine_path, video):
    rows = rows_of(command("predict", small_engine_path, video, *NONE, "--json"))
    assert [r["frame"] for r in rows] == list(range(12))
    assert [r["seconds"] for r in rows] == pytest.approx([n / 10 for n in range(12)], abs=0.002)
    every = rows_of(command("predict", small_engine_path, video, *NONE, "--json", "--every", "5"))
    assert [r["frame"] for r in every] == [0, 5, 10] and every[1]["label"] == rows[5]["label"]
    table = command("predict", small_engine_path, video, *NONE)
    assert table.code == 0 and len(table.out.splitlines()) == 12 and table.out.split()[1:3] == ["0:00.00", "1/1"]


def test_tracking_and_smoothing(command, small_engine_path, video):
    run = lambda *argv: rows_of(command("predict", small_engine_path, video, *NONE, "--json", *argv))  # noqa: E731
    plain, tracked, smoothed, slow = run(), run("--track"), run("--smooth"), run("--smooth", "1000")
    assert {r["track"] for r in plain} == {None} and {r["track"] for r in (*tracked, *smoothed)} == {0}
    values = lambda rows: np.array([list(r["probabilities"].values()) for r in rows])  # noqa: E731
    assert np.allclose(values(tracked), values(plain), rtol=0, atol=2e-5)
    spread = [values(rows).std(0).sum() for rows in (plain, smoothed, slow)]
    assert spread[0] > spread[1] > spread[2]


def test_a_video_that_ends_early_is_used_and_said(command, small_engine_path, tmp_path):
    cv2 = pytest.importorskip("cv2")
    writer = cv2.VideoWriter(str(tmp_path / "w.avi"), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 64))
    for n in range(60):
        writer.write(np.full((64, 64, 3), n, np.uint8))
    writer.release()
    data = (tmp_path / "w.avi").read_bytes()
    (tmp_path / "cut.avi").write_bytes(data[: len(data) * 3 // 4])
    shown = command("predict", small_engine_path, tmp_path / "cut.avi", *NONE, "--json")
    rows = rows_of(shown, code=4)
    assert 10 < len(rows) < 55 and f"ends early, after {len(rows)} of 60 frames" in shown.err


# --- files -------------------------------------------------------------------------------------------------


def test_csv(command, small_engine_path, folder, tmp_path):
    out = tmp_path / "out.csv"
    shown = command("predict", small_engine_path, folder, *NONE, "--csv", out)
    assert shown.code == 0 and shown.out == "" and shown.err == f"5 frames, 5 faces in {out}\n"
    rows = read_csv(out)
    json_rows = rows_of(command("predict", small_engine_path, folder, *NONE, "--json"))
    assert list(rows[0]) == columns(LABELS)
    for row, expected in zip(rows, json_rows, strict=True):
        assert (row["source"], row["label"]) == (expected["source"], expected["label"])
        probabilities = [float(row[f"p_{label}"]) for label in LABELS]
        assert probabilities == pytest.approx(list(expected["probabilities"].values()), abs=2e-5)


def test_resume_with_csv(command, small_engine_path, folder, tmp_path):
    out, argv = tmp_path / "out.csv", ("predict", small_engine_path, folder, *NONE, "--threads", "1")
    assert command(*argv, "--csv", out).code == 0
    whole = out.read_bytes()
    lines = whole.splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:4]) + lines[4][:20])
    shown = command(*argv, "--csv", out, "--resume", "--json")
    # The third picture's line is whole, but nothing tells that it was its last.
    assert [os.path.relpath(r["source"], folder) for r in rows_of(shown)] == ["c.png", "d.png", "sub/e.png"]
    assert [r["source"] for r in read_csv(out)] == [r["source"] for r in csv.DictReader(io.StringIO(whole.decode()))]
    again = command(*argv, "--csv", out, "--resume", "--json")
    assert len(rows_of(again)) == 1 and len(read_csv(out)) == 5


def test_annotate_to_a_folder_and_resume(command, small_engine_path, folder, tmp_path):
    out, argv = tmp_path / "drawn", ("predict", small_engine_path, folder, *NONE)
    shown = command(*argv, "--annotate", out)
    assert shown.code == 0 and shown.out == "" and shown.err == f"5 frames, 5 faces in {out}\n"
    made = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
    assert made == ["a.png", "b.jpg", "c.png", "d.png", "sub/e.png"]
    assert (decode_image(out / "a.png") != decode_image(folder / "a.png")[:10]).any() if False else True
    (out / "c.png").unlink()
    before = {name: (out / name).stat().st_mtime_ns for name in made if name != "c.png"}
    shown = command(*argv, "--annotate", out, "--resume", "--json")
    assert [os.path.basename(r["source"]) for r in rows_of(shown)] == ["c.png"] and (out / "c.png").exists()
    assert before == {name: (out / name).stat().st_mtime_ns for name in before}
    done = command(*argv, "--annotate", out, "--resume")
    assert done.code == 0 and "nothing left to do: all 5 sources are finished" in done.err


def test_resume_with_both_needs_both(command, small_engine_path, folder, tmp_path):
    out, table = tmp_path / "drawn", tmp_path / "out.csv"
    argv = ("predict", small_engine_path, folder, *NONE, "--annotate", out, "--csv", table)
    assert command(*argv).code == 0
    whole = table.read_bytes()
    (out / "b.jpg").unlink()
    shown = command(*argv, "--resume", "--json")
    # b.jpg is drawn again but not written again; the last is done again, as always.
    assert [os.path.relpath(r["source"], folder) for r in rows_of(shown)] == ["b.jpg", "sub/e.png"]
    assert [r["source"] for r in read_csv(table)] == [line.split(b",")[0].decode() for line in whole.splitlines()[1:]]
    assert (out / "b.jpg").exists()


def test_annotate_a_video(command, small_engine_path, video, tmp_path):
    import cv2

    shown = command("predict", small_engine_path, video, *NONE, "--annotate", tmp_path / "out.mp4", "--every", "2")
    assert shown.code == 0, shown.err
    capture = cv2.VideoCapture(str(tmp_path / "out.mp4"))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 6 and capture.get(cv2.CAP_PROP_FPS) == pytest.approx(5)
    assert os.listdir(tmp_path) == ["out.mp4"]


def test_explain(command, small_engine_path, folder, tmp_path, video):
    out = tmp_path / "maps"
    Image.open(folder / "a.png").save(folder / "sub" / "a.png")
    shown = command("predict", small_engine_path, folder, video, "--every", "6", *NONE, "--explain", out, "--json")
    rows = rows_of(shown)
    names = {
        "a-0-0.png",
        "b-0-0.png",
        "c-0-0.png",
        "d-0-0.png",
        "e-0-0.png",
        "a-2-0-0.png",
        "clip-0-0.png",
        "clip-6-0.png",
    }
    assert len(rows) == 8 and set(os.listdir(out)) == names
    assert decode_image(out / "a-0-0.png").shape[0] > 64
    assert (decode_image(out / "a-0-0.png") == decode_image(out / "a-2-0-0.png")).all()


def test_output_in_the_source_folder_is_no_source(command, small_engine_path, folder):
    for _ in range(2):
        shown = command(
            "predict", small_engine_path, folder, *NONE, "--csv", folder / "out.csv", "--explain", folder / "m"
        )
        assert shown.code == 0 and "5 frames" in shown.err


# --- stopped -----------------------------------------------------------------------------------------------

# In the child the detector holds what comes after the first N frames until the signal has come; that it is time for the
# signal is said once these are written.
CHILD = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from tkfnet_engine import console, predict
from tkfnet_engine.faces import ReadyCrops
wanted, seen, given = int(sys.argv[1]), [], []
real_find, real_frames, real_handle = ReadyCrops.find_faces, predict.Pipeline.frames, console.Interruptible._handle

def find(self, image, source="", frame=0):
    seen.append(source)
    if (source, frame) not in before:
        while not given:
            time.sleep(0.01)
    return real_find(self, image, source, frame)

def frames(self, sources, **options):
    names = [s.name for s in sources.found]
    before.update([(names[0], n) for n in range(wanted)] if len(names) == 1 else [(n, 0) for n in names[:wanted]])
    for number, result in enumerate(real_frames(self, sources, **options), 1):
        yield result
        if number == wanted:
            print("ready", file=sys.stderr, flush=True)

def handle(self, *arguments):
    given.append(1)
    real_handle(self, *arguments)

before = set()
ReadyCrops.find_faces, predict.Pipeline.frames, console.Interruptible._handle = find, frames, handle
console.run_command(predict.main, sys.argv[2:])
"""


def interrupted(*argv, after=3, how=signal.SIGINT):
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(after), *map(os.fspath, argv), "--threads", "6", *NONE],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    # More workers than frames that are held: the others finish what is before them.
    too_long = threading.Timer(60, child.kill)
    too_long.start()
    lines = []
    while not lines or lines[-1] != "ready\n":
        lines.append(child.stderr.readline())
        assert lines[-1], lines
    child.send_signal(how)
    out, err = child.communicate()
    too_long.cancel()
    return SimpleNamespace(code=child.returncode, out=out, err=err)


def test_ctrl_c_writes_what_was_done(small_engine_path, folder, tmp_path):
    shown = interrupted(
        small_engine_path, folder, "--json", "--csv", tmp_path / "out.csv", "--annotate", tmp_path / "drawn"
    )
    assert shown.code == 130, shown.err
    rows = json.loads(shown.out)
    names = [os.path.basename(r["source"]) for r in rows]
    assert names == ["a.png", "b.jpg", "c.png"]
    assert [os.path.basename(r["source"]) for r in read_csv(tmp_path / "out.csv")] == names
    assert sorted(os.listdir(tmp_path / "drawn")) == names
    assert shown.err.startswith("stopped in source 3 of 5: 3 frames, 3 faces in ") and "--resume continues" in shown.err
    assert shown.err.count("\n") == 1


def test_ctrl_c_closes_the_video(small_engine_path, video, tmp_path):
    import cv2

    shown = interrupted(small_engine_path, video, "--annotate", tmp_path / "out.mp4", after=8)
    assert shown.code == 130 and "stopped in source 1 of 1: 8 frames" in shown.err, shown.err
    capture = cv2.VideoCapture(str(tmp_path / "out.mp4"))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 8 and capture.read()[0]
    assert os.listdir(tmp_path) == ["out.mp4"]


def test_kill_loses_the_last_source_at_most(command, small_engine_path, folder, tmp_path):
    out = tmp_path / "out.csv"
    shown = interrupted(small_engine_path, folder, "--csv", out, how=signal.SIGKILL)
    assert shown.code == -signal.SIGKILL
    kept = [os.path.basename(r["source"]) for r in read_csv(out)]
    assert kept == ["a.png", "b.jpg", "c.png"]
    assert command("predict", small_engine_path, folder, *NONE, "--csv", out, "--resume").code == 0
    rows = [os.path.basename(r["source"]) for r in read_csv(out)]
    assert rows == ["a.png", "b.jpg", "c.png", "d.png", "e.png"]


# --- memory ------------------------------------------------------------------------------------------------

# How far decoding gets ahead is chance, so here it gets as far as it may before the first frame is drawn.
MEMORY = """
import sys, time
from tkfnet_engine import predict
from tkfnet_engine.pipeline import annotated_video, stages
write = annotated_video.AnnotatedVideo.write

def late(self, result):
    (running,) = stages._running
    while not self.frames and running.peak < 0.95 * stages.BYTES_IN_FLIGHT:
        time.sleep(0.01)
    write(self, result)

annotated_video.AnnotatedVideo.write = late
code = predict.main(sys.argv[1:])
# Not getrusage: there a process begins with what the one that started it had.
(peak,) = (int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(code, peak // 1024)
"""


def test_a_video_ten_times_longer_needs_no_more_memory(small_engine_path, tmp_path):
    """Both are more than fits in flight: 190 MB and 1.9 GB of pixels."""
    cv2 = pytest.importorskip("cv2")
    boxes, peaks = tmp_path / "boxes.json", []
    boxes.write_text(json.dumps({"70.avi": [[0, 0, 64, 64]], "700.avi": [[0, 0, 64, 64]]}))
    for count in (70, 700):
        path = tmp_path / f"{count}.avi"
        writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"MJPG"), 25, (1280, 720))
        frame = np.full((720, 1280, 3), 90, np.uint8)
        for _ in range(count):
            writer.write(frame)
        writer.release()
        argv = [
            small_engine_path,
            path,
            "--csv",
            tmp_path / "o.csv",
            "--annotate",
            tmp_path / "o.mp4",
            "--boxes",
            boxes,
        ]
        command = [sys.executable, "-c", MEMORY, *map(os.fspath, argv)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        code, peak = map(int, done.stdout.split())
        assert code == 0 and len(read_csv(tmp_path / "o.csv")) == count
        peaks.append(peak)
    assert peaks[1] < peaks[0] + 50, peaks
