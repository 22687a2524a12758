"""The kinds of problem that a person has to hear of, each with what it means and what to do. Pure."""

from __future__ import annotations

from dataclasses import dataclass

MIN_DURATION_SECONDS = 60.0
"""A trouble has to last so long before it is told; most that are shorter mend themselves."""


KINDS = {
    "login": "The provider refuses the login. Correct the password ('mailgroup external set ADDRESS password=-'); "
    "until then one try an hour is made, and nothing is bounced.",
    "grant": "The provider gives no access token. Authorize the account again, on its page in the console or by "
    "'mailgroup external authorize ADDRESS'.",
    "poll": "No mail of this account arrives. 'mailgroup external test ADDRESS' tells step by step what is wrong.",
    "held": "Nobody enabled shares the external account of these mails ('mailgroup held list'). They are delivered as "
    "soon as somebody does.",
    "parked": "These mails are set apart; 'mailgroup parked list' and 'parked show ID' tell why. They wait for 'parked "
    "requeue' or 'parked discard'.",
    "books": "Mails were fetched that are nowhere now, or are there without having been fetched. Something outside "
    "of mailgroup changed its database; compare with the latest backup.",
    "late": "Mails are on their way for over ten minutes. 'mailgroup status' tells which service or server is missing.",
    "disk": "A full disk stops all mail. Make room, or give the system a larger disk.",
    "certificate": "Mail clients will refuse to connect. Put the renewed certificate in its place; it is read anew.",
    "database": "Nothing works without it. See the log of PostgreSQL.",
}
"""The kinds of trouble, each with what it means and what to do."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is wrong now. subject: what it concerns, '' for the whole system. lasting: before it is told."""

    kind: str
    subject: str
    text: str
    min_duration: float = MIN_DURATION_SECONDS
