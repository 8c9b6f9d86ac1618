"""The report as a page and as Markdown: each section there or left out, well-formed, self-contained, repeatable."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise

import pytest

from benchmarks.record import SUITES, Measurement, Run
from benchmarks.report import page
from benchmarks.report.figures import number, span
from benchmarks.report.headline import conditions, headline
from benchmarks.report.sections import sections
from benchmarks.report.svg import _restyle, svg

from .html_page import Page
from .records import ENVIRONMENT, cpu_run, on, only

HOSTILE = "<script>alert(1)</script> & \"q\" 'a' $\\frac{1}{2}$ |`*_[x](y) \x00\x1b\n\t 表情 #00f000 " + "long " * 30
KEYS = ["latency", "throughput", "speedups", "accuracy", "concurrency", "roofline", "cold_start", "build_time", "peers"]
# By suite, the sections that it alone fills.
OF_SUITE = {
    "engines": {"latency", "throughput", "speedups", "accuracy", "roofline"},
    "kernels": {"roofline"},
    "roofline": {"roofline"},
    "cold_start": {"cold_start"},
    "concurrency": {"concurrency"},
    "build_time": {"build_time"},
    "peers": {"peers"},
}


@pytest.fixture(scope="module")
def run() -> Run:
    return cpu_run()


@pytest.fixture(scope="module")
def text(run) -> str:
    return page.page([run])


@pytest.fixture(scope="module")
def parsed(text) -> Page:
    return Page(text)


# --- the page ------------------------------------------------------------------------------------------------


def test_the_page_is_balanced_needs_nothing_and_names_each_id_once(text, parsed):
    assert len(parsed.ids) == len(set(parsed.ids)) > 50
    assert parsed.references and all(value.startswith("#") for _, value in parsed.references)
    assert {value[1:] for _, value in parsed.references} <= set(parsed.ids), "each reference has its target"
    for word in ("http", "src=", "@import", "<script", "xmlns", "<?xml", "<style type", "font-family: 'DejaVu"):
        assert word not in text, word
    assert parsed.count("style") == 1 and parsed.count("html") == 1


def test_every_chart_says_what_it_shows_and_has_its_table(parsed):
    charts = [attributes for tag, attributes in parsed.tags if tag == "svg"]
    assert len(charts) == parsed.count("figure") > 20
    assert all(one["role"] == "img" and len(one["aria-label"]) > 30 for one in charts)
    assert all(one["viewbox"].startswith("0 0 360 ") for one in charts), "a phone shows them one to one"
    order = [tag for tag, _ in parsed.tags if tag in ("figure", "svg", "details", "table")]
    starts = [i for i, tag in enumerate(order) if tag == "figure"]
    assert all(order[i + 1 : i + 4] == ["svg", "details", "table"] for i in starts)


def test_charts_take_their_colours_from_the_style_sheet(text):
    drawn = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    assert not re.search(r"#[0-9a-fA-F]{6}|rgb\(|black|white", re.sub(r">[^<]*<", "><", drawn))
    used, sheet = set(re.findall(r"var\(--(\w+)\)", drawn)), page.STYLE.read_text()
    assert used == {"ink", "muted", "line", "paper", "ours", "other", "pale"}
    light, dark = (set(re.findall(r"--(\w+):", part)) for part in sheet.split("prefers-color-scheme: dark")[:2])
    assert used <= light and used <= dark


def test_every_number_stands_in_a_table(run, parsed):
    everything = [row for row in parsed.rows if len(row) > 12]
    for m in run.measurements:
        named = [row for row in everything if row[0] == m.subject and m.suite in row]
        if m.median is None:
            assert any(m.reason in row for row in named), m
            continue
        for value in (m.median, m.low, m.high, m.p90, m.p99, m.of_peak):
            shown = None if value is None else f"{value:.6g}"
            assert shown is None or any(shown in row for row in named), (m, shown)
    # And where it is looked for, to three digits: beside the engine's name.
    for m in run.measurements:
        if m.suite == "engines" and m.median is not None:
            row = [m.subject, m.precision, *map(number, (m.median, m.low, m.high, m.p90, m.p99))]
            assert any(found[:7] == row for found in parsed.rows), row
    assert {"35.8", "91.48 %", "99.33 %"} <= {cell for row in parsed.rows for cell in row}


def test_charts_name_what_they_draw(run, parsed):
    """Without colour: each engine by its name, each precision, ours in bold."""
    assert {m.subject for m in run.measurements if m.suite == "engines" and m.median} <= set(parsed.texts)
    assert {"float32", "int8", "p50", "p90", "p99", "images/s", "rest", "load", "first"} <= set(parsed.texts)
    peaks = {m.subject: m.median for m in run.measurements if m.suite == "roofline"}
    assert {f"{name}, {number(peaks[name])}" for name in ("float32 products", "int8 products")} <= set(parsed.texts)


def test_ours_are_bold_and_filled(text):
    figure = next(one for one in re.findall(r"<figure>.*?</figure>", text, re.DOTALL) if "Batch 8" in one)
    weights = {name: "700" in style for style, name in re.findall(r'<text style="([^"]*)"[^>]*>([^<]*)</text>', figure)}
    assert weights["libtkfnet"] and weights["tkfnet-engine, openvino"] and not weights["OpenVINO"]
    assert figure.count("fill: var(--ours)") == 6 and figure.count("fill: var(--pale)") == 4


def test_the_first_screen_says_what_where_and_the_most_telling_figures(run, text):
    first = text.partition("<nav")[0].partition("<body>")[2]
    for wanted in ("Made-up CPU 4200 @ 2.0 GHz", "4 cores", "4 threads", "2026-11-20", "0123456789ab", "pytest bench"):
        assert wanted in first, wanted
    figures = re.findall(r'<dd class="value">(.*?)</dd>', first)
    best = [m for m in run.measurements if m.suite == "engines" and m.ours and m.median and m.mode == "network"]
    fastest = min(best, key=lambda m: m.median)
    most = max(best, key=lambda m: m.batch / m.median)
    assert figures[0] == f"{number(fastest.median)} ms" and figures[1] == f"{number(1e3 * most.batch / most.median)} /s"
    assert figures[2] == "5.59×" and len(figures) == 4
    assert span(fastest.low, fastest.high) in first


def test_the_figures_are_of_the_first_place_where_engines_were_timed(run):
    """A faster answer from elsewhere is another figure."""
    other = replace(run.measurements[0], mode="queued from C++", median=0.001, low=None, high=None)
    assert headline(replace(run, measurements=(*run.measurements, other))) == headline(run)


@pytest.mark.parametrize(
    ("facts", "shown"),
    [
        ({"commit": "593c0dc00f5e+"}, "593c0dc00f5e+"),
        ({"commit": "593c0dc00f5e77", "changed": True}, "593c0dc00f5e+"),
        ({"commit": "593c0dc00f5e77", "changed": False}, "593c0dc00f5e"),
    ],
)
def test_a_changed_tree_is_no_commit(facts, shown, run):
    assert conditions(on(run, **facts)).partition("commit ")[2].partition(";")[0] == shown


# --- sections ------------------------------------------------------------------------------------------------


def test_every_section_is_there(run):
    found = sections([run])
    assert [section.key for section in found] == KEYS
    assert all(section.blocks and (section.blocks[0].charts or section.blocks[0].tables) for section in found)


@pytest.mark.parametrize("suite", SUITES)
def test_a_section_is_left_out_with_a_line_where_nothing_was_measured(suite, run):
    some = only(run, suite)
    found = {section.key: section for section in sections([some])}
    assert {key for key, section in found.items() if section.blocks} == OF_SUITE[suite]
    text, markdown = page.page([some]), page.markdown([some])
    Page(text)
    for key, section in found.items():
        left_out = key not in OF_SUITE[suite]
        assert (section.missing in text) == (section.missing in markdown) == left_out
        assert (f'<a href="#{key}">' in text) != left_out


def test_of_no_measurement_there_is_a_page_too():
    text = page.page([Run(ENVIRONMENT, ())])
    assert Page(text).count("figure") == 0 and text.count("not measured") >= len(KEYS)
    assert "<dl" not in text


def test_one_batch_is_no_throughput_and_one_precision_no_picture_of_accuracy(run):
    one = tuple(m for m in run.measurements if m.batch == 1 and m.mode == "network" and m.subject == "libtkfnet")
    found = {section.key: section for section in sections([replace(run, measurements=one[:1])])}
    assert not found["throughput"].blocks
    assert not found["accuracy"].blocks[0].charts and found["accuracy"].blocks[0].tables


def test_an_engine_without_a_number_is_listed_with_its_reason(run):
    block = next(s for s in sections([run]) if s.key == "latency").blocks[0]
    assert block.reasons == (
        "fused int8: no NVIDIA GPU here; on one, `make gpu` measures it (network alone, cuda, batch 1, 8, 32; "
        "JPEG bytes to probabilities, cuda, batch 1)",
    )
    assert "it has no file: the checkpoint is loaded" in page.markdown([run])


def test_offered_load_is_one_chart_with_three_percentiles(run):
    block = next(s for s in sections([run]) if s.key == "concurrency").blocks[0]
    titles = [(chart.title, chart.about) for chart in block.charts]
    for precision in ("int8", "float32"):
        assert titles.count((f"tkfnet-engine, openvino {precision}", "offered load")) == 1
        assert titles.count((f"tkfnet-engine, openvino {precision}", "closed loop")) == 1
    assert ("Answers per second", "closed loop") in titles and len(titles) == 5
    table = block.charts[0].table
    assert table.head == ("requests/s offered", "p50, ms", "low", "high", "p90", "p99", "throughput", "samples")
    assert [row[0] for row in table.rows] == ["82.5", "132", "156.75"]


def test_kernels_stand_under_their_own_roof(run):
    block = next(s for s in sections([run]) if s.key == "roofline").blocks[0]
    drawn = [svg(chart.draw, chart.says, f"c{i}") for i, chart in enumerate(block.charts[:2])]
    for precision, one in zip(("float32", "int8"), drawn):
        texts = Page(one).texts
        assert (
            [t for t in texts if "products" in t] == [t for t in texts if t.startswith(f"{precision} products, ")] != []
        )
        assert any(t.startswith("memory, 38") for t in texts)
    table = block.charts[0].table
    assert table.head[:3] == ("kernel", "no.", "ms") and len(table.rows) == 16
    stem = next(row for row in table.rows if row[0] == "stem conv 7x7")
    # 236e6 operations, 1.9e6 bytes in some 1.9 ms.
    assert stem[5:8] == ("124", "1.00", "124")


def test_a_cold_start_is_its_steps_and_the_rest(run):
    block = next(s for s in sections([run]) if s.key == "cold_start").blocks[0]
    table = block.charts[0].table
    assert table.head == ("", "rest", "load", "first", "as a whole", "low", "high")
    whole = {m.subject: m for m in run.measurements if m.mode == "start_to_first" and m.precision == "float32"}
    row = next(row for row in table.rows if row[0] == "tkfnet-engine, openvino float32")
    assert row[2:5] == ("210", "31.0", number(whole["tkfnet-engine, openvino"].median)) and row[1] == "133"
    assert [chart.title for chart in block.charts[1:]] == ["Import alone", "Peak memory", "Engine file"]


# --- all of it -----------------------------------------------------------------------------------------------


def test_the_same_records_give_the_same_bytes(run, text):
    assert page.page([cpu_run()]) == text
    assert page.markdown([cpu_run()]) == page.markdown([run])
    assert page.page([cpu_run(1)]) != text


def test_two_runs_stand_apart(run):
    other = on(run, machine="other", chip="Another CPU")
    text = page.page([only(run, "build_time"), only(other, "build_time")])
    parsed = Page(text)
    assert len(parsed.ids) == len(set(parsed.ids))
    assert text.count("<h3>Made-up CPU 4200 @ 2.0 GHz</h3>") == 1 and text.count("<h3>Another CPU</h3>") == 1
    later = on(run, commit="fedcba9876543210", date="2026-11-21")
    both = page.page([only(run, "build_time"), only(later, "build_time")])
    assert "4200 @ 2.0 GHz, fedcba987654, 2026-11-21" in both and "4200 @ 2.0 GHz, 0123456789ab, 2026-11-20" in both


def test_hostile_names_are_shown_and_do_nothing(run):
    bad = on(run, chip=HOSTILE, command=HOSTILE, extra={HOSTILE: [HOSTILE]}, versions={HOSTILE: HOSTILE})
    named = [
        replace(m, subject=f"{HOSTILE}{i % 3}", reason=m.reason and HOSTILE) for i, m in enumerate(run.measurements)
    ]
    mode = [replace(m, mode=HOSTILE, precision=HOSTILE, gate={HOSTILE: HOSTILE}, unit="ms") for m in named[:3]]
    bad = replace(bad, measurements=(*named[30:], *mode))
    text = page.page([bad])
    parsed = Page(text)
    assert "<script" not in text and "\x00" not in text and "\x1b" not in text
    assert any("<script>alert(1)</script>" in row[0] for row in parsed.rows if row)
    assert len(parsed.ids) == len(set(parsed.ids)) and all(value[0] == "#" for _, value in parsed.references)
    lines = [line for line in page.markdown([bad]).splitlines() if line.startswith("|")]
    widths = [len(re.findall(r"(?<!\\)\|", line)) for line in lines]
    assert "<script" not in page.markdown([bad]).replace("\\<script", "") and min(widths) >= 3
    for line, after in pairwise(lines):
        if re.fullmatch(r"\|( -+:? \|)+", after):
            assert len(re.findall(r"(?<!\\)\|", line)) == after.count("|")


def test_a_dollar_begins_no_formula(run):
    """matplotlib would read one in a name, and fail at this."""
    one = replace(run.measurements[0], subject="$x_$")
    assert "$x_$" in Page(page.page([replace(run, measurements=(one,))])).texts


def test_values_of_any_size_can_be_drawn():
    """Zeros, one point, equal ends, twelve decades."""
    facts = {"suite": "engines", "subject": "x", "mode": "network", "precision": "int8"}
    found = [Measurement(**facts, batch=b, median=v, low=v, high=v) for b, v in ((1, 0.0), (2, 1e-6), (4, 1e6))]
    found += [Measurement("peers", "y", unit="images/s", median=0.0), Measurement("build_time", "z", median=1e-9)]
    found += [Measurement("concurrency", "x", clients=1, median=3.0, p90=3.0, p99=3.0)]
    found += [Measurement("kernels", "k", median=1.0, more={"flops": 1e9, "bytes": 1e6})]
    found += [Measurement("cold_start", "x", mode=mode, median=0.0) for mode in ("load", "start_to_first")]
    text = page.page([Run(ENVIRONMENT, tuple(found))])
    assert Page(text).count("figure") >= 8 and not re.search(r"\b(nan|inf)\b", text)


def test_older_matplotlib_names_its_font_in_one_word():
    from xml.etree.ElementTree import Element

    style = "font: 700 11px 'DejaVu Sans', 'Arial', sans-serif; text-anchor: end; fill: #00f000"
    text = Element("text", {"style": style, "x": "1.26"})
    _restyle(text)
    assert text.get("style") == "font-size: 11px; font-weight: 700; text-anchor: end; fill: var(--ink)"
    assert text.get("x") == "1.3"


def test_markdown_has_the_tables_of_the_page(run, parsed):
    text = page.markdown([run])
    rows = [line for line in text.splitlines() if line.startswith("|") and not line.startswith("| ---")]
    assert len(rows) == len(parsed.rows)
    assert "## Latency under load" in text and "- **5.97 ms** fastest, 1 image: libtkfnet int8" in text
