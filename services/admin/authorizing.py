"""``external authorize``: a person agrees at the provider's page, and we get a refresh token for the account.

Where the provider has a device flow, the page may be opened anywhere. Otherwise a browser brings the answer to a port
of ours on loopback; if it runs on another machine, the address that it shows in the end is pasted here.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
from collections.abc import Callable
from contextlib import suppress
from urllib.parse import parse_qs, urlsplit

from services.admin.system import System
from shared import accounts, oauth, polls, relays
from shared.accounts import External
from shared.credentials import Grant, client_of
from shared.failures import Permanent
from shared.oauth import Client, Request, Tokens, Unauthorized
from shared.settings import PrivateHosts

WAIT_SECONDS = 900.0
_PAGE = b"<!doctype html><title>mailgroup</title><p>Done. You may close this page."


async def authorize(system: System, external: External, say: Callable[[str], None]) -> None:
    """Get a refresh token and store it; both directions are tried at once then.

    :param say: told what the person is to do. :raises Unauthorized: (Temporary) nobody agreed. :raises Permanent: …
    """
    grant = Grant.open(system.vault, external.password)
    client = client_of(external, grant)
    allow = system.settings.allow_private_upstream
    tokens = await (_by_device if client.issuer.device_url else _by_browser)(client, external, allow, say)
    if not tokens.refresh:
        raise Permanent("the provider gave no refresh token; its application has to be allowed offline access")
    sealed = Grant(tokens.refresh, grant.client_secret, secrets.token_hex(8)).seal(system.vault)
    async with system.database.transaction() as connection:
        # the grant of before may have been renewed meanwhile; another client or login is another matter
        now = next(iter(await accounts.externals(connection, [external.id])), None)
        same = now is not None and (now.oauth, now.login) == (external.oauth, external.login)
        if now is None or not same or not await accounts.replace_password(connection, now.id, now.password, sealed):
            raise Permanent(f"{external.address}: was changed meanwhile; authorize it again")
        await polls.resume(connection, external.id)
        await relays.resume(connection, external.id)


async def _by_device(client: Client, external: External, allow: PrivateHosts, say: Callable[[str], None]) -> Tokens:
    code = await oauth.begin_device(client, allow)
    say(f"Open {code.url} in a browser, log in as {external.login} and type {code.user_code}")
    return await oauth.finish_device(client, code, allow)


async def _by_browser(client: Client, external: External, allow: PrivateHosts, say: Callable[[str], None]) -> Tokens:
    brought: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, ValueError):
            words = (await reader.readline()).decode("ascii", "replace").split()
            writer.write(b"HTTP/1.0 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n" + _PAGE)
            await writer.drain()
            # whatever else comes here, the browser's question for an icon for one, is no answer
            if len(words) > 1 and request.state in words[1] and not brought.done():
                brought.set_result(words[1])
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        request = oauth.begin_code(client, external.login, f"http://127.0.0.1:{port}/")
        say(f"Open this page in a browser, log in as {external.login} and agree:\n{request.url}")
        say("If the browser runs on another machine, paste the address here that it shows in the end:")
        pasting = _read_line(brought)
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                code = code_of(request, await brought)
        except TimeoutError as error:
            raise Unauthorized("nobody agreed at the provider's page in time; authorize it again") from error
        finally:
            if pasting:
                asyncio.get_running_loop().remove_reader(sys.stdin)
    return await oauth.finish_code(client, request, code, allow)


def _read_line(line: asyncio.Future[str]) -> bool:
    """Take a pasted line, if somebody can paste one here."""

    def read() -> None:
        text = sys.stdin.readline()
        if text.strip() and not line.done():
            line.set_result(text.strip())
        elif not text:
            asyncio.get_running_loop().remove_reader(sys.stdin)

    try:
        asyncio.get_running_loop().add_reader(sys.stdin, read)
    except (OSError, ValueError):  # a file, or nothing at all
        return False
    return True


def code_of(request: Request, url: str) -> str:
    """The code in the address to which the browser was sent (RFC 6749 section 4.1.2).

    :raises Unauthorized: the person, or the provider, said no. :raises Permanent: it answers another request.
    """
    query = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
    if query.get("state") != request.state:
        raise Permanent("this is not the answer to this request; authorize the account again")
    if "code" not in query:
        raise Unauthorized(f"the provider did not agree ({query.get('error', 'no reason')[:100]})")
    return query["code"]
