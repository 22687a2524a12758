"""Waits for new mail by IDLE (RFC 2177).

The command is renewed every few minutes. That keeps the server, and routers on the way, from ending the connection for
its silence, and shows a connection that is dead: the renewal gets no answer.
"""

from __future__ import annotations

import asyncio

from shared.net.dial import host_port
from shared.provider.imap_folders import Folders, WatchedFolder
from shared.provider.imap_stream import MAX_UNTAGGED, ImapStream
from shared.provider.session_errors import ProtocolError

RENEW_SECONDS = 270.0
"""Time after which IDLE is renewed: seconds. RFC 2177 wants less than 29 minutes; many routers forget a silent
connection after five to fifteen, some servers end it after ten."""


async def wait_for_news(stream: ImapStream, folders: Folders, folder: WatchedFolder, seconds: float) -> bool:
    """Wait until a mail arrives in this folder, at most for so long. Return whether one may have arrived.

    A mail counts that arrived after the folder was listed in this session, or else was opened in it, and that was not
    returned as news before. No other change counts.

    :raises Temporary: the session is over: BYE, a lost connection, or no answer to a renewal (``Unreachable``,
        ``ServerBusy``); or IDLE is refused (``ProtocolError``). Mail may have arrived.
    """
    if not folders.offers.has("IDLE"):
        raise ProtocolError(f"{host_port(stream.server)}: the server has no IDLE")
    loop = asyncio.get_running_loop()
    ends = loop.time() + seconds
    await folders.reopen(folder)
    while not folder.arrived and (left := ends - loop.time()) > 0:
        await _idle(stream, folders, folder, min(left, RENEW_SECONDS))
    news, folder.arrived = folder.arrived, False
    return news


async def _idle(stream: ImapStream, folders: Folders, folder: WatchedFolder, seconds: float) -> None:
    """Send IDLE and wait for so long or until a mail arrives; then DONE.

    The end of the command is awaited: what the server reports meanwhile counts, too.
    """
    stream.command = "IDLE"
    tag = stream.send(b"IDLE")
    response = await stream.next_answer(tag)
    if response.tag == tag:
        raise folders.refusal(response)
    loop = asyncio.get_running_loop()
    ends = loop.time() + seconds
    heard = 0
    while not folder.arrived and not await stream.is_silent(ends - loop.time()):
        response = await stream.response()
        heard += 1
        if response.tag == tag or heard > MAX_UNTAGGED:
            raise ProtocolError(f"{stream.where}: the server does not stay in it: {response.shown}")
        stream.check_bye(response)
    stream.write(b"DONE\r\n")
    response = await stream.finish(tag)
    if response.kind != "OK":
        raise folders.refusal(response)
