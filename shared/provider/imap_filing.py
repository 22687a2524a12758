"""Files our mail at the provider: a copy of what was sent (APPEND), and the mark \\Answered of what was answered.

\\Seen of a fetched mail is never changed. A copy that is filed is marked as read: its author has written it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from shared.imap.names import decode_name
from shared.imap.sets import write_sets
from shared.net.dial import host_port
from shared.provider.imap_folders import Folders, WatchedFolder
from shared.provider.imap_keys import folder_key
from shared.provider.imap_responses import Response
from shared.provider.imap_stream import ImapStream
from shared.provider.session_errors import ProtocolError

SENT = r"\sent"
"""The mark of the folder for sent mail (RFC 6154), in lower case."""
APPEND_SECONDS = 300.0
"""Time limit for sending the next octets of a mail: seconds; as for the next block by SMTP, and more."""


async def find_sent_folder(folders: Folders, name: str) -> WatchedFolder:
    """Return the folder for sent mail. :param name: as the user has entered it; '': the one that the provider marks.

    :raises ProtocolError: there is none. :raises ServerBusy: the server does not say it now.
    """
    raw = await folders.find_marked(SENT) if not name else await folders.find_named(name)
    if raw is None:
        what = f"there is no folder {name!r} for sent mail" if name else "the provider marks no folder as \\Sent"
        raise ProtocolError(f"{host_port(folders.server)}: {what}; name the folder in imap.sent")
    return WatchedFolder(-1, decode_name(raw, folders.utf8), raw)


async def has_mail(stream: ImapStream, folders: Folders, folder: WatchedFolder, message_id: str) -> bool:
    """Return whether a folder has a mail with this Message-ID.

    :raises ProtocolError, ServerBusy: the server does not search; then nothing may be filed.
    """
    await folders.reopen(folder)
    await folders.refresh()  # it may be open since before the copy came
    found = False

    def hear(response: Response) -> None:
        nonlocal found
        found = found or (response.kind == "SEARCH" and any(word.isdigit() for word in response.text.split()))

    stream.command = "SEARCH"
    response = await stream.run(b'UID SEARCH HEADER "Message-ID"', (message_id.encode(),), heard=hear)
    if response.kind != "OK":
        raise folders.refusal(response)
    return found


async def append_sent(
    stream: ImapStream,
    folders: Folders,
    folder: WatchedFolder,
    pieces: AsyncIterator[bytes],
    octets: int,
    *,
    utf8: bool,
) -> None:
    """Append a mail to a folder, marked as read. After an exception it may be there or not.

    :param octets: of all pieces together, lines with CRLF. :param utf8: its header has octets beyond ASCII.
    :raises ProtocolError, ServerBusy: refused. :raises Temporary: the connection ended.
    """
    stream.command = "APPEND"
    as_utf8 = utf8 and folders.utf8
    before, after = (b" (\\Seen) UTF8 (~", b")") if as_utf8 else (b" (\\Seen) ", b"")  # RFC 6855 section 4
    response = await stream.run_with_mail(b"APPEND", folder.raw, before, pieces, octets, after, APPEND_SECONDS)
    if response.kind != "OK":
        raise folders.refusal(response)


async def mark_answered(stream: ImapStream, folders: Folders, keys: Sequence[str]) -> None:
    """Mark mails as answered. Mails that are not there any more, or of a folder that was renumbered, are left out.

    :param keys: of the ledger. :raises ProtocolError, ServerBusy: a folder cannot be changed.
    """
    for folder in folders.watched:
        beginning = folder_key(folder.name, 0).removesuffix("0:")
        of_folder = [key for key in keys if key.startswith(beginning)]
        if not of_folder:
            continue
        opened = await folders.reopen(folder, "SELECT")
        if opened.code == "READ-ONLY":
            raise ProtocolError(f"{host_port(folders.server)}: the folder {folder.name!r} is read-only")
        now = folder_key(folder.name, folder.uidvalidity)
        uids = [key.removeprefix(now) for key in of_folder if key.startswith(now)]
        for text, members in write_sets(sorted(int(uid) for uid in uids if uid.isdigit())):
            stream.command = "STORE"
            response = await stream.run(b"UID STORE %s +FLAGS.SILENT (\\Answered)" % text, expected=len(members))
            if response.kind != "OK":
                raise folders.refusal(response)
