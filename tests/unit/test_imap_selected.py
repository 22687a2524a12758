"""Which mails CLOSE expunges, and which UIDs are reported to a client that resynchronizes."""

from __future__ import annotations

from array import array
from types import SimpleNamespace
from typing import Any, cast

import pytest

from services.imap_out.context import ImapContext
from services.imap_out.grammar.command_parser import parse_command
from services.imap_out.number_sets import parse_set
from services.imap_out.selected import run_close, vanished_since
from services.imap_out.view import FolderState, SelectedFolder
from shared.errors import Temporary
from shared.store.folder_views import DELETED
from shared.store.folders import Folder


def state(*flags: int, purged: int = 0, uidnext: int = 9) -> FolderState:
    """A folder with UIDs from 1 on."""
    uids = array("q", range(1, len(flags) + 1))
    folder = Folder(1, 1, "INBOX", "inbox", 7, uidnext, 20, purged, True)
    return FolderState(folder, uids, uids, uids, array("B", flags), uids, uids, {})


def context(shown: FolderState, now: FolderState) -> ImapContext:
    """A session that shows one state while the folder has another; the database refuses every change."""

    async def load_state(_: int) -> FolderState:
        return now

    def change() -> Any:
        raise Temporary("the change")

    selected = SelectedFolder(shown, read_only=False)
    return cast(
        ImapContext,
        SimpleNamespace(
            folder=selected, selected=selected, store=SimpleNamespace(load_state=load_state), change=change
        ),
    )


async def test_close_expunges_what_others_have_marked_meanwhile() -> None:
    with pytest.raises(Temporary):
        await run_close(context(state(0, 0), state(0, DELETED)), parse_command(b"a CLOSE"))
    closing = context(state(0, 0), state(0, 0))
    assert (await run_close(closing, parse_command(b"a CLOSE"))).kind == "OK" and closing.selected is None


@pytest.mark.parametrize(
    ("text", "uidnext", "gone"),
    [
        (b"1:*", 6, [(4, 5)]),  # the last mails have vanished: * names another one now
        (b"*", 6, [(4, 5)]),
        (b"5:*", 6, [(4, 5)]),  # * is UID 3, so the range begins there (RFC 3501 section 9, seq-range)
        (b"1:*", 4, []),
        (b"2:3", 6, []),
        (b"4", 6, [(4, 4)]),
    ],
)
async def test_a_set_with_a_star_names_what_vanished_at_the_end(
    text: bytes, uidnext: int, gone: list[tuple[int, int]]
) -> None:
    known = parse_set(text)
    assert known is not None
    shown = state(0, 0, 0, purged=10, uidnext=uidnext)
    assert await vanished_since(context(shown, shown), 5, known) == gone
