"""Mail clients by IMAP that count what they notice, and keep what they have read."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Collection
from dataclasses import dataclass, field

from tests.rolling.clients import PASSWORD, PATIENCE_SECONDS, Connection, Ended, Tally

_LITERAL = re.compile(rb"~?\{(\d+)\}\r\n\Z")
_BODY = re.compile(rb"BODY\[\] \{(\d+)\}\r\n")
_MAILS_AT_ONCE = 50
"""Mails in one FETCH."""


def judge_imap(response: bytes) -> str:
    """Return the outcome of an answer without its tag, or of an untagged BYE; "" for OK (RFC 9051, RFC 5530)."""
    if response.startswith((b"OK ", b"* OK ")):
        return ""
    if response.startswith(b"* BYE [UNAVAILABLE] the server is going down"):
        return "told"
    temporary = (b"* BYE ", b"NO [UNAVAILABLE]", b"NO [INUSE]", b"NO [LIMIT]")
    return "temporary" if response.startswith(temporary) else "permanent"


@dataclass(slots=True)
class Inbox:
    """A client's copy of an INBOX.

    :ivar mails: by UIDVALIDITY and UID. :ivar changed: keys that named two different mails (RFC 9051 section 2.3.1.1).
    """

    mails: dict[tuple[int, int], bytes] = field(default_factory=dict)
    changed: set[tuple[int, int]] = field(default_factory=set)

    def add(self, key: tuple[int, int], mail: bytes) -> None:
        """Keep a mail."""
        if self.mails.setdefault(key, mail) != mail:
            self.changed.add(key)


class ImapConnection(Connection):
    """A connection by IMAP. Use it by ``to``."""

    def __init__(self, tally: Tally) -> None:
        super().__init__(tally, judge_imap, lambda line: False)
        self._tags = 0

    async def run(self, command: bytes) -> list[bytes]:
        """Run a command. :return: the untagged responses, each with its literals. :raises Ended: unless it is OK."""
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                return await self._finish(self._begin(command), command)
        except (OSError, EOFError, TimeoutError) as error:
            raise Ended("broken", f"{command[:20]!r}: {error!r}") from error

    async def idle(self, seconds: float) -> bool:
        """Wait in IDLE until the server reports new mail (RFC 2177). :return: whether it has, within ``seconds``."""
        heard = False
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                tag = self._begin(b"IDLE")
                while not (response := await self._response(b"IDLE")).startswith(b"+"):
                    heard = heard or response.endswith(b" EXISTS\r\n")
            try:
                async with asyncio.timeout(seconds):
                    while not heard:
                        heard = (await self._response(b"IDLE")).endswith(b" EXISTS\r\n")
            except TimeoutError:
                pass
            async with asyncio.timeout(PATIENCE_SECONDS):
                self._writer.write(b"DONE\r\n")
                await self._finish(tag, b"IDLE")
        except (OSError, EOFError, TimeoutError) as error:
            raise Ended("broken", f"IDLE: {error!r}") from error
        return heard

    def _begin(self, command: bytes) -> bytes:
        """Send a command. :return: its tag, and a space."""
        self._tags += 1
        tag = b"a%d " % self._tags
        self._writer.write(tag + command + b"\r\n")
        return tag

    async def _finish(self, tag: bytes, command: bytes) -> list[bytes]:
        untagged = []
        while not (response := await self._response(command)).startswith(tag):
            untagged.append(response)
        if outcome := judge_imap(response.removeprefix(tag)):
            raise Ended(outcome, f"{command[:20]!r}: {response.decode('latin-1').strip()}")
        self._tally.commands += 1
        return untagged

    async def _response(self, command: bytes) -> bytes:
        """Read a response with its literals. :raises Ended: BYE, unless it belongs to the answer of LOGOUT."""
        whole = b""
        while True:
            whole += await self._reader.readuntil(b"\n")
            found = _LITERAL.search(whole)
            if found is None:
                break
            whole += await self._reader.readexactly(int(found[1]))
        if whole.startswith(b"* BYE") and (command != b"LOGOUT" or judge_imap(whole) == "told"):
            raise Ended(judge_imap(whole), f"{command[:20]!r}: {whole.decode('latin-1').strip()}")
        return whole


async def log_in(imap: ImapConnection, address: str) -> None:
    """Log in. :raises Ended: it is refused."""
    await imap.run(b'LOGIN %b "%b"' % (address.encode(), PASSWORD.encode()))


async def read_inbox(
    port: int, address: str, inbox: Inbox, tally: Tally, seconds: float = 0.0, gap: float = 0.0
) -> None:
    """Read the new mails of INBOX in one session, and mark the latest mail as seen.

    :param seconds: time before LOGOUT, with a NOOP each ``gap`` seconds.
    """
    async with ImapConnection(tally).to(port) as imap:
        await log_in(imap, address)
        uids = await fetch_new(imap, inbox)
        if uids:
            await imap.run(b"UID STORE %d +FLAGS (\\Seen)" % max(uids))
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            await asyncio.sleep(gap)
            await imap.run(b"NOOP")
        await imap.run(b"LOGOUT")


async def follow_inbox(port: int, address: str, inbox: Inbox, tally: Tally, seconds: float) -> None:
    """Read the new mails of INBOX, and those that the server reports in IDLE for so long, in one session."""
    async with ImapConnection(tally).to(port) as imap:
        await log_in(imap, address)
        await fetch_new(imap, inbox)
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if await imap.idle(left):
                await fetch_new(imap, inbox)
        await imap.run(b"LOGOUT")


async def fetch_new(imap: ImapConnection, inbox: Inbox) -> Collection[int]:
    """Select INBOX, and fetch the mails that the copy does not have. :return: the UIDs of INBOX."""
    selected = b"".join(await imap.run(b"SELECT INBOX"))
    validity = _found(rb"\[UIDVALIDITY (\d+)\]", selected)
    found = [line for line in await imap.run(b"UID SEARCH ALL") if line.startswith(b"* SEARCH")]
    uids = [int(word) for line in found for word in line.split()[2:]]
    new = [uid for uid in uids if (validity, uid) not in inbox.mails]
    for start in range(0, len(new), _MAILS_AT_ONCE):
        some = b",".join(b"%d" % uid for uid in new[start : start + _MAILS_AT_ONCE])
        for response in await imap.run(b"UID FETCH %b (BODY.PEEK[])" % some):
            if body := _BODY.search(response):
                end = body.end() + int(body[1])
                uid = _found(rb"\bUID (\d+)", response[: body.start()] + response[end:])
                inbox.add((validity, uid), response[body.end() : end])
    return uids


def _found(pattern: bytes, text: bytes) -> int:
    found = re.search(pattern, text)
    if found is None:
        raise Ended("permanent", f"{pattern!r} is not in {text[:200]!r}")
    return int(found[1])
