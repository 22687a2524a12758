"""What is queued for the providers, and how relaying through each account goes (table relays).

A group is what one claim takes: the recipients of a submission that wait to be relayed. A sender holds it for a while,
renews the claim, and settles its recipients one by one. With shared/submissions.py the owner of the tables submissions
and submission_recipients. Times are by the database's clock.
"""

from __future__ import annotations

import datetime
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from shared.database import Connection, Row, storable


@dataclass(frozen=True, slots=True)
class Waiting:
    """A recipient that waits to be relayed. reply: the provider's last one about it."""

    position: int
    address: str
    reply: str | None


@dataclass(frozen=True, slots=True)
class Group:
    """The waiting recipients of one submission, with what is known of its author at this moment.

    octets: of the mail. author_addresses: the local account's further ones. age: seconds since it was submitted.
    """

    id: int
    author_id: int
    external_id: int
    message_id: int
    envelope_from: str
    header_id: str
    body_8bit: bool
    smtputf8: bool
    tries: int
    uncertain: bool
    age: float
    octets: int
    author_address: str
    author_name: str
    author_addresses: tuple[str, ...]
    recipients: tuple[Waiting, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one recipient. reply: the provider's, or the reason."""

    position: int
    state: Literal["relayed", "failed", "waiting"]
    reply: str


_GROUP = """s.id, s.author_id, s.external_id, s.message_id, s.envelope_from, s.header_id, s.body_8bit, s.smtputf8,
    s.tries, s.uncertain, extract(epoch from now() - s.created_at)::float8, m.octets, a.address, a.user_name,
    a.addresses"""
_GROUP_TABLES = "submissions s join messages m on m.id = s.message_id join local_accounts a on a.id = s.author_id"


async def _groups(connection: Connection, rows: Sequence[Row]) -> list[Group]:
    cursor = await connection.execute(
        """select submission_id, position, address, reply from submission_recipients
           where submission_id = any(%s) and kind = 'relay' and state = 'waiting' order by submission_id, position""",
        ([row[0] for row in rows],),
    )
    waiting: dict[int, list[Waiting]] = {}
    for submission_id, position, address, reply in await cursor.fetchall():
        waiting.setdefault(submission_id, []).append(Waiting(position, address, reply))
    return [Group(*(*row, tuple(waiting.get(row[0], ())))) for row in rows]


def _by_id(row: Row) -> int:
    return int(row[0])


async def due(connection: Connection) -> list[int]:
    """External accounts that may be tried now and have something to relay."""
    cursor = await connection.execute(
        """select external_id from relays r where r.next_try_at <= now() and exists (
               select from submissions s
               where s.external_id = r.external_id and s.state = 'queued' and s.next_try_at <= now())"""
    )
    return [int(row[0]) for row in await cursor.fetchall()]


async def claim(
    connection: Connection,
    external_id: int,
    owner: str,
    wanted: int,
    at_once: int,
    seconds: float,
    in_hand: Collection[int] = (),
) -> list[Group]:
    """Take up to ``wanted`` due groups of an account for ``seconds``, the longest due first.

    in_hand: what the owner is working on still. If its claim on one of them ran out, taking that one anew would make
    the lost claim look good, and the mail would be sent twice.
    at_once: how many groups of the account may be in hand, over all senders. While the account fails to connect, or
    its credentials are refused, one group only: a careful try.
    """
    cursor = await connection.execute(
        """select next_try_at <= now(), failures > 0 or paused_at is not null, connections_limit
           from relays where external_id = %s for update""",
        (external_id,),
    )
    relay = await cursor.fetchone()
    if relay is None or not relay[0]:
        return []
    limit = 1 if relay[1] else min(at_once, relay[2] or at_once)
    cursor = await connection.execute(
        f"""with due as (
                select id from submissions
                where external_id = %(external)s and state = 'queued' and next_try_at <= now()
                    and id <> all(%(in_hand)s::bigint[])
                order by next_try_at, id for update skip locked
                limit greatest(0, least(%(wanted)s, %(limit)s - (
                    select count(*) from submissions where external_id = %(external)s
                    and state in ('claimed', 'sent_unanswered') and claim_expires > now()))))
            update submissions s set state = 'claimed', claim_owner = %(owner)s, state_at = now(),
                claim_expires = now() + make_interval(secs => %(seconds)s)
            from due, messages m, local_accounts a
            where s.id = due.id and m.id = s.message_id and a.id = s.author_id returning {_GROUP}""",
        {
            "external": external_id,
            "wanted": wanted,
            "limit": limit,
            "owner": owner,
            "seconds": seconds,
            "in_hand": list(in_hand),
        },
    )
    rows = await cursor.fetchall()
    return await _groups(connection, sorted(rows, key=_by_id)) if rows else []


async def renew(connection: Connection, ids: Collection[int], owner: str, seconds: float) -> None:
    """Hold these claims for ``seconds`` from now."""
    await connection.execute(
        """update submissions set claim_expires = now() + make_interval(secs => %s)
           where id = any(%s) and claim_owner = %s and state in ('claimed', 'sent_unanswered')""",
        (seconds, list(ids), owner),
    )


async def mark_unanswered(connection: Connection, submission_id: int, owner: str, seconds: float) -> bool:
    """Before the final dot: from here on nobody knows whether the provider has it. False: the claim is lost."""
    cursor = await connection.execute(
        """update submissions set state = 'sent_unanswered', state_at = now(),
               claim_expires = now() + make_interval(secs => %s)
           where id = %s and claim_owner = %s and state in ('claimed', 'sent_unanswered')""",
        (seconds, submission_id, owner),
    )
    return cursor.rowcount == 1


async def settle(
    connection: Connection,
    submission_id: int,
    owner: str,
    outcomes: Sequence[Outcome],
    *,
    delay: float,
    count_try: bool,
    uncertain: bool = False,
) -> bool:
    """End a claim: recipients as told, those that still wait again after ``delay`` seconds.

    count_try: the provider refused for now. uncertain: it was sent and no answer came. False: the claim is lost, and
    nothing was changed.
    """
    cursor = await connection.execute(
        """select id from submissions where id = %s and claim_owner = %s and state in ('claimed', 'sent_unanswered')
           for update""",
        (submission_id, owner),
    )
    if await cursor.fetchone() is None:
        return False
    await _set_recipients(connection, submission_id, outcomes)
    await connection.execute(
        """update submissions s set claim_owner = null, claim_expires = null, state_at = now(),
               tries = tries + %(tries)s, uncertain = s.uncertain or %(uncertain)s,
               next_try_at = now() + make_interval(secs => %(delay)s), state = case when exists (
                   select from submission_recipients r where r.submission_id = s.id and r.state = 'waiting')
                   then 'queued' else 'done' end
           where id = %(id)s""",
        {"id": submission_id, "tries": int(count_try), "uncertain": uncertain, "delay": delay},
    )
    return True


async def _set_recipients(connection: Connection, submission_id: int, outcomes: Sequence[Outcome]) -> None:
    await connection.execute(
        """update submission_recipients r set state = new.state, reply = new.reply,
               settled_at = case when new.state <> 'waiting' then now() end
           from unnest(%s::int[], %s::text[], %s::text[]) as new (position, state, reply)
           where r.submission_id = %s and r.position = new.position and r.state = 'waiting'""",
        (
            [o.position for o in outcomes],
            [o.state for o in outcomes],
            [storable(o.reply) for o in outcomes],
            submission_id,
        ),
    )


async def expired_claims(connection: Connection, limit: int = 1000) -> list[tuple[Group, bool]]:
    """Claims whose owner is gone, locked; with each, whether it was sent without an answer."""
    cursor = await connection.execute(
        f"""select {_GROUP}, s.state = 'sent_unanswered' from {_GROUP_TABLES}
            where s.state in ('claimed', 'sent_unanswered') and s.claim_expires < now()
            order by s.id limit %s for update of s skip locked""",
        (limit,),
    )
    rows = await cursor.fetchall()
    groups = await _groups(connection, [row[:-1] for row in rows])
    return [(group, row[-1]) for group, row in zip(groups, rows, strict=True)]


async def release(connection: Connection, ids: Sequence[int], owner: str | None = None) -> None:
    """Give claims back as they were; with ``owner``, only that one's."""
    await connection.execute(
        """update submissions set state = 'queued', claim_owner = null, claim_expires = null, state_at = now()
           where id = any(%s) and state = 'claimed' and (%s::text is null or claim_owner = %s)""",
        (list(ids), owner, owner),
    )


async def send_again(connection: Connection, submission_id: int) -> None:
    """Queue a mail that was sent without an answer, its sender being gone, and mark it."""
    await connection.execute(
        """update submissions set state = 'queued', claim_owner = null, claim_expires = null, state_at = now(),
               uncertain = true, next_try_at = now()
           where id = %s and state = 'sent_unanswered'""",
        (submission_id,),
    )


async def too_old(connection: Connection, seconds: float, limit: int = 100) -> list[Group]:
    """Queued submissions older than ``seconds``, locked."""
    cursor = await connection.execute(
        f"""select {_GROUP} from {_GROUP_TABLES}
            where s.state = 'queued' and s.created_at < now() - make_interval(secs => %s)
            order by s.id limit %s for update of s skip locked""",
        (seconds, limit),
    )
    return await _groups(connection, await cursor.fetchall())


async def give_up(connection: Connection, submission_id: int, outcomes: Sequence[Outcome]) -> None:
    """End a queued submission (locked by ``too_old``) without a further try."""
    await _set_recipients(connection, submission_id, outcomes)
    await connection.execute(
        "update submissions set state = 'done', state_at = now() where id = %s and state = 'queued'", (submission_id,)
    )


async def delayed(connection: Connection, first: float, then: float, limit: int = 100) -> list[Group]:
    """Queued submissions whose author is due a notice of delay: ``first`` seconds after submission, then every
    ``then`` seconds. They are marked as noticed."""
    cursor = await connection.execute(
        f"""with late as (
                select id from submissions where state = 'queued'
                and coalesce(delay_noticed_at + make_interval(secs => %(then)s),
                             created_at + make_interval(secs => %(first)s)) <= now()
                order by id limit %(limit)s for update skip locked)
            update submissions s set delay_noticed_at = now() from late, messages m, local_accounts a
            where s.id = late.id and m.id = s.message_id and a.id = s.author_id returning {_GROUP}""",
        {"first": first, "then": then, "limit": limit},
    )
    return await _groups(connection, sorted(await cursor.fetchall(), key=_by_id))


async def backlog(connection: Connection) -> tuple[int, float]:
    """How many submissions wait to be relayed or are being relayed, and the age of the oldest in seconds."""
    cursor = await connection.execute(
        """select count(*), coalesce(extract(epoch from now() - min(created_at)), 0)::float8
           from submissions where state in ('queued', 'claimed', 'sent_unanswered')"""
    )
    row = await cursor.fetchone()
    return (int(row[0]), float(row[1])) if row else (0, 0.0)


# ------------------------------------------------------------------------------------------------ state of an account


@dataclass(frozen=True, slots=True)
class Relay:
    """How relaying through an account goes. failures: to connect or log in, one after the other. Times: UTC."""

    external_id: int
    failures: int
    next_try_at: datetime.datetime
    paused_at: datetime.datetime | None
    connections_limit: int | None
    last_success_at: datetime.datetime | None
    last_error: str | None
    last_error_kind: str | None
    last_error_at: datetime.datetime | None


async def states(connection: Connection, external_ids: Collection[int] | None = None) -> dict[int, Relay]:
    """By id of the external account; only these, if any are given."""
    cursor = await connection.execute(
        """select external_id, failures, next_try_at, paused_at, connections_limit, last_success_at, last_error,
                  last_error_kind, last_error_at
           from relays where %(ids)s::bigint[] is null or external_id = any(%(ids)s)""",
        {"ids": None if external_ids is None else list(external_ids)},
    )
    return {row[0]: Relay(*row) for row in await cursor.fetchall()}


async def works(connection: Connection, external_id: int) -> None:
    """The provider took a login: no back-off, no pause."""
    await connection.execute(
        """update relays set failures = 0, paused_at = null, next_try_at = now(), last_success_at = now()
           where external_id = %s""",
        (external_id,),
    )


async def fails(
    connection: Connection, external_id: int, kind: str, error: str, delay: float, *, pause: bool = False
) -> None:
    """The provider cannot be reached, or refuses our login (``pause``): no try for ``delay`` seconds."""
    await connection.execute(
        """update relays set failures = failures + 1, last_error = %s, last_error_kind = %s, last_error_at = now(),
               next_try_at = now() + make_interval(secs => %s),
               paused_at = case when %s then coalesce(paused_at, now()) else paused_at end
           where external_id = %s""",
        (storable(error), kind, delay, pause, external_id),
    )


async def lower_connections(connection: Connection, external_id: int, limit: int) -> None:
    """The provider takes no more connections than ``limit`` at once."""
    await connection.execute(
        """update relays set connections_limit = least(coalesce(connections_limit, %(limit)s), %(limit)s)
           where external_id = %(id)s""",
        {"limit": limit, "id": external_id},
    )


async def lift_limits(connection: Connection) -> None:
    """Try all the connections of each account again."""
    await connection.execute("update relays set connections_limit = null where connections_limit is not null")


async def resume(connection: Connection, external_id: int) -> None:
    """The account is new, was changed, or tested: try at once, with all its connections."""
    await connection.execute(
        """insert into relays (external_id) values (%s) on conflict (external_id) do update
           set paused_at = null, failures = 0, next_try_at = now(), connections_limit = null""",
        (external_id,),
    )
