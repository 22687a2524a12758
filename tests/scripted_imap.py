"""A scripted IMAP server: correct by default; a test gives other answers for single commands."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import re
import ssl
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from shared.model import Server, Tls
from tests.scripted_pop3 import Answer, say

CAPABILITIES = ("IMAP4rev1", "AUTH=PLAIN", "SASL-IR", "LITERAL+", "UIDPLUS", "IDLE", "ESEARCH", "ID", "NAMESPACE")
_FETCH = re.compile(r"(\S+) \((.*)\)$")


@dataclass
class ScriptedFolder:
    """A folder. The mails are by UID; attributes are as LIST shows them."""

    mails: dict[int, bytes] = field(default_factory=dict)
    uidvalidity: int = 1_700_000_000
    attributes: str = ""
    modseq: int | None = None  # HIGHESTMODSEQ (RFC 7162), if the server counts changes and a client wants it
    deleted: set[int] = field(default_factory=set)  # marked \Deleted
    flagged: dict[int, str] = field(default_factory=dict)  # other flags by UID, as they were set


@dataclass
class ScriptedImap:
    """A server with one account. Attributes may change while the server is running.

    In an answer, ``<tag>`` stands for the tag of the command, ``<before>`` for that of the command before, ``<tag3>``
    for that of the third UID FETCH of a mail's text. A line that is no command has the answer to "".
    """

    mails: dict[int, bytes] = field(default_factory=dict)  # of the INBOX
    capabilities: tuple[str, ...] | None = CAPABILITIES  # None: CAPABILITY is refused
    answers: Mapping[str, Answer] = field(default_factory=dict)  # by command ("UID FETCH 2"), verb, or "greeting"
    others: dict[str, ScriptedFolder] = field(default_factory=dict)  # by the name on the wire
    password: str = "secret"
    context: ssl.SSLContext | None = None
    implicit: bool = False  # TLS from the first byte
    commands: list[str] = field(default_factory=list)  # all commands of all clients, without tags
    pipelined: int = 0  # commands that came before the answer to the last one was sent
    sessions: int = 0  # number of connections
    port: int = 0
    inbox: ScriptedFolder = field(init=False)
    idlers: list[asyncio.StreamWriter] = field(default_factory=list)  # clients in IDLE
    _sessions: set[asyncio.Task[object]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.inbox = ScriptedFolder(self.mails)

    def server(self, tls: Tls = "none", fingerprint: str | None = None, host: str = "127.0.0.1") -> Server:
        """Return the server's address as an account has it."""
        return Server(host, self.port, tls, fingerprint)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[ScriptedImap]:
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

    def arrive(self, uid: int, mail: bytes) -> None:
        """Put a mail into the INBOX, and tell the clients in IDLE."""
        self.mails[uid] = mail
        for writer in self.idlers:
            writer.write(f"* {len(self.mails)} EXISTS\r\n".encode())

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.sessions += 1
        task = asyncio.current_task()
        if task is not None:
            self._sessions.add(task)
            task.add_done_callback(self._sessions.discard)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, ssl.SSLError, asyncio.CancelledError):
            await _Session(self, reader, writer).run()
        writer.close()


@dataclass
class _Session:
    server: ScriptedImap
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    folder: ScriptedFolder | None = None
    fetches: list[str] = field(default_factory=list)  # tags

    async def run(self) -> None:
        answers = self.server.answers
        if not await self._send(answers.get("greeting", say(b"* OK ready\r\n")), ""):
            return
        tag = before = ""
        while (line := await self._command()) is not None:
            before = tag or before
            tag, _, command = line.partition(" ")
            self.server.commands.append(command or tag)
            if self.reader._buffer:  # type: ignore[attr-defined]
                self.server.pipelined += 1
            verb = command.partition(" ")[0]
            if "BODY.PEEK" in command:
                self.fetches.append(tag)
            answer = self.server.answers.get(command) or self._prepared(command) or self.server.answers.get(verb)
            if answer is None and verb in ("IDLE", "AUTHENTICATE"):
                await (self._idle(tag) if verb == "IDLE" else self._authenticate(tag, command))
                continue
            if not await self._send(answer or say(self._reply(tag, command)), tag, before):
                return
            if verb == "STARTTLS" and answer is None and self.server.context is not None:
                await self.writer.start_tls(self.server.context)
            if verb == "LOGOUT":
                return

    def _prepared(self, command: str) -> Answer | None:
        """Return the answer for the beginning of this command, whole words."""
        answers = self.server.answers.items()
        return next((answer for begin, answer in answers if " " in begin and command.startswith(begin + " ")), None)

    async def _command(self) -> str | None:
        """Read a command with its literals, as one line; None at the end of the connection."""
        received = await self.reader.readline()
        if not received:
            return None
        line = received.decode("utf-8", "surrogateescape").rstrip("\r\n")
        while literal := re.search(r"\{(\d+)(\+?)\}$", line):
            if not literal[2]:
                self.writer.write(b"+ go on\r\n")
            octets = await self.reader.readexactly(int(literal[1]))
            rest = (await self.reader.readline()).decode().rstrip("\r\n")
            line = line[: literal.start()] + '"' + octets.decode("utf-8", "surrogateescape") + '"' + rest
        return line

    async def _send(self, answer: Answer, tag: str, before: str = "") -> bool:
        for piece in answer.pieces:
            for number, sent in enumerate(self.fetches, 1):
                piece = piece.replace(b"<tag%d>" % number, sent.encode())
            self.writer.write(piece.replace(b"<tag>", tag.encode()).replace(b"<before>", before.encode()))
            await self.writer.drain()
            await asyncio.sleep(answer.pause)
        if answer.hang:
            await asyncio.Event().wait()
        return not answer.cut

    async def _authenticate(self, tag: str, command: str) -> None:
        _, _, *initial = command.split(" ")
        if initial:
            response = initial[0]
        else:
            self.writer.write(b"+ \r\n")
            response = (await self.reader.readline()).decode().strip()
            self.server.commands.append(response)
        decoded = base64.b64decode(response).decode()
        good = self.server.password in re.split("[\0\1 ]", decoded)
        self.writer.write(f"{tag} {'OK' if good else 'NO [AUTHENTICATIONFAILED]'} done\r\n".encode())

    async def _idle(self, tag: str) -> None:
        self.writer.write(b"+ idling\r\n")
        self.server.idlers.append(self.writer)
        try:
            line = await self.reader.readline()
        finally:
            self.server.idlers.remove(self.writer)
        self.server.commands.append(line.decode().strip())
        self.writer.write(f"{tag} OK idle ended\r\n".encode())

    # ------------------------------------------------------------------------------------------ replies

    def _reply(self, tag: str, command: str) -> bytes:
        verb, _, rest = command.partition(" ")
        ok = f"{tag} OK done\r\n".encode()
        server = self.server
        match verb:
            case "CAPABILITY" if server.capabilities is not None:
                names = [*server.capabilities, *(["STARTTLS"] if server.context and not server.implicit else [])]
                return f"* CAPABILITY {' '.join(names)}\r\n".encode() + ok
            case "STARTTLS" if server.context is not None:
                return ok
            case "LOGIN":
                good = rest.endswith(f' "{server.password}"')
                return ok if good else f"{tag} NO [AUTHENTICATIONFAILED] wrong\r\n".encode()
            case "ID" | "NOOP" | "ENABLE":
                return ok
            case "LOGOUT":
                return b"* BYE bye\r\n" + ok
            case "NAMESPACE":
                return b'* NAMESPACE (("" "/")) NIL NIL\r\n' + ok
            case "LIST":
                return b"".join(self._list()) + ok
            case "APPEND":
                return self._append(tag, rest)
            case "EXAMINE" | "SELECT":
                return self._open(tag, verb, rest)
            case "UID" if self.folder is not None:
                return self._uid(tag, rest, self.folder)
            case _:
                return f"{tag} BAD unknown command\r\n".encode()

    def _list(self) -> Iterable[bytes]:
        yield b'* LIST () "/" INBOX\r\n'
        for name, folder in self.server.others.items():
            yield f'* LIST ({folder.attributes}) "/" "{name}"\r\n'.encode("utf-8", "surrogateescape")

    def _open(self, tag: str, verb: str, rest: str) -> bytes:
        name = rest.removesuffix(" (CONDSTORE)").strip('"').replace('\\"', '"').replace("\\\\", "\\")
        folder = self.server.inbox if name.upper() == "INBOX" else self.server.others.get(name)
        self.folder = folder
        if folder is None:
            return f"{tag} NO [NONEXISTENT] no such folder\r\n".encode()
        mode = "READ-ONLY" if verb == "EXAMINE" else "READ-WRITE"
        asked = rest.endswith(" (CONDSTORE)") and folder.modseq is not None
        counted = f"* OK [HIGHESTMODSEQ {folder.modseq}] highest\r\n" if asked else ""
        return (
            f"* FLAGS (\\Deleted \\Seen)\r\n* {len(folder.mails)} EXISTS\r\n* 0 RECENT\r\n"
            f"* OK [UIDVALIDITY {folder.uidvalidity}] lasting\r\n"
            f"* OK [UIDNEXT {max(folder.mails, default=0) + 1}] next\r\n"
            f"{counted}{tag} OK [{mode}] opened\r\n"
        ).encode()

    def _append(self, tag: str, rest: str) -> bytes:
        name, _, behind = rest.removeprefix('"').partition('" ')
        flags, _, mail = behind.partition(' "')
        folder = self.server.inbox if name.upper() == "INBOX" else self.server.others.get(name)
        if folder is None:
            return f"{tag} NO [TRYCREATE] no such folder\r\n".encode()
        uid = max(folder.mails, default=0) + 1
        folder.mails[uid] = mail.removesuffix('"').encode("utf-8", "surrogateescape")
        folder.flagged[uid] = flags
        return f"{tag} OK [APPENDUID {folder.uidvalidity} {uid}] done\r\n".encode()

    def _uid(self, tag: str, rest: str, folder: ScriptedFolder) -> bytes:
        verb, _, arguments = rest.partition(" ")
        ok = f"{tag} OK done\r\n".encode()
        match verb:
            case "SEARCH" if arguments.startswith("RETURN"):
                found = ",".join(map(str, folder.mails))
                every = f" ALL {found}" if found else ""
                return f'* ESEARCH (TAG "{tag}") UID COUNT {len(folder.mails)}{every}\r\n'.encode() + ok
            case "SEARCH" if arguments.startswith("HEADER"):
                wanted = f"<{arguments.split(chr(34))[3]}>".encode()
                found = " ".join(str(uid) for uid, mail in folder.mails.items() if wanted in mail)
                return f"* SEARCH {found}\r\n".encode() + ok
            case "SEARCH":
                return f"* SEARCH{''.join(f' {uid}' for uid in folder.mails)}\r\n".encode() + ok
            case "FETCH":
                return b"".join(self._fetch(folder, arguments)) + ok
            case "STORE" if "\\Deleted" not in arguments:
                uids, _, flags = arguments.partition(" ")
                folder.flagged |= dict.fromkeys(_members(uids, folder), flags)
                return ok
            case "STORE":
                folder.deleted |= set(_members(arguments.partition(" ")[0], folder))
                return ok
            case "EXPUNGE":
                return b"".join(self._expunge(folder, set(_members(arguments, folder)))) + ok
            case "MOVE":
                uids, _, name = arguments.partition(" ")
                moved = _members(uids, folder)
                bin_folder = self.server.others[name.strip('"')]
                bin_folder.mails |= {
                    max(bin_folder.mails, default=0) + n: folder.mails[u] for n, u in enumerate(moved, 1)
                }
                folder.deleted |= set(moved)
                return b"".join(self._expunge(folder, set(moved))) + ok
            case _:
                return f"{tag} BAD unknown command\r\n".encode()

    def _fetch(self, folder: ScriptedFolder, arguments: str) -> Iterable[bytes]:
        found = _FETCH.match(arguments)
        assert found is not None, arguments
        numbers = {uid: number for number, uid in enumerate(folder.mails, 1)}
        for uid in _members(found[1], folder):
            mail = folder.mails[uid]
            items = [f"UID {uid}".encode()]
            if "RFC822.SIZE" in found[2]:
                items.append(f"RFC822.SIZE {len(mail)}".encode())
            if "BODY.PEEK[HEADER]" in found[2]:
                mail = mail.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
                items.append(b"BODY[HEADER] {%d}\r\n%s" % (len(mail), mail))
            elif "BODY.PEEK[]" in found[2]:
                items.append(b"BODY[] {%d}\r\n%s" % (len(mail), mail))
            yield b"* %d FETCH (%s)\r\n" % (numbers[uid], b" ".join(items))

    def _expunge(self, folder: ScriptedFolder, uids: set[int]) -> Iterable[bytes]:
        for uid in sorted(uids & folder.deleted):
            number = list(folder.mails).index(uid) + 1
            del folder.mails[uid]
            yield b"* %d EXPUNGE\r\n" % number
        folder.deleted -= uids


def _members(text: str, folder: ScriptedFolder) -> list[int]:
    """Return the UIDs of a folder that are in a set."""
    last = max(folder.mails, default=0)
    ranges = []
    for part in text.split(","):
        first, _, end = part.replace("*", str(last)).partition(":")
        ranges.append((int(first), int(end or first)))
    return [uid for uid in folder.mails if any(first <= uid <= end for first, end in ranges)]
