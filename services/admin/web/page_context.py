"""The context of every page: the system, the current user and their role, rendering, and flash messages."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import jinja2
from fastapi import Depends, Query, Request
from fastapi import Path as PathParameter
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from services.admin.access import audit, users
from services.admin.access.sign_in import ConsoleAuthenticator
from services.admin.access.users import CurrentUser
from services.admin.accounts import apply
from services.admin.accounts.apply import ApplyResult
from services.admin.accounts.change_lines import detail_on_page
from services.admin.accounts.file_format import AccountsFile
from services.admin.accounts.passwords import describe_weak
from services.admin.context import AdminContext
from services.admin.formatting import counted, mail_status, octets, thousands
from services.admin.web import times
from services.admin.web.forms import KeptSecrets
from services.admin.web.refill import TypedForm, refill
from services.admin.web.status_cache import StatusCache
from shared import __version__
from shared.db import database
from shared.db.database import Connection
from shared.languages import stored_texts, translation
from shared.languages.translation import gettext, marked

HERE = Path(__file__).resolve().parent
COOKIE = "mailgroup_session"
KEPT_PAGE = "shown"
"""Name in a query of the handle of a page that answers a form (``kept_pages``)."""


class NotSignedIn(Exception):
    """The request has no session, or the session has ended."""


class NotAllowed(Exception):
    """The role of the current user does not allow this."""


class NotFound(Exception):
    """The account or mail does not exist; the text names it."""


class PageContext:
    """The context of one console process. stopping: set when the process is to end."""

    def __init__(self, system: AdminContext, stopping: asyncio.Event) -> None:
        self.system = system
        self.stopping = stopping
        self.sign_ins = ConsoleAuthenticator(system.database, system.settings, system.passwords)
        self.status = StatusCache(system, stopping)
        self.kept_secrets = KeptSecrets()
        self._templates = jinja2.Environment(
            extensions=["jinja2.ext.i18n"],
            loader=jinja2.FileSystemLoader(HERE / "templates"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self._templates.filters |= {
            "ago": times.time_span,
            "since": times.since,
            "moment": times.moment,
            "counted": counted,
            "octets": octets,
            "thousands": thousands,
            "translated": stored_texts.shown,
            "change": lambda entry: detail_on_page(entry.did, entry.detail),
            "path": _path,
            "pair": _pair,
            "browser": _browser,
            "mail_status": mail_status,
            "weak_passwords": describe_weak,
            "sentence": _sentence,
        }
        self._templates.globals |= {
            "static": _static_names(),
            "viewer_pages": viewer_pages,
            "version": __version__,
            "language": translation.language,
            "languages": translation.languages,
            "script_texts": script_texts,
        }
        install: Any = self._templates
        install.install_gettext_callables(translation.lookup, translation.lookup_plural, newstyle=True)

    def close(self) -> None:
        """Stop the threads."""
        self.sign_ins.close()
        self.system.passwords.close()

    def render_template(self, template: str, **facts: Any) -> str:
        """Render a page, or a part of one."""
        return self._templates.get_template(template).render(**facts)

    async def render_page(
        self, request: Request, viewer: CurrentUser | None, template: str, *, status: int = 200, **facts: Any
    ) -> HTMLResponse:
        """Render a page for this user, with their flash messages."""
        notices: list[str] = []
        if viewer is not None:
            async with self.system.database.statement() as connection:
                notices = await users.pop_flash(connection, viewer.session_id)
        common = {
            "viewer": viewer,
            "path": request.url.path,
            "notices": notices,
            "troubles": len(self.status.problems),
            "problems": [],
            "here": page_before(request) or f"{request.url.path}{query_of(request.url.query)}",
        }
        page = self.render_template(template, **(common | facts))
        if viewer is not None and (handle := request.query_params.get("typed")):
            typed = TypedForm.from_text(self.kept_secrets.load(viewer.session_id, handle) or "")
            page = page if typed is None else refill(page, typed)
        return HTMLResponse(page, status)

    async def apply(
        self, connection: Connection, requested: AccountsFile, user: CurrentUser, prune: bool = False
    ) -> ApplyResult:
        """Apply an accounts file and record the changes in the audit. Parameters and errors as ``apply.apply``."""
        outcome = await apply.apply(connection, requested, self.system.vault, self.system.passwords, prune)
        await audit.record_lines(connection, user.name, outcome.lines)
        return outcome

    @staticmethod
    def storable(given: str) -> str:
        """Return a text from a URL or form as PostgreSQL can store it."""
        return database.storable(given)

    @staticmethod
    def path_to(page: str, address: str) -> str:
        """Return the path of the page of one account."""
        return f"{page}/{_path(address)}"

    async def redirect(self, viewer: CurrentUser, to: str, *notices: str) -> Response:
        """Redirect the browser to a page that shows these flash messages."""
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
"""A search text, or the address after which a list continues."""
PathAddress = Annotated[str, PathParameter(max_length=400)]
"""The address of the account whose page is requested."""


async def current_user(request: Request, context: PageDep) -> CurrentUser | None:
    """Return the user of the session cookie, or of the bearer token of a script that calls the API."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.casefold() == "bearer" and request.url.path.startswith("/api/"):
        async with context.system.database.statement() as connection:
            return await users.user_for_token(connection, token.strip())
    session_token = request.cookies.get(COOKIE)
    if not session_token:
        return None
    async with context.system.database.statement() as connection:
        user = await users.user_for_session(connection, session_token)
    request.state.session_id = user.session_id if user is not None else 0
    return user


OptionalUser = Annotated[CurrentUser | None, Depends(current_user)]


async def signed_in(user: OptionalUser) -> CurrentUser:
    """Require a signed-in user. :raises NotSignedIn:"""
    if user is None:
        raise NotSignedIn
    return user


SignedIn = Annotated[CurrentUser, Depends(signed_in)]


async def reader(user: SignedIn) -> CurrentUser:
    """Require an administrator or an observer. :raises NotAllowed:"""
    if user.role == "person":
        raise NotAllowed
    return user


async def administrator(user: SignedIn) -> CurrentUser:
    """Require an administrator. :raises NotAllowed:"""
    if user.role != "administrator":
        raise NotAllowed
    return user


async def person(user: SignedIn) -> CurrentUser:
    """Require the user of a local account. :raises NotAllowed:"""
    if user.role != "person":
        raise NotAllowed
    return user


Reader = Annotated[CurrentUser, Depends(reader)]
Administrator = Annotated[CurrentUser, Depends(administrator)]
Person = Annotated[CurrentUser, Depends(person)]


def viewer_pages(user: CurrentUser) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """Return the menu: groups of pages, each with its path, name and icon."""
    if user.role == "person":
        return [("", [("/mine", marked("My mailbox"), "mine"), ("/mine/deleted", marked("Deleted mail"), "deleted")])]
    settings = [("/users", marked("Users and tokens"), "users"), ("/accounts-file", marked("Accounts file"), "file")]
    return [
        ("", [("/", marked("Overview"), "overview")]),
        (
            marked("Accounts"),
            [
                ("/external", marked("External accounts"), "external"),
                ("/local", marked("Local accounts"), "local"),
                ("/names", marked("Unknown names"), "names"),
            ],
        ),
        (
            marked("Mail"),
            [
                ("/mail", marked("Find mail"), "mail"),
                ("/answers", marked("Who answered"), "answers"),
                ("/queue", marked("Queue and stuck mail"), "queue"),
            ],
        ),
        (
            marked("Console"),
            [("/audit", marked("Who did what"), "audit"), *(settings if user.role == "administrator" else [])],
        ),
    ]


def script_texts() -> dict[str, str]:
    """Return the texts that the scripts of the pages show."""
    return {
        "times": gettext("times are those of this device"),
        "testing": gettext("Testing …"),
        "busy": gettext("One moment …"),
        "suggest": gettext("Suggest one"),
        "copy": gettext("Copy"),
        "copied": gettext("Copied"),
        "close": gettext("Close this message"),
        "system": gettext("Colours: system"),
        "light": gettext("Light"),
        "dark": gettext("Dark"),
    }


def home_page(user: CurrentUser) -> str:
    """Return the path of the first page after the sign-in."""
    return "/mine" if user.role == "person" else "/"


# ------------------------------------------------------------------------------------------ filters of the templates


def query_of(query: str) -> str:
    """Return the query of a URL with its question mark, without the handle of a kept page; '' for none. Pure."""
    if f"{KEPT_PAGE}=" in query:
        query = urlencode([pair for pair in parse_qsl(query, keep_blank_values=True) if pair[0] != KEPT_PAGE])
    return f"?{query}" if query else ""


def local_path(path: str) -> str:
    """Return a path of the console unchanged, and '' for an URL of another site (open redirect). Pure."""
    inside = path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable()
    return path if inside and "\\" not in path else ""


def page_before(request: Request) -> str:
    """Return the path of the page that a form was on; '' for a response to anything else."""
    if request.method != "POST":
        return ""
    came_from = urlsplit(request.headers.get("referer", ""))
    return (
        f"{came_from.path}{query_of(came_from.query)}"
        if came_from.path.startswith("/") and came_from.path[1:2] != "/"
        else ""
    )


def _browser(agent: str) -> str:
    """Return the names of browser and system in a User-Agent header."""
    names = (("Edg", "Edge"), ("OPR", "Opera"), ("Firefox", "Firefox"), ("Chrome", "Chrome"), ("Safari", "Safari"))
    systems = (
        ("iPhone", "iPhone"),
        ("iPad", "iPad"),
        ("Android", "Android"),
        ("Windows", "Windows"),
        ("Mac OS", "Mac"),
    )
    name = next((shown for word, shown in names if word in agent), gettext("another program"))
    system = next((shown for word, shown in (*systems, ("Linux", "Linux")) if word in agent), "")
    return gettext("%(browser)s on %(system)s", browser=name, system=system) if system else name


def _sentence(text: str) -> str:
    """Return a text with a capital letter and a full stop."""
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def _pair(text: str) -> tuple[str, str]:
    """Return an option of a select element whose value is its text."""
    return text, text


def _path(text: str) -> str:
    """Escape a text as one segment of a URL's path."""
    return quote(text, safe="@")


def _static_names() -> dict[str, str]:
    """Return the URL of each static file. It has a digest of the content, so browsers may cache the file."""
    files: Sequence[Path] = sorted((HERE / "static").iterdir())
    return {file.name: f"/static/{file.name}?{hashlib.sha256(file.read_bytes()).hexdigest()[:12]}" for file in files}
