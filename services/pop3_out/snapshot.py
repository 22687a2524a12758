"""The state of a mailbox at the start of a session, shared by all sessions with the same state.

A snapshot belongs to one version of the mailbox (shared/store/maildrops.py). While the version stays the same, a login
reads only the version, and STAT, LIST and UIDL are answered from the snapshot.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from shared.store import maildrops
from shared.store.maildrops import Changes, Contents

LINES_PER_PIECE = 1000
"""Lines of a long reply that are built at once: about a millisecond."""
_FOUR_OCTETS = 2**32


@dataclass(slots=True, weakref_slot=True, eq=False)
class Snapshot:
    """Mails in the order of their numbers, which start at 1 (RFC 1939 section 4): index 0 is number 1."""

    local_id: int
    uidl_prefix: str
    version: int
    rows: array[int]  # ids in the mailbox
    blob_ids: array[int]  # ids of the bytes
    uids: array[int]
    octets: array[int]  # size of each mail without dot-stuffing
    total: int = field(init=False)  # octets of all mails
    keeps_replies: bool = field(default=False, init=False)  # 45 octets of memory a mail; the columns use 16
    _sizes: Collection[bytes] = field(default=(), init=False)  # reply to LIST
    _uidls: Collection[bytes] = field(default=(), init=False)  # reply to UIDL

    def __post_init__(self) -> None:
        """Count the octets of all mails."""
        self.total = sum(self.octets)

    def __len__(self) -> int:
        return len(self.rows)

    def uidl(self, number: int) -> str:
        """The unique id of a mail."""
        return maildrops.uidl(self.uidl_prefix, self.uids[number - 1])

    def list_reply(self, deleted: Collection[int]) -> Iterable[bytes]:
        """The reply to LIST without these numbers, piece by piece."""
        if not deleted and self._sizes:
            return self._sizes
        return self._remember_reply("_sizes", self._build_list_reply(deleted), deleted)

    def uidl_reply(self, deleted: Collection[int]) -> Iterable[bytes]:
        """The reply to UIDL without these numbers, piece by piece."""
        if not deleted and self._uidls:
            return self._uidls
        return self._remember_reply("_uidls", self._build_uidl_reply(deleted), deleted)

    def drop_replies(self) -> None:
        """Drop the stored replies, and store no more."""
        self.keeps_replies = False
        self._sizes = self._uidls = ()

    def _build_list_reply(self, deleted: Collection[int]) -> Iterator[bytes]:
        octets = self.total - sum(self.octets[number - 1] for number in deleted)
        lines = (f"{number} {size}\r\n" for number, size in enumerate(self.octets, 1) if number not in deleted)
        return _reply_pieces(f"{len(self) - len(deleted)} messages ({octets} octets)", lines)

    def _build_uidl_reply(self, deleted: Collection[int]) -> Iterator[bytes]:
        name, prefix = maildrops.uidl, self.uidl_prefix
        lines = (
            f"{number} {name(prefix, uid)}\r\n" for number, uid in enumerate(self.uids, 1) if number not in deleted
        )
        return _reply_pieces("unique-id listing follows", lines)

    def _remember_reply(self, name: str, pieces: Iterator[bytes], deleted: Collection[int]) -> Iterator[bytes]:
        """Yield the pieces, and store them if they are a whole reply and all of them have been built."""
        stored: list[bytes] | None = [] if self.keeps_replies and not deleted else None
        for piece in pieces:
            if stored is not None:
                stored.append(piece)
                if not self.keeps_replies:
                    stored = None
            yield piece
        if stored is not None and self.keeps_replies:
            setattr(self, name, tuple(stored))


def _reply_pieces(text: str, lines: Iterator[str]) -> Iterator[bytes]:
    part = f"+OK {text}\r\n"
    while more := "".join(islice(lines, LINES_PER_PIECE)):
        yield (part + more).encode()
        part = ""
    yield (part + ".\r\n").encode()


def _compact(values: array[int]) -> array[int]:
    """Return the values in an array with four octets each, if that is enough."""
    if max(values, default=0) >= _FOUR_OCTETS:
        return values
    halves = array("I", values.tobytes())
    return halves[0 if sys.byteorder == "little" else 1 :: 2]


def empty_snapshot(local_id: int = 0, uidl_prefix: str = "") -> Snapshot:
    """A snapshot without mails."""
    return Snapshot(local_id, uidl_prefix, 0, array("I"), array("I"), array("I"), array("I"))


def build_snapshot(local_id: int, contents: Contents) -> Snapshot:
    """A snapshot of the whole mailbox."""
    columns = map(_compact, (contents.rows, contents.blob_ids, contents.uids, contents.octets))
    return Snapshot(local_id, contents.uidl_prefix, contents.version, *columns)


def apply_changes(old: Snapshot, changes: Changes) -> Snapshot:
    """The snapshot after these changes. ``old`` is not modified, because sessions use it."""
    changed = {row.id for row in changes.rows}
    added = sorted((row for row in changes.rows if not row.deleted), key=lambda row: row.uid)
    columns = [old.rows, old.blob_ids, old.uids, old.octets]
    if not changed.isdisjoint(old.rows):
        unchanged = [index for index, row in enumerate(old.rows) if row not in changed]
        columns = [array(column.typecode, [column[index] for index in unchanged]) for column in columns]
    # New and restored mails have higher uids than all others: they go to the end.
    new_columns = (
        [row.id for row in added],
        [row.blob_id for row in added],
        [row.uid for row in added],
        [row.octets for row in added],
    )
    return Snapshot(old.local_id, changes.uidl_prefix, changes.version, *map(_extended, columns, new_columns))


def _extended(column: array[int], more: Sequence[int]) -> array[int]:
    if column.typecode == "I" and max(more, default=0) < _FOUR_OCTETS:
        return column + array("I", more)
    return array("q", column) + array("q", more)
