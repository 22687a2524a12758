"""LIST, LSUB, STATUS, NAMESPACE, CREATE, DELETE, RENAME, SUBSCRIBE (RFC 3501 sections 6.3.3 to 6.3.10)."""

from __future__ import annotations

from collections.abc import Sequence

from services.imap_out.context import SPECIAL_USES, ImapContext, TaggedAnswer
from services.imap_out.grammar.commands import (
    CreateArguments,
    ImapCommand,
    ListArguments,
    MailboxArguments,
    RenameArguments,
    StatusArguments,
)
from services.imap_out.grammar.errors import CommandError
from services.imap_out.mailbox_lists import ListableMailbox, list_mailboxes, list_subscribed
from services.imap_out.responses import data
from shared.store import folder_edits, folders, inbound
from shared.store.folder_views import FolderCounts
from shared.store.folders import Folder


async def run_namespace(context: ImapContext, command: ImapCommand) -> TaggedAnswer:
    """NAMESPACE (RFC 2342)."""
    context.transport.write(data.namespaces())
    return TaggedAnswer("listed")


async def run_list(context: ImapContext, command: ImapCommand) -> TaggedAnswer:
    """LIST (RFC 5258), with STATUS if it is asked for (RFC 5819)."""
    arguments = command.arguments
    assert isinstance(arguments, ListArguments)
    if arguments.patterns == ("",) and not arguments.extended:
        context.transport.write(data.mailbox_list(("\\Noselect",), ""))  # the delimiter (RFC 3501 section 6.3.8)
        return TaggedAnswer("listed")
    known = await context.store.list_folders(context.account.id)
    listed = list_mailboxes(arguments, [_listable(folder) for folder in known])
    by_name = {folder.name: folder for folder in known}
    counts: dict[int, FolderCounts] = {}
    if _needs_counts(arguments.status):
        counts = await context.store.count_mails([by_name[one.name] for one in listed if one.name in by_name])
    out = []
    for one in listed:
        out.append(data.mailbox_list(one.attributes, one.name, context.utf8, child_info=one.child_info))
        if arguments.status and one.name in by_name:
            out.append(_status(context, by_name[one.name], arguments.status, counts))
    await context.send_all(out)
    return TaggedAnswer("listed")


async def run_lsub(context: ImapContext, command: ImapCommand) -> TaggedAnswer:
    """LSUB."""
    arguments = command.arguments
    assert isinstance(arguments, ListArguments)
    known = await context.store.list_folders(context.account.id)
    listed = list_subscribed(arguments, [_listable(folder) for folder in known])
    await context.send_all(data.mailbox_list(one.attributes, one.name, context.utf8, command="LSUB") for one in listed)
    return TaggedAnswer("listed")


def _listable(folder: Folder) -> ListableMailbox:
    return ListableMailbox(
        folder.name, subscribed=folder.subscribed, special_use=SPECIAL_USES.get(folder.special_use, ())
    )


async def run_status(context: ImapContext, command: ImapCommand) -> TaggedAnswer:
    """STATUS."""
    arguments = command.arguments
    assert isinstance(arguments, StatusArguments)
    folder = await context.find_folder(arguments.mailbox)
    if "HIGHESTMODSEQ" in arguments.items:
        context.enabled.add("CONDSTORE")  # RFC 7162 section 3.1
    counts = await context.store.count_mails([folder]) if _needs_counts(arguments.items) else {}
    context.transport.write(_status(context, folder, arguments.items, counts))
    return TaggedAnswer("counted")


def _needs_counts(items: Sequence[str]) -> bool:
    return bool({"MESSAGES", "UNSEEN", "DELETED", "SIZE"} & set(items))


def _status(context: ImapContext, folder: Folder, items: Sequence[str], counts: dict[int, FolderCounts]) -> bytes:
    counted = counts.get(folder.id, FolderCounts())
    values = {
        "MESSAGES": counted.mails,
        "RECENT": 0,
        "UIDNEXT": folder.uidnext,
        "UIDVALIDITY": folder.uidvalidity,
        "UNSEEN": counted.unseen,
        "DELETED": counted.deleted,
        "SIZE": counted.octets,
        "HIGHESTMODSEQ": folder.version,
    }
    return data.mailbox_status(folder.name, {item: values[item] for item in items}, context.utf8)


async def run_create(context: ImapContext, command: ImapCommand) -> TaggedAnswer:
    """CREATE. A name that ends with the delimiter announces that others will be made below it."""
    arguments = command.arguments
    assert isinstance(arguments, CreateArguments)
    if arguments.special_use:
        raise CommandError("a mailbox for each use is there already", "NO", "USEATTR")
    async with context.change() as connection:
        await folders.create_folder(connection, context.account.id, arguments.mailbox.removesuffix(data.DELIMITER))
    return TaggedAnswer("created")


async def run_delete(context: ImapContext, command: ImapCommand) -> TaggedAnswer:
    """DELETE: undelete brings the mails back."""
    arguments = command.arguments
    assert isinstance(arguments, MailboxArguments)
    folder = await context.find_folder(arguments.mailbox)
    if context.selected is not None and context.selected.state.folder.id == folder.id:
        raise CommandError("the mailbox is selected", "NO", "INUSE")
    async with context.change() as connection:
        gone = await folder_edits.delete_folder(connection, context.account.id, folder.id)
        events = await inbound.record_deletions(connection, context.account.address, gone.mail_ids)
    await context.announce_deletions(events)
    return TaggedAnswer("deleted")


async def run_rename(context: ImapContext, command: ImapCommand) -> TaggedAnswer:
    """RENAME. The mails of INBOX move into a new mailbox (RFC 3501 section 6.3.5)."""
    arguments = command.arguments
    assert isinstance(arguments, RenameArguments)
    folder = await context.find_folder(arguments.mailbox)
    new_name = arguments.new_name.removesuffix(data.DELIMITER)
    async with context.change() as connection:
        if folder.special_use == "inbox":
            await folder_edits.rename_inbox(connection, context.account.id, new_name)
        else:
            await folders.rename_folder(connection, context.account.id, folder.id, new_name)
    return TaggedAnswer("renamed")


async def run_subscribe(context: ImapContext, command: ImapCommand) -> TaggedAnswer:
    """SUBSCRIBE and UNSUBSCRIBE."""
    arguments = command.arguments
    assert isinstance(arguments, MailboxArguments)
    folder = await context.find_folder(arguments.mailbox)
    async with context.store.database.transaction() as connection:
        await folders.subscribe_folder(connection, context.account.id, folder.id, command.name == "SUBSCRIBE")
    return TaggedAnswer("done")
