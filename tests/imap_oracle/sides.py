"""One of the two servers in a duel: its sessions, and what each of their clients knows."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from tests.imap_clients import ImapClient
from tests.imap_oracle.answers import Answer, read_answer
from tests.imap_oracle.client_view import BrokenPromise, ClientView
from tests.imap_oracle.mails import ALL
from tests.imap_oracle.streams import MARK, VALIDITY, Step

LogIn = Callable[[], Awaitable[ImapClient]]


@dataclass(slots=True)
class SideSession:
    """One session. tag: of the IDLE that is running. modseq, validity: as SELECT named them last."""

    client: ImapClient
    view: ClientView = field(default_factory=ClientView)
    tag: bytes = b""
    modseq: int = 1
    validity: int = 1


class Side:
    """A server with the sessions of one stream."""

    def __init__(self, name: str, log_in: LogIn) -> None:
        """:param log_in: opens a session that has selected no folder."""
        self.name = name
        self._log_in = log_in
        self._sessions: dict[int, SideSession] = {}

    async def close(self) -> None:
        """Leave all sessions."""
        for session in self._sessions.values():
            await session.client.close()

    async def run(self, step: Step) -> Answer:
        """Do a step. :raises BrokenPromise: the server contradicts itself."""
        if step.session not in self._sessions:
            self._sessions[step.session] = SideSession(await self._log_in())
        session = self._sessions[step.session]
        match step.kind:
            case "reconnect":
                await session.client.close()
                self._sessions[step.session] = SideSession(await self._log_in())
                return Answer("OK")
            case "idle":
                session.tag = session.client.start(b"IDLE")
                return await self._until_continued(session)
            case "done":
                session.client.send(b"DONE\r\n")
                return await self._finish(session, session.tag, b"DONE")
            case "check":
                return await self._check(session)
            case "append":
                return await self._append(session, step)
        command = step.command.replace(MARK, b"%d" % session.modseq).replace(VALIDITY, b"%d" % session.validity)
        return await self._command(session, command)

    async def _command(self, session: SideSession, command: bytes) -> Answer:
        return await self._finish(session, session.client.start(command), command)

    async def _until_continued(self, session: SideSession) -> Answer:
        """Read up to the continuation request, or to the answer of a command that is refused."""
        untagged: list[bytes] = []
        while True:
            response = await session.client.response()
            if response.startswith(b"+"):
                answer = read_answer(b"", untagged, b"OK")
                session.view.take(b"", answer)
                return answer
            if response.startswith(session.tag + b" "):
                return read_answer(b"", untagged, response.removeprefix(session.tag + b" "))
            untagged.append(response)

    async def _append(self, session: SideSession, step: Step) -> Answer:
        mail = ALL[step.mail]
        command = b"APPEND %b %b " % (step.folder.encode(), step.command)
        tag = session.client.start(command + b"{%d+}\r\n%b" % (len(mail), mail))
        return await self._finish(session, tag, command)

    async def _check(self, session: SideSession) -> Answer:
        """NOOP brings all updates; then what the client knows is compared with FETCH, and is the answer."""
        await self._command(session, b"NOOP")
        if not session.view.mails:
            return Answer("OK", data={"selected": session.view.mails is not None})
        command = b"FETCH 1:* (UID FLAGS)"
        tag = session.client.start(command)
        untagged, tagged = await self._collect(session, tag)
        answer = read_answer(command, untagged, tagged)
        fetched = answer.data.get("FETCH")
        if not isinstance(fetched, dict):
            raise BrokenPromise(f"FETCH 1:* after NOOP: {answer.shown}")
        session.view.expect(fetched)
        session.view.take(command, answer)
        return answer

    async def _finish(self, session: SideSession, tag: bytes, command: bytes) -> Answer:
        answer = read_answer(command, *await self._collect(session, tag))
        session.view.take(command, answer)
        if command.startswith((b"SELECT ", b"EXAMINE ")):  # elsewhere only Dovecot says it
            session.modseq = answer.highest or session.modseq
        session.validity = answer.validity or session.validity
        return answer

    @staticmethod
    async def _collect(session: SideSession, tag: bytes) -> tuple[list[bytes], bytes]:
        """Return the responses up to the tagged one, and that one without its tag; b"": the connection ended."""
        untagged: list[bytes] = []
        while True:
            try:
                response = await session.client.response()
            except (asyncio.IncompleteReadError, ConnectionError):
                return untagged, b""
            if response.startswith(tag + b" "):
                return untagged, response.removeprefix(tag + b" ")
            untagged.append(response)
