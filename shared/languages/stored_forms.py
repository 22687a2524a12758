"""The forms of the texts that are stored in English (``stored_texts.py``): each with ``%(name)s`` for its values.

The place ``num`` is a number; the places of ``FREE`` are any text, which is looked up as a text itself; each other one
is one word, such as an address. A pair is the text for one and for several.
"""

from __future__ import annotations

from typing import Final

from shared.languages.translation import marked

FREE: Final = frozenset({"problem", "text", "why", "user"})

_DELIVERY: Final = (
    marked("not delivered within five days; %(problem)s"),
    marked("the last problem was: %(problem)s"),
    marked("the provider's mail server was never tried"),
    marked(
        "sent twice, and both times the connection ended before the provider's answer: it may have been delivered, or "
        "not"
    ),
    marked("the sender ended before the provider's reply came"),
    marked("delivered"),
)
"""Reasons for authors: services/sender/outcomes.py."""

_FETCHING: Final = (
    marked("it could not be stored within %(seconds)s s"),
    marked("it could not be stored (%(error)s)"),
    marked("the provider refuses to hand it out: %(text)s"),
    marked(
        "the provider's response for it is malformed: behind the octets that it announces, something else follows than "
        "has to (RFC 3501 section 4.3)"
    ),
    marked("the session ended while it was read: %(problem)s"),
    marked("it is larger than the %(octets)s octets that are allowed"),
)
"""Reasons why a mail was not fetched: services/fetcher."""

FORMS: Final[tuple[str | tuple[str, str], ...]] = (*_DELIVERY, *_FETCHING)
"""All forms; of two that fit, the first one counts."""
