"""services/imap_out/fetch_rows.py: responses of many mails without texts."""

from __future__ import annotations

import datetime as dt
from array import array

import pytest

from services.imap_out.fetch_rows import FORMS, format_item, format_rows
from services.imap_out.structure.stored import MailStructure
from services.imap_out.view import FolderState, build_state
from shared.store.folder_views import ANSWERED, SEEN, View
from shared.store.folders import Folder

DATE = round(dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC).timestamp() * 1_000_000)
STRUCTURES = {blob_id: MailStructure(b"(e%d)" % blob_id, b"(b)", b"(bs)", b"[]") for blob_id in (70, 80, 90)}


def state(keywords: bool) -> FolderState:
    folder = Folder(1, 1, "INBOX", "inbox", 1, 10, 9, 0, True)
    return build_state(
        View(
            *(folder, array("q", [7, 8, 9]), array("q", [70, 80, 90]), array("q", [1, 2, 3])),
            *(array("q", [0, SEEN, ANSWERED | SEEN]), array("q", [4, 5, 6]), array("q", [DATE] * 3)),
            {8: ("$Work",)} if keywords else {},
        )
    )


def test_each_item_has_its_form() -> None:
    [row] = format_rows(list(FORMS), state(keywords=False), [1], STRUCTURES)
    assert row == (
        b"* 2 FETCH (UID 8 FLAGS (\\Seen) MODSEQ (5) RFC822.SIZE 2 "
        b'INTERNALDATE " 2-Jan-2026 03:04:05 +0000" ENVELOPE (e80) BODYSTRUCTURE (bs) BODY (b))\r\n'
    )
    values = [format_item(name, state(keywords=False), 1, STRUCTURES[80]) for name in FORMS]
    assert row == b"* 2 FETCH (" + b" ".join(values) + b")\r\n"


@pytest.mark.parametrize("indexes", [[0, 1, 2], [0, 2], [1], []])
@pytest.mark.parametrize("keywords", [True, False])
def test_rows_are_those_of_the_mails_that_are_named(indexes: list[int], keywords: bool) -> None:
    flags = [b"", b"\\Seen $Work" if keywords else b"\\Seen", b"\\Answered \\Seen"]
    assert list(format_rows(["UID", "FLAGS"], state(keywords), indexes, {})) == [
        b"* %d FETCH (UID %d FLAGS (%b))\r\n" % (index + 1, index + 7, flags[index]) for index in indexes
    ]
