"""A page as a browser reads it: balanced, or the test that reads it fails."""

from __future__ import annotations

import re
from html.parser import HTMLParser

_VOID = {"meta"}


class Page(HTMLParser):
    """What a browser would see: `cells` of tables by row, `texts` of charts, `ids`, `references`."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[tuple[str, str]] = []
        self.tags: list[tuple[str, dict]] = []
        self.rows: list[list[str]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        assert len(found) == len(attrs), f"{tag}: an attribute twice"
        self.tags.append((tag, found))
        self.ids += [found["id"]] if "id" in found else []
        self.references += [(key, found[key]) for key in ("href", "src", "action", "data", "poster") if key in found]
        self.references += [("url", name) for name in re.findall(r"url\((.*?)\)", " ".join(map(str, found.values())))]
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "text":
            self.texts.append("")
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another"

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data
        elif self.open and self.open[-1] == "text":
            self.texts[-1] += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)
