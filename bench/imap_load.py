"""Load generator for an IMAP server: sessions of mail clients, with as little work as possible.

``poll`` selects INBOX and fetches the flags of all mails; ``resync`` selects it by QRESYNC with what a session before
has learned; ``overview`` fetches envelopes, structures and flags of all mails in one command; ``read`` fetches the
mails, a command each, ``--pipeline`` of them sent together; ``append`` stores mails of ``--octets``; ``store``
changes the flag Flagged of one mail after the other; ``search`` looks for ``--text``; ``login`` logs in and out;
``idle`` keeps sessions in IDLE until standard input ends. Each session is a connection. The program prints a line of
JSON, as pop3_load does; items are mails, or else sessions. It exits with an error if an answer is not what it has to
be.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import ssl
import sys
from typing import cast

from bench import load_sessions
from bench.load_sessions import options
from bench.mails import mail

_BUFFER_OCTETS = 256 * 1024
_TAIL_OCTETS = 512
"""Longest line of an answer with a tag: octets."""


class Client(asyncio.BufferedProtocol):
    """A session. It keeps the received octets only if it is asked to, and looks for the answer at their end."""

    def __init__(self) -> None:
        self.octets = 0
        self.kept: list[bytes] | None = None
        self._buffer = bytearray(_BUFFER_OCTETS)
        self._transport: asyncio.Transport | None = None
        self._answered: asyncio.Future[bytes] | None = None
        self._begins = b""
        self._tail = b"\r\n"
        self._tags = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # those of uvloop have their own classes

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def expect(self, begins: bytes) -> asyncio.Future[bytes]:
        """Expect a line that begins so as the last one. :return: it."""
        self._begins = b"\r\n" + begins
        self._answered = asyncio.get_running_loop().create_future()
        return self._answered

    def send(self, octets: bytes) -> None:
        """Send octets as they are."""
        assert self._transport is not None
        self._transport.write(octets)

    async def ask(self, *commands: bytes) -> bytes:
        """Send commands together, and wait for the answer to the last one. :return: it. It exits unless that is OK."""
        lines = []
        for command in commands:
            self._tags += 1
            lines.append(b"t%d %b\r\n" % (self._tags, command))
        answered = self.expect(b"t%d " % self._tags)
        self.send(b"".join(lines))
        answer = await answered
        if b" OK" not in answer[:20]:
            sys.exit(f"{commands[-1]!r}: {answer!r}")
        return answer

    async def ask_for(self, command: bytes) -> bytes:
        """Send a command. :return: all that is received up to its answer, and this."""
        self.kept = []
        await self.ask(command)
        received, self.kept = b"".join(self.kept), None
        return received

    def buffer_updated(self, count: int) -> None:
        self.octets += count
        if self.kept is not None:
            self.kept.append(bytes(self._buffer[:count]))
        new = bytes(self._buffer[max(0, count - _TAIL_OCTETS) : count])
        self._tail = (self._tail + new)[-_TAIL_OCTETS:]
        if self._answered is None or not self._tail.endswith(b"\r\n"):
            return
        start = self._tail.rfind(self._begins)
        if start >= 0:
            answered, self._answered = self._answered, None
            if not answered.done():
                answered.set_result(self._tail[start + 2 :])

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(ConnectionError(f"connection lost: {exc}"))

    def close(self) -> None:
        """End the connection."""
        if self._transport is not None:
            self._transport.close()


async def log_in(wanted: argparse.Namespace, index: int) -> Client:
    """Open a session of the user of this index."""
    client = Client()
    greeted = client.expect(b"* ")
    context = None
    if wanted.tls:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    await asyncio.get_running_loop().create_connection(lambda: client, "127.0.0.1", wanted.port, ssl=context)
    await greeted
    user = wanted.user.format(i=index % wanted.users)
    await client.ask(f"LOGIN {user} {wanted.password}".encode())
    return client


async def session(wanted: argparse.Namespace, index: int) -> tuple[int, int]:
    """Run one session. :return: items, and received octets."""
    client, items = await log_in(wanted, index), 1
    if wanted.mode not in ("login", "append", "resync"):
        await client.ask(b"SELECT INBOX")
    before = client.octets
    match wanted.mode:
        case "poll":
            await client.ask(b"UID FETCH 1:* (FLAGS)")
            if client.octets - before < 25 * wanted.mails:
                sys.exit(f"{client.octets - before} octets are not the flags of {wanted.mails} mails")
        case "resync":
            await client.ask(b"ENABLE QRESYNC")
            selected = await client.ask_for(b"SELECT INBOX (QRESYNC (%b))" % wanted.known.encode())
            if b"* %d EXISTS" % wanted.mails not in selected or b"FETCH" in selected or b"VANISHED" in selected:
                sys.exit(f"this is not the selection of an unchanged mailbox: {selected[:500]!r}")
        case "overview":
            await client.ask(b"FETCH 1:%d (ENVELOPE BODYSTRUCTURE FLAGS)" % wanted.mails)
            if client.octets - before < 200 * wanted.mails:
                sys.exit(f"{client.octets - before} octets are no envelopes of {wanted.mails} mails")
            items = wanted.mails
        case "read":
            for start in range(1, wanted.mails + 1, wanted.pipeline):
                end = min(start + wanted.pipeline, wanted.mails + 1)
                await client.ask(*(b"UID FETCH %d (BODY.PEEK[])" % number for number in range(start, end)))
            if client.octets - before < wanted.mails * wanted.octets:
                sys.exit(f"{client.octets - before} octets came instead of {wanted.mails * wanted.octets}")
            items = wanted.mails
        case "append":
            body = mail(wanted.octets, index)
            for _ in range(wanted.mails):
                await client.ask(b"APPEND INBOX (\\Seen) {%d+}\r\n%b" % (len(body), body))
            items = wanted.mails
        case "store":
            for number in range(1, wanted.mails + 1):
                await client.ask(b"UID STORE %d %cFLAGS (\\Flagged)" % (number, ord(wanted.sign)))
            items = wanted.mails
        case "search":
            found = re.search(rb"\* SEARCH([ 0-9]*)\r\n", await client.ask_for(b"SEARCH " + wanted.text.encode()))
            if found is None or len(found[1].split()) != wanted.found:
                sys.exit(f"SEARCH {wanted.text}: {found and found[1][:200]!r} instead of {wanted.found} mails")
            items = wanted.mails
    await client.ask(b"LOGOUT")
    client.close()
    return items, client.octets


async def idle(wanted: argparse.Namespace) -> None:
    """Keep the sessions in IDLE until standard input ends."""
    clients = []
    for index in range(wanted.sessions):
        client = await log_in(wanted, index)
        await client.ask(b"SELECT INBOX")
        continued = client.expect(b"+ ")
        client.send(b"i IDLE\r\n")
        await continued
        clients.append(client)
    print(json.dumps({"items": len(clients)}), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    for client in clients:
        client.close()


def main() -> None:
    """Read the command line and run."""
    modes = ["poll", "resync", "overview", "read", "append", "store", "search", "login", "idle"]
    parser = options(__doc__, modes)
    parser.add_argument("--tls", action="store_true", help="TLS from the start; the certificate is not checked")
    parser.add_argument("--known", default="", help="UIDVALIDITY and mod-sequence of QRESYNC")
    parser.add_argument("--sign", choices="+-", default="+", help="whether the flag is set or removed")
    parser.add_argument("--text", default="", help="keys of SEARCH")
    parser.add_argument("--found", type=int, default=0, help="number of mails that SEARCH has to find")
    load_sessions.run(parser.parse_args(), session, idle)


if __name__ == "__main__":
    main()
