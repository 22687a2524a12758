"""Lists the mails of the watched folders by their UIDs (RFC 3501 section 6.4.4; ESEARCH: RFC 4731), and their sizes.

Where the server counts its changes (CONDSTORE, RFC 7162), it says without a list that no mail has come or gone.

A mail's number in a session is its folder's index and its UID; its key has folder, UIDVALIDITY and UID.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Literal

from shared.imap.sets import UID_LIMIT, read_numbers, read_set, write_sets
from shared.net.dial import host_port
from shared.provider.imap_folders import Folders, FolderUnavailable, WatchedFolder
from shared.provider.imap_keys import folder_key
from shared.provider.imap_responses import MalformedResponse, Response, fetch_attributes, number_of
from shared.provider.imap_stream import LIST_OCTETS, ImapStream
from shared.provider.retrieval import Listing
from shared.provider.session_errors import ProtocolError

MAX_MAILS = 1_000_000
"""Mails of a folder that are listed: bounds memory and time."""
LIST_TRIES = 3
"""Limits how often the lists are read again because mails come or go: in a busy mailbox some always do."""
_DIGEST_OCTETS = 1024 * 1024
"""Octets of a list after which other tasks get a turn."""

_COUNT = re.compile(rb"\bCOUNT (\d{1,10})\b", re.IGNORECASE)
_ALL = re.compile(rb"\bALL ([\d:,]+)", re.IGNORECASE)
_OF_UIDS = re.compile(rb"(?:^|[ )])UID\b", re.IGNORECASE)


def number_of_mail(folder: WatchedFolder, uid: int) -> int:
    """Return the number of a mail in this session."""
    return folder.index * UID_LIMIT + uid


def uids_by_folder(
    numbers: Sequence[int], folders: Sequence[WatchedFolder]
) -> Iterator[tuple[WatchedFolder, list[int]]]:
    """Yield the UIDs behind these numbers in their order, each time with their folder."""
    for index, group in groupby(numbers, lambda number: number // UID_LIMIT):
        yield folders[index], [number % UID_LIMIT for number in group]


@dataclass(slots=True)
class _FoundUids:
    """The UIDs of one folder, as the server listed them."""

    folder: WatchedFolder
    uidvalidity: int
    count: int  # of the mails in the folder
    text: bytes = b""
    form: Literal["set", "numbers", "array"] = "numbers"  # of the text: ``1:3,7``, numbers with blanks, or an array's

    def parse(self) -> array[int] | None:
        """Return the UIDs; None if the list is malformed."""
        match self.form:
            case "set":
                return read_set(self.text, MAX_MAILS)
            case "numbers":
                return read_numbers(self.text, MAX_MAILS)
        return array("I", self.text)


@dataclass(slots=True)
class ImapListReply:
    """The lists of all folders, not parsed yet. problems: what is missing, for the user."""

    found: list[_FoundUids]
    problems: list[str]
    digest: bytes = b""  # the same for the same list

    def parse(self) -> Listing:
        """Parse the list. It is complete if every folder has as many UIDs as mails."""
        mails: list[tuple[int, str]] = []
        problems = list(self.problems)
        for one in self.found:
            beginning = folder_key(one.folder.name, one.uidvalidity)
            uids = one.parse()
            distinct = _without_repetitions(uids or array("I"))
            mails += [(number_of_mail(one.folder, uid), f"{beginning}{uid}") for uid in distinct]
            if uids is None or not len(distinct) == len(uids) == one.count:
                problems.append(f"the folder {one.folder.name!r} has {one.count} mails, {len(distinct)} are listed")
        return Listing(tuple(mails), not problems, "; ".join(problems))


def _without_repetitions(uids: array[int]) -> array[int]:
    """Return these UIDs, each once. Most servers list them in ascending order: then no set of a million is needed."""
    if all(one < other for one, other in pairwise(uids)):
        return uids
    return array("I", dict.fromkeys(uids))


async def fetch_state(folders: Folders, problems: Sequence[str]) -> bytes | None:
    """Open all watched folders. Return a digest that is the same again only if no mail has come or gone.

    A new mail raises UIDNEXT, one that leaves lowers EXISTS, and both raise HIGHESTMODSEQ (RFC 7162 section 3.1.2.1).
    So does each changed flag: another digest does not mean other mails.

    :param problems: folders that are not watched.
    :return: None if the server does not say these numbers of every folder.
    :raises ServerBusy, ProtocolError: it refuses folders now, or one was renumbered in this session.
    """
    states = []
    for folder in folders.watched:
        try:
            await folders.open(folder)
        except FolderUnavailable:
            return None
        if not folder.modseq or not folder.uidnext:
            return None
        states.append((folder.name, folder.uidvalidity, folder.uidnext, folder.exists, folder.modseq))
    return hashlib.sha256(repr((states, problems)).encode()).digest() if states else None


async def fetch_list_reply(stream: ImapStream, folders: Folders, problems: Sequence[str]) -> ImapListReply:
    """List the mails of all watched folders; do not parse the lists.

    They are one after the other: a mail that is moved meanwhile would be in two of them, and so another mail. If one of
    the first has changed by the end, all are read again.

    :param problems: folders that are not watched.
    :raises ServerBusy, ProtocolError: there is no list now, or no folder can be opened.
    """
    for _ in range(LIST_TRIES):
        reply = await _list_all(stream, folders, problems)
        if not await _has_changed(folders, reply):
            break
    reply.digest = await _digest(reply)
    return reply


async def _list_all(stream: ImapStream, folders: Folders, problems: Sequence[str]) -> ImapListReply:
    reply = ImapListReply([], list(problems))
    for folder in folders.watched:
        try:
            await folders.open(folder)
        except FolderUnavailable as error:
            reply.problems.append(str(error))
            continue
        reply.found.append(await _find_uids(stream, folders, folder))
    if not reply.found:
        raise ProtocolError(f"{host_port(stream.server)}: {'; '.join(reply.problems)}")
    return reply


async def _has_changed(folders: Folders, reply: ImapListReply) -> bool:
    """Return whether mails have left a folder, or come, while the folders behind it were listed."""
    for one in reply.found[:-1]:
        uidnext = one.folder.uidnext
        await folders.reopen(one.folder)
        folders.forget_opened()
        if (one.folder.exists, one.folder.uidnext) != (one.count, uidnext):
            return True
    return False


async def _digest(reply: ImapListReply) -> bytes:
    """Return the digest of the list. Other tasks get a turn meanwhile: it may be long."""
    facts = [(one.folder.name, one.uidvalidity, one.count, len(one.text), one.form) for one in reply.found]
    digest = hashlib.sha256(repr((facts, reply.problems)).encode())
    for one in reply.found:
        for start in range(0, len(one.text), _DIGEST_OCTETS):
            digest.update(memoryview(one.text)[start : start + _DIGEST_OCTETS])
            await asyncio.sleep(0)
    return digest.digest()


async def _find_uids(stream: ImapStream, folders: Folders, folder: WatchedFolder) -> _FoundUids:
    """Ask for the UIDs of the open folder: in the shortest way, then in others if the number of mails is another one.

    Some servers search only a part of a large folder. A mail may also arrive while the server searches.
    """
    ways = [_search_extended] if folders.offers.has("ESEARCH") else []
    found = _FoundUids(folder, folder.uidvalidity, folder.exists)
    folder.arrived = False
    if not folder.exists:
        return found
    for way in (*ways, _search, _fetch_uids):
        count = await way(stream, folders, found)
        if count != folder.exists:
            await folders.refresh()
        found.count = folder.exists
        if count == folder.exists:
            break
    return found


async def _search_extended(stream: ImapStream, folders: Folders, found: _FoundUids) -> int:
    """Send UID SEARCH RETURN (COUNT ALL). Return how many mails the server found."""
    count = 0

    def hear(response: Response) -> None:
        nonlocal count
        if response.kind == "ESEARCH" and _OF_UIDS.search(response.text):
            counted, uids = _COUNT.search(response.text), _ALL.search(response.text)
            count = int(counted[1]) if counted else 0
            found.text, found.form = (uids[1] if uids else b""), "set"

    stream.command = "SEARCH"
    await stream.run(b"UID SEARCH RETURN (COUNT ALL) ALL", heard=hear)
    return count


async def _search(stream: ImapStream, folders: Folders, found: _FoundUids) -> int:
    """Send UID SEARCH ALL. Return how many mails the server found."""
    texts: list[bytes] = []
    octets = 0

    def hear(response: Response) -> None:
        nonlocal octets
        if response.kind == "SEARCH":
            octets += len(response.text) + 1
            if octets > LIST_OCTETS:
                raise stream.too_long(LIST_OCTETS)
            end = response.text.find(b"(")  # a MODSEQ (RFC 7162)
            texts.append((response.text[:end] if end >= 0 else response.text).strip())

    stream.command = "SEARCH"
    response = await stream.run(b"UID SEARCH ALL", heard=hear)
    if response.kind != "OK":
        raise folders.refusal(response)
    found.text, found.form = b" ".join(texts) if len(texts) != 1 else texts[0], "numbers"
    return found.text.count(b" ") + 1 if found.text else 0


async def _fetch_uids(stream: ImapStream, folders: Folders, found: _FoundUids) -> int:
    """Send UID FETCH 1:* (UID). Return how many mails the server named."""
    uids = array("I")

    def hear(response: Response) -> None:
        uid = _uid_of(response)
        if uid is not None and len(uids) < MAX_MAILS:
            uids.append(uid)

    stream.command = "FETCH"
    response = await stream.run(b"UID FETCH 1:* (UID)", heard=hear, expected=found.folder.exists)
    if response.kind != "OK":
        raise folders.refusal(response)
    if len(uids) > found.text.count(b" ") + 1:  # more than SEARCH found
        found.text, found.form = uids.tobytes(), "array"
    return len(uids)


def _uid_of(response: Response) -> int | None:
    if response.kind != "FETCH":
        return None
    try:
        uid = number_of(fetch_attributes(response).get("UID"))
    except MalformedResponse:
        return None
    return uid if uid is not None and 0 < uid < UID_LIMIT else None


async def fetch_sizes(stream: ImapStream, folders: Folders, numbers: Sequence[int]) -> dict[int, int]:
    """Send UID FETCH (RFC822.SIZE) for these mails: octets by number, as far as the server reports them."""
    sizes: dict[int, int] = {}
    for folder, uids in uids_by_folder(numbers, folders.watched):
        await folders.reopen(folder)

        def hear(response: Response, folder: WatchedFolder = folder) -> None:
            if response.kind != "FETCH" or len(sizes) >= len(numbers):
                return
            try:
                found = fetch_attributes(response)
            except MalformedResponse:
                return
            uid, octets = number_of(found.get("UID")), number_of(found.get("RFC822.SIZE"))
            if uid is not None and octets is not None:
                sizes[number_of_mail(folder, uid)] = octets

        stream.command = "FETCH"
        for text, members in write_sets(uids):
            await stream.run(b"UID FETCH %s (UID RFC822.SIZE)" % text, heard=hear, expected=len(members))
    return sizes
