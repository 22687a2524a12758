"""services/imap_out/view.py: states of a folder, and what a session may tell its client when."""

from __future__ import annotations

import datetime as dt
from array import array
from collections.abc import Sequence

from services.imap_out.view import (
    FolderState,
    SelectedFolder,
    ViewUpdate,
    apply_changes,
    build_state,
    split_flags,
    with_flags,
)
from shared.store.folder_views import DELETED, FLAGGED, SEEN, MailState, View, ViewChanges
from shared.store.folders import Folder

_ARRIVAL = dt.datetime(2026, 11, 1, 10, tzinfo=dt.UTC)


def folder(version: int) -> Folder:
    return Folder(7, 1, "INBOX", "inbox", 1000, 100, version, 0, True)


def state(*uids: int, version: int = 5) -> FolderState:
    """Mails that have been unchanged since version 1."""
    count = len(uids)
    zeros, ones, tens = (array("q", [value] * count) for value in (0, 1, 10))
    return build_state(View(folder(version), array("q", uids), array("q", uids), tens, zeros, ones, zeros, {}))


def row(uid: int, version: int, flags: int = 0, words: Sequence[str] = (), gone: bool = False) -> MailState:
    return MailState(uid, uid, 10, flags, words, version, _ARRIVAL, gone)


def changed(old: FolderState, *rows: MailState) -> FolderState:
    version = max((each.version for each in rows), default=old.folder.version + 1)
    return apply_changes(old, ViewChanges(folder(version), sorted(rows, key=lambda each: each.uid)))


def test_changes_make_a_new_state_and_leave_the_old_one() -> None:
    old = state(1, 2, 4)
    new = changed(old, row(2, 6, gone=True), row(4, 7, SEEN, ["$Work"]), row(9, 8), row(3, 6, gone=True))
    assert list(old.uids) == [1, 2, 4] and old.flag_names(2) == ()
    assert list(new.uids) == [1, 4, 9] and list(new.versions) == [1, 7, 8]
    assert new.flag_names(1) == ("\\Seen", "$Work") and new.all_keywords() == ["$Work"]
    assert new.dates[2] == int(_ARRIVAL.timestamp()) * 1_000_000
    assert (new.first_unseen(), new.indexes_with(SEEN), new.folder.version) == (1, [1], 8)
    without = changed(new, row(4, 9, gone=True))
    assert without.all_keywords() == [] and list(without.uids) == [1, 9]
    assert changed(new, row(4, 9, SEEN)).keywords == {}


def test_a_session_hears_of_expunges_then_arrivals_then_flags() -> None:
    old = state(*range(10, 20))
    selected = SelectedFolder(old, read_only=False)
    new = changed(old, row(11, 6, gone=True), row(15, 6, gone=True), row(18, 7, FLAGGED, ["A"]), row(30, 8, SEEN))
    assert selected.move_to(new, may_expunge=True) == ViewUpdate(((11, 2), (15, 6)), 9, ["A"], (6,))
    assert selected.state is new
    assert selected.move_to(new, may_expunge=True) == ViewUpdate()


def test_nothing_is_taken_over_while_an_expunge_is_held_back() -> None:
    old = state(1, 2, 3)
    selected = SelectedFolder(old, read_only=False, saved=[1, 2])
    arrived = changed(old, row(4, 6))
    assert selected.move_to(arrived, may_expunge=False) == ViewUpdate(exists=4)
    new = changed(arrived, row(2, 7, gone=True), row(3, 8, SEEN), row(5, 9))
    assert selected.move_to(new, may_expunge=False) == ViewUpdate()
    # HIGHESTMODSEQ stays below the expunge
    assert selected.state.folder.version == 6
    assert selected.move_to(new, may_expunge=True) == ViewUpdate(((2, 2),), 4, None, (1,))
    assert selected.saved == [1]


def test_a_session_does_not_hear_of_its_own_change_again() -> None:
    old = state(1, 2)
    selected = SelectedFolder(old, read_only=False)
    selected.state = with_flags(old, [(2, SEEN, ())], folder(6))
    assert selected.state.folder.version == 6 and list(selected.state.versions) == [1, 6]
    assert selected.move_to(changed(old, row(2, 6, SEEN)), may_expunge=True) == ViewUpdate()
    # but of what others changed between, and after
    base = selected.state
    selected.state = with_flags(base, [(1, DELETED, ())], folder(8))
    assert selected.state.folder.version == 6
    new = changed(base, row(1, 8, DELETED), row(2, 7, 0))
    assert selected.move_to(new, may_expunge=False) == ViewUpdate(changed=(1,))
    assert selected.state.folder.version == 8


def test_keywords_are_named_once_in_any_case() -> None:
    old = state(1, 2)
    selected = SelectedFolder(old, read_only=False)
    first = changed(old, row(1, 6, words=["$Work"]))
    assert selected.move_to(first, may_expunge=False).keywords == ["$Work"]
    second = changed(first, row(2, 7, words=["$WORK", "Other"]))
    assert selected.move_to(second, may_expunge=False).keywords in (["$WORK", "Other"], ["$Work", "Other"])
    assert selected.move_to(changed(second, row(1, 8, words=["other"])), may_expunge=False).keywords is None
    assert split_flags(["\\SEEN", "$Work", "\\deleted"]) == (SEEN | DELETED, ["$Work"])


def test_a_hundred_thousand_mails_are_compared_in_blocks() -> None:
    old = state(*range(1, 100_001))
    selected = SelectedFolder(old, read_only=False)
    new = changed(old, row(1, 6, SEEN), row(513, 6, SEEN), row(100_000, 6, SEEN), row(70_000, 6, gone=True))
    update = selected.move_to(new, may_expunge=True)
    assert update == ViewUpdate(((70_000, 70_000),), None, None, (0, 512, 99_998))
