"""The URLs where mail clients fetch their settings without a sign-in; services/admin/accounts/client_autoconfig.py.

SECURITY. Every address of a local domain gets the same response, whether the account exists or not; other domains get
404.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

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
"""Limit of the body that Outlook posts: octets; real ones have some hundred."""

PUBLIC_PATHS = (
    *("/mail/config-v1.1.xml", "/.well-known/autoconfig/"),
    *("/autodiscover/", "/Autodiscover/", "/AutoDiscover/"),
)
"""Beginnings of the paths that mail clients request under names of each domain, as autoconfig.company.com."""
_XML = "text/xml"
_AUTODISCOVER = ("/autodiscover/autodiscover", "/Autodiscover/Autodiscover", "/AutoDiscover/AutoDiscover")
"""The spellings of Outlook's versions: its own servers ignore case."""


def servers_and_links(request: Request, context: PageContext, address: str) -> tuple[ClientServers, Links]:
    """Return the servers and links that the page of a local account shows for one of its addresses."""
    servers, settings = _servers(request, context), context.system.settings
    base_url = client_autoconfig.base_url_for_others(_base_url(request), settings)
    warnings = client_autoconfig.find_warnings(servers, base_url, settings)
    return servers, client_autoconfig.links(base_url, address, warnings)


@router.get("/mail/config-v1.1.xml")
@router.get("/.well-known/autoconfig/mail/config-v1.1.xml")
async def thunderbird(request: Request, context: PageDep, address: Address = "") -> Response:
    """Return Mozilla's autoconfig file for the domain of the address; without an address, for every local domain."""
    domains = await _local_domains(context)
    if address:
        domains = [domain for domain in domains if domain == client_autoconfig.domain_of(address)]
    if not domains:
        return _unknown()
    return Response(
        client_autoconfig.mozilla_autoconfig(_servers(request, context), domains), media_type="application/xml"
    )


async def outlook_posts(request: Request, context: PageDep) -> Response:
    """Answer Autodiscover's first version: XML in request and response. An error has status 200, too."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > REQUEST_OCTETS:
            return Response("The body is longer than 64 KiB.\n", 413, media_type="text/plain")
    try:
        address = client_autoconfig.autodiscover_address(body)
    except Unanswerable as error:
        return _xml(client_autoconfig.autodiscover_error(error.code, error.message))
    return await _outlook(request, context, address)


async def outlook_gets(request: Request, context: PageDep, address: Address = "", email: str = "") -> Response:
    """Return the same to a browser and to clients that send a GET."""
    if not (address or email):
        return _xml(client_autoconfig.autodiscover_error("600", "Invalid Request"))
    return await _outlook(request, context, address or email)


async def outlook_v2(
    request: Request,
    context: PageDep,
    protocol: Annotated[str, Query(alias="Protocol", max_length=100)] = "",
    query: Annotated[str, Query(alias="Email", max_length=1000)] = "",
    address: str = "",
) -> Response:
    """Answer Autodiscover's second version: JSON; the address is in the path or in the query, or is missing."""
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
    router.get(f"{_path}.json")(outlook_v2)
    router.get(f"{_path}.json/v1.0/{{address}}")(outlook_v2)


@router.get("/profile")
async def apple(
    request: Request, context: PageDep, address: Address, protocol: Literal["imap", "pop3"] = "imap"
) -> Response:
    """Return a configuration profile for iPhone, iPad and Mac, as a file to install."""
    if client_autoconfig.domain_of(address) not in await _local_domains(context):
        return _unknown()
    return Response(
        client_autoconfig.mobileconfig(
            _servers(request, context), address, protocol="POP3" if protocol == "pop3" else "IMAP"
        ),
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
    return client_autoconfig.servers(context.system.settings, _requested_host(request))


def _requested_host(request: Request) -> str | None:
    """Return the host name that the client connected to; None if its Host header has no valid name."""
    try:
        host = request.url.hostname or ""
    except ValueError:  # brackets without an address in them
        return None
    return host if re.fullmatch(HOST, host) else None


def _base_url(request: Request) -> str:
    return str(request.base_url).rstrip("/")
