"""SELECT, EXAMINE, CLOSE, UNSELECT, NOOP and CHECK (RFC 3501 sections 6.1.2, 6.3.1 and 6.4, RFC 7162 section 3.2.5)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from services.imap_out.context import SPECIAL_USES, ImapContext, TaggedAnswer, describe_flags, no_mailbox
from services.imap_out.folder_store import MAX_CHANGES
from services.imap_out.grammar.commands import ImapCommand, SelectArguments
from services.imap_out.grammar.errors import CommandError
from services.imap_out.number_sets import LAST, NumberSet, index_of_uid, indexes_of_uids, missing_uids, ranges_of
from services.imap_out.responses import data, status
from services.imap_out.view import FolderState, SelectedFolder
from shared.store import folder_edits, folder_views, inbound
from shared.store.folders import Folder

_ALL = NumberSet(((1, 2**32 - 2),))


async def run_select(context: ImapContext, command: ImapCommand) -> TaggedAnswer:
    """SELECT and EXAMINE."""
    arguments = command.arguments
    assert isinstance(arguments, SelectArguments)
    again = arguments.resynchronization
    if again is not None and "QRESYNC" not in context.enabled:
        raise CommandError("QRESYNC has to be enabled first (RFC 7162 section 3.2.5)")
    if context.selected is not None:
        context.selected = None
        context.transport.write(status.untagged("OK", "the mailbox before is closed", "CLOSED"))
    state = await context.store.open_folder(context.account.id, arguments.mailbox)
    if state is None:
        raise no_mailbox("NONEXISTENT")
    if arguments.condstore:
        context.enabled.add("CONDSTORE")
    selected = SelectedFolder(state, arguments.read_only)
    context.selected = selected
    selected.learn_keywords()
    context.send(
        (
            *describe_flags(sorted(state.all_keywords()), arguments.read_only),
            data.exists(len(state)),
            *_of_revision(context, state.folder, state.first_unseen()),
            status.untagged("OK", "valid", f"UIDVALIDITY {state.folder.uidvalidity}"),
            status.untagged("OK", "next", f"UIDNEXT {state.folder.uidnext}"),
            status.untagged("OK", "highest", status.highest_modseq(state.folder.version)),
        )
    )
    if again is not None and again.uidvalidity == state.folder.uidvalidity:
        await send_changes(context, again.modseq, again.known_uids or _ALL)
    if arguments.read_only:
        return TaggedAnswer("examined", status.READ_ONLY)
    return TaggedAnswer("selected", status.READ_WRITE)


def _of_revision(context: ImapContext, folder: Folder, unseen: int | None) -> Iterable[bytes]:
    """Yield what SELECT sends in one revision only: LIST in RFC 9051 section 6.3.2, RECENT and UNSEEN in RFC 3501.

    :param unseen: the number of the first mail without \\Seen.
    """
    if context.rev2:
        yield data.mailbox_list(SPECIAL_USES.get(folder.special_use, ()), folder.name, utf8=True)
        return
    yield data.recent()
    if unseen is not None:
        yield status.untagged("OK", "first unseen mail", f"UNSEEN {unseen}")


async def send_changes(context: ImapContext, modseq: int, known: NumberSet) -> None:
    """Send VANISHED (EARLIER), and the flags of mails that changed after a mod-sequence (RFC 7162 section 3.2.5.1)."""
    state = context.folder.state
    if modseq >= state.folder.version:
        return
    context.transport.write(status.vanished(await vanished_since(context, modseq, known), earlier=True))
    changed = [index for index in indexes_of_uids(known, state.uids) if state.versions[index] > modseq]
    await context.send_all(context.flags_response(index, uid=True) for index in changed)


async def vanished_since(context: ImapContext, modseq: int, known: NumberSet) -> Sequence[tuple[int, int]]:
    """Return the ranges of those of these UIDs that were expunged after a mod-sequence.

    Where tombstones may be purged, all UIDs without a mail are named, which is allowed.
    """
    state = context.folder.state
    known = _with_all_after_the_last(known, state)
    changes = None
    if modseq >= state.folder.purged_version:
        async with context.store.database.statement() as connection:
            changes = await folder_views.load_view_changes(connection, state.folder.id, modseq, MAX_CHANGES)
    if changes is None or modseq < changes.folder.purged_version:
        return missing_uids(known, state.uids, state.folder.uidnext)
    gone = [row.uid for row in changes.rows if row.expunged and index_of_uid(row.uid, state.uids) is None]
    named = indexes_of_uids(known, gone) if gone else []
    return list(ranges_of(gone[index] for index in named))


def _with_all_after_the_last(known: NumberSet, state: FolderState) -> NumberSet:
    """Let ``*`` reach up to the last UID that was given: the mail that had it may be one that has vanished."""
    last = state.uids[-1] if state.uids else 1
    given = max(state.folder.uidnext - 1, last)
    return NumberSet(tuple((min(*pair, last), given) if LAST in pair else pair for pair in known.ranges))


async def run_noop(context: ImapContext, command: ImapCommand) -> TaggedAnswer:
    """NOOP and CHECK: the updates follow each command."""
    return TaggedAnswer("done")


async def run_close(context: ImapContext, command: ImapCommand) -> TaggedAnswer:
    """CLOSE: expunge without a word, also what others have marked since the last update (RFC 3501 section 6.4.2)."""
    selected = context.folder
    folder = selected.state.folder
    if not selected.read_only and (await context.store.load_state(folder)).indexes_with(folder_views.DELETED):
        async with context.change() as connection:
            gone = await folder_edits.expunge_mails(connection, context.account.id, folder.id)
            events = await inbound.record_deletions(connection, context.account.address, gone.mail_ids)
        await context.announce_deletions(events)
    context.selected = None
    return TaggedAnswer("closed")


async def run_unselect(context: ImapContext, command: ImapCommand) -> TaggedAnswer:
    """UNSELECT (RFC 3691)."""
    context.selected = None
    return TaggedAnswer("closed, nothing was expunged")
