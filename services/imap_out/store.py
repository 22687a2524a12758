"""STORE (RFC 3501 section 6.4.6, RFC 7162 section 3.1.3)."""

from __future__ import annotations

from services.imap_out.context import ImapContext, TaggedAnswer
from services.imap_out.grammar.commands import ImapCommand, StoreArguments
from services.imap_out.number_sets import index_of_uid
from services.imap_out.responses import status
from services.imap_out.view import split_flags, with_flags
from shared.store import folder_edits


async def run_store(context: ImapContext, command: ImapCommand) -> TaggedAnswer:
    """STORE and UID STORE."""
    arguments = command.arguments
    assert isinstance(arguments, StoreArguments)
    indexes = context.indexes(arguments.numbers, command.uid)
    context.require_writable()
    if arguments.unchanged_since is not None:
        context.enabled.add("CONDSTORE")
    if not indexes:
        return TaggedAnswer("no mail was named")
    state = context.folder.state
    bits, keywords = split_flags(arguments.flags)
    uids = [state.uids[index] for index in indexes]
    async with context.change() as connection:
        result = await folder_edits.store_flags(
            connection,
            context.account.id,
            state.folder.id,
            uids,
            arguments.action,
            bits,
            keywords,
            unchanged_since=arguments.unchanged_since,
        )
    changed = [(mail.uid, mail.flags, mail.keywords) for mail in result.changed]
    if changed:
        context.show_own_change(with_flags(state, changed, result.folder))
    refused = set(result.refused)
    if arguments.silent:
        shown = {uid for uid, _, _ in changed} if context.shows_modseq else set()
    else:
        shown = set(uids) - refused
    await context.send_all(
        context.flags_response(index, command.uid, with_flags=not arguments.silent)
        for index in indexes
        if state.uids[index] in shown
    )
    if refused:
        numbers = sorted(refused)
        if not command.uid:
            numbers = [i + 1 for uid in numbers if (i := index_of_uid(uid, state.uids)) is not None]
        return TaggedAnswer("others have changed some of the mails", status.modified(numbers))
    return TaggedAnswer("flags changed")
