"""A scripted POP3 server: correct by default; a test gives other answers for single commands."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from shared.model import Server, Tls


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer in raw bytes."""

    pieces: tuple[bytes, ...] = ()  # sent one after the other
    hang: bool = False  # then send nothing more
    cut: bool = False  # then close the connection
    pause: float = 0.0  # seconds after each piece


def say(*pieces: bytes) -> Answer:
    """Send these pieces and continue."""
    return Answer(pieces)


def cut(*pieces: bytes) -> Answer:
    """Send these pieces and close the connection."""
    return Answer(pieces, cut=True)


def hang(*pieces: bytes) -> Answer:
    """Send these pieces and nothing more."""
    return Answer(pieces, hang=True)


def drip(answer: bytes, pause: float) -> Answer:
    """Send single octets, with a pause of ``pause`` seconds after each."""
    return Answer(tuple(bytes([octet]) for octet in answer), pause=pause)


def stuff(mail: bytes) -> bytes:
    """Return a mail as RETR sends it, with the final dot (RFC 1939 section 3)."""
    lines = mail.split(b"\r\n")
    if lines[-1] == b"":
        lines.pop()
    return b"".join((b"." if line.startswith(b".") else b"") + line + b"\r\n" for line in lines) + b".\r\n"


@dataclass
class ScriptedPop3:
    """A server with one maildrop. Attributes may change while the server is running."""

    mails: dict[str, bytes] = field(default_factory=dict)  # by UIDL, in order
    capabilities: tuple[str, ...] | None = ("PIPELINING", "UIDL", "TOP", "USER")  # None: CAPA is refused
    answers: Mapping[str, Answer] = field(default_factory=dict)  # by command ("RETR 2"), verb ("CAPA"), or "greeting"
    password: str = "secret"
    context: ssl.SSLContext | None = None
    implicit: bool = False  # TLS from the first byte
    name: Callable[[int, str], str] = lambda number, uidl: uidl  # returns the listed UIDL of a mail
    knows_uidl: bool = True  # False: UIDL is refused
    pops: bool = False  # mails that were read are no longer listed after QUIT
    stuffs: bool = True  # False: dots at the beginning of lines are not doubled
    rest_after: float = 0.0  # seconds between the octets up to a line that is a lone dot and the rest of the mail
    commands: list[str] = field(default_factory=list)  # all commands of all clients
    sessions: int = 0  # number of connections
    pipelined: set[int] = field(default_factory=set)  # sessions, by number, that sent a command before the last reply
    port: int = 0
    _sessions: set[asyncio.Task[object]] = field(default_factory=set)

    def server(self, tls: Tls = "none", fingerprint: str | None = None, host: str = "127.0.0.1") -> Server:
        """Return the server's address as an account has it."""
        return Server(host, self.port, tls, fingerprint)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[ScriptedPop3]:
        """Serve on a free port of 127.0.0.1."""
        listener = await asyncio.start_server(
            self._serve, "127.0.0.1", 0, limit=1 << 20, ssl=self.context if self.implicit else None
        )
        self.port = listener.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            listener.close()
            for task in self._sessions:
                task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.sessions += 1
        task = asyncio.current_task()
        if task is not None:
            self._sessions.add(task)
            task.add_done_callback(self._sessions.discard)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, ssl.SSLError, asyncio.CancelledError):
            await self._session(reader, writer)
        writer.close()

    async def _session(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        listed = list(self.mails.items())
        deleted: set[str] = set()
        read: set[str] = set()
        if not await self._send(writer, self.answers.get("greeting", say(b"+OK ready\r\n"))):
            return
        while line := (await reader.readline()).decode().strip():
            self.commands.append(line)
            if reader._buffer:  # type: ignore[attr-defined]
                self.pipelined.add(self.sessions)
            verb, _, argument = line.partition(" ")
            answer = self.answers.get(line) or self.answers.get(verb)
            if not await self._send(writer, answer or self._cut(self._answer(verb, argument, listed, deleted))):
                return
            if verb == "STLS" and answer is None and self.context is not None:
                await writer.start_tls(self.context)
            if verb == "RETR" and answer is None and self.pops:
                read.add(listed[int(argument) - 1][0])
            if verb == "QUIT":
                if answer is None:
                    for uidl in deleted | read:
                        self.mails.pop(uidl, None)
                return

    def _text(self, mail: bytes) -> bytes:
        return stuff(mail) if self.stuffs else mail + b".\r\n"

    def _cut(self, reply: bytes) -> Answer:
        """Return the answer in pieces where the rest of a mail comes later."""
        head, dot, rest = reply.partition(b"\r\n.\r\n")
        return Answer((head + dot, rest), pause=self.rest_after) if rest and self.rest_after else say(reply)

    async def _send(self, writer: asyncio.StreamWriter, answer: Answer) -> bool:
        for piece in answer.pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(answer.pause)
        if answer.hang:
            await asyncio.Event().wait()
        return not answer.cut

    def _answer(self, verb: str, argument: str, listed: list[tuple[str, bytes]], deleted: set[str]) -> bytes:
        numbered = enumerate(listed, 1)
        match verb:
            case "CAPA" if self.capabilities is not None:
                lines = [*self.capabilities, *(["STLS"] if self.context is not None and not self.implicit else [])]
                return b"+OK\r\n" + "".join(f"{name}\r\n" for name in lines).encode() + b".\r\n"
            case "STLS" if self.context is not None:
                return b"+OK\r\n"
            case "USER" | "QUIT" | "NOOP":
                return b"+OK\r\n"
            case "PASS":
                return b"+OK\r\n" if argument == self.password else b"-ERR wrong\r\n"
            case "STAT":
                return f"+OK {len(listed)} {sum(len(mail) for _, mail in listed)}\r\n".encode()
            case "UIDL" if self.knows_uidl and argument:
                number = int(argument)
                return f"+OK {number} {self.name(number, listed[number - 1][0])}\r\n".encode()
            case "LIST" if argument:
                return f"+OK {argument} {len(listed[int(argument) - 1][1])}\r\n".encode()
            case "UIDL" if self.knows_uidl:
                names = "".join(f"{n} {self.name(n, uidl)}\r\n" for n, (uidl, _) in numbered)
                return b"+OK\r\n" + names.encode() + b".\r\n"
            case "LIST":
                return b"+OK\r\n" + "".join(f"{n} {len(mail)}\r\n" for n, (_, mail) in numbered).encode() + b".\r\n"
            case "RETR":
                return b"+OK\r\n" + self._text(listed[int(argument) - 1][1])
            case "TOP" if self.capabilities is not None and "TOP" in self.capabilities:
                header = listed[int(argument.split()[0]) - 1][1].partition(b"\r\n\r\n")[0]
                return b"+OK\r\n" + self._text(header + b"\r\n\r\n")
            case "DELE":
                deleted.add(listed[int(argument) - 1][0])
                return b"+OK\r\n"
            case _:
                return b"-ERR unknown\r\n"
