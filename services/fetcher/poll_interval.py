"""When an account is polled next, and when it is paused: pure decisions."""

from __future__ import annotations

import datetime
from dataclasses import dataclass

from shared.errors import Temporary
from shared.model import External, Poll, PollOutcome
from shared.net.dial import Unreachable
from shared.provider.pop3_errors import LoginRefused, ServerBusy

REFUSALS = 3
"""So many plain refusals within REFUSALS_WITHIN pause an account."""
REFUSALS_WITHIN = datetime.timedelta(hours=1)
PAUSE = datetime.timedelta(hours=1)
"""Between two careful tries of a paused account."""
BACK_OFF_SECONDS = 60.0
"""The longest back-off, unless the account's own interval is longer."""
LOGIN_DELAY_LONGEST = 3600
"""Seconds between logins at most that are learnt from a server that refuses them and announces no LOGIN-DELAY."""
AWAY_SECONDS = 8.0
"""… where nothing answers at all: asking again costs nobody anything, and mail flows soon after it is back."""
OURS_SECONDS = 3.0
"""The longest back-off after a failure of the database, which says nothing about the provider."""
_MOST_DOUBLINGS = 10


@dataclass(frozen=True, slots=True)
class PollResult:
    """How the poll went. started, ended: by the database's clock. login_delay: seconds, as the server announced.

    more: it ended well, but there is more to fetch.
    """

    started: datetime.datetime
    ended: datetime.datetime
    login_delay: int | None
    backlog: int | None
    more: bool = False


def after_success(account: External, course: PollResult) -> PollOutcome:
    """The interval counts from the start of a poll, LOGIN-DELAY (RFC 2449 section 6.5) from its end."""
    due = course.started + datetime.timedelta(seconds=0 if course.more else account.poll_seconds)
    due = max(due, course.ended + datetime.timedelta(seconds=course.login_delay or 0))
    return PollOutcome(due, 0, (), None, course.login_delay, course.backlog)


def after_failure(account: External, poll: Poll, course: PollResult, error: Exception, jitter: float) -> PollOutcome:
    """Back off, doubling; after refused credentials pause.

    :param jitter: from 0 to 1, spreads the accounts of one provider.
    """
    failures = poll.failures + 1
    if isinstance(error, Temporary) and not hasattr(error, "kind"):
        longest = OURS_SECONDS
    else:
        least = AWAY_SECONDS if isinstance(error, Unreachable) else BACK_OFF_SECONDS
        longest = max(least, float(account.poll_seconds))
    seconds = min(longest, account.poll_seconds * 2.0 ** min(failures - 1, _MOST_DOUBLINGS)) * (0.75 + 0.25 * jitter)
    login_delay = course.login_delay
    if isinstance(error, ServerBusy) and error.code == "LOGIN-DELAY":
        told = max(2 * (poll.login_delay or 0), account.poll_seconds, int(BACK_OFF_SECONDS))
        login_delay = max(login_delay or 0, min(told, LOGIN_DELAY_LONGEST))
    due = course.ended + datetime.timedelta(seconds=max(seconds, login_delay or 0))
    refusals = tuple(at for at in poll.refusals if at > course.ended - REFUSALS_WITHIN)
    paused_at = poll.paused_at
    text = str(error) or type(error).__name__
    if isinstance(error, LoginRefused):
        refusals = (*refusals, course.ended)
        if paused_at is None and (error.code == "AUTH" or len(refusals) >= REFUSALS):
            paused_at = course.ended
        if paused_at is not None:
            due = course.ended + PAUSE
            text += "; paused: tried once an hour, and at once when the account is changed or tested"
    return PollOutcome(
        due, failures, refusals[-REFUSALS:], paused_at, login_delay, course.backlog, text, kind_of(error)
    )


def kind_of(error: Exception) -> str:
    """The label of fetch_errors_total: refused, unreachable, tls, timeout, protocol, policy, busy, internal."""
    return str(getattr(error, "kind", "internal"))
