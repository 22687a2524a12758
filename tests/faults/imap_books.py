"""What a mail client knows of its folders by IMAP, and what contradicts it. Pure.

A change that was answered with OK must be seen in every later session. A change without an answer may be made or not,
also later: the mails that it names are doubtful from then on.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

Flags = frozenset[bytes]


@dataclass(slots=True)
class KnownMail:
    """A mail of a folder. digest: of its octets; None: not read yet. flags: None: not known, or doubtful."""

    digest: str | None = None
    flags: Flags | None = None
    doubtful: bool = False  # an unanswered change of its flags may be made
    may_be_gone: bool = False  # an unanswered change may have taken it out of the folder
    is_gone: bool = False  # an answered one has, or a listing without it


@dataclass(slots=True)
class FolderBooks:
    """The books of one folder. wrong: what contradicts them, a line each.

    :ivar shared: other clients delete mails of this folder, too.
    """

    name: str
    shared: bool = False
    mails: dict[int, KnownMail] = field(default_factory=dict)  # by UID
    wrong: list[str] = field(default_factory=list)
    _uidvalidity: int | None = None
    _uidnext: int = 0
    _modseq: int = 0

    def select(self, uidvalidity: int, uidnext: int, modseq: int) -> None:
        """Compare what SELECT has sent with the sessions before."""
        if self._uidvalidity not in (None, uidvalidity):
            self._complain(f"UIDVALIDITY was {self._uidvalidity} and is {uidvalidity}")
        if uidnext < self._uidnext or modseq < self._modseq:
            self._complain(f"UIDNEXT or HIGHESTMODSEQ have decreased to {uidnext}, {modseq}")
        self._uidvalidity, self._modseq = uidvalidity, modseq

    def compare_list(self, listed: Mapping[int, Flags], uidnext: int) -> None:
        """Compare the mails of the folder with the books. :param listed: flags by UID. :param uidnext: at SELECT."""
        for uid, mail in self.mails.items():
            if uid in listed:
                if mail.is_gone:
                    self._complain(f"UID {uid} came back")
                elif mail.flags is not None and not mail.doubtful and mail.flags != listed[uid]:
                    self._complain(f"UID {uid} has the flags {sorted(listed[uid])}, not {sorted(mail.flags)}")
                mail.flags = listed[uid]
            elif not mail.is_gone:
                if not (self.shared or mail.may_be_gone):
                    self._complain(f"UID {uid} has vanished")
                mail.is_gone = True
        for uid in listed.keys() - self.mails.keys():
            if uid < self._uidnext:
                self._complain(f"UID {uid} is new, but UIDNEXT was {self._uidnext}: it may be a used one")
            self.mails[uid] = KnownMail(flags=listed[uid])
        self._uidnext = max(self._uidnext, uidnext)

    def read(self, uid: int, digest: str) -> None:
        """Compare the octets of a mail."""
        mail = self.mails.setdefault(uid, KnownMail())
        if mail.digest not in (None, digest):
            self._complain(f"UID {uid} has other octets than before")
        mail.digest = digest

    def unread(self) -> list[int]:
        """Return the UIDs of mails that are there and were not read yet."""
        return [uid for uid, mail in self.mails.items() if mail.digest is None and not mail.is_gone]

    def present(self) -> list[int]:
        """Return the UIDs of the mails that are there for certain, as far as this client knows."""
        return [uid for uid, mail in self.mails.items() if not (mail.is_gone or mail.may_be_gone)]

    def add(self, uid: int, digest: str | None, flags: Flags | None) -> None:
        """Record a mail that an answered APPEND, COPY or MOVE has put into this folder."""
        if uid in self.mails or uid < self._uidnext:
            self._complain(f"UID {uid} was given twice")
        self.mails[uid] = KnownMail(digest, flags)

    def begin_flags(self, uids: Iterable[int]) -> None:
        """Record that a change of flags is sent."""
        for uid in uids:
            self.mails[uid].doubtful = True

    def end_flags(self, uids: Iterable[int], add: Collection[bytes], remove: Collection[bytes]) -> None:
        """Record that a change of flags was answered. To be called for mails without other doubtful changes."""
        for uid in uids:
            mail = self.mails[uid]
            mail.doubtful = False
            if mail.flags is not None:
                mail.flags = (mail.flags | frozenset(add)) - frozenset(remove)

    def steady(self) -> list[int]:
        """Return the UIDs of present mails whose flags are not doubtful."""
        return [uid for uid in self.present() if not self.mails[uid].doubtful]

    def begin_removal(self, uids: Iterable[int]) -> None:
        """Record that mails are about to be expunged or moved away."""
        for uid in uids:
            self.mails[uid].may_be_gone = True

    def end_removal(self, uids: Iterable[int]) -> None:
        """Record that they are gone: it was answered."""
        for uid in uids:
            self.mails[uid].is_gone = True

    def _complain(self, what: str) -> None:
        self.wrong.append(f"{self.name}: {what}")
