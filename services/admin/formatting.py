"""How states, times and time spans are written for people: in the commands, the REST API and the console. Pure.

Numbers, nouns and units are in the language that applies. States stay English: who shows one translates it.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from shared.languages.translation import (
    SOURCE,
    gettext,
    in_language,
    language,
    lookup,
    lookup_plural,
    marked,
    marked_plural,
)

MAIL_STATUS: Final = {
    "fetched": marked("waiting"),
    "routed": marked("waiting"),
    "submitted": marked("waiting"),
    "queued": marked("waiting"),
    "claimed": marked("waiting"),
    "sent_unanswered": marked("waiting"),
    "waiting": marked("waiting"),  # of a recipient
    "held": marked("on hold"),
    "parked": marked("needs attention"),
    "delivered": marked("delivered"),
    "relayed": marked("sent"),
    "failed": marked("failed"),
    "cancelled": marked("cancelled"),
    "discarded": marked("cancelled"),
}
"""The word for people for each state of a mail, a submission or a recipient, except ``done``."""
MAIL_RESULTS: Final = tuple(dict.fromkeys(MAIL_STATUS.values()))
"""The words for people."""
_NOUNS: Final = {
    one: (one, several)
    for one, several in (
        marked_plural("browser", "browsers"),
        marked_plural("byte", "bytes"),
        marked_plural("change", "changes"),
        marked_plural("event", "events"),
        marked_plural("mail", "mails"),
        marked_plural("mail on hold", "mails on hold"),
        marked_plural("octet", "octets"),
        marked_plural("person", "people"),
        marked_plural("recipient", "recipients"),
        marked_plural("time", "times"),
        marked_plural("try", "tries"),
    )
}
"""The nouns that are counted, with their plurals."""
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

    :param noun: one of _NOUNS. :param verbs: the verb behind it, for one and for several.
    """
    verb = "" if verbs is None else f" {lookup(verbs[count != 1])}"
    return f"{thousands(count)} {lookup_plural(*_NOUNS[noun], count)}{verb}"


def counted_for_record(count: int, noun: str = "mail", verbs: tuple[str, str] | None = None) -> str:
    """Write as ``counted``, in English: the record of changes keeps it, and pages translate it when they show it."""
    with in_language(SOURCE):
        return counted(count, noun, verbs)


def thousands(count: int) -> str:
    """Write a number with marks between its thousands: 12,345."""
    return f"{count:,}" if language() == SOURCE else _in_locale(count, "#,##0")


def _in_locale(number: float, pattern: str) -> str:
    """Write a number as the language that applies does. :param pattern: of Unicode's TR 35."""
    from babel.numbers import format_decimal  # late: commands start without it

    return format_decimal(number, pattern, locale=language().replace("-", "_"))


def moment(at: str | None) -> str:
    """Format a time in ISO 8601 for people, to the second; still UTC."""
    return (at or "").partition(".")[0].replace("T", " ")


def ago(seconds: float) -> str:
    """Format a time span in short form: 5 s, 3 min, 2 h, 4 d."""
    for size, text in ((86_400, marked("%(count)s d")), (3600, marked("%(count)s h")), (60, marked("%(count)s min"))):
        if seconds >= size:
            return gettext(text, count=round(seconds / size))
    return gettext("%(count)s s", count=round(seconds))


def octets(count: int) -> str:
    """Format a size with its unit: 5 bytes, 1.5 kB, 20.0 MB."""
    for size, unit in ((1 << 30, "GB"), (1 << 20, "MB"), (1 << 10, "kB")):
        if count >= size:
            shown = f"{count / size:.1f}" if language() == SOURCE else _in_locale(count / size, "0.0")
            return f"{shown} {unit}"
    return counted(count, "byte")
