"""The selected folder as a client knows it from the server's responses, and the promises that it relies on. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from tests.imap_oracle.answers import Answer, Update, Value

_BY_NUMBER = re.compile(rb"(?:FETCH|STORE|SEARCH|SORT|THREAD) ", re.IGNORECASE)
_SILENT_STORE = re.compile(rb"(?:UID )?STORE .*\.SILENT", re.IGNORECASE)
_SELECT = re.compile(rb"(?:SELECT|EXAMINE) ", re.IGNORECASE)


class BrokenPromise(AssertionError):
    """A server has sent a client something that contradicts what it sent before."""


@dataclass(slots=True)
class KnownMail:
    """What a client knows of a mail; None: not yet."""

    uid: int | None = None
    flags: list[Value] | None = None


@dataclass(slots=True)
class ClientView:
    """A session's view. mails: by message number, from 1; None: no folder is selected."""

    mails: list[KnownMail] | None = None
    _selecting: bool = field(default=False)

    def take(self, command: bytes, answer: Answer) -> None:
        """Follow the answer to a command. :raises BrokenPromise: it contradicts what the client knows."""
        if _SELECT.match(command):
            self.mails = [] if answer.kind == "OK" or self._still_valid(answer) else None
            self._selecting = True
        if _SILENT_STORE.match(command):
            for mail in self.mails or []:
                mail.flags = None
        for update in answer.updates:
            self._follow(update, by_number=_BY_NUMBER.match(command) is not None)
        self._selecting = False
        if answer.kind == "OK" and command.upper() in (b"CLOSE", b"UNSELECT"):
            self.mails = None

    @staticmethod
    def _still_valid(answer: Answer) -> bool:
        return answer.kind == "BAD"  # a SELECT that cannot be parsed changes nothing

    def _follow(self, update: Update, by_number: bool) -> None:
        if update.kind in ("CLOSED", "BYE"):
            return
        if self.mails is None:
            raise BrokenPromise(f"{update.kind} without a selected folder")
        if update.kind == "EXISTS":
            if update.number < len(self.mails):
                raise BrokenPromise(f"{update.number} EXISTS after {len(self.mails)} (RFC 3501 section 7.3.1)")
            self.mails += [KnownMail() for _ in range(update.number - len(self.mails))]
        elif update.kind == "EXPUNGE":
            if by_number:
                raise BrokenPromise("EXPUNGE while message numbers are in use (RFC 3501 section 7.4.1)")
            if not 1 <= update.number <= len(self.mails):
                raise BrokenPromise(f"{update.number} EXPUNGE of {len(self.mails)} mails")
            del self.mails[update.number - 1]
        elif update.kind == "VANISHED" and not update.earlier:
            self._vanish(set(update.uids))
        elif update.kind == "FETCH":
            self._learn(update)

    def _vanish(self, uids: set[int]) -> None:
        assert self.mails is not None
        kept = [mail for mail in self.mails if mail.uid not in uids]
        unknown = len(uids) - (len(self.mails) - len(kept))
        for mail in [mail for mail in reversed(kept) if mail.uid is None][:unknown]:
            kept.remove(mail)
        self.mails = kept

    def _learn(self, update: Update) -> None:
        assert self.mails is not None
        if not 1 <= update.number <= len(self.mails):
            raise BrokenPromise(f"{update.number} FETCH of {len(self.mails)} mails")
        mail = self.mails[update.number - 1]
        uid = update.items.get(b"UID")
        if isinstance(uid, bytes):
            if mail.uid not in (None, int(uid)):
                raise BrokenPromise(f"mail {update.number} had UID {mail.uid}, now {int(uid)}")
            mail.uid = int(uid)
            known = [one.uid for one in self.mails if one.uid is not None]
            if known != sorted(set(known)):
                raise BrokenPromise(f"UIDs do not ascend: {known} (RFC 3501 section 2.3.1.1)")
        flags = update.items.get(b"FLAGS")
        if isinstance(flags, list):
            mail.flags = flags

    def expect(self, fetched: dict[int, dict[bytes, Value]]) -> None:
        """Compare what the client knows with what FETCH says now, just after NOOP.

        :raises BrokenPromise: a change of flags, or a mail, was not reported.
        """
        mails = self.mails or []
        if sorted(fetched) != list(range(1, len(mails) + 1)):
            raise BrokenPromise(f"FETCH 1:* names the mails {sorted(fetched)} of {len(mails)}")
        for number, items in fetched.items():
            mail = mails[number - 1]
            if mail.flags is not None and mail.flags != items[b"FLAGS"]:
                raise BrokenPromise(f"mail {number} has {items[b'FLAGS']!r}, but the client knows {mail.flags!r}")
