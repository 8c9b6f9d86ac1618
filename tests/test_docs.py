"""What the documents say exists: files, pictures, commands, flags."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from tkfnet_engine import __version__
from tkfnet_engine.__main__ import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_every_link_and_named_file_is_there(document):
    text = document.read_text()
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
    assert all((document.parent / target).is_file() for target in targets), targets
    named = re.findall(r"`((?:docs|tests|tkfnet_engine|export|examples|benchmarks)/[\w./-]+)`", text)
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_every_command_and_flag_is_there(document):
    lines = re.findall(r"python -m tkfnet_engine\.(\w+)([^`\n|]*)", document.read_text())
    for command, rest in lines:
        if command.isupper():
            continue
        assert command in COMMANDS, f"{command}: no such command"
        flags = importlib.import_module(f"tkfnet_engine.{command}").parser()._option_string_actions
        for flag in re.findall(r"(?<!\S)(--[a-z][a-z0-9-]*)", rest.partition("#")[0]):
            assert flag in flags, f"{command} {flag}: no such flag"


def test_make_targets_of_the_readme_exist():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake (\w+)", (ROOT / "README.md").read_text())) <= targets


def test_the_first_screen_holds_a_picture_and_two_commands():
    first = (ROOT / "README.md").read_text().split("\n## ")[0]
    assert first.count("](docs/images/") == 1 and re.findall(r"^make (\w+)", first, re.MULTILINE) == ["demo", "test"]


def test_the_changelog_names_this_version():
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()
