"""docs/interfaces.md: what the console can do, commands and REST API can; the page names every one of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from fastapi import FastAPI
from fastapi.routing import APIRoute

from services.admin.cli.app import app
from services.admin.web import api
from services.admin.web.app import ROUTERS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "interfaces.md"
TITLES, LEFT_OUT = "| function | page | command | REST API |", "| what | where | why |"
_AUTODISCOVER = re.compile(r"/autodiscover/", re.IGNORECASE)


def rows(titles: str) -> list[list[list[str]]]:
    """The rows of the table with these titles: of each cell the words in backquotes."""
    _, _, table = PAGE.read_text(encoding="utf-8").partition(f"{titles}\n")
    lines = [line for line in table.partition("\n\n")[0].splitlines() if line.startswith("| ") and "---" not in line]
    return [[re.findall(r"`([^`]+)`", cell) for cell in line.strip("| ").split(" | ")] for line in lines]


def named(column: int) -> set[str]:
    """What a column of the functions names."""
    return {name for row in rows(TITLES) for name in row[column]}


def left_out() -> set[str]:
    """What the table of things without a counterpart names."""
    return {name for row in rows(LEFT_OUT) for name in row[1]}


def pages() -> set[str]:
    """Method and path of each page and form of the console."""
    routes = [route for router in ROUTERS if router is not api.router for route in router.routes]
    assert len(routes) > 40
    found = {
        f"{method} {route.path}" for route in routes if isinstance(route, APIRoute) for method in route.methods or ()
    }
    return {each for each in found if not _AUTODISCOVER.search(each)}


def operations() -> set[str]:
    """Method and path of each operation of the REST API, without the common beginning."""
    described = FastAPI()
    described.include_router(api.router)
    paths = described.openapi()["paths"]
    return {f"{method.upper()} {path.removeprefix('/api/v1')}" for path, methods in paths.items() for method in methods}


def commands() -> Iterator[str]:
    """The words of each command that help shows."""
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]  # a group
        below = getattr(command, "commands", None)
        if not command.hidden:
            yield from (f"{name} {each}" for each in below) if below else [name]


@pytest.mark.parametrize(
    ("column", "existing"), [(1, pages()), (2, set(commands())), (3, operations())], ids=["page", "command", "REST"]
)
def test_the_page_names_all_that_exists_and_nothing_else(column: int, existing: set[str]) -> None:
    assert len(existing) > 30
    assert existing - named(column) - left_out() == set()
    assert named(column) - existing == set()


def test_what_has_no_counterpart_exists_and_is_a_function_nowhere() -> None:
    assert left_out() <= pages() | set(commands())
    assert not left_out() & (named(1) | named(2))


def test_each_function_has_a_page_a_command_and_an_operation() -> None:
    assert len(rows(TITLES)) > 25
    assert [row for row in rows(TITLES) if not all(row[1:])] == []
