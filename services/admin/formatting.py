"""How states, times and time spans are written for people: in the commands, the REST API and the console. Pure."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

MAIL_STATUS: Final = {
    "fetched": "waiting",
    "routed": "waiting",
    "submitted": "waiting",
    "queued": "waiting",
    "claimed": "waiting",
    "sent_unanswered": "waiting",
    "waiting": "waiting",  # of a recipient
    "held": "on hold",
    "parked": "needs attention",
    "delivered": "delivered",
    "relayed": "sent",
    "failed": "failed",
    "cancelled": "cancelled",
    "discarded": "cancelled",
}
"""The word for people for each state of a mail, a submission or a recipient, except ``done``."""
MAIL_RESULTS: Final = tuple(dict.fromkeys(MAIL_STATUS.values()))
"""The words for people."""
_PLURALS: Final = {"person": "people", "mail on hold": "mails on hold"}
_WORST_FIRST = ("waiting", "failed", "cancelled", "relayed", "delivered")
"""Of the recipients of a submission, the first of these states that occurs gives its status."""


def mail_status(state: str, recipient_states: Collection[str] = ()) -> str:
    """Return the word for people for the state of a mail, a submission or a recipient.

    :param recipient_states: the states of a submission's recipients. They decide for a submission that is ``done``:
        one that failed for any recipient is ``failed``. Without them the submission is ``sent``.
    :raises KeyError: no such state.
    """
    if state == "done":
        state = next((worst for worst in _WORST_FIRST if worst in recipient_states), "relayed")
    return MAIL_STATUS[state]


def counted(count: int, noun: str = "mail", verbs: tuple[str, str] | None = None) -> str:
    """Write a number with its noun, in the plural if needed: 1 mail, 2,000 mails, 3 people.

    :param verbs: the verb behind it, for one and for several.
    """
    verb = "" if verbs is None else f" {verbs[count != 1]}"
    return f"{count:,} {noun_for(count, noun)}{verb}"


def noun_for(count: int, noun: str) -> str:
    """Return a noun as it stands behind a number: mail behind 1, mails behind 0 and 2; tries, people."""
    if count == 1:
        return noun
    if noun.endswith("y") and not noun.endswith(("ay", "ey", "oy", "uy")):
        return f"{noun[:-1]}ies"
    return _PLURALS.get(noun, f"{noun}s")


def thousands(count: int) -> str:
    """Write a number with commas between its thousands: 12,345."""
    return f"{count:,}"


def moment(at: str | None) -> str:
    """Format a time in ISO 8601 for people, to the second; still UTC."""
    return (at or "").partition(".")[0].replace("T", " ")


def ago(seconds: float) -> str:
    """Format a time span in short form: 5 s, 3 min, 2 h, 4 d."""
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def octets(count: int) -> str:
    """Format a size with its unit: 5 bytes, 1.5 kB, 20.0 MB."""
    for size, unit in ((1 << 30, "GB"), (1 << 20, "MB"), (1 << 10, "kB")):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
