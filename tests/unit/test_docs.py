"""The pages: every link has a target, and every command exists."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from services.admin.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
COMMANDS: dict[str, set[str]] = {
    name: set(getattr(command, "commands", ()))
    for name, command in typer.main.get_command(app).commands.items()  # type: ignore[attr-defined]  # a group
}


def anchors(page: Path) -> set[str]:
    """Return the fragments that links may name: each heading, as GitHub writes it."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def commands(text: str) -> Iterator[str]:
    """Return the words after ``mailgroup`` in code, up to the end of the code or of the line."""
    for code in re.findall(r"```\w*\n(.*?)```|`([^`\n]+)`", text, re.S):
        for line in "".join(code).splitlines():
            if found := re.search(r"(?:^|exec (?:-T )?\S+ |-- |\()(?:\./)?mailgroup ([^#\n]+)", line.strip()):
                yield found[1]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"https?:", target):
            continue
        name, _, anchor = target.partition("#")
        there = (page.parent / name).resolve() if name else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_that_a_page_names_is_one(page: Path) -> None:
    for line in commands(page.read_text(encoding="utf-8")):
        word, *more = [word for word in line.split() if not word.startswith("-")] or [""]
        if word[:1].islower():  # otherwise a placeholder
            assert word in COMMANDS, line
            assert not (COMMANDS[word] and more) or more[0] in COMMANDS[word], line


def test_commands_are_found_in_code_of_both_kinds() -> None:
    block = "```\ndocker compose exec -T fetcher mailgroup apply x # y\n./mailgroup up --lan\n```\n"
    assert list(commands(f"`mailgroup queue list`\n{block}")) == ["queue list", "apply x ", "up --lan"]
