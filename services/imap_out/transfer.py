"""EXPUNGE, COPY and MOVE (RFC 3501 sections 6.4.3 and 6.4.7, RFC 4315, RFC 6851)."""

from __future__ import annotations

from services.imap_out.context import ImapContext, TaggedAnswer
from services.imap_out.grammar.commands import CopyArguments, ExpungeArguments, ImapCommand
from services.imap_out.grammar.errors import CommandError
from services.imap_out.responses import status
from shared.store import folder_edits, inbound


async def run_expunge(context: ImapContext, command: ImapCommand) -> TaggedAnswer:
    """EXPUNGE and UID EXPUNGE."""
    context.require_writable()
    uids = None
    if isinstance(command.arguments, ExpungeArguments):
        state = context.folder.state
        uids = [state.uids[index] for index in context.indexes(command.arguments.numbers, uid=True)]
    if uids != []:
        async with context.change() as connection:
            gone = await folder_edits.expunge_mails(
                connection, context.account.id, context.folder.state.folder.id, uids
            )
            events = await inbound.record_deletions(connection, context.account.address, gone.mail_ids)
        await context.announce_deletions(events)
    await context.sync(may_expunge=True, uid=command.uid)
    if "QRESYNC" in context.enabled:  # RFC 7162 section 3.2.7
        return TaggedAnswer("expunged", status.highest_modseq(context.folder.state.folder.version))
    return TaggedAnswer("expunged")


async def run_copy(context: ImapContext, command: ImapCommand) -> TaggedAnswer:
    """COPY and UID COPY."""
    moved = await _transfer(context, command, move=False)
    if not moved.uids:
        return TaggedAnswer("no mail was copied")
    return TaggedAnswer("copied", _copy_uid(moved))


async def run_move(context: ImapContext, command: ImapCommand) -> TaggedAnswer:
    """MOVE and UID MOVE: COPYUID comes before the EXPUNGE responses (RFC 6851 section 4.3)."""
    context.require_writable()
    moved = await _transfer(context, command, move=True)
    if moved.uids:
        context.transport.write(status.untagged("OK", "moved", _copy_uid(moved)))
    await context.sync(may_expunge=True, uid=command.uid)
    if "QRESYNC" in context.enabled:
        return TaggedAnswer("moved", status.highest_modseq(context.folder.state.folder.version))
    return TaggedAnswer("moved" if moved.uids else "no mail was moved")


async def _transfer(context: ImapContext, command: ImapCommand, *, move: bool) -> folder_edits.Transferred:
    arguments = command.arguments
    assert isinstance(arguments, CopyArguments)
    source = context.folder.state
    uids = [source.uids[index] for index in context.indexes(arguments.numbers, command.uid)]
    target = await context.find_folder(arguments.mailbox, create=True)
    run = folder_edits.move_mails if move else folder_edits.copy_mails
    async with context.change() as connection:
        moved = await run(connection, context.account.id, source.folder.id, target.id, uids)
        if len(moved.uids) < len(uids) and not command.uid:  # message numbers name mails that have to be there
            raise CommandError("some of the mails have been expunged; nothing was done", "NO", "EXPUNGEISSUED")
    return moved


def _copy_uid(moved: folder_edits.Transferred) -> bytes:
    return status.copy_uid(moved.target.uidvalidity, [uid for uid, _ in moved.uids], [new for _, new in moved.uids])
