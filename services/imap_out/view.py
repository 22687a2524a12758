"""The selected folder as a session shows it to its client (RFC 3501 sections 2.3.1.2, 5.5 and 7.4.1). Pure.

A ``FolderState`` is the folder at a version, and is never changed: all sessions with the same version share it. The
``SelectedFolder`` of a session moves from one state to a later one, and returns what the client has to hear of it.
Message numbers change at these moments alone. As long as a command forbids EXPUNGE, a state without one of the mails
shown is not taken over at all, so the HIGHESTMODSEQ that the client hears never passes an EXPUNGE that is held back.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from services.imap_out.number_sets import index_of_uid, ranges_of
from shared.store.folder_views import ANSWERED, DELETED, DRAFT, FLAGGED, SEEN, MailState, View, ViewChanges
from shared.store.folders import Folder

SYSTEM_FLAGS: Mapping[str, int] = {
    "\\Answered": ANSWERED,
    "\\Flagged": FLAGGED,
    "\\Deleted": DELETED,
    "\\Seen": SEEN,
    "\\Draft": DRAFT,
}
"""Bits of the flags."""
_BITS = {name.lower(): bit for name, bit in SYSTEM_FLAGS.items()}
FLAG_NAMES = tuple(tuple(name for name, bit in SYSTEM_FLAGS.items() if bits & bit) for bits in range(32))
"""The names of system flags, by their bits."""
_UNSEEN = re.compile(b"[%b]" % re.escape(bytes(bits for bits in range(32) if not bits & SEEN)))
"""Finds the flags of a mail without \\Seen among those of 100,000 mails in some microseconds."""
_BLOCK = 512
"""Mails that are compared at once."""


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class FolderState:
    """A folder at a version. The arrays have one item for each mail, by UID: index 0 is message number 1."""

    folder: Folder
    uids: array[int]
    blob_ids: array[int]
    octets: array[int]
    flags: array[int]  # bits
    versions: array[int]  # MODSEQ
    dates: array[int]  # the internal date: microseconds since 1970 in UTC
    keywords: Mapping[int, Sequence[str]]  # by UID, of the mails that have some

    def __len__(self) -> int:
        return len(self.uids)

    def flag_names(self, index: int) -> tuple[str, ...]:
        """Return the flags and keywords of a mail."""
        words = self.keywords.get(self.uids[index]) if self.keywords else None
        return (*FLAG_NAMES[self.flags[index]], *words) if words else FLAG_NAMES[self.flags[index]]

    def all_keywords(self) -> list[str]:
        """Return the keywords that mails have, each in one form of letters."""
        return list({word.lower(): word for words in self.keywords.values() for word in words}.values())

    def first_unseen(self) -> int | None:
        """Return the number of the first mail without \\Seen; None if there is none."""
        found = _UNSEEN.search(self.flags)
        return found.end() if found else None

    def indexes_with(self, bit: int) -> list[int]:
        """Return the indexes of the mails with a flag."""
        return [index for index, bits in enumerate(self.flags) if bits & bit]


def split_flags(names: Sequence[str]) -> tuple[int, list[str]]:
    """Return the bits of system flags, and the keywords."""
    bits, keywords = 0, []
    for name in names:
        bit = _BITS.get(name.lower())
        if bit is None:
            keywords.append(name)
        else:
            bits |= bit
    return bits, keywords


def flag_bit(name: str) -> int:
    """Return the bit of a system flag in any case of letters; 0: it is a keyword."""
    return _BITS.get(name.lower(), 0)


def build_state(view: View) -> FolderState:
    """The state of a whole folder."""
    return FolderState(
        view.folder, view.uids, view.blob_ids, view.octets, _bytes(view.flags), view.versions, view.dates, view.keywords
    )


def _bytes(values: Sequence[int]) -> array[int]:
    return array("B", values)


def apply_changes(old: FolderState, changes: ViewChanges) -> FolderState:
    """The state after these changes. ``old`` is not modified, because sessions use it."""
    if not changes.rows:
        return replace(old, folder=changes.folder)
    last = old.uids[-1] if old.uids else 0
    state = _without(old, [row.uid for row in changes.rows if row.expunged])
    changed = [row for row in changes.rows if not row.expunged and row.uid <= last]
    state = _with_flags(state, [(row.uid, row.flags, row.keywords, row.version) for row in changed])
    return replace(
        _extended(state, [r for r in changes.rows if not r.expunged and r.uid > last]), folder=changes.folder
    )


def with_flags(old: FolderState, changed: Sequence[tuple[int, int, Sequence[str]]], folder: Folder) -> FolderState:
    """The state after a change of flags by the session itself.

    :param changed: UID, bits and keywords. :param folder: after the change. If others have changed something between,
        the state keeps its version, and the next one brings their changes.
    """
    state = _with_flags(old, [(uid, bits, words, folder.version) for uid, bits, words in changed])
    return replace(state, folder=folder) if folder.version == old.folder.version + 1 else state


def _without(state: FolderState, uids: Sequence[int]) -> FolderState:
    gone = [index for uid in uids if (index := index_of_uid(uid, state.uids)) is not None]
    if not gone:
        return state
    ranges = list(ranges_of(gone))
    columns = [array(column.typecode, column) for column in _columns(state)]
    for low, high in reversed(ranges):
        for column in columns:
            del column[low : high + 1]
    keywords = state.keywords
    if keywords:
        removed = {state.uids[index] for index in gone}
        keywords = {uid: words for uid, words in keywords.items() if uid not in removed}
    return _from_columns(state.folder, columns, keywords)


def _from_columns(folder: Folder, columns: Sequence[array[int]], keywords: Mapping[int, Sequence[str]]) -> FolderState:
    uids, blob_ids, octets, flags, versions, dates = columns
    return FolderState(folder, uids, blob_ids, octets, flags, versions, dates, keywords)


def _columns(state: FolderState) -> tuple[array[int], ...]:
    return state.uids, state.blob_ids, state.octets, state.flags, state.versions, state.dates


def _with_flags(state: FolderState, rows: Sequence[tuple[int, int, Sequence[str], int]]) -> FolderState:
    """:param rows: UID, bits, keywords and MODSEQ."""
    if not rows:
        return state
    flags, versions, keywords = state.flags[:], state.versions[:], state.keywords
    for uid, bits, words, version in rows:
        index = index_of_uid(uid, state.uids)
        if index is None:
            continue
        flags[index], versions[index] = bits, version
        if tuple(words) != tuple(keywords.get(uid, ())):
            if keywords is state.keywords:
                keywords = dict(keywords)
            if words:
                keywords[uid] = tuple(words)  # type: ignore[index]
            else:
                keywords.pop(uid)  # type: ignore[attr-defined]
    return replace(state, flags=flags, versions=versions, keywords=keywords)


def _extended(state: FolderState, rows: Sequence[MailState]) -> FolderState:
    if not rows:
        return state
    added = (
        [row.uid for row in rows],
        [row.blob_id for row in rows],
        [row.octets for row in rows],
        [row.flags for row in rows],
        [row.version for row in rows],
        [round(row.internal_date.timestamp() * 1_000_000) for row in rows],
    )
    columns = [column + array(column.typecode, values) for column, values in zip(_columns(state), added, strict=True)]
    words = {row.uid: tuple(row.keywords) for row in rows if row.keywords}
    keywords = {**state.keywords, **words} if words else state.keywords
    return _from_columns(state.folder, columns, keywords)


@dataclass(frozen=True, slots=True)
class ViewUpdate:
    """What the client has to hear, in this order.

    expunged: UIDs, ascending, and their numbers before. exists: the number of mails, if some have arrived. changed:
    indexes, in the new state, of mails whose flags have changed. keywords: of the folder, if there are new ones.
    """

    expunged: Sequence[tuple[int, int]] = ()
    exists: int | None = None
    keywords: Sequence[str] | None = None
    changed: Sequence[int] = ()


@dataclass(slots=True)
class SelectedFolder:
    """The folder that a session has selected.

    :ivar state: as the client knows it. :ivar saved: the UIDs of ``$`` (RFC 5182).
    """

    state: FolderState
    read_only: bool
    known_keywords: set[str] = field(default_factory=set)  # that FLAGS has named, in lower case
    saved: Sequence[int] = ()

    def move_to(self, new: FolderState, may_expunge: bool) -> ViewUpdate:
        """Show a later state. Without ``may_expunge`` nothing happens if a mail that is shown is not in it.

        Mails that the session has changed itself are not among ``changed``.
        """
        old = self.state
        if new is old:
            return ViewUpdate()
        expunged = _missing(old.uids, new.uids)
        if expunged and not may_expunge:
            return ViewUpdate()
        kept = len(old) - len(expunged)
        before = old.versions
        if expunged:
            gone = {number - 1 for _, number in expunged}
            before = array("q", [version for index, version in enumerate(old.versions) if index not in gone])
            if self.saved:
                removed = {uid for uid, _ in expunged}
                self.saved = [uid for uid in self.saved if uid not in removed]
        changed = _differing(before, new.versions, kept)
        self.state = new
        return ViewUpdate(
            tuple(expunged),
            len(new) if len(new) > kept else None,
            self.learn_keywords() if new.keywords is not old.keywords else None,
            tuple(changed),
        )

    def learn_keywords(self) -> Sequence[str] | None:
        """Return the keywords of the folder, if FLAGS has not named all of them; then it has."""
        words = self.state.all_keywords() if self.state.keywords else []
        new = {word.lower() for word in words} - self.known_keywords
        self.known_keywords |= new
        return sorted(self.known_keywords_as(words)) if new else None

    def known_keywords_as(self, words: Sequence[str]) -> set[str]:
        """Return all keywords that are known, in the form of letters that mails have now."""
        forms = {word.lower(): word for word in words}
        return {forms.get(word, word) for word in self.known_keywords}


def _missing(old: array[int], new: array[int]) -> list[tuple[int, int]]:
    """Return UID and number of each mail of ``old`` that is not in ``new``."""
    if old is new or new[: len(old)] == old:
        return []
    there = set(new[: bisect_left(new, old[-1] + 1)]) if old else set()
    return [(uid, number) for number, uid in enumerate(old, 1) if uid not in there]


def _differing(old: array[int], new: array[int], count: int) -> list[int]:
    """Return the indexes below ``count`` at which the arrays differ."""
    if old is new:
        return []
    found: list[int] = []
    for start in range(0, count, _BLOCK):
        end = min(start + _BLOCK, count)
        if old[start:end] != new[start:end]:
            found.extend(index for index in range(start, end) if old[index] != new[index])
    return found
