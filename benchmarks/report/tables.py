"""Tables and blocks of the report, as HTML and as Markdown. Cells are plain text; both writers escape it."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What no HTML document may hold, and no XML that is made of a chart.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>|~#])")


def clean(text: str) -> str:
    """In one line, and every character one that may be shown."""
    return " ".join(_CONTROL.sub("\ufffd", text).split())


def escaped(text: str) -> str:
    return html.escape(clean(text))


def escaped_markdown(text: str) -> str:
    return _MARKDOWN.sub(r"\\\1", clean(text))


@dataclass(frozen=True)
class Table:
    """numbers: columns that are right-aligned. strong: rows that are ours."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: frozenset[int] = frozenset()
    strong: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.head) for row in self.rows), self.title


@dataclass(frozen=True)
class Chart:
    """about: the rest of the title, set smaller. says: the chart in one sentence, for those who do not see it. table:
    the same data."""

    title: str
    about: str
    says: str
    draw: Callable[[], Figure]
    table: Table


@dataclass(frozen=True)
class Block:
    """What one run has to a section. note: what is so in this run alone. reasons: why a number is missing."""

    title: str
    charts: tuple[Chart, ...] = ()
    tables: tuple[Table, ...] = ()
    reasons: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Section:
    """missing: said where there is no block."""

    key: str
    title: str
    note: str
    missing: str
    blocks: tuple[Block, ...]


def table_of(
    title: str, head: Sequence[str], rows: Sequence[Sequence[str]], texts: int, strong: Sequence[bool] = ()
) -> Table:
    """The first `texts` columns hold texts, the others numbers. Columns that say nothing are left out."""
    kept = [i for i in range(len(head)) if i < texts or any(row[i] not in ("", "–") for row in rows)]
    kept = [i for i in kept if i == 0 or any(row[i] for row in rows)]
    return Table(
        title,
        tuple(head[i] for i in kept),
        tuple(tuple(row[i] for i in kept) for row in rows),
        frozenset(new for new, old in enumerate(kept) if old >= texts),
        frozenset(i for i, is_ours in enumerate(strong) if is_ours),
    )


def html_table(table: Table) -> str:
    """In a box of its own, which scrolls where the page is narrow."""
    align = ['class="n" ' if i in table.numbers else "" for i in range(len(table.head))]
    head = "".join(f'<th {align[i]}scope="col">{escaped(cell)}</th>' for i, cell in enumerate(table.head))
    rows = []
    for number, row in enumerate(table.rows):
        cells = [f"<td {align[i]}>".replace(" >", ">") + f"{escaped(cell)}</td>" for i, cell in enumerate(row) if i]
        mark = ' class="ours"' if number in table.strong else ""
        first = f'<th scope="row">{escaped(row[0])}</th>'
        rows.append(f"<tr{mark}>{first}{''.join(cells)}</tr>")
    body = "\n".join(rows)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escaped(table.title)}"><table>'
        f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>"
    )


def markdown_table(table: Table) -> str:
    marks = ["---:" if i in table.numbers else "---" for i in range(len(table.head))]
    lines = [[escaped_markdown(cell) for cell in table.head], marks]
    for number, row in enumerate(table.rows):
        cells = [escaped_markdown(cell) for cell in row]
        lines.append([f"**{cells[0]}**", *cells[1:]] if number in table.strong else cells)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
