"""Snapshots of mailboxes: one that is brought up to date equals one that is read again."""

from __future__ import annotations

from array import array
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from services.pop3_out import snapshot
from services.pop3_out.snapshot import LINES_PER_PIECE, Snapshot
from shared.store.folder_mails import Change, Changes, Contents

# Changes of a mailbox: 0 adds a mail; another number deletes this one, or changes flags if it is deleted or odd.
STEPS = st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=4), max_size=12)


class Mailbox:
    """The table folder_mails for one INBOX, with the rules of shared/store/folders.py."""

    def __init__(self) -> None:
        self.version = 0
        self._rows: dict[int, tuple[Change, int]] = {}

    def change(self, steps: list[int]) -> None:
        self.version += 1
        for step in steps:
            row = self._rows.get(step)
            if row is None:
                uid = len(self._rows) + 1
                self._rows[uid] = Change(uid, 100 + uid, 7 * uid, 10 * uid, False), self.version
            else:
                deleted = row[0].deleted or step % 2 == 0
                self._rows[step] = replace(row[0], deleted=deleted), self.version

    def changes(self, since: int) -> Changes:
        return Changes("s", self.version, [row for row, version in self._rows.values() if version > since])

    def contents(self) -> Contents:
        rows = [row for row, _ in self._rows.values() if not row.deleted]
        return Contents(
            "s",
            self.version,
            array("q", [row.uid for row in rows]),
            array("q", [row.blob_id for row in rows]),
            array("q", [row.uidl for row in rows]),
            array("q", [row.octets for row in rows]),
        )


def shown(box: Snapshot) -> tuple[bytes, bytes, int, list[int]]:
    return b"".join(box.list_reply(())), b"".join(box.uidl_reply(())), box.version, list(box.blob_ids)


@given(STEPS, st.data())
def test_an_updated_snapshot_equals_a_new_one(steps: list[list[int]], data: st.DataObject) -> None:
    # given a mailbox and a snapshot of it
    mailbox = Mailbox()
    seen = snapshot.build_snapshot(1, mailbox.contents())
    for step in steps:
        # when the mailbox changes
        mailbox.change(step)
        if data.draw(st.booleans()):
            before = shown(seen)
            renewed = snapshot.apply_changes(seen, mailbox.changes(seen.version))
            # then the changes produce the new state, and sessions with the old snapshot see no difference
            assert shown(renewed) == shown(snapshot.build_snapshot(1, mailbox.contents()))
            assert shown(seen) == before
            seen = renewed


def test_lists_leave_out_marked_mails_and_keep_the_numbers() -> None:
    mailbox = Mailbox()
    mailbox.change([0, 0, 0])
    box = snapshot.build_snapshot(1, mailbox.contents())
    assert b"".join(box.list_reply({2})) == b"+OK 2 messages (40 octets)\r\n1 10\r\n3 30\r\n.\r\n"
    assert b"".join(box.uidl_reply({1})) == b"+OK unique-id listing follows\r\n2 se\r\n3 s15\r\n.\r\n"
    assert box.total == 60
    assert len(box) == 3


def test_the_long_answers_are_made_once_by_a_snapshot_that_is_kept() -> None:
    mailbox = Mailbox()
    mailbox.change([0] * (LINES_PER_PIECE + 1))
    box = snapshot.build_snapshot(1, mailbox.contents())
    wanted = list(box.list_reply(())), list(box.uidl_reply(()))
    assert box.list_reply(()) is not box.list_reply(())
    box.keeps_replies = True
    # a reply that was not completed is not cached
    next(iter(box.uidl_reply(())))
    assert (list(box.list_reply(())), list(box.uidl_reply(()))) == wanted
    assert box.list_reply(()) is box.list_reply(())
    assert (list(box.list_reply(())), list(box.uidl_reply(()))) == wanted
    assert len(b"".join(box.uidl_reply({7}))) < len(b"".join(wanted[1]))
    assert list(box.uidl_reply(())) == wanted[1]
    box.drop_replies()
    assert box.list_reply(()) is not box.list_reply(())
    assert (list(box.list_reply(())), list(box.uidl_reply(()))) == wanted


def test_numbers_above_four_octets_are_kept_whole() -> None:
    large = 2**32
    box = snapshot.build_snapshot(1, Contents("s", 3, *(array("q", [7]) for _ in range(4))))
    assert box.uids.itemsize == 4
    later = snapshot.apply_changes(box, Changes("s", 4, [Change(large, large + 1, large + 2, 9, False)]))
    assert (list(later.uids), list(later.blob_ids), list(later.uidls)) == ([7, large], [7, large + 1], [7, large + 2])
    assert list(later.octets) == [7, 9]
    again = snapshot.build_snapshot(
        1, Contents("s", 4, later.uids, later.blob_ids, later.uidls, array("q", later.octets))
    )
    assert shown(again) == shown(later)
    assert list(snapshot.apply_changes(later, Changes("s", 5, [Change(7, 7, 7, 7, True)])).uidls) == [large + 2]
