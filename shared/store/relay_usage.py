"""What relays with limits have taken, and all SQL on it (table relay_usage).

A limit holds for any minute and any 24 hours, over all senders. Mail is counted by the time of the provider's reply, in
intervals, and an interval counts until its end is old enough. Mail that is claimed counts, too. Times are by the
database's clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shared.db.arrays import array_literal
from shared.db.database import Connection

MINUTE, DAY = 60, 86_400
"""Spans of the limits: seconds."""
INTERVALS = {MINUTE: 1, DAY: 300}
"""Length of the intervals by span: seconds; a limit is lifted later by one of them at most."""


@dataclass(frozen=True, slots=True)
class Use:
    """What a relay has taken of one mail. A mail without a reply counts, as the relay may have taken it."""

    external_id: int
    place: str  # of the relay
    recipients: int


@dataclass(frozen=True, slots=True)
class Room:
    """What a relay may take now. None: it has no such limit."""

    mails: int | None
    recipients: int | None
    full_why: str = ""  # a limit is reached, whatever happens to the claimed mail; '': none is
    full_seconds: float = 0.0  # until it may take mail again

    @property
    def is_full(self) -> bool:
        """Whether no mail may be claimed now."""
        return any(room is not None and room <= 0 for room in (self.mails, self.recipients))


async def add_uses(connection: Connection, uses: Sequence[Use]) -> None:
    """Count what relays have taken, if they have a limit."""
    if uses:
        await connection.execute(
            """insert into relay_usage (external_id, place, seconds, began_at, mails, recipients)
               select u.external_id, u.place, i.seconds,
                   to_timestamp(floor(extract(epoch from now()) / i.seconds) * i.seconds), count(*), sum(u.recipients)
               from unnest(%s::bigint[], %s::text[], %s::int[]) as u (external_id, place, recipients),
                   unnest(%s::int[]) as i (seconds)
               where exists (select from relays r where r.external_id = u.external_id and r.place = u.place
                             and coalesce(r.mails_per_minute, r.recipients_per_day) is not null)
               group by 1, 2, 3 order by 1, 2, 3
               on conflict (external_id, place, seconds, began_at) do update
               set mails = relay_usage.mails + excluded.mails,
                   recipients = relay_usage.recipients + excluded.recipients""",
            (
                array_literal(use.external_id for use in uses),
                array_literal(use.place for use in uses),
                array_literal(use.recipients for use in uses),
                array_literal(INTERVALS.values()),
            ),
        )


async def measure_room(
    connection: Connection, external_id: int, place: str, mails_per_minute: int | None, recipients_per_day: int | None
) -> Room:
    """Return what a relay may take now. The caller has locked the relay, so that no other sender claims meanwhile."""
    cursor = await connection.execute(
        # The later intervals first: ``taken`` is what was taken since the interval began.
        """with claimed as (
               select count(distinct s.id) as mails, count(*) as recipients
               from submissions s join submission_recipients r
                   on r.submission_id = s.id and r.kind = 'relay' and r.state = 'waiting'
               where s.external_id = %(id)s and s.relay = %(place)s and s.state in ('claimed', 'sent_unanswered')),
           used as (
               select u.seconds, u.began_at, l.span, l.most,
                   sum(case l.span when %(minute)s then u.mails else u.recipients end)
                       over (partition by l.span order by u.began_at desc) as taken
               from (values (%(minute)s, %(a_minute)s, %(mails)s::int), (%(day)s, %(a_day)s, %(recipients)s::int))
                   as l (span, seconds, most)
                   join relay_usage u on u.external_id = %(id)s and u.place = %(place)s and u.seconds = l.seconds
                       and u.began_at > now() - make_interval(secs => l.span + l.seconds)
               where l.most is not null)
           select claimed.mails, claimed.recipients,
               coalesce((select max(taken) from used where span = %(minute)s), 0),
               coalesce((select max(taken) from used where span = %(day)s), 0),
               (select extract(epoch from max(began_at + make_interval(secs => span + seconds)) - now())::float8
                from used where span = %(minute)s and taken >= most),
               (select extract(epoch from max(began_at + make_interval(secs => span + seconds)) - now())::float8
                from used where span = %(day)s and taken >= most)
           from claimed""",
        {
            "id": external_id,
            "place": place,
            "mails": mails_per_minute,
            "recipients": recipients_per_day,
            "minute": MINUTE,
            "a_minute": INTERVALS[MINUTE],
            "day": DAY,
            "a_day": INTERVALS[DAY],
        },
    )
    claimed_mails, claimed_recipients, mails, recipients, minute_ends, day_ends = await cursor.fetchone() or (0,) * 6
    why, seconds = "", 0.0
    for limit, what, ends in (
        (mails_per_minute, "mails a minute", minute_ends),
        (recipients_per_day, "recipients a day", day_ends),
    ):
        if limit is not None and ends is not None and float(ends) > seconds:
            why, seconds = f"limit of {limit} {what} reached", float(ends)
    return Room(
        None if mails_per_minute is None else mails_per_minute - int(mails) - int(claimed_mails),
        None if recipients_per_day is None else recipients_per_day - int(recipients) - int(claimed_recipients),
        why,
        seconds,
    )


async def purge_usage(connection: Connection) -> int:
    """Delete the intervals that no limit counts any more. :return: their number."""
    cursor = await connection.execute(
        """delete from relay_usage u using unnest(%s::int[], %s::int[]) as l (span, seconds)
           where u.seconds = l.seconds and u.began_at < now() - 2 * make_interval(secs => l.span + l.seconds)""",
        (array_literal(INTERVALS), array_literal(INTERVALS.values())),
    )
    return cursor.rowcount
