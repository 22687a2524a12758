"""Where mail clients fetch their settings, without anybody signed in: see services/admin/accounts/client_autoconfig.py.

Every address of a local domain gets the same answer, whether it is anybody's or not; other domains get 404.
"""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response

from services.admin.accounts import client_autoconfig
from services.admin.accounts.client_autoconfig import ClientServers, Links, Unanswerable
from services.admin.web.page_context import PageContext, PageDep
from shared.settings import HOST
from shared.store import accounts

router = APIRouter(include_in_schema=False)

Address = Annotated[str, Query(alias="emailaddress", max_length=1000)]
REQUEST_OCTETS = 64 * 1024
"""Of what Outlook posts: some hundred octets."""

_XML = "text/xml"
_AUTODISCOVER = ("/autodiscover/autodiscover", "/Autodiscover/Autodiscover", "/AutoDiscover/AutoDiscover")
"""Outlook's versions spell it differently, for a server that takes them all as the same."""


def servers_and_links(request: Request, context: PageContext, address: str) -> tuple[ClientServers, Links]:
    """What the page of a person shows, for an address of theirs."""
    return _servers(request, context), client_autoconfig.links(_base_url(request), address)


@router.get("/mail/config-v1.1.xml")
@router.get("/.well-known/autoconfig/mail/config-v1.1.xml")
async def thunderbird(request: Request, context: PageDep, address: Address = "") -> Response:
    """Without an address it holds for every local domain."""
    domains = await _local_domains(context)
    if address:
        domains = [domain for domain in domains if domain == client_autoconfig.domain_of(address)]
    if not domains:
        return _unknown()
    return Response(
        client_autoconfig.mozilla_autoconfig(_servers(request, context), domains), media_type="application/xml"
    )


async def outlook_posts(request: Request, context: PageDep) -> Response:
    """Outlook's first version: XML asks, XML answers. An error is an answer, too, so its status is 200."""
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > REQUEST_OCTETS:
            return Response("At most 64 KiB are taken.\n", 413, media_type="text/plain")
    try:
        address = client_autoconfig.autodiscover_address(body)
    except Unanswerable as error:
        return _xml(client_autoconfig.autodiscover_error(error.code, error.message))
    return await _outlook(request, context, address)


async def outlook_gets(request: Request, context: PageDep, address: Address = "", email: str = "") -> Response:
    """The same for somebody who looks with a browser, and for clients that ask so."""
    if not (address or email):
        return _xml(client_autoconfig.autodiscover_error("600", "Invalid Request"))
    return await _outlook(request, context, address or email)


async def outlook_asks_where(
    request: Request,
    context: PageDep,
    protocol: Annotated[str, Query(alias="Protocol", max_length=100)] = "",
    query: Annotated[str, Query(alias="Email", max_length=1000)] = "",
    address: str = "",
) -> Response:
    """Outlook's second version: JSON, with the address in the path or behind the question mark, or none."""
    if (address := address or query) and client_autoconfig.domain_of(address) not in await _local_domains(context):
        return _unknown()
    try:
        answer = client_autoconfig.autodiscover_v2(protocol, f"{_base_url(request)}/autodiscover/autodiscover.xml")
    except Unanswerable as error:
        return JSONResponse({"ErrorCode": error.code, "ErrorMessage": error.message}, 400)
    return JSONResponse(answer)


for _path in _AUTODISCOVER:
    router.post(f"{_path}.xml")(outlook_posts)
    router.get(f"{_path}.xml")(outlook_gets)
    router.get(f"{_path}.json")(outlook_asks_where)
    router.get(f"{_path}.json/v1.0/{{address}}")(outlook_asks_where)


@router.get("/profile")
async def apple(request: Request, context: PageDep, address: Address) -> Response:
    """A profile for iPhone, iPad and Mac, as a file to install."""
    if client_autoconfig.domain_of(address) not in await _local_domains(context):
        return _unknown()
    return Response(
        client_autoconfig.mobileconfig(_servers(request, context), address),
        media_type="application/x-apple-aspen-config",
        headers={"Content-Disposition": 'attachment; filename="mail.mobileconfig"'},
    )


async def _outlook(request: Request, context: PageContext, address: str) -> Response:
    if client_autoconfig.domain_of(address) not in await _local_domains(context):
        return Response(
            client_autoconfig.autodiscover_error("500", "The email address cannot be found."), 404, media_type=_XML
        )
    return _xml(client_autoconfig.autodiscover(_servers(request, context), address))


def _unknown() -> Response:
    return Response("No mail of this domain is kept here.\n", 404, media_type="text/plain")


def _xml(document: bytes) -> Response:
    return Response(document, media_type=_XML)


async def _local_domains(context: PageContext) -> list[str]:
    async with context.system.database.statement() as connection:
        return await accounts.local_domains(connection)


def _servers(request: Request, context: PageContext) -> ClientServers:
    return client_autoconfig.servers(context.system.settings, _seen_as(request))


def _seen_as(request: Request) -> str | None:
    """The host name that a client reached us by; None if it does not say one that can be."""
    try:
        host = request.url.hostname or ""
    except ValueError:  # brackets without an address in them
        return None
    return host if re.fullmatch(HOST, host) else None


def _base_url(request: Request) -> str:
    return str(request.base_url).rstrip("/")
