"""Decides when an account is polled next and when it is paused: pure decisions."""

from __future__ import annotations

import datetime
from dataclasses import dataclass

from shared.errors import Temporary
from shared.model import External, Poll, PollOutcome
from shared.net.dial import Unreachable
from shared.provider.session_errors import LoginRefused, ServerBusy

MAX_REFUSALS = 3
"""Login refusals without a response code, within REFUSALS_WITHIN, that pause an account."""
REFUSALS_WITHIN = datetime.timedelta(hours=1)
PAUSED_INTERVAL = datetime.timedelta(hours=1)
"""Interval of the single login attempts of a paused account."""
BACKOFF_SECONDS = 60.0
"""Upper limit of the backoff, unless the account's own interval is longer."""
MAX_LOGIN_DELAY_SECONDS = 3600
"""Upper limit of the login delay learnt from a server that refuses with [LOGIN-DELAY] and announces none."""
UNREACHABLE_BACKOFF_SECONDS = 8.0
"""Upper limit of the backoff while no server answers: an attempt costs no one anything, and mail flows again soon."""
DATABASE_BACKOFF_SECONDS = 3.0
"""Upper limit of the backoff after a failure of the database, which is no fault of the provider."""
_MAX_DOUBLINGS = 10


@dataclass(frozen=True, slots=True)
class PollResult:
    """Times and figures of one poll."""

    started: datetime.datetime  # by the database's clock
    ended: datetime.datetime  # by the database's clock
    login_delay: int | None  # seconds, as announced by the server
    backlog: int | None  # mails still to fetch; None if unknown
    more: bool = False  # the poll succeeded, with mails left to fetch


def after_success(account: External, result: PollResult) -> PollOutcome:
    """Schedule the next poll: the interval counts from the start of this poll, LOGIN-DELAY (RFC 2449 section 6.5) from
    its end."""
    due = result.started + datetime.timedelta(seconds=0 if result.more else account.poll_seconds)
    due = max(due, result.ended + datetime.timedelta(seconds=result.login_delay or 0))
    return PollOutcome(due, 0, (), None, result.login_delay, result.backlog)


def after_failure(account: External, poll: Poll, result: PollResult, error: Exception, jitter: float) -> PollOutcome:
    """Schedule the next poll with exponential backoff; pause the account after refused credentials.

    :param jitter: from 0 to 1; spreads the polls of one provider's accounts.
    """
    failures = poll.failures + 1
    if isinstance(error, Temporary) and not hasattr(error, "kind"):
        max_seconds = DATABASE_BACKOFF_SECONDS
    else:
        backoff = UNREACHABLE_BACKOFF_SECONDS if isinstance(error, Unreachable) else BACKOFF_SECONDS
        max_seconds = max(backoff, float(account.poll_seconds))
    seconds = min(max_seconds, account.poll_seconds * 2.0 ** min(failures - 1, _MAX_DOUBLINGS)) * (0.75 + 0.25 * jitter)
    login_delay = result.login_delay
    if isinstance(error, ServerBusy) and error.code == "LOGIN-DELAY":
        learnt = max(2 * (poll.login_delay or 0), account.poll_seconds, int(BACKOFF_SECONDS))
        login_delay = max(login_delay or 0, min(learnt, MAX_LOGIN_DELAY_SECONDS))
    due = result.ended + datetime.timedelta(seconds=max(seconds, login_delay or 0))
    refusals = tuple(at for at in poll.refusals if at > result.ended - REFUSALS_WITHIN)
    paused_at = poll.paused_at
    text = str(error) or type(error).__name__
    if isinstance(error, LoginRefused):
        refusals = (*refusals, result.ended)
        if paused_at is None and (error.code == "AUTH" or len(refusals) >= MAX_REFUSALS):
            paused_at = result.ended
        if paused_at is not None:
            due = result.ended + PAUSED_INTERVAL
            text += "; paused: retried once an hour, and at once when the account is changed or tested"
    return PollOutcome(
        due, failures, refusals[-MAX_REFUSALS:], paused_at, login_delay, result.backlog, text, kind_of(error)
    )


def kind_of(error: Exception) -> str:
    """Return the label of fetch_errors_total: refused, unreachable, tls, timeout, protocol, policy, busy, internal."""
    return str(getattr(error, "kind", "internal"))
