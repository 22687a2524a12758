"""The retry policy: when to try again, and when to notify the author (RFC 5321 section 4.5.4.1).

Pure functions. Times are seconds; chance is a random number from 0 to 1 that the caller passes.
"""

from __future__ import annotations

MINUTE = 60.0
HOUR = 60 * MINUTE
DAY = 24 * HOUR

EXPIRY = 5 * DAY
"""Limits how long a mail is retried after temporary failures: seconds; at least 4 to 5 days by RFC 5321 4.5.4.1."""
FIRST_NOTICE = 4 * HOUR
NEXT_NOTICE = DAY
"""Age of a queued mail at the first delay notice, and time between two of them: seconds."""
LOGIN_PAUSE = HOUR
"""Time between two tries after the provider refused the credentials: seconds; more could lock the account."""
THROTTLE_PAUSE, QUOTA_PAUSE = MINUTE, 30 * MINUTE
"""Pause of an account after its provider throttled it, and after its quota was used up: seconds."""
MAX_UNREACHABLE_PAUSE = 8.0
"""Limits the time between two tries to reach a server that does not answer: seconds."""
INTERRUPTED_DELAYS = (5.0, 15.0)
"""Time before the second and the third try of a mail whose connection ended: seconds. Such ends are mostly chance: a
restart of the server or a broken network also interrupts the next mail. Later the mail may be the cause."""

_FIRST = (1 * MINUTE, 5 * MINUTE, 15 * MINUTE, 30 * MINUTE)
_HOURLY_TRIES = 12
_JITTER = 0.1


def retry_delay(tries: int, chance: float, *, interrupted: bool = False) -> float:
    """Return the seconds until the next try of a mail that has failed temporarily ``tries`` times (from 1).

    1, 5, 15, 30 minutes, then hourly for half a day, then every four hours; each with 10 % of jitter to either side.

    :param interrupted: the connection ended before the provider refused anything; the minutes follow two short delays.
    """
    if interrupted and tries <= len(INTERRUPTED_DELAYS):
        return _add_jitter(INTERRUPTED_DELAYS[max(tries, 1) - 1], chance)
    if interrupted:
        tries -= len(INTERRUPTED_DELAYS)
    if tries <= len(_FIRST):
        delay = _FIRST[max(tries, 1) - 1]
    else:
        delay = HOUR if tries <= len(_FIRST) + _HOURLY_TRIES else 4 * HOUR
    return _add_jitter(delay, chance)


def reconnect_delay(failures: int, chance: float, *, unreachable: bool = False) -> float:
    """Return the seconds until the next try of an account that has failed ``failures`` times (from 1): 10 s to 5 min.

    :param unreachable: no server answered. A new try costs nobody anything, so it follows within a few seconds.
    """
    shortest, longest = (2.0, MAX_UNREACHABLE_PAUSE) if unreachable else (10.0, 5 * MINUTE)
    return _add_jitter(min(shortest * 2 ** min(max(failures, 1) - 1, 10), longest), chance)


def _add_jitter(delay: float, chance: float) -> float:
    return delay * (1 + _JITTER * (2 * chance - 1))
