"""Runs whole IMAP sessions of imap_out in memory: the input is what a client sends, in one piece and in small ones.

The first octet of the input chooses how far the session is before: just connected, logged in, or with INBOX selected.
The folder has two mails. The database refuses every change, so the input of APPEND is read and dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import re
from array import array
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

from services.imap_out.connection import ImapConnection
from services.imap_out.context import ImapContext
from services.imap_out.folder_changes import FolderChanges
from services.imap_out.folder_store import FolderStore
from services.imap_out.folder_watch import FolderWatch
from services.imap_out.interfaces import ImapClientInfo
from services.imap_out.session import ImapSession
from services.imap_out.structure.stored import MailStructure
from services.imap_out.structure_store import StructureStore
from services.imap_out.view import FolderState
from shared.db.database import Connection, Database
from shared.errors import Permanent, Temporary
from shared.model import Local
from shared.store.folder_batches import Appended, AppendedMail, FlagChange, StoreResult
from shared.store.folder_views import FolderCounts
from shared.store.folders import Folder
from tests.dialogues.pop3.stand import ALEX, MemoryLogins
from tests.fuzz.sessions import Door, Wire, _pieces

LONGEST = 16_384
"""Octets of an input: more at once before the login ends the connection (served_connection.py)."""
_TURNS = 20_000
_MAILS = {
    1: b"From: Anna <anna@x.example>\r\nTo: alex@local.com\r\nSubject: one\r\nMessage-ID: <1@x>\r\n\r\nHello\r\n",
    2: b"Subject: =?utf-8?q?zw=C3=B6lf?=\r\nReferences: <1@x>\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n"
    b"--b\r\n\r\ntext\0\r\n--b\r\nContent-Type: message/rfc822\r\n\r\nSubject: in\r\n\r\nit\r\n--b--\r\n",
}
_FOLDERS = {
    name: Folder(number, ALEX.id, name, "inbox" if name == "INBOX" else None, 7, 3, 5, 0, True)
    for number, name in enumerate(("INBOX", "Archive", "K\u00f6ln"), 1)
}
_LOGIN = b'a LOGIN alex@local.com "secret"\r\n'
_LINE = re.compile(rb"(\*|\+|[^ ()\x00-\x1f{%*\"\\+]{1,100}) ([^\r\n]*?)(~?\{(\d+)\})?\r\n")
_TAGGED = re.compile(rb"(?:OK|NO|BAD) [ -~]+")


class _NoDatabase:
    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        await asyncio.sleep(0)
        raise Temporary("the database refuses changes")
        yield

    statement = transaction


class _NoChanges(FolderChanges):
    """Refuses every change as the database does."""

    async def store_flags(self, change: FlagChange) -> StoreResult:
        await asyncio.sleep(0)
        raise Temporary("the database refuses changes")

    async def append_mail(self, mail: AppendedMail) -> Appended:
        await asyncio.sleep(0)
        raise Temporary("the database refuses changes")


class _MemoryStructures(StructureStore):
    """Structures that are computed alone."""

    async def _read_stored(self, blob_ids: Sequence[int]) -> dict[int, MailStructure]:
        return {}


class _MemoryFolders(FolderStore):
    """Folders in memory; the first one has all mails."""

    def __init__(self) -> None:
        super().__init__(cast(Database, _NoDatabase()))
        self.structures = _MemoryStructures(self.database, self.read_heads, self.read_span)

    async def list_folders(self, local_id: int) -> list[Folder]:
        return list(_FOLDERS.values())

    async def find_folder(self, local_id: int, name: str) -> Folder | None:
        name.encode()  # as the database does
        await asyncio.sleep(0)
        return _FOLDERS.get(name)

    async def count_mails(self, wanted: Sequence[Folder]) -> dict[int, FolderCounts]:
        return {folder.id: FolderCounts() for folder in wanted}

    async def versions(self, folder_ids: Sequence[int]) -> dict[int, int]:
        return {folder.id: folder.version for folder in _FOLDERS.values() if folder.id in folder_ids}

    async def _read_folders(self, folder_ids: Sequence[int]) -> dict[int, Folder]:
        return {folder.id: folder for folder in _FOLDERS.values() if folder.id in folder_ids}

    async def _read(self, folder_id: int, old: FolderState | None) -> FolderState:
        folder = next(folder for folder in _FOLDERS.values() if folder.id == folder_id)
        mails = _MAILS if folder.id == 1 else {}
        uids, octets = array("q", mails), array("q", map(len, mails.values()))
        flags, versions = array("B", [1, 8][: len(mails)]), array("q", [4, 5][: len(mails)])
        keywords = {2: ("$Work",)} if mails else {}
        return FolderState(folder, uids, uids, octets, flags, versions, array("q", [0] * len(mails)), keywords)

    async def _read_heads(self, blob_ids: Sequence[int]) -> dict[int, bytes]:
        return {blob_id: _MAILS[blob_id] for blob_id in blob_ids}

    _read_headers = _read_heads

    async def read_span(self, blob_id: int, start: int, length: int) -> bytes:
        if blob_id not in _MAILS:
            raise Permanent("there is no such mail")
        return _MAILS[blob_id][start : start + length]


class ImapDoor(Door):
    """Admits every connection."""

    def register_session(self, connection: object, _: Local) -> Any:
        return None


def make_connection(door: Door) -> ImapConnection:
    """A connection under TLS, without its transport; its folders are in memory."""
    store = _MemoryFolders()
    watch = FolderWatch(store, lambda: True)

    def open_session(connection: ImapConnection, tls: bool) -> ImapSession:
        client = ImapClientInfo(connection.peer, clear_allowed=True)
        changes = _NoChanges(store.database)
        return ImapSession(
            ImapContext(connection, store, changes, MemoryLogins(), watch, client, tls, 2_000, lambda _: None)
        )

    return ImapConnection(door, open_session, tls=True)


def connected(door: Door, wire: Wire) -> ImapConnection:
    """A connection whose session has begun."""
    connection = make_connection(door)
    assert connection.admit()
    connection.connection_made(cast(asyncio.Transport, wire))
    return connection


async def rest(connection: ImapConnection) -> None:
    """Wait until the session waits for input, or has ended."""

    def waits() -> bool:
        changed = connection._changed
        return connection._task is None or (changed is not None and not changed.done())

    await _until(waits)


async def _serve(door: Door, wire: Wire, pieces: Iterable[bytes]) -> None:
    connection = connected(door, wire)
    assert connection.session is not None
    watch = connection.session.context.watch
    for piece in pieces:
        connection.data_received(piece)
        await rest(connection)
    connection.connection_lost(None)
    await _until(lambda: connection._task is None)
    assert door.open == 0 and door.budget.in_use == 0 and not watch._watched


async def _until(holds: Any) -> None:
    for _ in range(_TURNS):
        await asyncio.sleep(0)
        if holds():
            return
    raise AssertionError("the session does not come to rest")


def _run(pieces: Iterable[bytes]) -> bytes:
    door, wire = ImapDoor(), Wire()
    with contextlib.redirect_stdout(io.StringIO()) as log:
        asyncio.run(_serve(door, wire, pieces))
    assert "Traceback" not in log.getvalue() and "unexpectedly" not in log.getvalue(), log.getvalue()
    return bytes(wire.out)


def client_session(data: bytes) -> None:
    """The answers do not depend on how the input is split; each is well formed, and each tag is the client's.

    The session comes to rest after every piece, and holds no memory when the client has gone.
    """
    start = b"" if data[:1] < b"\x40" else _LOGIN if data[:1] < b"\x80" else _LOGIN + b"b SELECT INBOX\r\n"
    data = data[:LONGEST]
    outs = [_run([start, *_pieces(data[1:], step)]) for step in (len(data) + 1, 1 + len(data) % 5)]
    assert outs[0] == outs[1]
    _judge(outs[0], start + data[1:])


def _judge(out: bytes, sent: bytes) -> None:
    assert out.startswith(b"* OK [CAPABILITY IMAP4rev1 ")
    position = 0
    while position < len(out):
        line = _LINE.match(out, position)
        assert line is not None, out[position : position + 200]
        position = line.end()
        begins = line
        while line[3]:  # a literal, and the rest of its response
            position += int(line[4])
            line = _REST.match(out, position)
            assert line is not None, out[position : position + 200]
            position = line.end()
        if begins[1] not in (b"*", b"+"):
            assert begins[1] in sent and _TAGGED.fullmatch(begins[2])


_REST = re.compile(rb"()([^\r\n]*?)(~?\{(\d+)\})?\r\n")
