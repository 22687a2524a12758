"""The queue of mails to relay: claims, marks and results.

A queued mail is a submission with the recipients that wait to be relayed. A sender claims it for a time, renews the
lease, and records a result for each recipient. The state of the account's relays (shared/store/relays.py) decides
which of them sends the mail, and how many at the same time. This module owns the tables submissions and
submission_recipients together with shared/store/submissions.py. Times are by the database's clock.
"""

from __future__ import annotations

import datetime
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from shared.db.arrays import array_literal
from shared.db.database import FUTURE, Connection, Row, storable
from shared.store import blobs, maillog, poison, relay_usage, relays
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
    submitted_at: datetime.datetime
    octets: int  # of the mail
    author_address: str
    author_name: str
    author_addresses: tuple[str, ...]  # the author's further addresses
    dsn_params: str | None  # requested notifications (shared/mime/dsn_options.py)
    relay: str | None  # place of the relay that has claimed it last
    recipients: tuple[QueuedRecipient, ...]
    is_part: bool = False  # further recipients wait: a limit of the relay leaves no room for them


@dataclass(frozen=True, slots=True)
class RecipientResult:
    """The result of one recipient."""

    position: int
    state: Literal["relayed", "failed", "waiting"]
    reply: str  # of the provider, or the reason


QUEUED_MAIL = """s.id, s.author_id, s.external_id, s.blob_id, s.envelope_from, s.message_id, s.body_8bit, s.smtputf8,
    s.tries, s.uncertain, extract(epoch from now() - s.created_at)::float8, s.created_at, m.octets, a.address,
    a.user_name, a.addresses, s.dsn_params, s.relay"""
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


# Which relay may send a mail (``s`` is the submission). A mail that a relay may have taken is sent by no other one, as
# long as the account has that relay; every other mail by a relay if all before it are in trouble.
_MAY_SEND = """case
    when s.uncertain and exists (select from relays o where o.external_id = s.external_id and o.place = s.relay)
    then s.relay = {place}
    else {needed} end"""


async def list_due_relays(connection: Connection) -> list[tuple[int, int]]:
    """List the relays that may be tried now: those that have mail to send, and those in trouble before another one.

    :return: each with the id of its external account, and its position there.
    """
    cursor = await connection.execute(
        f"""with r as (
                select external_id, position, place, {relays.IN_TROUBLE.format("r")} as in_trouble,
                    {relays.IS_DUE.format("r")} as due,
                    coalesce(bool_and({relays.IN_TROUBLE.format("r")}) over before, true) as needed,
                    position < max(position) over (partition by external_id) as has_next
                from relays r
                window before as (partition by external_id order by position
                                  rows between unbounded preceding and 1 preceding))
            select r.external_id, r.position from r
            where r.due and (
                r.in_trouble and r.has_next and exists (
                    select from external_accounts e
                    where e.id = r.external_id and e.enabled and e.removed_at is null)
                or exists (
                    select from submissions s
                    where s.external_id = r.external_id and s.state = 'queued' and s.next_try_at <= now()
                        and {_MAY_SEND.format(place="r.place", needed="r.needed")}
                        and {poison.NOT_POISON.format(id="s.id", stage=STAGE)}))"""
    )
    return [(int(row[0]), int(row[1])) for row in await cursor.fetchall()]


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
    position: int = 0  # of the relay that is to send them


@dataclass(frozen=True, slots=True)
class Claimed:
    """The result of a claim."""

    mails: list[QueuedMail]  # the claimed ones
    lanes: int  # limit of this owner's mails of the relay on the wire now
    more: bool  # other mails may be due
    account_version: int  # of the external account, for the marks of these mails
    careful: bool  # the relay fails to connect or log in: one mail shows whether that is over
    ask_next: bool = False  # the next relay of the account may send what this one does not
    probe: bool = False  # the relay is in trouble, and a login without mail is to show whether that is over


PROBE_SECONDS = 90.0
"""Limits how long other senders leave a relay alone that one tries without mail: seconds; more than a login takes."""


async def claim(connection: Connection, request: ClaimRequest) -> Claimed:
    """Claim due mails of an account for one relay, the longest due first: one for each free lane, and some ahead.

    A relay in trouble claims none if another one comes after it: mail need not wait for the try.
    """
    relay = await _lock_relay(connection, request)
    ask_next = relay.has_next and (relay.careful or not relay.is_due)
    if not relay.is_due or (relay.careful and relay.has_next):
        if relay.is_due:
            await relays.postpone(connection, request.external_id, request.position, PROBE_SECONDS)
        return Claimed([], 0, False, relay.version, relay.careful, ask_next, relay.is_due)
    room = relay_usage.Room(None, None)
    if relay.mails_per_minute is not None or relay.recipients_per_day is not None:
        room = await relay_usage.measure_room(
            connection, request.external_id, relay.place, relay.mails_per_minute, relay.recipients_per_day
        )
        if room.full_why:
            await relays.record_full(
                connection, request.external_id, request.position, room.full_why, room.full_seconds
            )
            return Claimed([], 0, False, relay.version, relay.careful, relay.has_next)
    free = max(0, relay.lanes - request.busy_lanes)
    wanted = free + (0 if relay.careful or relay.lanes == 0 else request.prefetch)
    if room.mails is not None:
        wanted = min(wanted, room.mails)
    if wanted <= 0 or room.is_full:
        return Claimed([], relay.lanes, relay.lanes > 0, relay.version, relay.careful)
    mails, due = await _claim_rows(connection, request, relay, free, wanted, room.recipients)
    more = due == wanted or due > len(mails)  # as many as were wanted, or the others exceed a limit
    return Claimed(mails, relay.lanes, more, relay.version, relay.careful)


@dataclass(frozen=True, slots=True)
class _LockedRelay:
    is_due: bool = False  # it may be tried now
    careful: bool = False  # it fails to connect, or its credentials are refused: one mail at a time
    lanes: int = 0  # limit of the owner's mails on the wire
    version: int = 0  # of the account
    place: str = ""
    needed: bool = True  # all relays before it are in trouble
    has_next: bool = False  # another relay comes after it
    mails_per_minute: int | None = None
    recipients_per_day: int | None = None
    max_octets: int | None = None  # of a mail, as far as it is known


async def _lock_relay(connection: Connection, request: ClaimRequest) -> _LockedRelay:
    """Lock a relay's state, and return how many lanes the owner may have.

    The limit of connections holds over all senders: each claim of another sender counts as one of them.
    """
    cursor = await connection.execute(
        f"""select {relays.IS_DUE.format("r")}, r.failures > 0 or r.paused_at is not null,
               least(r.connections, r.connections_limit), e.smtp_version, r.place,
               (select coalesce(bool_and({relays.IN_TROUBLE.format("b")}), true) from relays b
                where b.external_id = r.external_id and b.position < r.position),
               exists (select from relays n where n.external_id = r.external_id and n.position > r.position),
               r.mails_per_minute, r.recipients_per_day, least(r.size, r.refused - 1)
           from relays r join external_accounts e on e.id = r.external_id
           where r.external_id = %s and r.position = %s and e.enabled and e.removed_at is null
           for update of r""",
        (request.external_id, request.position),
    )
    row = await cursor.fetchone()
    if row is None:
        return _LockedRelay()
    relay = _LockedRelay(*row)
    if not relay.is_due:
        return relay
    cursor = await connection.execute(  # after the lock, to see the claims that others committed before
        """select count(*) from submissions where external_id = %s and state in ('claimed', 'sent_unanswered')
               and claim_expires > now() and claim_owner <> %s and coalesce(relay, %s) = %s""",
        (request.external_id, request.owner, relay.place, relay.place),
    )
    [others] = await cursor.fetchone() or (0,)
    return replace(relay, lanes=max(0, (1 if relay.careful else relay.lanes) - others))


async def _claim_rows(
    connection: Connection,
    request: ClaimRequest,
    relay: _LockedRelay,
    free: int,
    wanted: int,
    room: int | None,
) -> tuple[list[QueuedMail], int]:
    """Claim up to ``wanted`` due mails; those after the first ``free`` ones only within the memory limit.

    :param room: limit of their recipients; the last mail is claimed for some of its recipients. None: no limit.
    :return: the claimed mails in order of id, and how many due ones were seen.
    """
    fits = ""
    if request.position > 0 and relay.max_octets is not None:  # what the first relay refuses is too large for smtp_in
        fits = "and exists (select from blobs b where b.id = s.blob_id and b.octets <= %(max_octets)s)"
    counted = "0::bigint"
    if room is not None:
        counted = """(select count(*) from submission_recipients r
            where r.submission_id = due.id and r.kind = 'relay' and r.state = 'waiting')"""
    cursor = await connection.execute(
        f"""with due as materialized (
                select id, blob_id, next_try_at from submissions s
                where external_id = %(external)s and state = 'queued' and next_try_at <= now()
                    and id <> all(%(exclude)s::bigint[]) and {poison.NOT_POISON.format(id="id", stage=STAGE)}
                    and {_MAY_SEND.format(place="%(place)s", needed="%(needed)s")} {fits}
                order by next_try_at, id limit %(wanted)s for update skip locked),
            counted as (select due.*, {counted} as recipients from due),
            sized as (
                select due.id, row_number() over nth as place,
                    sum(least(m.octets, {blobs.HEAD_OCTETS})) over nth as octets,
                    %(room)s::bigint - (sum(due.recipients) over nth - due.recipients) as room
                from counted due join blobs m on m.id = due.blob_id window nth as (order by due.next_try_at, due.id)),
            taken as (
                select id, room from sized
                where (place <= %(free)s or octets <= %(octets)s) and coalesce(room, 1) > 0),
            claimed as (
                update submissions s set state = 'claimed', claim_owner = %(owner)s, state_at = now(),
                    claim_expires = now() + make_interval(secs => %(seconds)s), relay = %(place)s
                from taken, blobs m, local_accounts a
                where s.id = taken.id and m.id = s.blob_id and a.id = s.author_id
                returning {QUEUED_MAIL}, {_RECIPIENTS}, taken.room)
            select (select count(*) from due), claimed.* from (values (true)) as always left join claimed on true""",
        {
            "external": request.external_id,
            "wanted": wanted,
            "free": free,
            "octets": request.prefetch_octets,
            "owner": request.owner,
            "seconds": request.seconds,
            "exclude": array_literal(request.exclude_ids),
            "place": relay.place,
            "needed": relay.needed,
            "max_octets": relay.max_octets,
            "room": room,
        },
    )
    rows = await cursor.fetchall()
    mails = [
        _in_room(QueuedMail(*(*row[1:-2], tuple(QueuedRecipient(*recipient) for recipient in row[-2] or ()))), row[-1])
        for row in sorted((row for row in rows if row[1] is not None), key=lambda row: int(row[1]))
    ]
    return mails, int(rows[0][0])


def _in_room(mail: QueuedMail, room: int | None) -> QueuedMail:
    """Return a mail for as many of its recipients as there is room for."""
    if room is None or len(mail.recipients) <= int(room):
        return mail
    return replace(mail, recipients=mail.recipients[: int(room)], is_part=True)


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
