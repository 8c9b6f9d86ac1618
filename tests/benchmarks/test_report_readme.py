"""The README's table between its marks; the command's flags, files and exit codes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.report import ReportError, readme_block, readme_table
from benchmarks.report.__main__ import main
from benchmarks.report.readme import BEGIN, END, rewritten
from tkfnet_engine.errors import UsageError

from .records import EAGER, ENGINES, cpu_run, on, only, written

ROOT = Path(__file__).resolve().parents[2]


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]


def test_ours_first_batches_beside_each_other_and_the_conditions_above():
    run = cpu_run()
    text = readme_table(run)
    head, _, *body = rows(text)
    assert head[:5] == ["engine", "precision", "1 image, ms", "batch 8, ms", "batch 32, ms"]
    assert head[5:] == ["× eager, 1 image", "× eager, batch 32"]
    assert len(body) == len(ENGINES)
    ours = [row[0].startswith("**") for row in body]
    assert ours == sorted(ours, reverse=True) and sum(ours) == sum(key[2] for key in ENGINES)
    assert [row[0] for row in body if not row[0].startswith("**")][-1] == f"{EAGER}, autocast"
    first = next(m for m in run.measurements if m.subject == "libtkfnet" and m.precision == "float32" and m.batch == 8)
    row = next(row for row in body if row[:2] == ["**libtkfnet**", "float32"])
    assert row[3] == f"{first.median:.0f} ({first.low:.0f}–{first.high:.0f})"
    assert row[5] == "2.35× (2.28–2.45)"
    above = text.partition("\n")[0]
    for wanted in (
        "network alone", "Made-up CPU 4200 @ 2.0 GHz", "4 threads", "torch 2.13.0+cpu", "openvino 2026.4.1",
        "2026-11-20", "commit 0123456789ab", "`pytest benchmarks/ --benchmark-only`", f"as fast as {EAGER} float32",
    ):  # fmt: skip
        assert wanted in above, wanted


def test_batches_that_were_not_measured_have_no_column():
    run = cpu_run()
    some = replace(run, measurements=tuple(m for m in run.measurements if m.batch in (1, 8)))
    assert rows(readme_table(some))[0][2:] == ["1 image, ms", "batch 8, ms", "× eager, 1 image", "× eager, batch 8"]
    other = replace(run, measurements=tuple(replace(m, batch=64) for m in run.measurements if m.batch == 8))
    assert rows(readme_table(other))[0][2:] == ["batch 64, ms", "× eager, batch 64"]


def test_what_has_no_number_is_named_below():
    run = cpu_run()
    bad = [m for m in run.measurements if m.subject == "OpenVINO" and m.mode == "network"]
    lost = [replace(m, median=None, low=None, high=None, speedup=None, reason="wrong | 3 dB") for m in bad]
    kept = [m for m in run.measurements if m not in bad]
    text = readme_table(replace(run, measurements=(*kept, *lost)))
    assert text.endswith("Without a number: OpenVINO float32: wrong \\| 3 dB (network alone, batch 1, 8, 32).")
    assert not any(row[0] == "OpenVINO" for row in rows(text))


def test_a_run_without_engines_has_no_table():
    with pytest.raises(ReportError, match="no engines"):
        readme_table(only(cpu_run(), "peers"))


def test_only_what_is_between_the_marks_is_rewritten():
    run = cpu_run()
    text = f"# Title\n\n{BEGIN}\nold\n{END}\n\nrest {chr(8211)}\n"
    new = rewritten(text, [run])
    assert new == f"# Title\n\n{BEGIN}\n{readme_table(run)}\n{END}\n\nrest {chr(8211)}\n"
    assert rewritten(new, [run]) == new
    both = rewritten(new, [run, on(run, chip="Another")])
    assert both.count("| engine |") == 2 and readme_block([run, on(run, chip="Another")]) in both


@pytest.mark.parametrize("text", ["", BEGIN, END, f"{END}{BEGIN}", f"{BEGIN}{END}{BEGIN}", f"{BEGIN}{END}{END}"])
def test_without_its_marks_it_is_refused(text, tmp_path):
    path = tmp_path / "README.md"
    path.write_text(text)
    with pytest.raises(ReportError, match=r"README\.md: got") as error:
        main([str(written(cpu_run(), tmp_path / "run.json")), "--readme", str(path)])
    assert error.value.exit_code == 3 and path.read_text() == text


# --- the command ---------------------------------------------------------------------------------------------


def test_it_writes_the_page_the_markdown_and_the_readme(tmp_path, capsys):
    record, readme = written(only(cpu_run(), "engines", "peers"), tmp_path / "run.json"), tmp_path / "README.md"
    readme.write_text(f"a\n{BEGIN}\n{END}\nb\n")
    for said in ("rewritten", "as it was"):
        assert main([str(record), "--out", str(tmp_path / "new" / "report"), "--readme", str(readme)]) == 0
        assert said in capsys.readouterr().err
    folder = tmp_path / "new" / "report"
    assert sorted(path.name for path in folder.iterdir()) == ["index.html", "report.md"]
    assert (folder / "index.html").read_text().startswith("<!doctype html>")
    assert (folder / "report.md").read_text().startswith("# Benchmarks of tkfnet-engine\n")
    assert "| engine |" in readme.read_text()


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ([], "no RESULTS"),
        (["run.json"], "neither --out nor --readme"),
        (["run.json", "--out", "x", "--threshold", "0.1"], "belong to --compare"),
        (["run.json", "--out", "x", "--across-machines"], "belong to --compare"),
        (["run.json", "--compare", "a", "b"], "OLD and NEW alone"),
        (["--compare", "a", "b", "--readme", "README.md"], "OLD and NEW alone"),
    ],
)
def test_flags_that_do_not_fit_are_refused(arguments, what):
    with pytest.raises(UsageError, match=what):
        main(arguments)


@pytest.mark.parametrize("arguments", [["--threshold", "-1"], ["--threshold", "nan"], ["--compare", "a"], ["--nope"]])
def test_flags_that_are_none_end_with_64(arguments, capsys):
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 64


@pytest.mark.parametrize(("make", "code"), [("bad", 3), ("none", 64), ("blocked", 8)])
def test_an_error_is_one_line_and_its_exit_code(make, code, tmp_path):
    (tmp_path / "bad.json").write_text("{")
    written(only(cpu_run(), "peers"), tmp_path / "good.json")
    (tmp_path / "file").write_text("")
    arguments = {
        "bad": [str(tmp_path / "bad.json"), "--out", str(tmp_path / "out")],
        "none": [],
        "blocked": ["--compare", *[str(tmp_path / "good.json")] * 2, "--out", str(tmp_path / "file" / "out")],
    }[make]
    command = [sys.executable, "-m", "benchmarks.report", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_comparing_and_the_readme_need_no_matplotlib(tmp_path):
    record = written(only(cpu_run(), "engines"), tmp_path / "run.json")
    (tmp_path / "README.md").write_text(f"{BEGIN}\n{END}\n")
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from benchmarks.report.__main__ import main\n"
        "from tkfnet_engine.errors import BackendError\n"
        f"assert main(['--compare', {str(record)!r}, {str(record)!r}]) == 0\n"
        f"assert main([{str(record)!r}, '--readme', {str(tmp_path / 'README.md')!r}]) == 0\n"
        "try:\n"
        f"    main([{str(record)!r}, '--out', {str(tmp_path / 'out')!r}])\n"
        "except BackendError as error:\n"
        "    assert 'tkfnet-engine[train]' in str(error)\n"
        "else:\n"
        "    raise SystemExit('matplotlib was found')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
