"""The queue of mails to relay: claims, marks and results.

A queued mail is a submission with the recipients that wait to be relayed. A sender claims it for a time, renews the
lease, and records a result for each recipient. The account's state (shared/store/relay_status.py) decides how many
mails are sent at the same time. This module owns the tables submissions and submission_recipients together with
shared/store/submissions.py. Times are by the database's clock.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from shared.db.arrays import array_literal
from shared.db.database import FUTURE, Connection, Row, storable
from shared.store import blobs, maillog, poison
from shared.store.maillog import MailEvent

STAGE = "relay"
"""Name of the relay as a stage in shared/store/poison.py."""


@dataclass(frozen=True, slots=True)
class QueuedRecipient:
    """A recipient that waits to be relayed."""

    position: int
    address: str
    reply: str | None  # the provider's last reply about it
    dsn_params: str | None = None  # requested notifications (shared/mime/dsn_options.py)


@dataclass(frozen=True, slots=True)
class QueuedMail:
    """The waiting recipients of one submission, with the author's current data."""

    id: int
    author_id: int
    external_id: int
    blob_id: int
    envelope_from: str
    message_id: str
    body_8bit: bool
    smtputf8: bool
    tries: int
    uncertain: bool
    age: float  # seconds since submission
    octets: int  # of the mail
    author_address: str
    author_name: str
    author_addresses: tuple[str, ...]  # the author's further addresses
    dsn_params: str | None  # requested notifications (shared/mime/dsn_options.py)
    recipients: tuple[QueuedRecipient, ...]


@dataclass(frozen=True, slots=True)
class RecipientResult:
    """The result of one recipient."""

    position: int
    state: Literal["relayed", "failed", "waiting"]
    reply: str  # of the provider, or the reason


QUEUED_MAIL = """s.id, s.author_id, s.external_id, s.blob_id, s.envelope_from, s.message_id, s.body_8bit, s.smtputf8,
    s.tries, s.uncertain, extract(epoch from now() - s.created_at)::float8, m.octets, a.address, a.user_name,
    a.addresses, s.dsn_params"""
# As JSON: psycopg reads an array of rows item by item in Python.
_RECIPIENTS = """(select json_agg(json_build_array(r.position, r.address, r.reply, r.dsn_params) order by r.position)
    from submission_recipients r where r.submission_id = s.id and r.kind = 'relay' and r.state = 'waiting')"""
QUEUED_MAIL_TABLES = "submissions s join blobs m on m.id = s.blob_id join local_accounts a on a.id = s.author_id"


async def load_recipients(connection: Connection, rows: Sequence[Row], state: str = "waiting") -> list[QueuedMail]:
    """Return the mails of these rows of ``QUEUED_MAIL``, with their recipients in this state."""
    if not rows:
        return []
    cursor = await connection.execute(
        """select submission_id, position, address, reply, dsn_params from submission_recipients
           where submission_id = any(%s) and (kind = 'relay' or state = 'cancelled') and state = %s
           order by submission_id, position""",
        ([row[0] for row in rows], state),
    )
    waiting: dict[int, list[QueuedRecipient]] = {}
    for submission_id, *values in await cursor.fetchall():
        waiting.setdefault(submission_id, []).append(QueuedRecipient(*values))
    return [QueuedMail(*(*row, tuple(waiting.get(row[0], ())))) for row in rows]


async def load_queued_mail(connection: Connection, submission_id: int) -> QueuedMail | None:
    """Load this submission, if it is queued."""
    cursor = await connection.execute(
        f"select {QUEUED_MAIL} from {QUEUED_MAIL_TABLES} where s.id = %s and s.state = 'queued'", (submission_id,)
    )
    mails = await load_recipients(connection, await cursor.fetchall())
    return mails[0] if mails else None


async def load_queued_mails(connection: Connection, ids: Sequence[int]) -> list[QueuedMail]:
    """Load these submissions in any state."""
    cursor = await connection.execute(
        f"select {QUEUED_MAIL} from {QUEUED_MAIL_TABLES} where s.id = any(%s) order by s.id", (list(ids),)
    )
    return await load_recipients(connection, await cursor.fetchall())


async def list_due_accounts(connection: Connection) -> list[int]:
    """List the external accounts that may be tried now and have mail to relay."""
    cursor = await connection.execute(
        f"""select external_id from relay_status r where r.next_try_at <= now() and exists (
               select from submissions s
               where s.external_id = r.external_id and s.state = 'queued' and s.next_try_at <= now()
                   and {poison.NOT_POISON.format(id="s.id", stage=STAGE)})"""
    )
    return [int(row[0]) for row in await cursor.fetchall()]


@dataclass(frozen=True, slots=True)
class ClaimRequest:
    """What a sender wants to claim of an account."""

    external_id: int
    owner: str
    seconds: float  # lease of the claims
    busy_lanes: int = 0  # lanes of the owner that have a mail
    prefetch: int = 0  # mails to claim ahead, for lanes that become free
    prefetch_octets: int = 0  # memory limit of these
    exclude_ids: Collection[int] = ()
    """Mails that the owner still works on. If the lease of one of them expired, another claim on it would make the lost
    claim valid, and the mail would be sent twice."""


@dataclass(frozen=True, slots=True)
class Claimed:
    """The result of a claim."""

    mails: list[QueuedMail]  # the claimed ones
    lanes: int  # limit of this owner's mails of the account on the wire now
    more: bool  # other mails may be due
    account_version: int  # of the external account, for the marks of these mails
    careful: bool  # the account fails to connect or log in: one mail shows whether that is over


async def claim(connection: Connection, request: ClaimRequest) -> Claimed:
    """Claim due mails of an account, the longest due first: one for each free lane, and some ahead."""
    account = await _count_lanes(connection, request)
    free = max(0, account.lanes - request.busy_lanes)
    wanted = free + (0 if account.careful or account.lanes == 0 else request.prefetch)
    if wanted == 0:
        return Claimed([], account.lanes, account.lanes > 0, account.version, account.careful)
    mails, due = await _claim_rows(connection, request, free, wanted)
    more = due == wanted or due > len(mails)  # as many as were wanted, or the others exceed the memory limit
    return Claimed(mails, account.lanes, more, account.version, account.careful)


@dataclass(frozen=True, slots=True)
class _AccountLanes:
    lanes: int  # limit of the owner's mails on the wire; 0: the account may not be tried now
    careful: bool  # the account fails to connect, or its credentials are refused: one mail at a time
    version: int


async def _count_lanes(connection: Connection, request: ClaimRequest) -> _AccountLanes:
    """Lock the account's state, and return how many lanes the owner may have.

    The limit of connections holds over all senders: each claim of another sender counts as one of them.
    """
    cursor = await connection.execute(
        """select r.failures > 0 or r.paused_at is not null, least(e.smtp_connections, r.connections_limit),
               e.smtp_version
           from relay_status r join external_accounts e on e.id = r.external_id
           where r.external_id = %s and r.next_try_at <= now() and e.enabled and e.removed_at is null
           for update of r""",
        (request.external_id,),
    )
    row = await cursor.fetchone()
    if row is None:
        return _AccountLanes(0, False, 0)
    careful, limit, version = bool(row[0]), int(row[1]), int(row[2])
    cursor = await connection.execute(  # after the lock, to see the claims that others committed before
        """select count(*) from submissions where external_id = %s and state in ('claimed', 'sent_unanswered')
               and claim_expires > now() and claim_owner <> %s""",
        (request.external_id, request.owner),
    )
    [others] = await cursor.fetchone() or (0,)
    return _AccountLanes(max(0, (1 if careful else limit) - others), careful, version)


async def _claim_rows(
    connection: Connection, request: ClaimRequest, free: int, wanted: int
) -> tuple[list[QueuedMail], int]:
    """Claim up to ``wanted`` due mails; those after the first ``free`` ones only within the memory limit.

    :return: the claimed mails in order of id, and how many due ones were seen.
    """
    cursor = await connection.execute(
        f"""with due as materialized (
                select id, blob_id, next_try_at from submissions
                where external_id = %(external)s and state = 'queued' and next_try_at <= now()
                    and id <> all(%(exclude)s::bigint[]) and {poison.NOT_POISON.format(id="id", stage=STAGE)}
                order by next_try_at, id limit %(wanted)s for update skip locked),
            sized as (
                select due.id, row_number() over nth as place,
                    sum(least(m.octets, {blobs.HEAD_OCTETS})) over nth as octets
                from due join blobs m on m.id = due.blob_id window nth as (order by due.next_try_at, due.id)),
            taken as (select id from sized where place <= %(free)s or octets <= %(octets)s),
            claimed as (
                update submissions s set state = 'claimed', claim_owner = %(owner)s, state_at = now(),
                    claim_expires = now() + make_interval(secs => %(seconds)s)
                from taken, blobs m, local_accounts a
                where s.id = taken.id and m.id = s.blob_id and a.id = s.author_id
                returning {QUEUED_MAIL}, {_RECIPIENTS})
            select (select count(*) from due), claimed.* from (values (true)) as always left join claimed on true""",
        {
            "external": request.external_id,
            "wanted": wanted,
            "free": free,
            "octets": request.prefetch_octets,
            "owner": request.owner,
            "seconds": request.seconds,
            "exclude": array_literal(request.exclude_ids),
        },
    )
    rows = await cursor.fetchall()
    mails = [
        QueuedMail(*(*row[1:-1], tuple(QueuedRecipient(*recipient) for recipient in row[-1] or ())))
        for row in sorted((row for row in rows if row[1] is not None), key=lambda row: int(row[1]))
    ]
    return mails, int(rows[0][0])


# In order of id, so that two transactions that lock several claims never wait for each other.
_HELD = """held as materialized (
    select id, external_id, created_at from submissions where id = any(%(ids)s::bigint[]) and claim_owner = %(owner)s
        and state in ('claimed', 'sent_unanswered')
    order by id for update {locked})"""


async def renew_lease(connection: Connection, ids: Collection[int], owner: str, seconds: float) -> None:
    """Extend the leases of these claims to ``seconds`` from now; those of locked rows at the next call."""
    await connection.execute(
        f"""with {_HELD.format(locked="skip locked")}
            update submissions s set claim_expires = now() + make_interval(secs => %(seconds)s)
            from held where s.id = held.id""",
        {"ids": array_literal(ids), "owner": owner, "seconds": seconds},
    )


@dataclass(frozen=True, slots=True)
class RelayResult:
    """How the claim of one mail ends."""

    id: int  # of the submission
    outcomes: Sequence[RecipientResult]
    delay: float  # seconds until the next try of the recipients that still wait
    count_try: bool  # the provider refused temporarily
    uncertain: bool = False  # the mail was sent and no answer arrived


@dataclass(frozen=True, slots=True)
class Mark:
    """A mail just before its final dot."""

    id: int  # of the submission
    account_version: int  # of the external account, as the mail was built for it


MarkOutcome = Literal["marked", "lost", "account changed"]
"""lost: another sender has the claim. account changed: disabled, removed, or with another host, login or address."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """What ``record_results`` found."""

    held: dict[int, float]
    """The claims that the owner still has: seconds since the submission, by id. On the others nothing was changed."""
    marked: set[int]

    def outcome(self, mark: Mark) -> MarkOutcome:
        """Return how this mark ended."""
        if mark.id in self.marked:
            return "marked"
        return "account changed" if mark.id in self.held else "lost"


# One statement with one part for each job. As a pipeline of two statements it needs the same round trip and half a
# millisecond more processor time for each batch. The parts that write do not see each other's rows.
_RECORD_RESULTS = f"""
    with
    -- The claims that this owner still has. Each part below joins them, so nothing is changed where a claim is lost.
    {_HELD.format(locked="")},
    -- The results of recipients.
    settled as (
        update submission_recipients r set state = new.state, reply = new.reply,
            settled_at = case when new.state <> 'waiting' then now() end
        from unnest(%(recipient_ids)s::bigint[], %(positions)s::int[], %(states)s::text[], %(replies)s::text[])
                as new (id, position, state, reply) join held using (id)
        where r.submission_id = new.id and r.position = new.position and r.state = 'waiting'
        returning r.submission_id, r.position, r.state),
    -- The mails of these recipients: the claim ends. The mail is queued while a recipient waits, otherwise done.
    ended as (
        update submissions s set claim_owner = null, claim_expires = null, state_at = now(),
            tries = s.tries + new.tries, uncertain = s.uncertain or new.uncertain,
            next_try_at = now() + make_interval(secs => new.delay), state = case when exists (
                select from submission_recipients r where r.submission_id = s.id and r.state = 'waiting'
                    and not exists (select from settled where settled.submission_id = s.id
                                        and settled.position = r.position and settled.state <> 'waiting'))
                then 'queued' else 'done' end
        from unnest(%(ended)s::bigint[], %(tries)s::int[], %(uncertain)s::bool[], %(delays)s::float8[])
                as new (id, tries, uncertain, delay) join held using (id)
        where s.id = new.id),
    -- The events of these mails.
    traced as ({maillog.RECORD_HELD}),
    -- Other mails, just before their final dots, whose accounts still allow what is about to leave.
    marked as (
        update submissions s set state = 'sent_unanswered', state_at = now(),
            claim_expires = now() + make_interval(secs => %(seconds)s)
        from unnest(%(marks)s::bigint[], %(versions)s::bigint[]) as new (id, version) join held using (id)
            join external_accounts e on e.id = held.external_id
        where s.id = new.id and e.smtp_version = new.version and e.enabled and e.removed_at is null
        returning s.id)
    select held.id, marked.id, extract(epoch from now() - held.created_at)::float8
    from held left join marked using (id)"""


async def record_results(
    connection: Connection,
    owner: str,
    results: Sequence[RelayResult],
    events: Sequence[MailEvent],
    marks: Sequence[Mark],
    seconds: float,
) -> Recorded:
    """End the claims of mails by their results, and mark other mails before their final dots.

    From its mark on, it is unknown whether the provider has a mail. This is one round trip, and a transaction by itself
    where none is open.

    :param events: of the mails with results; recorded if the claim is held.
    :param marks: the mails to mark; their leases last ``seconds`` from now.
    """
    cursor = await connection.execute(
        _RECORD_RESULTS,
        {
            "ids": array_literal([*(result.id for result in results), *(mark.id for mark in marks)]),
            "owner": owner,
            "marks": array_literal(mark.id for mark in marks),
            "versions": array_literal(mark.account_version for mark in marks),
            "seconds": seconds,
        }
        | _result_parameters(results)
        | maillog.held_parameters(events),
    )
    rows = await cursor.fetchall()
    return Recorded({int(row[0]): float(row[2]) for row in rows}, {int(row[1]) for row in rows if row[1] is not None})


def _result_parameters(results: Sequence[RelayResult]) -> dict[str, str]:
    """The parameters of ``settled`` and ``ended``: one array for each column."""
    outcomes = [(result.id, outcome) for result in results for outcome in result.outcomes]
    return {
        "recipient_ids": array_literal(submission_id for submission_id, _ in outcomes),
        "positions": array_literal(outcome.position for _, outcome in outcomes),
        "states": array_literal(outcome.state for _, outcome in outcomes),
        "replies": array_literal(storable(outcome.reply) for _, outcome in outcomes),
        "ended": array_literal(result.id for result in results),
        "tries": array_literal(int(result.count_try) for result in results),
        "uncertain": array_literal(result.uncertain for result in results),
        "delays": array_literal(str(result.delay) for result in results),
    }


async def release_claims(
    connection: Connection, ids: Collection[int], owner: str | None = None, *, unsent: bool = False
) -> None:
    """Release claims, of ``owner`` alone if it is given; the mails are queued again, and due, as they were.

    Where the clock was set back since the claim, their times are in the future, and ``state_at`` no longer shows it.

    :param unsent: also those that are marked, as their owner has not sent their final dots.
    """
    await connection.execute(
        """with held as materialized (
               select id from submissions where id = any(%(ids)s::bigint[])
                   and (state = 'claimed' or %(unsent)s and state = 'sent_unanswered')
                   and (%(owner)s::text is null or claim_owner = %(owner)s)
               order by id for update)
           update submissions s set state = 'queued', claim_owner = null, claim_expires = null, state_at = now(),
               next_try_at = least(next_try_at, now())
           from held where s.id = held.id""",
        {"ids": array_literal(ids), "owner": owner, "unsent": unsent},
    )


async def fix_clock_jump(connection: Connection, lease_seconds: float) -> int:
    """Make mails due whose time was set before the clock was set back. :return: their number.

    Claims that were set before it expire ``lease_seconds`` from now: nobody may be left to renew them.
    """
    await connection.execute(
        """with late as materialized (
               select id from submissions where state in ('claimed', 'sent_unanswered')
                   and claim_expires > now() + 2 * make_interval(secs => %(seconds)s)
               order by id for update skip locked)
           update submissions s set claim_expires = now() + make_interval(secs => %(seconds)s)
           from late where s.id = late.id""",
        {"seconds": lease_seconds},
    )
    cursor = await connection.execute(
        f"""update submissions set next_try_at = least(next_try_at, now()), state_at = now(), swept_at = null
            where state in ('submitted', 'queued') and state_at > {FUTURE}"""
    )
    return cursor.rowcount


async def measure_backlog(connection: Connection) -> tuple[int, float]:
    """Count the submissions that are queued or being relayed, and return the age of the oldest one in seconds."""
    cursor = await connection.execute(
        """select count(*), coalesce(extract(epoch from now() - min(created_at)), 0)::float8
           from submissions where state in ('queued', 'claimed', 'sent_unanswered')"""
    )
    row = await cursor.fetchone()
    return (int(row[0]), float(row[1])) if row else (0, 0.0)


async def count_late(connection: Connection, seconds: float, windows: Sequence[int]) -> list[int]:
    """Count the submissions that have waited to be relayed for longer than ``seconds``.

    :param windows: seconds. :return: for each window, how many of them became late within it.
    """
    cursor = await connection.execute(
        """select count(late.age) from unnest(%s::int[]) with ordinality as w (seconds, place)
           left join (select extract(epoch from now() - created_at) - %s as age from submissions
                      where state in ('queued', 'claimed', 'sent_unanswered')) late
               on late.age between 0 and w.seconds
           group by w.place order by w.place""",
        (list(windows), seconds),
    )
    return [int(row[0]) for row in await cursor.fetchall()]
