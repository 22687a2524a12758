"""Deletes mails of an IMAP session, and no others: UID STORE of \\Deleted, then UID EXPUNGE (RFC 4315).

EXPUNGE and CLOSE are never sent: they would also delete what other clients have marked. So nothing is deleted at a
server without UIDPLUS.

At Gmail a mail that is expunged leaves its folder and stays in the account: only what is in its bin is deleted, after
30 days. There mails are moved to the bin (RFC 6851), as Gmail's own page does it.
"""

from __future__ import annotations

from collections.abc import Sequence

from shared.imap.sets import write_sets
from shared.provider.imap_folders import Folders, WatchedFolder
from shared.provider.imap_listing import number_of_mail, uids_by_folder
from shared.provider.imap_responses import Response
from shared.provider.imap_stream import ImapStream
from shared.provider.retrieval import UndeletedMails

GMAIL = "X-GM-EXT-1"
"""The capability by which Gmail's IMAP server is recognised (Gmail's IMAP extensions)."""
WITHOUT_UIDPLUS = (
    "the server has no UIDPLUS (RFC 4315), and without it other mail could be deleted, too; let the account delete "
    "nothing at the provider"
)


async def delete_mails(stream: ImapStream, folders: Folders, numbers: Sequence[int]) -> UndeletedMails:
    """Delete these mails; it takes effect at once. Return those that the server refused.

    :raises ProtocolError: a folder was renumbered meanwhile; its mails are not touched.
    """
    if not folders.offers.has("UIDPLUS"):
        return UndeletedMails(numbers, WITHOUT_UIDPLUS)
    bin_name = await _bin(folders)
    left: list[int] = []
    reason = ""
    for folder, uids in uids_by_folder(sorted(numbers), folders.watched):
        opened = await folders.reopen(folder, "SELECT")
        if opened.code == "READ-ONLY":
            left += [number_of_mail(folder, uid) for uid in uids]
            reason = f"the folder {folder.name!r} is read-only"
            continue
        refused, refusal = await _delete_from(stream, folder, uids, bin_name)
        left += refused
        reason = refusal or reason
    return UndeletedMails(left, reason)


async def _bin(folders: Folders) -> bytes | None:
    """Return the name on the wire of the folder into which deleted mails are moved; None: they are expunged."""
    if folders.offers.has(GMAIL) and folders.offers.has("MOVE"):
        return await folders.find_marked(r"\trash")
    return None


async def _delete_from(
    stream: ImapStream, folder: WatchedFolder, uids: Sequence[int], bin_name: bytes | None
) -> tuple[list[int], str]:
    """Delete mails of the open folder. Return the numbers of those that the server refused, and its words."""
    left: list[int] = []
    reason = ""
    for text, members in write_sets(uids):
        if bin_name is None:
            response = await _mark_and_expunge(stream, text, len(members))
        else:
            response = await _move(stream, text, len(members), bin_name)
        if response.kind != "OK":
            left += [number_of_mail(folder, uid) for uid in members]
            reason = f"{stream.command}: {response.shown}"
    return left, reason


async def _mark_and_expunge(stream: ImapStream, uids: bytes, count: int) -> Response:
    response = await mark_deleted(stream, uids, count)
    if response.kind != "OK":
        return response
    stream.command = "EXPUNGE"
    return await stream.run(b"UID EXPUNGE " + uids, expected=count)


async def _move(stream: ImapStream, uids: bytes, count: int, to: bytes) -> Response:
    stream.command = "MOVE"
    return await stream.run(b"UID MOVE " + uids, (to,), expected=count)


async def mark_deleted(stream: ImapStream, uids: bytes, count: int) -> Response:
    """Mark mails of the open folder as deleted; they are there until they are expunged.

    :param uids: a set (RFC 3501 section 9). :param count: of its members.
    """
    stream.command = "STORE"
    return await stream.run(b"UID STORE %s +FLAGS.SILENT (\\Deleted)" % uids, expected=count)
