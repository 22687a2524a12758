"""LIST, LSUB, STATUS, NAMESPACE, CREATE, DELETE, RENAME, SUBSCRIBE (RFC 3501 sections 6.3.3 to 6.3.10), GETQUOTA."""

from __future__ import annotations

from collections.abc import Sequence

from services.imap_out.context import SPECIAL_USES, ImapContext, TaggedAnswer
from services.imap_out.grammar.commands import (
    CreateArguments,
    ImapCommand,
    ListArguments,
    MailboxArguments,
    QuotaArguments,
    RenameArguments,
    StatusArguments,
)
from services.imap_out.grammar.errors import CommandError
from services.imap_out.mailbox_lists import ListableMailbox, list_mailboxes, list_subscribed
from services.imap_out.responses import data
from shared.store import folder_edits, folders, inbound
from shared.store.folder_views import FolderCounts
from shared.store.folders import Folder

QUOTA_ROOT = ""
"""The name of the one quota root of an account (RFC 9208 section 3.2)."""


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
    mailboxes = [_listable(folder) for folder in known]
    if "SUBSCRIBED" in arguments.selects | arguments.returns:
        mailboxes += await _lost_mailboxes(context)
    listed = list_mailboxes(arguments, mailboxes)
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
    listed = list_subscribed(arguments, [*map(_listable, known), *await _lost_mailboxes(context)])
    await context.send_all(data.mailbox_list(one.attributes, one.name, context.utf8, command="LSUB") for one in listed)
    return TaggedAnswer("listed")


def _listable(folder: Folder) -> ListableMailbox:
    return ListableMailbox(
        folder.name, subscribed=folder.subscribed, special_use=SPECIAL_USES.get(folder.special_use, ())
    )


async def _lost_mailboxes(context: ImapContext) -> list[ListableMailbox]:
    """Return the subscribed names whose mailboxes are deleted."""
    async with context.store.database.statement() as connection:
        names = await folders.list_lost_names(connection, context.account.id)
    return [ListableMailbox(name, exists=False, subscribed=True) for name in names]


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


async def run_get_quota_root(context: ImapContext, command: ImapCommand) -> TaggedAnswer:
    """GETQUOTAROOT (RFC 9208 section 4.1.3): all mailboxes have one root."""
    arguments = command.arguments
    assert isinstance(arguments, MailboxArguments)
    folder = await context.find_folder(arguments.mailbox)
    context.transport.write(data.quota_root(folder.name, [QUOTA_ROOT], context.utf8))
    await _send_quota(context)
    return TaggedAnswer("limits listed")


async def run_get_quota(context: ImapContext, command: ImapCommand) -> TaggedAnswer:
    """GETQUOTA (RFC 9208 section 4.1.2)."""
    arguments = command.arguments
    assert isinstance(arguments, QuotaArguments)
    if arguments.root != QUOTA_ROOT:
        raise CommandError("there is no such quota root", "NO", "NONEXISTENT")
    await _send_quota(context)
    return TaggedAnswer("limits listed")


async def run_set_quota(context: ImapContext, command: ImapCommand) -> TaggedAnswer:
    """SETQUOTA, which is not announced (RFC 9208 section 4.1.1)."""
    raise CommandError("limits cannot be changed", "NO", "NOPERM")


async def _send_quota(context: ImapContext) -> None:
    """Send QUOTA. Only the number of mailboxes has a limit: mail has none, so STORAGE is no resource here."""
    known = await context.store.list_folders(context.account.id)
    context.transport.write(data.quota(QUOTA_ROOT, {"MAILBOX": (len(known), folders.MAX_FOLDERS)}))


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
    """DELETE: undelete brings the mails back. The name stays subscribed (RFC 3501 section 6.3.9)."""
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
    renamed: list[Folder] = []
    async with context.change() as connection:
        if folder.special_use == "inbox":
            await folder_edits.rename_inbox(connection, context.account.id, new_name)
        else:
            renamed = await folders.rename_folder(connection, context.account.id, folder.id, new_name)
    if context.rev2:  # RFC 9051 section 7.3.1
        context.send(
            data.mailbox_list(
                SPECIAL_USES.get(each.special_use, ()),
                each.name,
                utf8=True,
                old_name=folder.name + each.name[len(new_name) :],
            )
            for each in sorted(renamed, key=lambda each: each.name)
        )
    return TaggedAnswer("renamed")


async def run_subscribe(context: ImapContext, command: ImapCommand) -> TaggedAnswer:
    """SUBSCRIBE."""
    arguments = command.arguments
    assert isinstance(arguments, MailboxArguments)
    folder = await context.find_folder(arguments.mailbox)
    async with context.store.database.transaction() as connection:
        await folders.subscribe_folder(connection, context.account.id, folder.id)
    return TaggedAnswer("subscribed")


async def run_unsubscribe(context: ImapContext, command: ImapCommand) -> TaggedAnswer:
    """UNSUBSCRIBE: also of a name without a mailbox, which clients send after DELETE and RENAME."""
    arguments = command.arguments
    assert isinstance(arguments, MailboxArguments)
    async with context.store.database.transaction() as connection:
        await folders.unsubscribe_name(connection, context.account.id, arguments.mailbox)
    return TaggedAnswer("unsubscribed")
