"""The application: every router, and the response to every error."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlsplit

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match, Route

from services.admin.accounts.edit import ChangedMeanwhile
from services.admin.accounts.errors import AccountsError
from services.admin.web import (
    answers,
    api,
    authorization,
    client_autoconfig,
    external_accounts,
    languages,
    local_accounts,
    mail,
    overview,
    queues,
    retirement,
    self_service,
    sign_in,
    users_and_audit,
)
from services.admin.web.forms import Form
from services.admin.web.kept_pages import KeptPages
from services.admin.web.page_context import (
    HERE,
    NotAllowed,
    NotFound,
    NotSignedIn,
    PageContext,
    current_user,
    local_path,
    query_of,
)
from services.admin.web.refill import TypedForm
from services.admin.web.request_guard import FILE_PATHS, OwnHosts, RequestGuard
from shared import __version__
from shared.errors import Permanent, Temporary
from shared.field_errors import describe_error
from shared.languages import stored_texts
from shared.languages.translation import gettext, lookup, marked

ROUTERS = (
    client_autoconfig.router,  # first: mail clients fix its paths, and /mail/{id} would match one of them
    sign_in.router,
    languages.router,
    overview.router,
    external_accounts.router,
    authorization.router,
    retirement.router,
    local_accounts.router,
    mail.router,
    answers.router,
    queues.router,
    users_and_audit.router,
    self_service.router,
    api.router,
)

_URLENCODED = "application/x-www-form-urlencoded"
"""The content type of forms without files (HTML, section 4.10.22.7)."""
_TITLES = {404: marked("Not found"), 405: marked("Not allowed")}
_TEXTS = {
    404: marked("There is no page with this address."),
    405: marked("This page cannot be asked for in this way."),
}
_FAILED = marked("That did not work")

log = structlog.get_logger()


class _CachedFiles(StaticFiles):
    """Static files. The URL of a file changes with its content, so browsers may cache it."""

    def file_response(self, *args: Any, **options: Any) -> Response:
        """Return a response that browsers cache for a year."""
        response = super().file_response(*args, **options)
        response.headers["cache-control"] = "public, max-age=31536000, immutable"
        return response


def build_app(context: PageContext) -> languages.PagesInLanguage:
    """Build the application that serves the console."""
    app = FastAPI(
        title="mailgroup",
        version=__version__,
        description=api.DESCRIPTION,
        openapi_url="/api/openapi.json",
        docs_url=None,  # its pages load scripts from other sites
        redoc_url=None,
    )
    app.state.context = context
    for router in ROUTERS:
        app.include_router(router)
    app.mount("/static", _CachedFiles(directory=HERE / "static"), name="static")
    app.add_exception_handler(NotSignedIn, _sign_in)
    app.add_exception_handler(NotAllowed, _refuse)
    app.add_exception_handler(NotFound, _missing)
    app.add_exception_handler(Temporary, _away)
    app.add_exception_handler(Permanent, _conflict)
    app.add_exception_handler(ChangedMeanwhile, _changed)
    app.add_exception_handler(HTTPException, _other)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(AccountsError, _unacceptable)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Exception, _fault)
    kept = KeptPages(app, context, _page_of)
    guarded = RequestGuard(kept, OwnHosts(context.system.settings), client_autoconfig.PUBLIC_PATHS)
    return languages.PagesInLanguage(guarded)


def _is_api(request: Request) -> bool:
    return request.url.path.startswith("/api/")


async def _sign_in(request: Request, error: Exception) -> Response:
    if _is_api(request):
        return JSONResponse({"detail": "sign in, or show a token"}, 401, {"WWW-Authenticate": "Bearer"})
    wanted = _page_of(request)
    if (typed := await _typed(request)) is not None:
        context: PageContext = request.app.state.context
        facts = {"next": wanted, "typed": typed.as_text(), "name": "", "ended": True}
        return await context.render_page(request, None, "sign_in.html", status=401, **facts)
    if wanted == "/":
        return RedirectResponse("/sign-in", 303)
    return RedirectResponse(f"/sign-in?next={quote(wanted, safe='')}", 303)


async def _typed(request: Request) -> TypedForm | None:
    """Return the form of a request that was not fulfilled, if the user typed or chose something in it."""
    sent = request.method == "POST" and request.headers.get("content-type", "").startswith(_URLENCODED)
    if not sent or _is_api(request) or request.url.path in (*FILE_PATHS, "/sign-in"):
        return None  # a long file is read for administrators only
    typed = TypedForm.of(request.url.path, Form(await request.form()).pairs())
    return typed if typed.pairs or typed.had_secrets else None


def _page_of(request: Request) -> str:
    """Return the path of the page that is requested, or that a form is on: with GET it changes nothing."""
    if request.method == "GET":
        return request.url.path + query_of(request.url.query)
    came_from = urlsplit(request.headers.get("referer", ""))
    places = [(came_from.path, query_of(came_from.query))] if local_path(came_from.path) else []
    places += [(request.url.path, ""), (request.url.path.rpartition("/")[0], "")]
    return next((path + rest for path, rest in places if "GET" in _allowed_methods(path)), "/")


async def _refuse(request: Request, error: Exception) -> Response:
    return await _error_response(
        request, 403, marked("Not for you"), marked("Your account may not see or do this. Ask an administrator.")
    )


async def _missing(request: Request, error: Exception) -> Response:
    return await _error_response(request, 404, _TITLES[404], str(error))


async def _conflict(request: Request, error: Exception) -> Response:
    return await _error_response(request, 409, _FAILED, str(error))


async def _changed(request: Request, error: Exception) -> Response:
    return await _error_response(request, 412, _FAILED, str(error))


async def _away(request: Request, error: Exception) -> Response:
    text = gettext("%(error)s. Try again in a moment.", error=stored_texts.shown(str(error)))
    return await _error_response(request, 503, marked("Not now"), text, await _typed(request))


async def _unacceptable(request: Request, error: Exception) -> Response:
    assert isinstance(error, AccountsError)
    if not _is_api(request):
        return await _error_response(request, 422, _FAILED, error.words)
    return JSONResponse({"detail": "; ".join(error.lines), "problems": error.lines}, 422)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    lines = [f"{'.'.join(map(str, each['loc']))}: {describe_error(each)}" for each in error.errors()]
    if _is_api(request):  # the values are not sent back: they may be passwords
        return JSONResponse({"detail": "; ".join(lines), "problems": lines}, 422)
    text = marked(
        "The address of this page, or a field that was sent, has a value that is too long or of another kind."
    )
    return await _error_response(request, 422, marked("That does not fit"), text)


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=400)  # nobody reads it: the body did not arrive in time, was too long, or was cut


async def _other(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    title = _TITLES.get(error.status_code, _FAILED)
    text = error.detail if _is_api(request) else _TEXTS.get(error.status_code, error.detail)
    response = await _error_response(request, error.status_code, title, text)
    response.headers.update(error.headers or {})
    if error.status_code == 405:  # the methods of all routes with this path (RFC 9110 section 10.2.1)
        response.headers["allow"] = ", ".join(sorted(_allowed_methods(request.url.path)))
    return response


def _allowed_methods(path: str) -> set[str]:
    scope = {"type": "http", "path": path, "root_path": "", "headers": []}
    allowed: set[str] = set()
    for route in _routes():
        for method in route.methods or ():
            if route.matches(scope | {"method": method})[0] == Match.FULL:
                allowed.add(method)
    return allowed


def _routes() -> Iterator[Route]:
    for router in ROUTERS:  # the application's own list holds routers, too
        for route in router.routes:
            if isinstance(route, Route):
                yield route


async def _fault(request: Request, error: Exception) -> Response:
    log.error("request failed", path=request.url.path, exc_info=error)
    return await _error_response(request, 500, _FAILED, marked("The log of the service admin has the cause."))


async def _error_response(
    request: Request, status: int, title: str, text: str, typed: TypedForm | None = None
) -> Response:
    """:param title, text: translated here. :param typed: the form that was sent, to send it again."""
    if _is_api(request):
        return JSONResponse({"detail": text}, status)
    title, text = lookup(title), stored_texts.shown(text)
    context: PageContext = request.app.state.context
    user = None
    if status < 500:  # without the database the current user is unknown
        user = await current_user(request, context)
        return await context.render_page(
            request, user, "message.html", status=status, title=title, text=text, typed=None
        )
    facts: dict[str, object] = {"viewer": None, "path": "", "notices": [], "troubles": 0, "problems": []}
    facts |= {"typed": typed, "here": "/"}
    return Response(
        context.render_template("message.html", title=title, text=text, **facts), status, media_type="text/html"
    )
