"""The keys of reply tags and the probe mails of accounts, with all SQL on them (tables reply_tag_keys,
reply_tag_probes).

SECURITY. The keys are not sealed by the vault: the router verifies tags, and a service that has the vault's key could
open the passwords of the providers. A reader of the database can make tags, and so choose the recipient of a mail to
the account; this reader can read all mails anyway.
"""

from __future__ import annotations

import datetime
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from shared.db.arrays import array_literal
from shared.db.database import Connection, storable
from shared.mime import reply_tags

KEPT_YEARS = 5
"""Age up to which a replaced key verifies tags: years, as long as authorship counts."""
EARLIER_IDS = 20
"""Limits the Message-IDs of earlier probe mails that an account keeps: ids. A mail that comes later than so many others
goes to people."""

ProbeResult = Literal["arrived", "untagged", "refused", "failed"]


@dataclass(frozen=True, slots=True)
class TagProbe:
    """The latest probe mail of an external account; the schema defines the results."""

    external_id: int
    message_id: str
    tag: str
    sent_at: datetime.datetime
    result: ProbeResult | None  # None: it has not come back yet
    result_at: datetime.datetime | None
    reply: str  # why it failed; '' otherwise


async def load_keys(connection: Connection) -> list[bytes]:
    """Return the keys that verify tags, the latest first; that one makes tags."""
    cursor = await connection.execute("select key from reply_tag_keys order by id desc")
    return [bytes(row[0]) for row in await cursor.fetchall()]


async def ensure_key(connection: Connection) -> None:
    """Create the first key, unless there is one. Two callers at once may create one each, which does no harm."""
    await connection.execute(
        "insert into reply_tag_keys (key) select %s where not exists (select from reply_tag_keys)",
        (reply_tags.new_key(),),
    )


async def rotate_key(connection: Connection) -> bool:
    """Create another key, and delete those that were replaced more than KEPT_YEARS ago.

    :return: whether there was a key, and so is another one now.
    """
    cursor = await connection.execute(
        "insert into reply_tag_keys (key) select %s where exists (select from reply_tag_keys)", (reply_tags.new_key(),)
    )
    await connection.execute(
        """delete from reply_tag_keys k where exists (
               select from reply_tag_keys later
               where later.id > k.id and later.created_at < now() - make_interval(years => %s))""",
        (KEPT_YEARS,),
    )
    return cursor.rowcount == 1


_PROBE = "select external_id, message_id, tag, sent_at, result, result_at, reply from reply_tag_probes"


async def record_probe(connection: Connection, external_id: int, message_id: str, tag: str) -> None:
    """Record a probe mail before it is sent, so that it cannot come back unknown. It replaces the one before."""
    await connection.execute(
        f"""insert into reply_tag_probes as p (external_id, message_id, tag) values (%s, %s, %s)
            on conflict (external_id) do update set message_id = excluded.message_id, tag = excluded.tag,
                earlier_ids = (array_prepend(p.message_id, p.earlier_ids))[1:{EARLIER_IDS}],
                sent_at = now(), result = null, result_at = null, reply = ''""",
        (external_id, message_id, tag),
    )


async def load_probe(connection: Connection, external_id: int) -> TagProbe | None:
    """Return the latest probe mail of an account; None if none was sent."""
    return (await load_probes(connection, [external_id])).get(external_id)


async def load_probes(connection: Connection, external_ids: Collection[int]) -> dict[int, TagProbe]:
    """Return the latest probe mails of these accounts, by the account's id."""
    cursor = await connection.execute(f"{_PROBE} where external_id = any(%s::bigint[])", (array_literal(external_ids),))
    return {int(row[0]): TagProbe(*row) for row in await cursor.fetchall()}


async def find_probes(connection: Connection, message_ids: Collection[str]) -> dict[tuple[int, str], TagProbe | None]:
    """Find the probe mails with these Message-IDs, by account and Message-ID. None: an earlier one of the account."""
    if not message_ids:
        return {}
    cursor = await connection.execute(
        f"""select asked.id, p.* from unnest(%s::text[]) asked (id)
                join ({_PROBE.replace(" from", ", earlier_ids from")}) p
                on p.message_id = asked.id or p.earlier_ids @> array[asked.id]""",
        (array_literal(set(message_ids)),),
    )
    return {
        (int(row[1]), str(row[0])): TagProbe(*row[1:-1]) if row[0] == row[2] else None
        for row in await cursor.fetchall()
    }


async def record_results(
    connection: Connection, results: Sequence[tuple[int, str, ProbeResult]], reply: str = ""
) -> None:
    """Record how probe mails ended: (id of the account, Message-ID, result). The first result counts; but ``refused``,
    which comes last, replaces the return: some providers list a mail that was sent beside those that came.

    :param reply: why, of the provider.
    """
    for external_id, message_id, result in sorted(results):  # one order for all writers
        await connection.execute(
            """update reply_tag_probes set result = %(result)s, result_at = now(), reply = %(reply)s
               where external_id = %(external)s and message_id = %(message_id)s
                   and (result is null or %(result)s = 'refused')""",
            {"result": result, "reply": storable(reply), "external": external_id, "message_id": message_id},
        )


async def forget_probe(connection: Connection, external_id: int) -> None:
    """Forget the result of an account that has another mailbox now; a mail that is under way stays known."""
    await connection.execute(
        """update reply_tag_probes set result = 'failed', result_at = now(),
                  reply = 'the account has another mailbox since then'
           where external_id = %s and result is distinct from 'failed'""",
        (external_id,),
    )
