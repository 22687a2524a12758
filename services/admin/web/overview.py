"""Is mail flowing? And, on an empty system, what is to be done first."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from services.admin.access.users import CurrentUser
from services.admin.web import charts
from services.admin.web.page_context import PageContext, PageDep, Reader
from services.admin.web.server_events import live_answer

router = APIRouter(include_in_schema=False)

_COMMAND = re.compile(r" \((?:(?:held|parked|queue) list|external skipped \S+)\)|; run: mailgroup [^;()]*(?= \(|$)")


@router.get("/")
async def show(request: Request, here: PageDep, who: Reader) -> Response:
    """The first page."""
    await here.status.first()
    day = here.status.day
    if day is not None and not (day.externals and day.people):
        async with here.system.database.transaction() as connection:
            await here.status.count(connection)  # it may have been added just now
    return await here.page(request, who, "overview.html", **_facts(here, who))


@router.get("/live")
async def live(request: Request, here: PageDep, who: Reader) -> Response:
    """The part of the first page that changes, whenever it has changed (server-sent events)."""
    number = -1

    async def newer() -> dict[str, Any]:
        nonlocal number
        number = await here.status.newer(number)
        return {"html": here.render("state.html", **_facts(here, who)), "troubles": len(here.status.problems)}

    return live_answer(request, here, newer)


def place(problem: str, addresses: Collection[str]) -> tuple[str, str]:
    """What is wrong, without the command that tells more, and the page that does; '' where there is none. Pure."""
    said = _COMMAND.sub("", problem)
    about = problem.partition(": ")[0]
    if about in addresses:
        return said, PageContext.linked("/external", about)
    return said, "/queue" if said != problem else ""


def _facts(here: PageContext, who: CurrentUser) -> dict[str, Any]:
    day, found = here.status.day, here.status.look()
    addresses = {external["address"] for external in found.get("externals", [])}
    return {
        "may_authorize": who.role == "administrator",
        "status_": found,
        "problems_": [place(problem, addresses) for problem in found.get("problems", [])],
        "day": day,
        "chart": charts.bars(day.hours, "fetched", "sent by us") if day is not None else "",
    }
