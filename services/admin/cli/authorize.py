"""``external authorize``: instructions for the person at the terminal, who agrees at the provider's page.

Without a device flow, a browser brings the answer to a temporary loopback port, or the person pastes the address.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from services.admin.accounts import oauth_flow
from services.admin.accounts.oauth_flow import Progress
from services.admin.context import AdminContext
from shared.errors import Permanent
from shared.model import External

POLL_SECONDS = 0.5
"""Seconds between two polls."""
_PAGE = b"<!doctype html><title>mailgroup</title><p>Done. You may close this page."


async def authorize(system: AdminContext, external: External, who: str, say: Callable[[str], None]) -> None:
    """Start an authorization, print the instructions, and wait until it finishes.

    :raises Permanent, Temporary: the account is not authorized.
    """
    async with _listen(external) as (redirect, brought):
        progress: Progress | None = await oauth_flow.start_authorization(system, external, who, redirect)
        assert progress is not None
        key = progress.key
        if progress.user_code:
            say(f"Open {progress.url} in a browser, log in as {external.login} and type {progress.user_code}")
        else:
            say(f"Open this page in a browser, log in as {external.login} and agree:\n{progress.url}")
            say("If the browser runs on another machine, paste the address here that it shows in the end:")
        while progress is not None and progress.key == key and progress.state == "waits":
            try:
                async with asyncio.timeout(POLL_SECONDS):
                    url = await brought.get()
            except TimeoutError:
                await oauth_flow.poll_pending(system, external)
            else:
                try:
                    await oauth_flow.complete_redirect(system, external, url)
                except Permanent as error:
                    say(str(error))
            progress = await oauth_flow.load_progress(system, external)
    if progress is None or progress.key != key:
        raise Permanent(f"{external.address}: another authorization of this account was started meanwhile")
    if progress.state == "failed":
        raise Permanent(f"{external.address}: {progress.words}")


@asynccontextmanager
async def _listen(external: External) -> AsyncIterator[tuple[str, asyncio.Queue[str]]]:
    """Yield the redirect URL on loopback, and a queue of the answers that a browser brings or a person pastes."""
    brought: asyncio.Queue[str] = asyncio.Queue()
    if external.oauth is None or external.oauth.issuer.device_url:
        yield "", brought
        return

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, ValueError):
            words = (await reader.readline()).decode("ascii", "replace").split()
            writer.write(b"HTTP/1.0 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n" + _PAGE)
            await writer.drain()
            # ignore other requests, such as the one for the icon of the page
            if len(words) > 1 and "state=" in words[1]:
                brought.put_nowait(words[1])
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        pasting = _read_lines(brought)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", brought
        finally:
            if pasting:
                asyncio.get_running_loop().remove_reader(sys.stdin)


def _read_lines(lines: asyncio.Queue[str]) -> bool:
    """Read pasted lines from standard input, if that is possible. :return: whether it is."""

    def read() -> None:
        text = sys.stdin.readline()
        if text.strip():
            lines.put_nowait(text.strip())
        elif not text:
            asyncio.get_running_loop().remove_reader(sys.stdin)

    try:
        asyncio.get_running_loop().add_reader(sys.stdin, read)
    except (OSError, ValueError):  # a file, or nothing at all
        return False
    return True
