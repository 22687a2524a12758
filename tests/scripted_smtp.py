"""An SMTP server with scripted replies: a provider that refuses, hangs, disconnects, or works."""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections import defaultdict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

HANG = "(hang)"
"""Send no reply, for ever."""
CLOSE = "(close)"
"""End the connection instead of a reply."""
SWALLOW = "(swallow)"
"""Accept the mail, and end the connection instead of the reply to the final dot."""
PIPELINING = "250-scripted\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 AUTH PLAIN LOGIN"
"""Reply to EHLO of a server with PIPELINING (RFC 2920)."""
DSN = "250-scripted\r\n250-PIPELINING\r\n250-DSN\r\n250 AUTH PLAIN LOGIN"
"""Reply to EHLO of a server with DSN (RFC 3461)."""

_DEFAULTS = {
    "GREETING": "220 ready",
    "EHLO": "250-scripted\r\n250-8BITMIME\r\n250-SIZE 100000000\r\n250 AUTH PLAIN LOGIN",
    "AUTH": "235 2.7.0 welcome",
    "MAIL": "250 2.1.0 ok",
    "RCPT": "250 2.1.5 ok",
    "DATA": "354 go on",
    "END": "250 2.0.0 queued",
    "RSET": "250 2.0.0 ok",
    "NOOP": "250 2.0.0 ok",
    "QUIT": "221 2.0.0 bye",
}


@dataclass(slots=True)
class Taken:
    """A mail that was accepted with 250."""

    sender: str
    recipients: list[str]
    raw: bytes  # as received, without the final dot

    @property
    def mail(self) -> bytes:
        """The mail without dot-stuffing (RFC 5321 4.5.2)."""
        return b"\r\n".join(line[1:] if line.startswith(b".") else line for line in self.raw.split(b"\r\n"))


@dataclass(slots=True)
class ScriptedSmtp:
    """The script, and what the server has received. GREETING, END (the final dot) and RESPONSE (a line that answers
    a 334) count as commands; ``AUTH PLAIN`` and other mechanisms may have replies of their own."""

    port: int = 0  # on 127.0.0.1
    taken: list[Taken] = field(default_factory=list)  # accepted mails, in order
    lines: list[str] = field(default_factory=list)  # every command line of all connections
    logins: list[str] = field(default_factory=list)  # AUTH PLAIN with an initial response, decoded
    responses: list[str] = field(default_factory=list)  # lines that answer a 334, as they were sent
    connections: int = 0
    at_once: int = 0  # open connections
    most_at_once: int = 0
    mails_at_once: int = 0  # between the replies to DATA and END
    most_mails_at_once: int = 0
    octets_seen: int = 0
    room: int = 1000  # limit of open connections, 421 for more
    discards: bool = False  # count mails without storing them
    pause: float = 0.0  # seconds between two reads of a mail
    early: str = ""  # reply after 100,000 octets of a mail; then nothing more is read
    hangs_up: bool = False  # end the connection after each mail
    gates: dict[str, asyncio.Event] = field(default_factory=dict)  # by command: the reply waits for the event
    answers: defaultdict[str, deque[str]] = field(default_factory=lambda: defaultdict(deque))  # next replies
    standing: dict[str, str] = field(default_factory=lambda: dict(_DEFAULTS))  # replies after those
    most_recipients: int = 1000  # limit of a transaction
    crowded: str = "452 4.5.3 too many recipients"  # reply to RCPT beyond it
    by_recipient: dict[str, str] = field(default_factory=dict)  # replies to RCPT by address

    def say(self, verb: str, *replies: str) -> None:
        """Set the replies to the next commands of this kind."""
        self.answers[verb].extend(replies)

    def always(self, verb: str, reply: str | None) -> None:
        """Set the reply to every command of this kind; None: the reply of a working server."""
        self.standing[verb] = _DEFAULTS[verb] if reply is None else reply

    def said(self, verb: str) -> list[str]:
        """Return the command lines of this kind."""
        return [line for line in self.lines if line.upper().startswith(verb)]

    async def _reply(self, writer: asyncio.StreamWriter, verb: str, recipient: str = "") -> int:
        """Send the reply and return its code. :raises ConnectionError: the script ends the connection."""
        if verb in self.gates:
            await self.gates[verb].wait()
        queue = self.answers[verb]
        reply = queue.popleft() if queue else self.by_recipient.get(recipient, self.standing.get(verb, "500 what?"))
        if reply == HANG:
            await asyncio.sleep(3600)
        if reply == CLOSE:
            raise ConnectionError("scripted")
        writer.write(reply.encode() + b"\r\n")
        await writer.drain()
        code = int(reply[:3]) if reply[:3].isdigit() else 0
        if code == 421:
            raise ConnectionError("scripted")
        return code

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        self.connections += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if self.at_once > self.room:
                self.say("GREETING", "421 4.7.0 too many connections")
            await self._reply(writer, "GREETING")
            await self._converse(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.at_once -= 1
            writer.close()

    async def _converse(self, stream: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reader = _Reader(stream)
        sender: str | None = None
        asked = False  # the last reply was 334, so the next line is no command
        recipients = list[str]()
        while (line := (await reader.until(b"\r\n")).decode().rstrip("\r\n")) or asked:
            if asked:
                self.responses.append(line)
                asked = await self._reply(writer, "RESPONSE") == 334
                continue
            self.lines.append(line)
            verb = line.split(" ")[0].upper()
            address = line.partition("<")[2].partition(">")[0]
            if verb == "AUTH":
                mechanism, _, initial = line.partition(" ")[2].partition(" ")
                if initial:
                    self.logins.append(base64.b64decode(initial).decode().replace("\0", " ").strip())
                asked = await self._reply(writer, self._auth_verb(mechanism)) == 334
                continue
            if verb == "RCPT" and sender is None:
                self.answers[verb].appendleft("503 5.5.1 MAIL first")
            elif verb == "RCPT" and len(recipients) >= self.most_recipients:
                self.answers[verb].appendleft(self.crowded)
            if verb == "DATA" and not recipients and not self.answers[verb]:
                self.answers[verb].append("554 5.5.1 no valid recipients")
            code = await self._reply(writer, verb, address if verb == "RCPT" else "")
            if verb == "MAIL" and code == 250:
                sender, recipients = address, []
            elif verb == "RCPT" and code == 250:
                recipients.append(address)
            elif verb == "DATA" and code == 354:
                await self._take(reader, writer, sender or "", recipients)
                sender, recipients = None, []
            elif verb == "RSET":
                sender, recipients = None, []
            elif verb == "QUIT":
                return

    def _auth_verb(self, mechanism: str) -> str:
        """Return the script's name of the command: with its mechanism, if the script has replies for that."""
        verb = f"AUTH {mechanism}"
        return verb if verb in self.answers or verb in self.standing else "AUTH"

    async def _take(self, reader: _Reader, writer: asyncio.StreamWriter, sender: str, recipients: list[str]) -> None:
        self.mails_at_once += 1
        self.most_mails_at_once = max(self.most_mails_at_once, self.mails_at_once)
        try:
            raw = await self._read_mail(reader, writer)
            if next(iter(self.answers["END"]), "") == SWALLOW:
                self.answers["END"].popleft()
                self.taken.append(Taken(sender, recipients, raw))
                raise ConnectionError("scripted")
            if await self._reply(writer, "END") == 250:
                self.taken.append(Taken(sender, recipients, raw))
                if self.hangs_up:
                    raise ConnectionError("scripted")
        finally:
            self.mails_at_once -= 1

    async def _read_mail(self, reader: _Reader, writer: asyncio.StreamWriter) -> bytes:
        mail = bytearray(b"\r\n")
        while (end := mail.find(b"\r\n.\r\n", max(0, len(mail) - 65536 - 5))) < 0:
            if self.pause:
                await asyncio.sleep(self.pause)
            piece = await reader.some()
            mail += piece
            self.octets_seen += len(piece)
            if self.discards and b"\r\n.\r\n" not in mail:
                del mail[:-5]
            if self.early and len(mail) > 100_000:
                writer.write(self.early.encode() + b"\r\n")
                await writer.drain()
                await asyncio.sleep(3600)
        reader.put_back(bytes(mail[end + 5 :]))
        return bytes(mail[2 : end + 2])


class _Reader:
    """A stream into which octets can be put back: the pipelined commands behind a mail."""

    def __init__(self, stream: asyncio.StreamReader) -> None:
        self._stream = stream
        self._rest = b""

    def put_back(self, octets: bytes) -> None:
        """Put octets back to the start."""
        self._rest = octets + self._rest

    async def some(self) -> bytes:
        """Return the next octets. :raises ConnectionError: the connection has ended."""
        piece, self._rest = self._rest, b""
        piece = piece or await self._stream.read(65536)
        if not piece:
            raise ConnectionError("the client went away")
        return piece

    async def until(self, end: bytes) -> bytes:
        """Return the octets up to and including ``end``."""
        while end not in self._rest:
            self._rest += await self._stream.read(65536) or self._gone()
        line, _, self._rest = self._rest.partition(end)
        return line + end

    def _gone(self) -> bytes:
        raise ConnectionError("the client went away")


@asynccontextmanager
async def scripted_smtp(port: int = 0, context: ssl.SSLContext | None = None) -> AsyncIterator[ScriptedSmtp]:
    """Run a server on a free port, or on this one. :param context: for TLS from the start."""
    script = ScriptedSmtp()
    tasks: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            tasks.add(task)
        await script.serve(reader, writer)

    server = await asyncio.start_server(connected, "127.0.0.1", port, ssl=context)
    script.port = server.sockets[0].getsockname()[1]
    try:
        yield script
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
