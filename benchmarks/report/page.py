"""The report as one HTML file that needs nothing else, and as Markdown with the same tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ..record import Run
from .figures import title_of
from .headline import conditions, headline
from .sections import everything, machines, sections
from .svg import svg
from .tables import Block, Chart, Section, clean, escaped, escaped_markdown, html_table, markdown_table

TITLE = "Benchmarks of tkfnet-engine"
STYLE = Path(__file__).with_name("style.css")
_ALL = "Every measurement, with every field of the record."


# --- HTML --------------------------------------------------------------------------------------------------


def page(runs: Sequence[Run]) -> str:
    """The same runs give the same text, to the byte."""
    found, numbers = sections(runs), iter(range(1, 10_000))
    parts = [_head(runs, found)]
    parts += [_section(section, numbers) for section in found]
    parts.append(_appendix(runs))
    names = ", ".join(dict.fromkeys(title_of(run, [run]) for run in runs))
    style, title = STYLE.read_text(encoding="utf-8"), escaped(f"{TITLE}: {names}")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>\n{style}</style>\n</head>\n<body>\n{''.join(parts)}</body>\n</html>\n"
    )


def _head(runs: Sequence[Run], found: Sequence[Section]) -> str:
    lines = [f"<header>\n<h1>{TITLE}</h1>\n"]
    for run in runs:
        lines.append(f'<div class="run"><h2>{escaped(title_of(run, runs))}</h2>\n')
        lines.append(f"<p>{escaped(conditions(run))}</p>\n")
        if figures := headline(run):
            lines.append('<dl class="key">')
            for one in figures:
                value = f'<dd class="value">{escaped(one.value)}</dd><dd>{escaped(one.of)}</dd>'
                lines.append(f"<div><dt>{escaped(one.what)}</dt>{value}</div>\n")
            lines.append("</dl>")
        lines.append("</div>\n")
    links = [(section.key, section.title) for section in found if section.blocks]
    links = [*links, ("machines", "Machines"), ("all", "All measurements")]
    lines.append('<nav aria-label="Sections">' + "\n".join(f'<a href="#{key}">{text}</a>' for key, text in links))
    return "".join(lines) + "</nav>\n</header>\n<main>\n"


def _section(section: Section, numbers: Iterator[int]) -> str:
    lines = [f'<section id="{section.key}">\n<h2>{section.title}</h2>\n']
    lines.append(f'<p class="note">{escaped(section.note if section.blocks else section.missing)}</p>\n')
    lines += [_block(block, numbers) for block in section.blocks]
    return "".join(lines) + "</section>\n"


def _block(block: Block, numbers: Iterator[int]) -> str:
    lines = [f"<h3>{escaped(block.title)}</h3>\n"] if block.title else []
    lines += [f'<p class="note">{escaped(block.note)}</p>\n'] if block.note else []
    if block.charts:
        lines.append(f'<div class="grid">\n{"".join(_chart(chart, next(numbers)) for chart in block.charts)}</div>\n')
    for table in block.tables:
        lines.append(f"<details><summary>{escaped(table.title)}</summary>{html_table(table)}</details>\n")
    if block.reasons:
        items = "\n".join(f"<li>{escaped(reason)}</li>" for reason in block.reasons)
        lines.append(f'<div class="reasons"><p>Without a number</p><ul>{items}</ul></div>\n')
    return "".join(lines)


def _chart(chart: Chart, number: int) -> str:
    drawn = svg(chart.draw, chart.says, f"c{number}")
    table = f"<details><summary>As a table</summary>{html_table(chart.table)}</details>"
    caption = f"{escaped(chart.title)} <span>{escaped(chart.about)}</span>"
    return f"<figure><figcaption>{caption}</figcaption>\n{drawn}\n{table}</figure>\n"


def _appendix(runs: Sequence[Run]) -> str:
    table = html_table(machines(runs)).replace("<table>", '<table class="facts">')
    lines = [f'<section id="machines">\n<h2>Machines, versions, commands</h2>\n{table}</section>\n']
    lines.append(f'<section id="all">\n<h2>All measurements</h2>\n<p class="note">{_ALL}</p>\n')
    for run in runs:
        title = title_of(run, runs)
        summary = f"{escaped(title)}: {len(run.measurements):,}"
        lines.append(f"<details><summary>{summary}</summary>{html_table(everything(run, title))}</details>\n")
    return "".join(lines) + "</section>\n</main>\n"


# --- Markdown ----------------------------------------------------------------------------------------------


def markdown(runs: Sequence[Run]) -> str:
    lines = [f"# {TITLE}"]
    for run in runs:
        lines.append(f"**{escaped_markdown(title_of(run, runs))}**: {escaped_markdown(conditions(run))}")
        figures = [f"- **{_md(one.value)}** {_md(one.what)}: {_md(one.of)}" for one in headline(run)]
        lines += ["\n".join(figures)] if figures else []
    for section in sections(runs):
        lines += [f"## {section.title}", _md(section.note if section.blocks else section.missing)]
        for block in section.blocks:
            lines += [f"### {_md(block.title)}"] if block.title else []
            lines += [_md(block.note)] if block.note else []
            for table in (*(chart.table for chart in block.charts), *block.tables):
                lines += [f"**{_md(table.title)}**", markdown_table(table)]
            if block.reasons:
                lines.append("Without a number:\n\n" + "\n".join(f"- {_md(reason)}" for reason in block.reasons))
    lines += ["## Machines, versions, commands", markdown_table(machines(runs)), "## All measurements", _ALL]
    for run in runs:
        title = title_of(run, runs)
        lines += [f"### {_md(title)}"] if len(runs) > 1 else []
        lines.append(markdown_table(everything(run, title)))
    return "\n\n".join(lines) + "\n"


def _md(text: str) -> str:
    return escaped_markdown(clean(text))
