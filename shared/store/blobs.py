"""The bytes of mails, each stored once, and all SQL on them (tables blobs, blob_chunks).

The row of a mail has its first 256 KiB (``head``); the rest is stored in chunks of 1 MiB. Most mails are therefore one
row, the header can be read without the body, and a mail of 50 MB is written and read in bounded memory. Bytes are
stored with CRLF line ends and without dot-stuffing.
"""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from shared.db.arrays import array_literal
from shared.db.database import Connection, Database
from shared.errors import Permanent
from shared.model import Content

HEAD_OCTETS = 256 * 1024
"""Limit of the head: octets; most mails are smaller."""
CHUNK_OCTETS = 1024 * 1024
"""Size of a chunk: octets, which bounds the memory of a reader."""
_SLICE_OCTETS = 128 * 1024
"""Size of a slice of a read: octets; see ``read_span``."""


async def store_blobs(connection: Connection, contents: Sequence[Content]) -> list[int]:
    """Insert mails and return their ids in the same order."""
    if not contents:
        return []
    cursor = await connection.execute(
        "select nextval(pg_get_serial_sequence('blobs', 'id')) from generate_series(1, %s)", (len(contents),)
    )
    ids = [int(row[0]) for row in await cursor.fetchall()]
    async with connection.cursor().copy("copy blobs (id, octets, sha256, head) from stdin (format binary)") as copy:
        copy.set_types(["int8", "int8", "bytea", "bytea"])
        for blob_id, content in zip(ids, contents, strict=True):
            await copy.write_row((blob_id, content.octets, content.sha256, head(content)))
    await store_chunks(connection, ids, contents)
    return ids


FROM_NEW = """insert into blobs (id, octets, sha256, head) overriding system value
    select blob_id, octets, sha256, head from new"""
"""SQL: inserts the rows of the mails in ``new``, as a part of a larger statement."""


def is_whole(content: Content) -> bool:
    """Return whether the mail is one row, without chunks for ``store_chunks``."""
    return content.octets <= HEAD_OCTETS


def head(content: Content) -> bytes:
    """Return the part of the mail that is stored in its row."""
    return bytes(memoryview(content.body)[:HEAD_OCTETS])


async def store_chunks(connection: Connection, ids: Sequence[int], contents: Sequence[Content]) -> None:
    """Insert what follows the heads of these mails, in the transaction that inserts their rows."""
    if not all(map(is_whole, contents)):
        async with connection.cursor().copy(
            "copy blob_chunks (blob_id, position, bytes) from stdin (format binary)"
        ) as copy:
            copy.set_types(["int8", "int4", "bytea"])
            for blob_id, content in zip(ids, contents, strict=True):
                for position, chunk in enumerate(_chunks(content.body)):
                    await copy.write_row((blob_id, position, chunk))


def _chunks(body: bytes | bytearray) -> Iterable[bytes]:
    view = memoryview(body)
    for start in range(HEAD_OCTETS, len(body), CHUNK_OCTETS):
        yield bytes(view[start : start + CHUNK_OCTETS])


# ---------------------------------------------------------------------------------------------- uploads


@dataclass(frozen=True, slots=True)
class UploadedBlob:
    """A mail whose bytes were stored while they arrived; nothing refers to it yet. sha256: 32 bytes."""

    id: int
    octets: int
    sha256: bytes


async def begin_upload(connection: Connection, octets: int, first: bytes) -> int:
    """Store the first HEAD_OCTETS of a larger mail, before the others have arrived. Without a reference the purge
    deletes it as an orphan.

    :param octets: of the whole mail. :return: the id.
    """
    cursor = await connection.execute(
        "insert into blobs (octets, sha256, head) values (%s, %s, %b) returning id", (octets, bytes(32), first)
    )
    [row] = await cursor.fetchall()
    return int(row[0])


async def add_upload_chunk(connection: Connection, blob_id: int, position: int, chunk: bytes) -> None:
    """Store the next CHUNK_OCTETS, or the last octets. :param position: number of the chunk, from 0."""
    await connection.execute(
        "insert into blob_chunks (blob_id, position, bytes) values (%s, %s, %b)", (blob_id, position, chunk)
    )


FINISH_UPLOADS = "update blobs b set sha256 = u.sha256 from uploads u where b.id = u.blob_id"
"""SQL: stores the digests of the mails in ``uploads``, as a part of the statement that refers to them."""


# ---------------------------------------------------------------------------------------------- reading


async def heads(connection: Connection, ids: Sequence[int]) -> dict[int, bytes]:
    """Load the first 256 KiB of each mail (the whole of a smaller one). Missing ids are left out."""
    cursor = connection.cursor(binary=True)
    await cursor.execute("select id, head from blobs where id = any(%s)", (list(ids),))
    return dict(await cursor.fetchall())


async def prefixes(connection: Connection, ids: Sequence[int], octets: int) -> dict[int, bytes]:
    """Load the first ``octets`` of each mail, at most 256 KiB; only these are read from the disk."""
    cursor = connection.cursor(binary=True)
    await cursor.execute(
        "select id, substring(head from 1 for %s::int) from blobs where id = any(%s::bigint[])",
        (octets, array_literal(ids)),
    )
    return {int(blob_id): bytes(beginning) for blob_id, beginning in await cursor.fetchall()}


SoughtText = tuple[Sequence[bytes], Literal["header", "body", "mail"]]
"""A text that is looked for in the octets of mails. Its words, in lower case, without NUL and white space: each one is
there if the text is. And the place where it is looked for."""


async def find_texts(connection: Connection, ids: Sequence[int], texts: Sequence[SoughtText]) -> dict[int, list[bool]]:
    """Return which of these texts may be in the first 256 KiB of each mail, in any case of ASCII letters.

    The mails have CRLF line ends only. :return: by id, a value for each text, of mails that may have one at least.
    """
    forms = {
        "header": "position(%s::text in header) > 0",
        "body": "position(%s::text in body) > 0",
        "mail": "position(%s::text in header) + position(%s::text in body) > 0",
    }
    columns, words = [], []
    for parts, place in texts:
        columns.append(" and ".join([forms[place]] * len(parts)) or "true")
        for word in parts:  # ``encode`` writes a backslash twice
            words += [word.replace(b"\\", b"\\\\").decode("ascii")] * (2 if place == "mail" else 1)
    names = [f"t{number}" for number in range(len(texts))]
    cursor = connection.cursor(binary=True)
    # Without ``offset`` each use of a column would compute it again; ``encode`` makes a text of any octets.
    await cursor.execute(
        f"""select * from (
                select id, {", ".join(map(" as ".join, zip(columns, names, strict=True)))} from (
                    select id, lower(encode(substring(head from 1 for cut), 'escape') collate "C") as header,
                        lower(encode(substring(head from cut + 1), 'escape') collate "C") as body
                    from (select id, head, coalesce(nullif(position('\\x0d0a0d0a'::bytea in head), 0) + 3, length(head))
                              as cut
                          from (select id, head || ''::bytea as head from blobs where id = any(%s::bigint[]) offset 0) a
                          offset 0) b
                    offset 0) c
                offset 0) d
            where {" or ".join(names)}""",
        (*words, array_literal(ids)),
    )
    return {int(row[0]): list(row[1:]) for row in await cursor.fetchall()}


async def second_chunk(connection: Connection, blob_id: int) -> bytes:
    """Load what follows the head, up to 1 MiB; empty if the head is the whole mail."""
    cursor = connection.cursor(binary=True)
    await cursor.execute("select bytes from blob_chunks where blob_id = %s and position = 0", (blob_id,))
    row = await cursor.fetchone()
    return b"" if row is None else bytes(row[0])


async def stream(database: Database, blob_id: int) -> AsyncIterator[bytes]:
    """Read a mail in pieces (256 KiB, then 1 MiB each), each piece in a transaction of its own.

    :raises Permanent: the mail does not exist.
    :raises Temporary: the database is unavailable.
    """
    async with database.transaction() as connection:
        cursor = connection.cursor(binary=True)
        await cursor.execute("select octets, head from blobs where id = %s", (blob_id,))
        row = await cursor.fetchone()
    if row is None:
        raise Permanent(f"the bytes of blob {blob_id} are gone")
    remaining = int(row[0]) - len(row[1])
    yield bytes(row[1])
    position = 0
    while remaining > 0:
        async with database.transaction() as connection:
            cursor = connection.cursor(binary=True)
            await cursor.execute(
                "select bytes from blob_chunks where blob_id = %s and position = %s", (blob_id, position)
            )
            chunk = await cursor.fetchone()
        if chunk is None:
            raise Permanent(f"chunk {position} of blob {blob_id} is missing")
        remaining -= len(chunk[0])
        position += 1
        yield bytes(chunk[0])


def _locate(start: int, length: int) -> tuple[int | None, int, int]:
    """Find the bytes from ``start`` on: position of the chunk (None: the head), offset in it, and their number
    there.
    """
    if start < HEAD_OCTETS:
        return None, start, min(length, HEAD_OCTETS - start)
    position, offset = divmod(start - HEAD_OCTETS, CHUNK_OCTETS)
    return position, offset, min(length, CHUNK_OCTETS - offset)


async def read_span(connection: Connection, blob_id: int, start: int, length: int) -> bytes:
    """Read up to ``length`` bytes of a mail from ``start`` on: fewer at the end of a stored piece, none at the end of
    the mail.

    :raises Permanent: the mail does not exist, or a chunk of it is missing.
    """
    position, offset, count = _locate(start, length)
    place = "blobs where id = %(id)s"
    if position is not None:
        place = "blob_chunks where blob_id = %(id)s and position = %(position)s"
    cursor = connection.cursor(binary=True)
    # In slices: for a value of megabytes the server allocates memory from the kernel each time, at twice the cost.
    await cursor.execute(
        f"""select g.first, substring({"head" if position is None else "bytes"} from g.first + 1
                                      for least(%(slice)s, %(end)s - g.first))
            from generate_series(%(offset)s::int, %(end)s::int - 1, %(slice)s::int) g (first), {place}""",
        {"id": blob_id, "position": position, "offset": offset, "end": offset + count, "slice": _SLICE_OCTETS},
    )
    span = b"".join([part for _, part in sorted(await cursor.fetchall())])
    if not span:
        cursor = await connection.execute("select octets from blobs where id = %s", (blob_id,))
        row = await cursor.fetchone()
        if row is None:
            raise Permanent(f"the bytes of blob {blob_id} are gone")
        if start < int(row[0]):
            raise Permanent(f"bytes of blob {blob_id} from {start} on are missing")
    return span


# ---------------------------------------------------------------------------------------------- purging


async def purge_blobs(connection: Connection, ids: Sequence[int]) -> int:
    """Delete those of these mails that nothing refers to; the foreign keys prevent it if a reference appears meanwhile.

    :return: the number of mails.
    """
    cursor = await connection.execute(
        f"delete from blobs m where id = any(%s::bigint[]) and {_UNREFERENCED}", (array_literal(ids),)
    )
    return cursor.rowcount


async def list_orphans(
    connection: Connection, after: int, before: datetime.datetime, limit: int
) -> tuple[list[int], int | None]:
    """List the mails stored before this time that nothing refers to, among the next ``limit`` mails after this id.

    :return: their ids; and the id to continue after, None at the end.
    """
    cursor = await connection.execute(
        f"""select max(id), array_agg(id) filter (where created_at < %s and {_UNREFERENCED})
            from (select id, created_at from blobs where id > %s order by id limit %s) m""",
        (before, after, limit),
    )
    last, found = await cursor.fetchone() or (None, None)
    return list(found or ()), last


_UNREFERENCED = """not exists (select from inbound i where i.blob_id = m.id)
    and not exists (select from submissions s where s.blob_id = m.id)
    and not exists (select from folder_mails r where r.blob_id = m.id)"""
"""SQL: no row refers to the mail ``m``."""
