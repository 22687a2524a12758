"""The overview: whether mail flows, and the first steps on an empty system."""

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
from shared.languages import stored_texts
from shared.languages.translation import gettext
from shared.store import inbound_admin

router = APIRouter(include_in_schema=False)

_DELEGATE = re.compile(r"(\S+@\S+): is disabled, and the delegate ")
_COMMAND = re.compile(r" \((?:(?:held|parked|queue) list|external skipped \S+)\)|; run: mailgroup [^;()]*(?= \(|$)")


@router.get("/")
async def show(request: Request, context: PageDep, user: Reader) -> Response:
    """Show the overview."""
    await context.status.get_fresh()
    day = context.status.day
    if day is not None:
        async with context.system.database.transaction() as connection:
            if not day.is_set_up or await inbound_admin.count_unstarted(connection) != day.unstarted:
                await context.status.count_day(connection)  # accounts were changed since the last check
    return await context.render_page(request, user, "overview.html", **_facts(context, user))


@router.get("/live")
async def live(request: Request, context: PageDep, user: Reader) -> Response:
    """Send the status part of the overview whenever it has changed (server-sent events)."""
    generation = -1

    async def newer() -> dict[str, Any]:
        nonlocal generation
        generation = await context.status.wait_for_newer(generation)
        return {
            "html": context.render_template("state.html", **_facts(context, user)),
            "troubles": len(context.status.problems),
        }

    return event_stream(request, context, newer)


def link_problem(problem: str, addresses: Collection[str]) -> tuple[str, str]:
    """Return a problem without the command that explains it, and the path of the page that does; '': no page. Pure."""
    text = _COMMAND.sub("", problem)
    subject = problem.partition(": ")[0]
    if subject in addresses:
        return text, PageContext.path_to("/external", subject)
    if match := _DELEGATE.match(problem):
        return text, PageContext.path_to("/local", match[1])
    return text, "/queue" if text != problem else ""


def _facts(context: PageContext, user: CurrentUser) -> dict[str, Any]:
    day, latest = context.status.day, context.status.get_latest()
    addresses = {external["address"] for external in latest.get("externals", [])}
    return {
        "may_authorize": user.role == "administrator",
        "system": latest,
        "linked_problems": [
            (stored_texts.shown(text), link)
            for text, link in (link_problem(problem, addresses) for problem in latest.get("problems", []))
        ],
        "day": day,
        "chart": charts.bar_chart(day.hours, gettext("fetched"), gettext("sent by us")) if day is not None else "",
    }
