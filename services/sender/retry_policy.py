"""When to try again, and when to tell the author (RFC 5321 section 4.5.4.1). Pure: seconds, chance passed in."""

from __future__ import annotations

MINUTE = 60.0
HOUR = 60 * MINUTE
DAY = 24 * HOUR

EXPIRY = 5 * DAY
"""After five days of temporary refusals a mail has failed."""
FIRST_NOTICE = 4 * HOUR
NEXT_NOTICE = DAY
"""Notices of delay: after four hours, then daily."""
LOGIN_PAUSE = HOUR
"""Between two careful tries with credentials that were refused."""
THROTTLE_PAUSE, QUOTA_PAUSE = MINUTE, 30 * MINUTE
"""No mail of an account is tried for so long when its provider slows it down, or its quota is used up."""
MAX_UNREACHABLE_PAUSE = 8.0
"""The longest time between two tries to reach a server that does not answer."""
INTERRUPTED_DELAY = 5.0

_FIRST = (1 * MINUTE, 5 * MINUTE, 15 * MINUTE, 30 * MINUTE)
_HOURLY_TRIES = 12
_SPREAD = 0.1


def retry_delay(tries: int, chance: float, *, interrupted: bool = False) -> float:
    """Seconds until the next try of a mail that was refused for now ``tries`` times (from 1).

    After 1, 5, 15, 30 minutes, then hourly for half a day, then every four hours; spread by a tenth to either side.
    chance: from 0 to 1. broken_off: it was not refused, its connection ended; the first time that is mere chance.
    """
    if interrupted and tries <= 1:
        delay = INTERRUPTED_DELAY
    elif tries <= len(_FIRST):
        delay = _FIRST[max(tries, 1) - 1]
    else:
        delay = HOUR if tries <= len(_FIRST) + _HOURLY_TRIES else 4 * HOUR
    return _spread(delay, chance)


def reconnect_delay(failures: int, chance: float, *, unreachable: bool = False) -> float:
    """Seconds until an account is tried again that could not be used ``failures`` times (from 1): 10 s to 5 min.

    :param away: nothing answered at all. Asking again costs nobody anything, so that is done every few seconds.
    """
    first, longest = (2.0, MAX_UNREACHABLE_PAUSE) if unreachable else (10.0, 5 * MINUTE)
    return _spread(min(first * 2 ** min(max(failures, 1) - 1, 10), longest), chance)


def _spread(delay: float, chance: float) -> float:
    return delay * (1 + _SPREAD * (2 * chance - 1))
