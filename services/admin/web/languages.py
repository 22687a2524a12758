"""The language of the pages: that of the browser, or the one that the user chose, which a cookie keeps."""

from __future__ import annotations

from http.cookies import CookieError, SimpleCookie
from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import RedirectResponse, Response

from services.admin.web.page_context import local_path
from services.admin.web.request_guard import App, Receive, Scope, Send
from shared.languages.translation import choose, gettext, in_language, languages

COOKIE = "mailgroup_language"
_YEAR_SECONDS = 365 * 86_400

router = APIRouter(include_in_schema=False)


class PagesInLanguage:
    """The ASGI application whose pages are in the language of each request. The REST API is English."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request in its language."""
        if scope["type"] != "http" or scope["path"].startswith("/api/"):
            await self._app(scope, receive, send)
            return
        with in_language(language_of(scope)):
            await self._app(scope, receive, send)


def language_of(scope: Scope) -> str:
    """Return the language that the request chose by its cookie, or by its browser."""
    headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
    try:
        chosen = SimpleCookie(headers.get(b"cookie", "")).get(COOKIE)
    except CookieError:
        chosen = None
    if chosen is not None and chosen.value in languages():
        return chosen.value
    return choose(headers.get(b"accept-language", ""))


def offered(default: str) -> list[tuple[str, str]]:
    """Return the choices of a person's language, each with its name. :param default: the setting LANGUAGE."""
    return [
        ("", gettext("As the operator has set it: %(language)s", language=languages()[default])),
        *languages().items(),
    ]


@router.post("/language")
async def change(
    request: Request,
    language: Annotated[str, Form(max_length=40)] = "",
    next: Annotated[str, Form(max_length=2000)] = "",
) -> Response:
    """Keep the language that the user chose; without one, that of the browser applies again.

    :param next: path of the page that the form was on.
    """
    response = RedirectResponse(local_path(next) or "/", 303)
    if language in languages():
        secure = request.url.scheme == "https"
        response.set_cookie(COOKIE, language, _YEAR_SECONDS, httponly=True, samesite="lax", secure=secure, path="/")
    else:
        response.delete_cookie(COOKIE, path="/", samesite="lax", httponly=True)
    return response
