"""STORE (RFC 3501 section 6.4.6, RFC 7162 section 3.1.3)."""

from __future__ import annotations

from services.imap_out.context import ImapContext, TaggedAnswer
from services.imap_out.grammar.commands import ImapCommand, StoreArguments
from services.imap_out.number_sets import index_of_uid
from services.imap_out.responses import status


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
    uids = [state.uids[index] for index in indexes]
    result = await context.store_flags(uids, arguments.action, arguments.flags, arguments.unchanged_since)
    refused = set(result.refused)
    if arguments.silent:
        shown = {mail.uid for mail in result.changed} if context.shows_modseq else set()
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
