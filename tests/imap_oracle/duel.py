"""Runs a stream on both servers, one command at a time over all open sessions, and compares the answers.

A session is *behind* while another one has changed its folder after its last check. When a server tells it of that is
the server's choice (RFC 3501 section 5.2), so what it reads is not compared, and a command whose effect depends
on the choice is preceded by a check. Answers of all other sessions, and all folders in the end, are the same. A stream
ends where Dovecot's process does: that of 2.3 dies of some THREADs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.imap_oracle.answers import Answer, parse_numbers
from tests.imap_oracle.client_view import BrokenPromise
from tests.imap_oracle.differences import weakened
from tests.imap_oracle.sides import Side
from tests.imap_oracle.streams import FOLDERS, OTHERS, SESSIONS, Step

_CHANGING = re.compile(
    rb"(?:UID )?(?:STORE|COPY|MOVE|EXPUNGE)\b|CLOSE$|(?:UID )?FETCH .*(?:BODY\[|BINARY\[|RFC822(?!\.(?:SIZE|HEADER)))"
)
_READING = re.compile(rb"(?:UID )?(?:FETCH|SEARCH|SORT|THREAD)\b|STATUS |LIST .*STATUS")
_WRITING = re.compile(rb"(?:UID )?(?:STORE|MOVE|EXPUNGE)\b")
_BY_UID = re.compile(rb"UID (?:STORE|MOVE|EXPUNGE) ([\d,:]+)(?: |$)")
_TARGET = re.compile(rb"(?:UID )?(?:COPY|MOVE) \S+ (\S+)$")


@dataclass(frozen=True, slots=True)
class Difference:
    """Where the two servers part. ours, theirs: their answers, or what is wrong with one of them."""

    step: Step
    ours: str
    theirs: str

    def __str__(self) -> str:
        return f"{self.step}\n  ours:\n    {self.ours}\n  Dovecot:\n    {self.theirs}"


@dataclass(slots=True)
class _Session:
    folder: str | None = None
    seen: int = 0  # the folder's count of changes at the last check
    last_uid: int = 0  # the highest UID that both clients know
    idling: bool = False
    read_only: bool = False
    saved: bool = True  # ``$`` is the same on both servers


@dataclass(slots=True)
class Duel:
    """One stream on two servers."""

    ours: Side
    theirs: Side
    _sessions: list[_Session] = field(default_factory=lambda: [_Session() for _ in range(SESSIONS)])
    _changes: dict[str, int] = field(default_factory=dict)
    _ended: bool = False  # Dovecot has closed a connection without a word

    async def run(self, steps: Sequence[Step]) -> Difference | None:
        """Run a stream, then compare all folders. Return the first difference."""
        for step in steps:
            if found := await self._step(step):
                return found
        for number in range(SESSIONS):
            if self._sessions[number].idling and (found := await self._step(Step(number, "done"))):
                return found
            if found := await self._step(Step(number, "check")):
                return found
        for step in _closing() if not self._ended else ():
            if found := await self._both(step, exact=True):
                return found
        return None

    async def _step(self, step: Step) -> Difference | None:
        session = self._sessions[step.session]
        if self._ended:
            return None
        if session.idling != (step.kind == "done") or self._is_skipped(step, session):
            return None
        behind = self._is_behind(session)
        if behind and step.kind == "command" and _depends_on_view(step.command, session.last_uid):
            if found := await self._step(Step(step.session, "check")):
                return found
            behind = False
        exact = step.kind == "check" or not (behind and _READING.match(step.command))
        return await self._both(step, exact)

    def _is_skipped(self, step: Step, session: _Session) -> bool:
        """Whether the two servers may do as they like here."""
        if session.read_only and _WRITING.match(step.command):  # see differences.AVOIDED
            return True
        if b"$" in re.sub(rb"\$\w", b"", step.command) and not session.saved:
            return True
        words = step.command.split()
        if words[:1] in ([b"DELETE"], [b"RENAME"]):  # of a folder that is selected: sessions may end
            name = words[1].decode()
            opened = [other.folder for other in self._sessions if other.folder]
            return any(folder == name or folder.startswith(name + "/") for folder in opened)
        return False

    def _is_behind(self, session: _Session) -> bool:
        return session.folder is not None and self._changes.get(session.folder, 0) != session.seen

    async def _both(self, step: Step, exact: bool) -> Difference | None:
        answers = []
        for side in (self.ours, self.theirs):
            try:
                answers.append(await side.run(step))
            except BrokenPromise as broken:
                said = [f"(as above) {side.name}: {broken}", ""]
                return Difference(step, *(said if side is self.ours else said[::-1]))
        ours, theirs = answers
        self._ended = theirs.raw == [b""]
        if self._ended and ours.kind != "BYE":
            return None
        self._follow(step, ours)
        if _compared(step, ours, exact) != _compared(step, theirs, exact):
            return Difference(step, ours.shown, theirs.shown)
        return None

    # ------------------------------------------------------------------------------------------ the sessions

    def _follow(self, step: Step, answer: Answer) -> None:
        """Note what a step that both servers have done has changed. :param answer: ours."""
        session = self._sessions[step.session]
        was_behind = self._is_behind(session)
        command = step.command.upper()
        if step.kind == "reconnect":
            self._sessions[step.session] = _Session()
        elif step.kind in ("idle", "done"):
            session.idling = step.kind == "idle" and answer.kind == "OK"
        elif step.kind == "append" and answer.kind == "OK":
            self._change(step.folder)
        elif step.kind == "check":
            was_behind = False
            fetched = answer.data.get("FETCH")
            uids = [int(items[b"UID"]) for items in fetched.values()] if isinstance(fetched, dict) else []
            session.last_uid = max([session.last_uid, *uids])
        elif command.startswith((b"SELECT ", b"EXAMINE ")) and answer.kind != "BAD":
            name = step.command.split()[1].decode()
            session.folder = ("INBOX" if name.upper() == "INBOX" else name) if answer.kind == "OK" else None
            session.last_uid, session.saved, was_behind = 0, True, False
            session.read_only = answer.kind == "OK" and command.startswith(b"EXAMINE")
        elif answer.kind != "BAD" and _CHANGING.match(command):  # NO may have changed something, too
            self._change(session.folder or "")
            if target := _TARGET.match(step.command):
                self._change(target[1].decode())
        if command in (b"CLOSE", b"UNSELECT") and answer.kind == "OK":
            session.folder = None
        if b"SAVE" in command:
            session.saved = not was_behind
        if session.folder is not None and not was_behind:
            session.seen = self._changes.get(session.folder, 0)

    def _change(self, folder: str) -> None:
        self._changes[folder] = self._changes.get(folder, 0) + 1


def _depends_on_view(command: bytes, last_uid: int) -> bool:
    """Whether the effect of a command depends on what a session that is behind knows."""
    if not _CHANGING.match(command):
        return b"SAVE" in command
    by_uid = _BY_UID.match(command)
    return by_uid is None or max(parse_numbers(by_uid[1]) or [0]) > last_uid


def _compared(step: Step, answer: Answer, exact: bool) -> object:
    if not exact:
        return None
    answer = weakened(step.command if step.kind == "command" else step.kind.encode(), answer)
    return answer.kind, answer.code, answer.values, answer.data


def _closing() -> list[Step]:
    """Read every folder, by the first session."""
    commands = [b'LIST "" *']
    for name in (*FOLDERS, *OTHERS):
        commands += [
            b"STATUS %b (MESSAGES UNSEEN UIDNEXT SIZE)" % name.encode(),
            b"EXAMINE %b" % name.encode(),
            b"UID FETCH 1:* (FLAGS INTERNALDATE RFC822.SIZE ENVELOPE)",
        ]
    return [Step(0, "command", command) for command in commands]
