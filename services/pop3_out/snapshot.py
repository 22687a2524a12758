"""The state of a mailbox at the start of a session, shared by all sessions with the same state.

A mailbox is the folder INBOX. A snapshot belongs to one version of it (shared/store/folders.py). While the version
stays the same, a login reads only the version, and STAT, LIST and UIDL are answered from the snapshot.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from shared.store import folder_mails
from shared.store.folder_mails import Changes, Contents

LINES_PER_PIECE = 1000
"""Lines of a long reply that are built at once: about a millisecond."""
_FOUR_OCTETS = 2**32


@dataclass(slots=True, weakref_slot=True, eq=False)
class Snapshot:
    """Mails in the order of their numbers, which start at 1 (RFC 1939 section 4): index 0 is number 1."""

    local_id: int
    uidl_prefix: str
    version: int
    uids: array[int]  # of IMAP, ascending
    blob_ids: array[int]  # ids of the bytes
    uidls: array[int]  # the numbers in the UIDLs
    octets: array[int]  # size of each mail without dot-stuffing
    total: int = field(init=False)  # octets of all mails
    keeps_replies: bool = field(default=False, init=False)  # 45 octets of memory a mail; the columns use 16
    _sizes: Collection[bytes] = field(default=(), init=False)  # reply to LIST
    _uidls: Collection[bytes] = field(default=(), init=False)  # reply to UIDL

    def __post_init__(self) -> None:
        """Count the octets of all mails."""
        self.total = sum(self.octets)

    def __len__(self) -> int:
        return len(self.uids)

    def uidl(self, number: int) -> str:
        """The unique id of a mail."""
        return folder_mails.uidl(self.uidl_prefix, self.uidls[number - 1])

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
        name, prefix = folder_mails.uidl, self.uidl_prefix
        lines = (
            f"{number} {name(prefix, uidl)}\r\n" for number, uidl in enumerate(self.uidls, 1) if number not in deleted
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
    columns = map(_compact, (contents.uids, contents.blob_ids, contents.uidls, contents.octets))
    return Snapshot(local_id, contents.uidl_prefix, contents.version, *columns)


def apply_changes(old: Snapshot, changes: Changes) -> Snapshot:
    """The snapshot after these changes. ``old`` is not modified, because sessions use it."""
    # A mail never changes in what POP3 shows; a change of its flags is none here.
    gone = {row.uid for row in changes.rows if row.deleted}
    # Later mail has higher uids than all others: it goes to the end.
    last = old.uids[-1] if old.uids else 0
    added = [row for row in changes.rows if not row.deleted and row.uid > last]
    columns = [old.uids, old.blob_ids, old.uidls, old.octets]
    if not gone.isdisjoint(old.uids):
        kept = [index for index, uid in enumerate(old.uids) if uid not in gone]
        columns = [array(column.typecode, [column[index] for index in kept]) for column in columns]
    new_columns = (
        [row.uid for row in added],
        [row.blob_id for row in added],
        [row.uidl for row in added],
        [row.octets for row in added],
    )
    return Snapshot(old.local_id, changes.uidl_prefix, changes.version, *map(_extended, columns, new_columns))


def _extended(column: array[int], more: Sequence[int]) -> array[int]:
    if column.typecode == "I" and max(more, default=0) < _FOUR_OCTETS:
        return column + array("I", more)
    return array("q", column) + array("q", more)
