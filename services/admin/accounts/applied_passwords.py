"""The password hashes of the local accounts of an accounts file, and all SQL on the table applied_passwords.

The comparison of one password with its stored hash takes 30 ms of a core. So the local accounts of a file form groups,
and one more hash is stored for each group: of all its addresses, stored hashes and passwords together. If it matches,
no password of the group has changed, in the file or here.

SECURITY. The hash of a group is made as that of a password, and a group has at least two passwords. A guess at it costs
as much as a guess at one password, and all passwords of the group have to be right at once. A digest under the key
would be faster to compare. But a backup contains database and key, and its thief could try millions of passwords a
second.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from services.admin.accounts.file_format import LocalFields
from shared.auth.passwords import HashingPool
from shared.db.arrays import array_literal
from shared.db.database import IDLE_SECONDS, Connection
from shared.model import Local

T = TypeVar("T")
R = TypeVar("R")
Progress = Callable[[int, int], None]
"""A function that is called with the number of steps that are done, and the number of all steps."""
Entry = tuple[LocalFields, Local | None]
"""A local account of the file, and as it is stored."""

GROUPS = 16
"""Number of groups: with more of them an unchanged file takes longer, with fewer of them a file with one new password
does. A thousand accounts form groups of 62."""

ASK_SECONDS = IDLE_SECONDS / 6
"""Interval of statements while passwords are hashed: seconds; PostgreSQL ends a transaction that is idle longer than
``IDLE_SECONDS``, and a thousand passwords may take a minute."""


async def hash_passwords(
    connection: Connection, entries: Sequence[Entry], passwords: HashingPool, progress: Progress
) -> list[str]:
    """Return the password hash of each local account: the stored one, unless the file has another password.

    :param progress: counts the passwords that are compared or hashed.
    """
    groups: dict[int, list[Entry]] = defaultdict(list)
    for entry in entries:
        if entry[0].password is not None:
            groups[_group_of(entry[0].address)].append(entry)
    hashes = {
        fields.address: fields.password_hash or (old.password_hash if old is not None else "")
        for fields, old in entries
    }
    known = await _load_hashes(connection)

    async def is_unchanged(number: int) -> bool:
        return number in known and await passwords.matches(known[number], _text_of(groups[number], hashes))

    unchanged = await _in_parallel(passwords.threads, is_unchanged, list(groups))
    changed = {n: group for (n, group), same in zip(groups.items(), unchanged, strict=True) if not same}
    to_do = [entry for group in changed.values() for entry in group]
    done, asked_at = 0, time.monotonic()

    async def hash_one(entry: Entry) -> None:
        nonlocal done, asked_at
        fields, old = entry
        assert fields.password is not None
        if old is None or not await passwords.matches(old.password_hash, fields.password):
            hashes[fields.address] = await passwords.hash(fields.password)
        progress(done := done + 1, len(to_do))
        if time.monotonic() > asked_at + ASK_SECONDS:
            asked_at = time.monotonic()
            await connection.execute("select")

    await _in_parallel(passwords.threads, hash_one, to_do)
    numbers = [number for number, group in changed.items() if len(group) > 1]

    async def hash_group(number: int) -> str:
        return await passwords.hash(_text_of(changed[number], hashes))

    await _store_hashes(connection, numbers, await _in_parallel(passwords.threads, hash_group, numbers))
    return [hashes[fields.address] for fields, _ in entries]


def _group_of(address: str) -> int:
    """Return the group of an address: always the same, however many accounts there are."""
    return hashlib.sha256(address.casefold().encode()).digest()[0] % GROUPS


def _text_of(group: Iterable[Entry], hashes: Mapping[str, str]) -> str:
    """Return the text that the hash of a group is made of."""
    return json.dumps(sorted((f.address.casefold(), hashes[f.address], f.password) for f, _ in group))


async def _in_parallel(limit: int, work: Callable[[T], Awaitable[R]], items: Sequence[T]) -> list[R]:
    """Do the work for each item, at most ``limit`` at a time: logins use the same threads, and must not wait long."""
    turns = asyncio.Semaphore(limit)

    async def do(item: T) -> R:
        async with turns:
            return await work(item)

    async with asyncio.TaskGroup() as tasks:
        begun = [tasks.create_task(do(item)) for item in items]
    return [task.result() for task in begun]


# ---------------------------------------------------------------------------------------------- the table


async def _load_hashes(connection: Connection) -> dict[int, str]:
    cursor = await connection.execute("select number, hash from applied_passwords")
    return dict(await cursor.fetchall())


async def _store_hashes(connection: Connection, numbers: Sequence[int], hashes: Sequence[str]) -> None:
    await connection.execute(
        """insert into applied_passwords (number, hash) select * from unnest(%s::smallint[], %s::text[])
           on conflict (number) do update set hash = excluded.hash""",
        (array_literal(numbers), array_literal(hashes)),
    )
