"""Tables, JSON lists, CSV files: their form, what they hold back, and how a CSV file is continued."""

from __future__ import annotations

import csv
import io
import json
import os

import numpy as np
import pytest

from tkfnet_engine.errors import FileError, UsageError
from tkfnet_engine.pipeline.results import FaceResult, Frame, FrameResult, columns
from tkfnet_engine.pipeline.writers import HELD_BACK, CsvFile, JsonList, Table

LABELS = ("calm", "glad", "sad")


def result(source="a.png", faces=1, frame=0, seconds=None, track=None):
    probabilities = dict(zip(LABELS, (0.125, 0.625, 0.25)))
    found = [
        FaceResult(
            source, frame, seconds, n, track, (10.0 * n, 5.0, 20.0, 30.0), None, None, "margin", "glad", probabilities
        )
        for n in range(faces)
    ]
    return FrameResult(Frame(source, frame, seconds, np.zeros((4, 4, 3), np.uint8)), tuple(found))


def written(writer_of, *results, end="close"):
    stream = io.StringIO()
    writer = writer_of(stream)
    for one in results:
        writer.write(one)
    writer.close(True) if end == "close" else writer.abandon()
    return stream.getvalue()


# --- JSON --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, HELD_BACK - 1, HELD_BACK, 3 * HELD_BACK + 7])
def test_a_json_list_is_one_however_long(count):
    results = [result(f"{n}.png", n % 3) for n in range(count)]
    text = written(JsonList, *results)
    rows = [face.row() for r in results for face in r.faces]
    assert json.loads(text) == rows and text == json.dumps(rows, indent=2) + "\n"


def test_a_failed_run_prints_no_json_or_a_whole_list():
    assert written(JsonList, result(), end="abandon") == ""
    rows = json.loads(written(JsonList, result(faces=HELD_BACK), result(), end="abandon"))
    assert len(rows) == HELD_BACK + 1


def test_json_of_a_long_run_is_not_held_in_memory():
    stream = io.StringIO()
    writer = JsonList(stream)
    for _ in range(5 * HELD_BACK):
        writer.write(result())
        assert len(writer._held) < HELD_BACK
    assert stream.tell() > 0


# --- table -------------------------------------------------------------------------------------------------


def lines(*results, end="close", **options):
    return written(lambda stream: Table(stream, 8, **options), *results, end=end).splitlines()


def test_pictures_of_one_face_are_a_short_table():
    assert lines(result("a.png"), result("long.jpg")) == [
        "a.png     glad        62.5%   (sad 25.0%, calm 12.5%)",
        "long.jpg  glad        62.5%   (sad 25.0%, calm 12.5%)",
    ]
    assert lines(result("a.png", 0), result("b.png")) == [
        "a.png     no face",
        "b.png     glad        62.5%   (sad 25.0%, calm 12.5%)",
    ]


def test_several_faces_and_videos_say_which():
    (_, first, second), ranked = lines(result("a.png"), result("b.png", 2)), "glad 62.5% (sad 25.0%, calm 12.5%)"
    assert first.split() == ["b.png", "1/2", "0,5", "20x30", *ranked.split()]
    assert second.split() == ["b.png", "2/2", "10,5", "20x30", *ranked.split()]
    none, one, tracked = lines(
        result("v.mp4", 0, 1, 0.04),
        result("a.png", 0),
        result("v.mp4", 1, 2, 61.5),
        result("v.mp4", 1, 2, 3600.0, track=4),
    )
    assert none.split() == ["a.png", "no", "face"]
    assert one.split()[:4] == ["v.mp4", "1:01.50", "1/1", "0,5"] and tracked.split()[:3] == ["v.mp4", "60:00.00", "#4"]
    starts = [line.index("glad") for line in (first, second, one, tracked)]
    assert starts[0] == starts[1] and starts[2] == starts[3]


def test_a_table_is_shown_as_it_comes_where_it_is_long_or_moves():
    for options, results in (
        ({}, [result("v.mp4", 1, 0, 0.0)]),
        ({"at_once": True}, [result()]),
        ({}, [result()] * HELD_BACK),
    ):
        assert lines(*results, end="abandon", **options)
    assert lines(*[result()] * (HELD_BACK - 1), end="abandon") == []


def test_a_table_keeps_no_pixels():
    table = Table(io.StringIO(), 8)
    table.write(result())
    assert table._held[0].frame.image.size == 0 and table._held[0].frame.image.base is None


# --- CSV ---------------------------------------------------------------------------------------------------


def csv_of(path, *results, resume=False, end=True):
    table = CsvFile(path, LABELS, resume)
    for one in results:
        table.write(one)
    if end is not None:
        table.close(end)
    return table


def read(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_csv(tmp_path):
    path = tmp_path / "out.csv"
    csv_of(path, result('a, "b".png', 2), result("v.mp4", 1, 3, 0.12, track=5))
    rows = read(path)
    assert list(rows[0]) == columns(LABELS) and len(rows) == 3
    assert (rows[1]["source"], rows[1]["face"], rows[1]["x"], rows[1]["track"]) == ('a, "b".png', "1", "10.0", "")
    assert (rows[2]["seconds"], rows[2]["frame"], rows[2]["track"], rows[2]["p_glad"]) == ("0.12", "3", "5", "0.625")


def test_a_source_without_faces_has_one_line(tmp_path):
    path = tmp_path / "out.csv"
    frames = [result("v.mp4", 0, n, n / 10) for n in range(5)]
    csv_of(path, result("a.png", 0), *frames, result("b.png"), result("c.png", 0))
    assert [(r["source"], r["label"]) for r in read(path)] == [
        ("a.png", ""),
        ("v.mp4", ""),
        ("b.png", "glad"),
        ("c.png", ""),
    ]
    csv_of(path, result("a.png", 0), frames[0], end=False)
    assert [r["source"] for r in read(path)] == ["a.png"]


def test_every_line_is_there_at_once(tmp_path):
    path = tmp_path / "out.csv"
    table = csv_of(path, result("a.png", 3), end=None)
    assert len(read(path)) == 3
    table.abandon()


@pytest.mark.parametrize("torn", [0, 1, 10])
def test_resume_redoes_the_last_source_and_nothing_else(tmp_path, torn):
    path = tmp_path / "out.csv"
    video = [result("v.mp4", 2, n, n / 9) for n in range(4)]
    csv_of(path, result("a.png", 2), result("b.png", 0), result("c.png", 1), *video)
    whole = path.read_bytes()
    if torn:
        path.write_bytes(whole[:-torn])
    table = csv_of(path, resume=True, end=None)
    assert table.finished == {"a.png", "b.png", "c.png"} and path.read_bytes() == whole[: whole.index(b"v.mp4")]
    # What is finished is not written twice, even when it comes again.
    for one in (result("a.png", 2), *video):
        table.write(one)
    table.close(True)
    assert path.read_bytes() == whole


def test_resume_after_a_kill_at_any_byte(tmp_path):
    """Every length a file can be cut to continues to the same file, and only the last source is done again."""
    path = tmp_path / "out.csv"
    results = [result("a.png", 1), result("b.png", 0), result("c.png", 2), result("d.png", 1)]
    csv_of(path, *results)
    whole = path.read_bytes()
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        table = CsvFile(path, LABELS, resume=True)
        kept = [r for r in results if r.frame.source in table.finished]
        complete = [line.split(b",")[0].decode() for line in whole[:size].split(b"\n")[1:-1]]
        assert [r.frame.source for r in kept] == list(dict.fromkeys(complete))[:-1]
        for one in results:
            table.write(one)
        table.close(True)
        assert path.read_bytes() == whole


def test_resume_without_a_file_is_a_start(tmp_path):
    assert csv_of(tmp_path / "new.csv", result(), resume=True).finished == frozenset()
    assert len(read(tmp_path / "new.csv")) == 1


def test_without_resume_it_is_replaced(tmp_path):
    path = tmp_path / "out.csv"
    csv_of(path, result("a.png", 3))
    csv_of(path, result("b.png"))
    assert [r["source"] for r in read(path)] == ["b.png"]


@pytest.mark.parametrize(
    "content", [b"name,age\nx,3\n", b"source\n", "HEADER\nonly,two\n", 'HEADER\n"torn\n', "HEADER\n\xff\n"]
)
def test_a_file_of_someone_else_is_left_as_it_is(tmp_path, content):
    path = tmp_path / "out.csv"
    if isinstance(content, str):
        content = content.replace("HEADER", ",".join(columns(LABELS))).encode("latin-1")
    path.write_bytes(content)
    with pytest.raises(UsageError, match="--resume"):
        CsvFile(path, LABELS, resume=True)
    assert path.read_bytes() == content


def test_names_are_one_line_each(tmp_path):
    path = tmp_path / "out.csv"
    csv_of(path, result("a\nb.png"), result("c.png"))
    assert path.read_bytes().count(b"\n") == 3 and read(path)[0]["source"] == "a\\nb.png"


def test_where_it_cannot_be_written(tmp_path):
    with pytest.raises(FileError, match="cannot write it"):
        CsvFile(tmp_path / "no" / "out.csv", LABELS)
    with pytest.raises(FileError, match="cannot write it"):
        CsvFile(tmp_path, LABELS)
    if os.path.exists("/dev/full"):
        with pytest.raises(FileError, match="No space left"):
            CsvFile("/dev/full", LABELS)
