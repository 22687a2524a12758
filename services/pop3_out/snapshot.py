"""A mailbox as a session sees it: fixed when the session starts, shared by all sessions that see the same.

A snapshot belongs to one version of the mailbox (shared/maildrops.py). As long as that stays the same, a login costs
one look at the version and no scan, and STAT, LIST and UIDL are answered from what is here.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property

from shared import maildrops
from shared.maildrops import Changes


@dataclass(frozen=True)
class Snapshot:
    """Mails in the order of their numbers, which start at 1 (RFC 1939 section 4); index 0 is number 1.

    rows: ids in the mailbox. messages: ids of the bytes. octets: of each mail as sent, dot-stuffing not counted.
    """

    local_id: int
    stamp: str
    version: int
    rows: array[int]
    messages: array[int]
    uids: array[int]
    octets: array[int]

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def total(self) -> int:
        """Octets of all mails."""
        return sum(self.octets)

    def uidl(self, number: int) -> str:
        """The unique id of a mail."""
        return maildrops.uidl(self.stamp, self.uids[number - 1])

    @cached_property
    def sizes_answer(self) -> bytes:
        """The answer to LIST while nothing is marked as deleted."""
        return self.sizes(())

    @cached_property
    def uidls_answer(self) -> bytes:
        """The answer to UIDL while nothing is marked as deleted."""
        return self.uidls(())

    def sizes(self, deleted: Collection[int]) -> bytes:
        """The answer to LIST without these numbers."""
        octets = self.total - sum(self.octets[number - 1] for number in deleted)
        lines = (f"{number} {size}\r\n" for number, size in enumerate(self.octets, 1) if number not in deleted)
        return _answer(f"{len(self) - len(deleted)} messages ({octets} octets)", lines)

    def uidls(self, deleted: Collection[int]) -> bytes:
        """The answer to UIDL without these numbers."""
        name, stamp = maildrops.uidl, self.stamp
        lines = (f"{number} {name(stamp, uid)}\r\n" for number, uid in enumerate(self.uids, 1) if number not in deleted)
        return _answer("unique-id listing follows", lines)


def _answer(text: str, lines: Iterable[str]) -> bytes:
    return f"+OK {text}\r\n{''.join(lines)}.\r\n".encode()


def empty(local_id: int = 0, stamp: str = "") -> Snapshot:
    """A snapshot without mail."""
    return Snapshot(local_id, stamp, 0, array("q"), array("q"), array("q"), array("q"))


def first(local_id: int, changes: Changes) -> Snapshot:
    """A snapshot of all that is in a mailbox, from the changes after version 0."""
    return renewed(empty(local_id, changes.stamp), changes)


def renewed(old: Snapshot, changes: Changes) -> Snapshot:
    """The snapshot that these changes lead to. ``old`` stays as it is: sessions are at work on it."""
    changed = {row.id for row in changes.rows}
    added = sorted((row for row in changes.rows if not row.deleted), key=lambda row: row.uid)
    columns = [old.rows, old.messages, old.uids, old.octets]
    if not changed.isdisjoint(old.rows):
        kept = [index for index, row in enumerate(old.rows) if row not in changed]
        columns = [array("q", [column[index] for index in kept]) for column in columns]
    # Whatever is new, or came back, has a higher uid than all that was there: it goes to the end.
    rows, messages, uids, octets = columns
    return Snapshot(
        old.local_id,
        changes.stamp,
        changes.version,
        rows + array("q", [row.id for row in added]),
        messages + array("q", [row.message_id for row in added]),
        uids + array("q", [row.uid for row in added]),
        octets + array("q", [row.octets for row in added]),
    )
