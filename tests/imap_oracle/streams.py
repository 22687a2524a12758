"""Draws streams of commands from a seed. Pure: the same seed gives the same stream."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from tests.imap_oracle.mails import NAMES

SESSIONS = 3
"""Sessions on the account at once."""
FOLDERS = ("INBOX", "Archive", "Drafts", "Sent", "Trash", "Junk")
"""Folders that both servers have at the start."""
OTHERS = ("Lists/a", "Lists/b", "K&APY-ln", '"two words"', "Trips")
"""Names of folders that a stream creates, renames and deletes."""
MARK = b"<MODSEQ>"
"""Stands for the HIGHESTMODSEQ that the session has heard last; UIDVALIDITY likewise."""
VALIDITY = b"<UIDVALIDITY>"

Kind = Literal["command", "append", "idle", "done", "check", "reconnect"]


@dataclass(frozen=True, slots=True)
class Step:
    """What one session does. Numbers of sessions count from 0.

    kind: ``command``: send ``command``. ``append``: APPEND to ``folder`` the mail of this name, with ``command`` as
    flags and date. ``idle`` and ``done``: begin and end IDLE. ``check``: NOOP, and fetch all flags. ``reconnect``:
    leave without a word, and log in again.
    """

    session: int
    kind: Kind
    command: bytes = b""
    folder: str = ""
    mail: str = ""

    def __str__(self) -> str:
        if self.kind == "append":
            return f"{self.session}: APPEND {self.folder} {self.command.decode()} <the mail {self.mail!r}>"
        return f"{self.session}: {self.command.decode('utf-8', 'replace') if self.command else self.kind}"


def make_stream(seed: int, length: int) -> list[Step]:
    """Return a stream of about so many steps; the first ones fill INBOX and select it."""
    return _Stream(random.Random(seed)).draw(length)


class _Stream:
    def __init__(self, choice: random.Random) -> None:
        self._choice = choice
        self._condstore = choice.random() < 0.4  # of all sessions

    def draw(self, length: int) -> list[Step]:
        choice = self._choice
        steps = [
            Step(0, "append", self._details(hour), "INBOX", name)
            for hour, name in enumerate(choice.sample(NAMES, choice.randint(3, 7)))
        ]
        for session in range(SESSIONS):
            if self._condstore:
                steps.append(self._command(session, self._enable()))
            steps.append(Step(session, "command", choice.choice([b"SELECT INBOX"] * 4 + [b"EXAMINE INBOX"])))
        while len(steps) < length:
            steps += self._next(choice.randrange(SESSIONS))
        return steps

    def _next(self, session: int) -> list[Step]:
        choice = self._choice
        kinds: Sequence[tuple[float, Callable[[int], list[Step]]]] = (
            (18, lambda s: [Step(s, "check")]),
            (4, self._idle),
            (1, self._reconnect),
            (8, self._append),
            (69, lambda s: [self._command(s, self._any())]),
        )
        [make] = choice.choices([make for _, make in kinds], [weight for weight, _ in kinds])
        return make(session)

    @staticmethod
    def _command(session: int, command: bytes) -> Step:
        return Step(session, "command", command)

    def _reconnect(self, session: int) -> list[Step]:
        enabled = [self._command(session, self._enable())] if self._condstore else []
        return [Step(session, "reconnect"), *enabled, self._command(session, self._select())]

    def _enable(self) -> bytes:
        return b"ENABLE " + self._choice.choice([b"CONDSTORE", b"QRESYNC"])

    def _idle(self, session: int) -> list[Step]:
        between = [step for _ in range(self._choice.randint(1, 3)) for step in self._next(self._other(session))]
        return [Step(session, "idle"), *between, Step(session, "done"), Step(session, "check")]

    def _other(self, session: int) -> int:
        return (session + self._choice.randint(1, SESSIONS - 1)) % SESSIONS

    def _append(self, session: int) -> list[Step]:
        folder = self._choice.choice(["INBOX"] * 4 + [*FOLDERS, "nowhere"])
        details = self._details(self._choice.randrange(100))
        return [Step(session, "append", details, folder, self._choice.choice(NAMES))]

    def _details(self, hour: int) -> bytes:
        return b'%b "%2d-Nov-2026 %02d:%02d:00 +0000"' % (self._flags(), 1 + hour // 24, hour % 24, hour % 60)

    # ------------------------------------------------------------------------------------------ commands

    def _any(self) -> bytes:
        choice = self._choice
        kinds: Sequence[tuple[float, Callable[[], bytes]]] = (
            (20, self._fetch),
            (16, self._store),
            (12, self._search),
            (4, self._sort),
            (3, self._thread),
            (6, self._copy),
            (5, self._move),
            (5, self._expunge),
            (4, self._select),
            (3, self._list),
            (3, self._status),
            (4, self._folder),
            (2, lambda: choice.choice([b"NOOP", b"CHECK", b"NOOP"])),
            (1, lambda: choice.choice([b"CLOSE", b"UNSELECT", b"NAMESPACE", b"XYZZY", b"FETCH", b"STORE 1"])),
        )
        [make] = choice.choices([make for _, make in kinds], [weight for weight, _ in kinds])
        return make()

    def _set(self, uid: bool) -> bytes:
        choice, most = self._choice, 12 if uid else 7
        one, other = choice.randint(1, most), choice.randint(1, most)
        options: list[bytes] = [
            *([b"1:*"] * 4 + [b"%d" % one] * 5 + [b"%d:%d" % (one, other)] * 3),
            *(b"*", b"%d,%d" % (one, other), b"999"),
            *((b"%d:*" % one, b"*:%d" % one, b"%d,%d:*" % (one, other)) if uid else ()),
            *([b"$"] if choice.random() < 0.2 else []),
        ]
        return choice.choice(options)

    def _uid(self) -> tuple[bytes, bytes]:
        """Return ``UID `` or nothing, and a set for it."""
        uid = self._choice.random() < 0.6
        return b"UID " if uid else b"", self._set(uid)

    def _flags(self) -> bytes:
        known = (*(b"\\Seen", b"\\Answered", b"\\Flagged", b"\\Deleted", b"\\Draft"), b"$Forwarded", b"Work", b"$Junk")
        return b"(" + b" ".join(self._choice.sample(known, self._choice.randint(0, 3))) + b")"

    def _fetch(self) -> bytes:
        uid, numbers = self._uid()
        choice = self._choice
        if choice.random() < 0.15:
            return b"%bFETCH %b %b" % (uid, numbers, choice.choice([b"ALL", b"FAST", b"FULL"]))
        items = choice.sample(_ITEMS, choice.randint(1, 3))
        since = b" (CHANGEDSINCE %b)" % MARK if self._condstore and choice.random() < 0.1 else b""
        return b"%bFETCH %b (%b)%b" % (uid, numbers, b" ".join(items), since)

    def _store(self) -> bytes:
        uid, numbers = self._uid()
        kind = self._choice.choice([b"+FLAGS", b"-FLAGS", b"FLAGS"])
        silent = b".SILENT" if self._choice.random() < 0.4 else b""
        since = b"(UNCHANGEDSINCE %b) " % MARK if self._condstore and self._choice.random() < 0.1 else b""
        return b"%bSTORE %b %b%b%b %b" % (uid, numbers, since, kind, silent, self._flags())

    def _copy(self) -> bytes:
        uid, numbers = self._uid()
        return b"%bCOPY %b %b" % (uid, numbers, self._target())

    def _move(self) -> bytes:
        uid, numbers = self._uid()
        return b"%bMOVE %b %b" % (uid, numbers, self._target())

    def _target(self) -> bytes:
        return self._choice.choice([*FOLDERS[1:], *FOLDERS[:3], *OTHERS[:2], "nowhere"]).encode()

    def _expunge(self) -> bytes:
        return self._choice.choice([b"EXPUNGE", b"UID EXPUNGE " + self._set(True)])

    def _select(self) -> bytes:
        name = self._choice.choice(["INBOX"] * 8 + [*FOLDERS, OTHERS[0], "nowhere", "inbox"]).encode()
        return self._choice.choice([b"SELECT ", b"SELECT ", b"EXAMINE "]) + name

    def _list(self) -> bytes:
        return self._choice.choice(
            [
                *(b'LIST "" *', b'LIST "" %', b'LIST "" "Lists/%"', b"LIST Lists/ *", b'LIST "" inbox', b'LIST "" ""'),
                *(b'LSUB "" *', b'LIST "" (INBOX Lists/% Trips)', b'LIST (SUBSCRIBED) "" * RETURN (CHILDREN)'),
                *(b'LIST "" * RETURN (SUBSCRIBED)', b'LIST "" INBOX RETURN (STATUS (MESSAGES UNSEEN))'),
            ]
        )

    def _status(self) -> bytes:
        name = self._choice.choice([*FOLDERS, *OTHERS, "nowhere"]).encode()
        return b"STATUS %b (MESSAGES UNSEEN UIDNEXT SIZE)" % name

    def _folder(self) -> bytes:
        choice = self._choice
        name = choice.choice([*OTHERS, "Trips/2026", "INBOX", "nowhere"]).encode()
        kind = choice.choice([b"CREATE", b"CREATE", b"CREATE", b"DELETE", b"RENAME", b"SUBSCRIBE", b"UNSUBSCRIBE"])
        if kind == b"RENAME":
            return b"RENAME %b %b" % (choice.choice(OTHERS).encode(), choice.choice(OTHERS).encode())
        if kind == b"DELETE" and name == b"INBOX":
            name = b"Lists/a"
        return kind + b" " + name

    # ------------------------------------------------------------------------------------------ searches

    def _search(self) -> bytes:
        uid, choice = self._choice.choice([b"", b"UID "]), self._choice
        returns = b""
        if choice.random() < 0.3:
            options = choice.sample([b"MIN", b"MAX", b"ALL", b"COUNT", b"SAVE"], choice.randint(0, 3))
            returns = b"RETURN (%b) " % b" ".join(options)
        keys = b" ".join(self._key(0) for _ in range(choice.randint(1, 2)))
        return b"%bSEARCH %b%b" % (uid, returns, keys)

    def _key(self, depth: int) -> bytes:
        choice = self._choice
        if depth < 3 and choice.random() < 0.3:
            one, other = self._key(depth + 1), self._key(depth + 1)
            return choice.choice([b"NOT %b" % one, b"OR %b %b" % (one, other), b"(%b %b)" % (one, other)])
        return choice.choice(_KEYS)

    def _sort(self) -> bytes:
        order = b" ".join(
            (b"REVERSE " if self._choice.random() < 0.3 else b"") + key
            for key in self._choice.sample([b"ARRIVAL", b"DATE", b"SIZE", b"SUBJECT", b"FROM", b"TO", b"CC"], 2)
        )
        return b"%bSORT (%b) UTF-8 %b" % (self._choice.choice([b"", b"UID "]), order, self._key(2))

    def _thread(self) -> bytes:
        return b"%bTHREAD REFERENCES UTF-8 %b" % (self._choice.choice([b"", b"UID "]), self._key(2))


_ITEMS = (
    *(b"FLAGS", b"UID", b"INTERNALDATE", b"RFC822.SIZE", b"ENVELOPE", b"BODYSTRUCTURE", b"BODY", b"BODY.PEEK[]"),
    *(b"BODY.PEEK[HEADER]", b"BODY.PEEK[TEXT]", b"BODY.PEEK[1]", b"BODY.PEEK[2]", b"BODY.PEEK[1.MIME]"),
    *(b"BODY.PEEK[2.1]", b"BODY.PEEK[2.HEADER]", b"BODY.PEEK[2.TEXT]", b"BODY.PEEK[TEXT]<3.9>", b"BODY.PEEK[]<0.50>"),
    *(b"BODY.PEEK[HEADER.FIELDS (Subject From X-None)]", b"BODY.PEEK[HEADER.FIELDS.NOT (Subject)]<2.80>"),
    *(b"BODY[TEXT]<0.5>", b"BODY[1]", b"RFC822", b"RFC822.HEADER", b"RFC822.TEXT", b"FLAGS", b"UID", b"FLAGS"),
    *(b"BODY.PEEK[9]", b"BODY.PEEK[]<100000.5>"),
)
_KEYS = (
    *(b"ALL", b"SEEN", b"UNSEEN", b"DELETED", b"UNDELETED", b"FLAGGED", b"ANSWERED", b"DRAFT", b"UNDRAFT"),
    *(b"KEYWORD $Forwarded", b"UNKEYWORD work", b"KEYWORD Work", b"1:3", b"*", b"1:*", b"UID 3:*", b"UID 1,4:6"),
    *(b"LARGER 300", b"SMALLER 400", b"SINCE 2-Nov-2026", b"BEFORE 2-Nov-2026", b"ON 1-Nov-2026"),
    *(
        b"SENTSINCE 26-Nov-2026",
        b"SENTON 24-Nov-2026",
        b'(SENTBEFORE 25-Nov-2026 HEADER Date "")',
        b"FROM anna",
        b"TO support",
    ),
    *(b"SUBJECT offer", b'SUBJECT ""', b"BODY hello", b"BODY text", b"TEXT example", b"TEXT one", b"CC z@x"),
    *(b"HEADER Message-ID m1", b'HEADER References ""', b"HEADER X-None x", b'BODY "inner text"', b"NOT DELETED"),
)
