"""Mails handed in by local accounts, and all SQL on them (tables submissions, submission_recipients, authors, relays).

A submission is the group of recipients that one claim takes: a sender holds it for a while, renews the claim, and
settles its recipients one by one. Times are by the database's clock; addresses stay as written and compare lower-case.
"""

from __future__ import annotations

import datetime
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from shared.database import Connection, Row
from shared.messages import Content, store
from shared.routing import Sent

Kind = Literal["relay", "local", "external"]

FAULTS = 5
"""After so many failures of our own a submission is parked."""
AUTHORSHIP_YEARS = 5


@dataclass(frozen=True, slots=True)
class Recipient:
    """An envelope recipient. target_id: of the local account (local) or of the external account of ours (external)."""

    address: str
    kind: Kind
    target_id: int | None = None


@dataclass(frozen=True, slots=True)
class Submission:
    """A mail as taken from a mail client. envelope_from: '' for ``<>``. header_id: Message-ID without its brackets."""

    author_id: int
    external_id: int
    content: Content
    envelope_from: str
    header_id: str
    body_8bit: bool
    smtputf8: bool
    recipients: tuple[Recipient, ...]


async def record(connection: Connection, submissions: Sequence[Submission]) -> list[int]:
    """Store bytes, envelopes and authorship; each submission is then ``submitted``. Returns their ids, in order.

    The author of a Message-ID is recorded here, before the mail can leave, so that no answer overtakes it. An id that
    is known already keeps its first author.
    """
    if not submissions:
        return []
    message_ids = await store(connection, [submission.content for submission in submissions])
    cursor = await connection.execute(
        """insert into submissions
               (author_id, external_id, message_id, envelope_from, header_id, body_8bit, smtputf8, state)
           select author_id, external_id, message_id, envelope_from, header_id, body_8bit, smtputf8, 'submitted'
           from unnest(%s::bigint[], %s::bigint[], %s::bigint[], %s::text[], %s::text[], %s::bool[], %s::bool[])
               with ordinality as new (author_id, external_id, message_id, envelope_from, header_id, body_8bit,
                                       smtputf8, place)
           order by place
           returning message_id, id""",
        (
            [s.author_id for s in submissions],
            [s.external_id for s in submissions],
            message_ids,
            [s.envelope_from for s in submissions],
            [s.header_id for s in submissions],
            [s.body_8bit for s in submissions],
            [s.smtputf8 for s in submissions],
        ),
    )
    by_message = {int(row[0]): int(row[1]) for row in await cursor.fetchall()}
    ids = [by_message[message_id] for message_id in message_ids]
    rows = [
        (submission_id, position, recipient)
        for submission_id, submission in zip(ids, submissions, strict=True)
        for position, recipient in enumerate(submission.recipients)
    ]
    await connection.execute(
        """insert into submission_recipients (submission_id, position, address, kind, target_id)
           select * from unnest(%s::bigint[], %s::int[], %s::text[], %s::text[], %s::bigint[])""",
        (
            [row[0] for row in rows],
            [row[1] for row in rows],
            [row[2].address for row in rows],
            [row[2].kind for row in rows],
            [row[2].target_id for row in rows],
        ),
    )
    await add_authors(
        connection,
        [
            (submission.header_id, submission.external_id, submission.author_id, submission_id)
            for submission_id, submission in zip(ids, submissions, strict=True)
        ],
    )
    return ids


# ------------------------------------------------------------------------------------------------ authors


async def add_authors(connection: Connection, rows: Collection[tuple[str, int, int, int]]) -> None:
    """Record who sent what: (header_id, external_id, author_id, submission_id). An id keeps its first author."""
    first: dict[tuple[str, int], tuple[int, int]] = {}
    for header_id, external_id, author_id, submission_id in rows:
        first.setdefault((header_id, external_id), (author_id, submission_id))
    keys = sorted(first)  # one order for all writers: no deadlock on ids that two of them insert
    await connection.execute(
        """insert into authors (header_id, external_id, author_id, submission_id)
           select * from unnest(%s::text[], %s::bigint[], %s::bigint[], %s::bigint[])
           on conflict (header_id, external_id) do nothing""",
        (
            [key[0] for key in keys],
            [key[1] for key in keys],
            [first[key][0] for key in keys],
            [first[key][1] for key in keys],
        ),
    )


async def add_further_ids(connection: Connection, further: Collection[tuple[str, str, int]]) -> None:
    """Record ids that a provider gave to mails of ours: (id known here, further id, id of the external account)."""
    if further:
        rows = sorted(further)
        await connection.execute(
            """insert into authors (header_id, external_id, author_id, submission_id)
               select f.further_id, a.external_id, a.author_id, a.submission_id
               from unnest(%s::text[], %s::text[], %s::bigint[]) as f (header_id, further_id, external_id)
                   join authors a using (header_id, external_id)
               on conflict (header_id, external_id) do nothing""",
            ([row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows]),
        )


async def authors_of(connection: Connection, header_ids: Collection[str]) -> dict[str, list[Sent]]:
    """For each of these ids that we sent within five years: by whom and through which account, the earliest first."""
    if not header_ids:
        return {}
    cursor = await connection.execute(
        """select a.header_id, a.external_id, a.author_id,
                  array(select lower(r.address) from submission_recipients r where r.submission_id = a.submission_id)
           from authors a
           where a.header_id = any(%s) and a.recorded_at > now() - make_interval(years => %s)
           order by a.recorded_at, a.submission_id""",
        (list(set(header_ids)), AUTHORSHIP_YEARS),
    )
    found: dict[str, list[Sent]] = {}
    for header_id, external_id, author_id, recipients in await cursor.fetchall():
        found.setdefault(header_id, []).append(Sent(header_id, external_id, author_id, tuple(recipients)))
    return found


# ------------------------------------------------------------------------------------------------ handing over


@dataclass(frozen=True, slots=True)
class Open:
    """A submission in state ``submitted``, locked, with the recipients that wait inside."""

    id: int
    author_id: int
    external_id: int
    message_id: int
    header_id: str
    inside: tuple[Recipient, ...]


async def submitted(connection: Connection, ids: Sequence[int]) -> list[Open]:
    """Those of these submissions that wait to be handed over, locked; what another one took or finished is left out."""
    cursor = await connection.execute(
        """select id, author_id, external_id, message_id, header_id from submissions
           where id = any(%s) and state = 'submitted' order by id for update""",
        (list(ids),),
    )
    rows = await cursor.fetchall()
    cursor = await connection.execute(
        """select submission_id, address, kind, target_id from submission_recipients
           where submission_id = any(%s) and kind <> 'relay' and state = 'waiting' order by submission_id, position""",
        ([row[0] for row in rows],),
    )
    inside: dict[int, list[Recipient]] = {}
    for submission_id, address, kind, target_id in await cursor.fetchall():
        inside.setdefault(submission_id, []).append(Recipient(address, kind, target_id))
    return [Open(*(*row, tuple(inside.get(row[0], ())))) for row in rows]


async def hand_over(connection: Connection, ids: Sequence[int]) -> None:
    """The recipients inside are delivered; what is to be relayed is queued, the rest done."""
    await connection.execute(
        """update submission_recipients set state = 'delivered', settled_at = now()
           where submission_id = any(%s) and kind <> 'relay' and state = 'waiting'""",
        (list(ids),),
    )
    await connection.execute(
        """update submissions s set state_at = now(), next_try_at = now(), state = case when exists (
               select from submission_recipients r where r.submission_id = s.id and r.state = 'waiting')
               then 'queued' else 'done' end
           where id = any(%s) and state = 'submitted'""",
        (list(ids),),
    )
    await connection.execute(
        """insert into relays (external_id) select distinct external_id from submissions where id = any(%s)
           on conflict (external_id) do nothing""",
        (list(ids),),
    )


async def overdue(connection: Connection, grace: float, limit: int = 1000) -> list[tuple[int, str]]:
    """Submissions that wait longer than ``grace`` seconds to be handed over: (id, address of the external account).

    They are marked, so the next sweep comes back to them only after another ``grace`` seconds.
    """
    cursor = await connection.execute(
        """with late as (
               select id from submissions
               where state = 'submitted' and state_at < now() - make_interval(secs => %(grace)s)
                 and (swept_at is null or swept_at < now() - make_interval(secs => %(grace)s))
               order by id limit %(limit)s for update skip locked)
           update submissions s set swept_at = now() from late, external_accounts e
           where s.id = late.id and e.id = s.external_id returning s.id, e.address""",
        {"grace": grace, "limit": limit},
    )
    return sorted((int(row[0]), str(row[1])) for row in await cursor.fetchall())


async def blame(connection: Connection, submission_id: int, origin: str, traceback: str, faults: int = 1) -> bool:
    """Count failures of our own on this submission; whether it is parked now. A claim on it ends."""
    cursor = await connection.execute(
        """update submissions set faults = faults + %s, error = %s, origin = %s, state_at = now(),
               claim_owner = null, claim_expires = null, next_try_at = now() + interval '1 minute',
               uncertain = uncertain or state = 'sent_unanswered',
               state = case when faults + %s >= %s then 'parked' when state = 'submitted' then 'submitted'
                            else 'queued' end
           where id = %s and state in ('submitted', 'queued', 'claimed', 'sent_unanswered') returning state""",
        (faults, _clean(traceback), origin, faults, FAULTS, submission_id),
    )
    row = await cursor.fetchone()
    return row is not None and row[0] == "parked"


# ------------------------------------------------------------------------------------------------ relaying


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


async def due_relays(connection: Connection) -> list[int]:
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
            [_clean(o.reply) for o in outcomes],
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


async def relays(connection: Connection, external_ids: Collection[int] | None = None) -> dict[int, Relay]:
    """By id of the external account; only these, if any are given."""
    cursor = await connection.execute(
        """select external_id, failures, next_try_at, paused_at, connections_limit, last_success_at, last_error,
                  last_error_kind, last_error_at
           from relays where %(ids)s::bigint[] is null or external_id = any(%(ids)s)""",
        {"ids": None if external_ids is None else list(external_ids)},
    )
    return {row[0]: Relay(*row) for row in await cursor.fetchall()}


async def relay_works(connection: Connection, external_id: int) -> None:
    """The provider took a login: no back-off, no pause."""
    await connection.execute(
        """update relays set failures = 0, paused_at = null, next_try_at = now(), last_success_at = now()
           where external_id = %s""",
        (external_id,),
    )


async def relay_fails(
    connection: Connection, external_id: int, kind: str, error: str, delay: float, *, pause: bool = False
) -> None:
    """The provider cannot be reached, or refuses our login (``pause``): no try for ``delay`` seconds."""
    await connection.execute(
        """update relays set failures = failures + 1, last_error = %s, last_error_kind = %s, last_error_at = now(),
               next_try_at = now() + make_interval(secs => %s),
               paused_at = case when %s then coalesce(paused_at, now()) else paused_at end
           where external_id = %s""",
        (_clean(error), kind, delay, pause, external_id),
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


# ------------------------------------------------------------------------------------------------ the operator's hands


@dataclass(frozen=True, slots=True)
class ListedRecipient:
    """A recipient as shown to the operator."""

    address: str
    kind: Kind
    state: str
    reply: str | None


@dataclass(frozen=True, slots=True)
class Listed:
    """A submission as shown to the operator. age: seconds. next_try_at: UTC; of a submission that waits for one."""

    id: int
    header_id: str
    author: str
    external: str
    state: str
    tries: int
    uncertain: bool
    age: float
    next_try_at: datetime.datetime | None
    error: str | None
    origin: str | None
    recipients: tuple[ListedRecipient, ...]


async def listing(
    connection: Connection, states: Collection[str] | None = None, ids: Collection[int] | None = None, limit: int = 1000
) -> list[Listed]:
    """Submissions in these states (all that are not done, if none are given), the oldest first."""
    cursor = await connection.execute(
        """select s.id, s.header_id, a.address, e.address, s.state, s.tries, s.uncertain,
                  extract(epoch from now() - s.created_at)::float8,
                  case when s.state = 'queued' then greatest(s.next_try_at, r.next_try_at) end, s.error, s.origin
           from submissions s join local_accounts a on a.id = s.author_id
               join external_accounts e on e.id = s.external_id
               left join relays r on r.external_id = s.external_id
           where case when %(states)s::text[] is null then s.state <> 'done' or %(ids)s::bigint[] is not null
                      else s.state = any(%(states)s) end
             and (%(ids)s::bigint[] is null or s.id = any(%(ids)s))
           order by s.id limit %(limit)s""",
        {"states": None if states is None else list(states), "ids": None if ids is None else list(ids), "limit": limit},
    )
    rows = await cursor.fetchall()
    cursor = await connection.execute(
        """select submission_id, address, kind, state, reply from submission_recipients
           where submission_id = any(%s) order by submission_id, position""",
        ([row[0] for row in rows],),
    )
    recipients: dict[int, list[ListedRecipient]] = {}
    for submission_id, *values in await cursor.fetchall():
        recipients.setdefault(submission_id, []).append(ListedRecipient(*values))
    return [Listed(*(*row, tuple(recipients.get(row[0], ())))) for row in rows]


async def found(connection: Connection, what: str, limit: int = 100) -> dict[int, str | None]:
    """Submissions of which ``what`` is the id, a Message-ID, or the address of author, account or recipient;
    the newest ones.

    :return: id to Message-ID, in order of id.
    """
    number = int(what) if what.isascii() and what.isdigit() and len(what) < 19 else None  # a bigint
    cursor = await connection.execute(
        """select s.id, s.header_id from submissions s
           where s.id = %(number)s or s.header_id = %(what)s
              or s.author_id in (select id from local_accounts where lower(address) = lower(%(what)s))
              or s.external_id in (select id from external_accounts where lower(address) = lower(%(what)s))
              or s.id in (select submission_id from authors where header_id = %(what)s)
              or exists (select from submission_recipients r
                         where r.submission_id = s.id and lower(r.address) = lower(%(what)s))
           order by s.id desc limit %(limit)s""",
        {"number": number, "what": what, "limit": limit},
    )
    return {int(row[0]): str(row[1]) for row in sorted(await cursor.fetchall())}


async def retry(connection: Connection, ids: Collection[int] | None = None) -> list[int]:
    """Try queued submissions (these, or all) now, and their accounts too. Returns the ids of those that will be."""
    cursor = await connection.execute(
        """update submissions set next_try_at = now()
           where state = 'queued' and (%(ids)s::bigint[] is null or id = any(%(ids)s)) returning id, external_id""",
        {"ids": None if ids is None else list(ids)},
    )
    rows = await cursor.fetchall()
    await connection.execute(
        "update relays set next_try_at = now(), failures = 0 where external_id = any(%s)",
        (sorted({row[1] for row in rows}),),
    )
    return sorted(int(row[0]) for row in rows)


async def cancel(connection: Connection, ids: Collection[int]) -> Mapping[int, list[str]]:
    """End queued or parked submissions without a further try, and without a notice.

    Returns for each that was cancelled the addresses that will not get it. One that is being sent right now is left
    out.
    """
    cursor = await connection.execute(
        """update submissions set state = 'done', state_at = now()
           where id = any(%s) and state in ('queued', 'parked') returning id""",
        (sorted(ids),),
    )
    cancelled: dict[int, list[str]] = {int(row[0]): [] for row in await cursor.fetchall()}
    cursor = await connection.execute(
        """update submission_recipients set state = 'cancelled', settled_at = now()
           where submission_id = any(%s) and state = 'waiting' returning submission_id, address""",
        (list(cancelled),),
    )
    for submission_id, address in await cursor.fetchall():
        cancelled[submission_id].append(address)
    return cancelled


async def requeue(connection: Connection, ids: Collection[int]) -> list[int]:
    """Give parked submissions another five tries. Returns the ids of those that were parked."""
    cursor = await connection.execute(
        """update submissions s set faults = 0, error = null, origin = null, state_at = now(), swept_at = null,
               next_try_at = now(), state = case when exists (
                   select from submission_recipients r
                   where r.submission_id = s.id and r.kind <> 'relay' and r.state = 'waiting')
                   then 'submitted' else 'queued' end
           where id = any(%s) and state = 'parked' returning id""",
        (sorted(ids),),
    )
    return sorted(int(row[0]) for row in await cursor.fetchall())


def _clean(text: str) -> str:
    """PostgreSQL takes neither NUL nor lone surrogates."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
