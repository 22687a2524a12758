"""Snapshots of mailboxes: one that is brought up to date equals one that is read anew."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.pop3_out import snapshot
from services.pop3_out.snapshot import Snapshot
from shared.maildrops import Change, Changes

# What happens to a mailbox: mails come (0), or the row of this number is deleted or, if it is, undeleted.
STEPS = st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=4), max_size=12)


class Mailbox:
    """The table maildrop_mails for one mailbox, with the rules of shared/maildrops.py."""

    def __init__(self) -> None:
        self.version = 0
        self._uid = 0
        self._rows: dict[int, tuple[Change, int]] = {}

    def change(self, steps: list[int]) -> None:
        self.version += 1
        for step in steps:
            row = self._rows.get(step)
            if row is None:
                self._uid += 1
                id_ = len(self._rows) + 1
                self._rows[id_] = Change(id_, 100 + id_, self._uid, 10 * id_, False), self.version
            elif row[0].deleted:
                self._uid += 1
                self._rows[step] = Change(step, row[0].message_id, self._uid, row[0].octets, False), self.version
            else:
                old = row[0]
                self._rows[step] = Change(step, old.message_id, old.uid, old.octets, True), self.version

    def changes(self, since: int) -> Changes:
        rows = [row for row, version in self._rows.values() if version > since and (since or not row.deleted)]
        return Changes("s", self.version, sorted(rows, key=lambda row: row.uid))


def shown(box: Snapshot) -> tuple[bytes, bytes, int, list[int]]:
    return box.sizes_answer, box.uidls_answer, box.version, list(box.messages)


@given(STEPS, st.data())
def test_a_snapshot_brought_up_to_date_equals_one_read_anew(steps: list[list[int]], data: st.DataObject) -> None:
    # given a mailbox and a snapshot of it
    mailbox = Mailbox()
    seen = snapshot.first(1, mailbox.changes(0))
    for step in steps:
        # when the mailbox changes
        mailbox.change(step)
        if data.draw(st.booleans()):
            before = shown(seen)
            renewed = snapshot.renewed(seen, mailbox.changes(seen.version))
            # then the changes lead to what is there, and sessions at work on the old one see no difference
            assert shown(renewed) == shown(snapshot.first(1, mailbox.changes(0)))
            assert shown(seen) == before
            seen = renewed


def test_lists_leave_out_what_is_marked_and_keep_the_numbers() -> None:
    mailbox = Mailbox()
    mailbox.change([0, 0, 0])
    box = snapshot.first(1, mailbox.changes(0))
    assert box.sizes({2}) == b"+OK 2 messages (40 octets)\r\n1 10\r\n3 30\r\n.\r\n"
    assert box.uidls({1}) == b"+OK unique-id listing follows\r\n2 s2\r\n3 s3\r\n.\r\n"
    assert box.total == 60
    assert len(box) == 3


def test_the_long_answers_are_made_once_a_snapshot() -> None:
    mailbox = Mailbox()
    mailbox.change([0])
    box = snapshot.first(1, mailbox.changes(0))
    assert box.sizes_answer is box.sizes_answer
    assert box.uidls_answer is box.uidls_answer
