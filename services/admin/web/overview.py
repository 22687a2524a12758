"""Is mail flowing? And, on an empty system, what is to be done first."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from services.admin.access.users import Viewer
from services.admin.web import charts
from services.admin.web.page_context import Desk, Here, Reader
from services.admin.web.server_events import live_answer

router = APIRouter(include_in_schema=False)

_COMMAND = re.compile(r" \((?:(?:held|parked|queue) list|external skipped \S+)\)|; run: mailgroup [^;()]*(?= \(|$)")


@router.get("/")
async def show(request: Request, here: Here, who: Reader) -> Response:
    """The first page."""
    await here.watch.first()
    day = here.watch.day
    if day is not None and not (day.externals and day.people):
        async with here.system.database.transaction() as connection:
            await here.watch.count(connection)  # it may have been added just now
    return await here.page(request, who, "overview.html", **_facts(here, who))


@router.get("/live")
async def live(request: Request, here: Here, who: Reader) -> Response:
    """The part of the first page that changes, whenever it has changed (server-sent events)."""
    number = -1

    async def newer() -> dict[str, Any]:
        nonlocal number
        number = await here.watch.newer(number)
        return {"html": here.render("state.html", **_facts(here, who)), "troubles": len(here.watch.problems)}

    return live_answer(request, here, newer)


def place(problem: str, addresses: Collection[str]) -> tuple[str, str]:
    """What is wrong, without the command that tells more, and the page that does; '' where there is none. Pure."""
    said = _COMMAND.sub("", problem)
    about = problem.partition(": ")[0]
    if about in addresses:
        return said, Desk.at("/external", about)
    return said, "/queue" if said != problem else ""


def _facts(here: Desk, who: Viewer) -> dict[str, Any]:
    day, found = here.watch.day, here.watch.look()
    addresses = {external["address"] for external in found.get("externals", [])}
    return {
        "may_authorize": who.role == "administrator",
        "status_": found,
        "problems_": [place(problem, addresses) for problem in found.get("problems", [])],
        "day": day,
        "chart": charts.bars(day.hours, "fetched", "sent by us") if day is not None else "",
    }
