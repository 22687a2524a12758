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
from services.admin.web.server_events import event_stream

router = APIRouter(include_in_schema=False)

_COMMAND = re.compile(r" \((?:(?:held|parked|queue) list|external skipped \S+)\)|; run: mailgroup [^;()]*(?= \(|$)")


@router.get("/")
async def show(request: Request, context: PageDep, user: Reader) -> Response:
    """The first page."""
    await context.status.get_fresh()
    day = context.status.day
    if day is not None and not (day.externals and day.people):
        async with context.system.database.transaction() as connection:
            await context.status.count_day(connection)  # it may have been added just now
    return await context.render_page(request, user, "overview.html", **_facts(context, user))


@router.get("/live")
async def live(request: Request, context: PageDep, user: Reader) -> Response:
    """The part of the first page that changes, whenever it has changed (server-sent events)."""
    number = -1

    async def newer() -> dict[str, Any]:
        nonlocal number
        number = await context.status.wait_for_newer(number)
        return {
            "html": context.render_template("state.html", **_facts(context, user)),
            "troubles": len(context.status.problems),
        }

    return event_stream(request, context, newer)


def link_problem(problem: str, addresses: Collection[str]) -> tuple[str, str]:
    """What is wrong, without the command that tells more, and the page that does; '' where there is none. Pure."""
    said = _COMMAND.sub("", problem)
    about = problem.partition(": ")[0]
    if about in addresses:
        return said, PageContext.path_to("/external", about)
    return said, "/queue" if said != problem else ""


def _facts(context: PageContext, user: CurrentUser) -> dict[str, Any]:
    day, found = context.status.day, context.status.get_latest()
    addresses = {external["address"] for external in found.get("externals", [])}
    return {
        "may_authorize": user.role == "administrator",
        "status_": found,
        "problems_": [link_problem(problem, addresses) for problem in found.get("problems", [])],
        "day": day,
        "chart": charts.bar_chart(day.hours, "fetched", "sent by us") if day is not None else "",
    }
