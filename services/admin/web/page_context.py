"""What every page works with: the system, who looks, how a page is made, and what is said on the next one."""

from __future__ import annotations

import asyncio
import datetime
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import jinja2
from fastapi import Depends, Query, Request
from fastapi import Path as PathParameter
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from markupsafe import Markup

from services.admin.access import audit, users
from services.admin.access.sign_in import ConsoleAuthenticator
from services.admin.access.users import CurrentUser
from services.admin.accounts import apply
from services.admin.accounts.apply import ApplyResult
from services.admin.accounts.file_format import AccountsFile
from services.admin.context import AdminContext
from services.admin.formatting import ago
from services.admin.web.forms import KeptSecrets
from services.admin.web.status_cache import StatusCache
from shared import __version__
from shared.db import database
from shared.db.database import Connection

HERE = Path(__file__).resolve().parent
COOKIE = "mailgroup_session"


class NotSignedIn(Exception):
    """Nobody is signed in, or the session has ended."""


class NotAllowed(Exception):
    """Who is signed in may not see or do this."""


class NotFound(Exception):
    """There is no such thing; the text says which."""


class PageContext:
    """One console process. stopping: set when it is to end."""

    def __init__(self, system: AdminContext, stopping: asyncio.Event) -> None:
        self.system = system
        self.stopping = stopping
        self.sign_ins = ConsoleAuthenticator(system.database, system.settings, system.passwords)
        self.status = StatusCache(system, stopping)
        self.kept_secrets = KeptSecrets()
        self._templates = jinja2.Environment(
            loader=jinja2.FileSystemLoader(HERE / "templates"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self._templates.filters |= {
            "ago": _ago,
            "moment": _moment,
            "octets": _octets,
            "path": _path,
            "pair": _pair,
            "browser": _browser,
        }
        self._templates.globals |= {
            "static": _static_names(),
            "viewer_pages": viewer_pages,
            "version": __version__,
        }

    def close(self) -> None:
        """Let go of the threads."""
        self.sign_ins.close()
        self.system.passwords.close()

    def render_template(self, template: str, **facts: Any) -> str:
        """A page, or a part of one."""
        return self._templates.get_template(template).render(**facts)

    async def render_page(
        self, request: Request, viewer: CurrentUser | None, template: str, *, status: int = 200, **facts: Any
    ) -> HTMLResponse:
        """A page for this viewer, with what is to be said on it."""
        notices: list[str] = []
        if viewer is not None:
            async with self.system.database.statement() as connection:
                notices = await users.pop_flash(connection, viewer.session_id)
        shown = {
            "viewer": viewer,
            "path": request.url.path,
            "notices": notices,
            "troubles": len(self.status.problems),
            "problems": [],
        }
        return HTMLResponse(self.render_template(template, **(shown | facts)), status)

    async def apply(
        self, connection: Connection, wanted: AccountsFile, user: CurrentUser, prune: bool = False
    ) -> ApplyResult:
        """Make the accounts what is wanted, and write down who did it. Parameters and errors as ``apply.apply``."""
        outcome = await apply.apply(connection, wanted, self.system.vault, self.system.passwords, prune)
        await audit.record_lines(connection, user.name, outcome.lines)
        return outcome

    @staticmethod
    def storable(given: str) -> str:
        """What came in a URL, as the database takes it."""
        return database.storable(given)

    @staticmethod
    def path_to(page: str, thing: str) -> str:
        """The path of the page of one thing."""
        return f"{page}/{_path(thing)}"

    async def redirect(self, viewer: CurrentUser, to: str, *notices: str) -> Response:
        """Send the browser to a page, which says these lines."""
        if notices:
            async with self.system.database.statement() as connection:
                await users.add_flash(connection, viewer.session_id, notices)
        return RedirectResponse(to, 303)


def page_context(request: Request) -> PageContext:
    """Return the context of the application."""
    context: PageContext = request.app.state.context
    return context


PageDep = Annotated[PageContext, Depends(page_context)]
QueryText = Annotated[str, Query(max_length=400)]
"""What is looked for, or the address that a list goes on after."""
PathAddress = Annotated[str, PathParameter(max_length=400)]
"""Whose page is asked for."""


async def current_user(request: Request, context: PageDep) -> CurrentUser | None:
    """Who is signed in, or shows a token (a script, which asks the API)."""
    scheme, _, shown = request.headers.get("authorization", "").partition(" ")
    if scheme.casefold() == "bearer" and request.url.path.startswith("/api/"):
        async with context.system.database.statement() as connection:
            return await users.user_for_token(connection, shown.strip())
    token = request.cookies.get(COOKIE)
    if not token:
        return None
    async with context.system.database.statement() as connection:
        return await users.user_for_session(connection, token)


OptionalUser = Annotated[CurrentUser | None, Depends(current_user)]


async def signed_in(user: OptionalUser) -> CurrentUser:
    """Anybody who is signed in. :raises NotSignedIn:"""
    if user is None:
        raise NotSignedIn
    return user


SignedIn = Annotated[CurrentUser, Depends(signed_in)]


async def reader(user: SignedIn) -> CurrentUser:
    """An administrator or an observer. :raises NotAllowed:"""
    if user.role == "person":
        raise NotAllowed
    return user


async def administrator(user: SignedIn) -> CurrentUser:
    """An administrator. :raises NotAllowed:"""
    if user.role != "administrator":
        raise NotAllowed
    return user


async def person(user: SignedIn) -> CurrentUser:
    """A local account. :raises NotAllowed:"""
    if user.role != "person":
        raise NotAllowed
    return user


Reader = Annotated[CurrentUser, Depends(reader)]
Administrator = Annotated[CurrentUser, Depends(administrator)]
Person = Annotated[CurrentUser, Depends(person)]


def viewer_pages(user: CurrentUser) -> list[tuple[str, list[tuple[str, str]]]]:
    """The menu: groups of pages, each with its path and name."""
    if user.role == "person":
        return [("", [("/mine", "My mailbox"), ("/mine/deleted", "Deleted mail")])]
    settings = [("/users", "Users and tokens"), ("/accounts-file", "Accounts file")]
    return [
        ("", [("/", "Overview")]),
        ("Accounts", [("/external", "External accounts"), ("/local", "Local accounts"), ("/names", "Unknown names")]),
        ("Mail", [("/mail", "Find mail"), ("/answers", "Who answered"), ("/queue", "Queue and stuck mail")]),
        ("Console", [("/audit", "Who did what"), *(settings if user.role == "administrator" else [])]),
    ]


def home_page(user: CurrentUser) -> str:
    """The first page of somebody who has signed in."""
    return "/mine" if user.role == "person" else "/"


# ------------------------------------------------------------------------------------------ filters of the templates


def _ago(value: float | datetime.datetime | None) -> str:
    """How long since a time, or a time span in seconds."""
    if value is None:
        return "never"
    if isinstance(value, datetime.datetime):
        value = (datetime.datetime.now(datetime.UTC) - value).total_seconds()
    return ago(max(0.0, value))


def _moment(at: datetime.datetime | str | None) -> Markup | str:
    """A time as people read it, in UTC; the browser shows it in its own time where it can."""
    if at is None:
        return "never"
    if isinstance(at, str):
        at = datetime.datetime.fromisoformat(at)
    at = at.astimezone(datetime.UTC)
    return Markup('<time datetime="{}">{} UTC</time>').format(
        at.strftime("%Y-%m-%dT%H:%M:%SZ"), at.strftime("%Y-%m-%d %H:%M:%S")
    )


def _octets(count: int) -> str:
    """A size in units that people know."""
    for size, unit in ((1 << 30, "GB"), (1 << 20, "MB"), (1 << 10, "kB")):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} octets"


def _browser(agent: str) -> str:
    """What a browser calls itself, in two words."""
    names = (("Edg", "Edge"), ("OPR", "Opera"), ("Firefox", "Firefox"), ("Chrome", "Chrome"), ("Safari", "Safari"))
    systems = (
        ("iPhone", "iPhone"),
        ("iPad", "iPad"),
        ("Android", "Android"),
        ("Windows", "Windows"),
        ("Mac OS", "Mac"),
    )
    name = next((shown for word, shown in names if word in agent), "another program")
    system = next((shown for word, shown in (*systems, ("Linux", "Linux")) if word in agent), "")
    return f"{name} on {system}" if system else name


def _pair(text: str) -> tuple[str, str]:
    """An option of a choice whose key is what is shown."""
    return text, text


def _path(text: str) -> str:
    """A text as one step of a URL's path."""
    return quote(text, safe="@")


def _static_names() -> dict[str, str]:
    """The URL of each static file: it changes with the file, so browsers may keep it."""
    files: Sequence[Path] = sorted((HERE / "static").iterdir())
    return {file.name: f"/static/{file.name}?{hashlib.sha256(file.read_bytes()).hexdigest()[:12]}" for file in files}
