"""The forms of the texts that say where a mail went, and why (``stored_forms.py`` has the rules)."""

from __future__ import annotations

from typing import Final

from shared.languages.translation import marked

NOTICES: Final = (
    marked("not delivered within five days; %(problem)s"),
    marked("the last problem was: %(problem)s"),
    marked("the provider's mail server was never tried"),
    marked(
        "sent twice, and both times the connection ended before the provider's answer: it may have been delivered, or "
        "not"
    ),
    marked("the sender ended before the provider's reply came"),
    marked("delivered"),
    marked("a notice that a mail failed"),
    marked("a notice that a mail is delayed"),
    marked("a notice that a mail was delivered"),
    marked("a notice that a mail was handed on"),
    marked("a note that somebody answered"),
    marked("an alarm"),
    marked("the delivery was cancelled by the operator"),
)
"""Reasons for authors, and of notices: services/sender/outcomes.py, services/admin."""

FETCHING: Final = (
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

ROUTING: Final = (
    marked("%(why)s, so everyone else who shares it gets it"),
    marked("%(why)s, so everyone who shares it gets it"),
    marked("held: %(problem)s"),
    marked("%(address)s is not started yet"),
    marked("nobody who shares %(address)s is enabled"),
    marked("its recipient's account was removed before the delivery"),
    marked("%(why)s; into Junk"),
    marked("%(why)s; %(user)s is disabled, the delegate gets it"),
    marked("%(why)s; %(user)s is disabled and has no delegate, so the others get it"),
    marked("it answers a mail that %(user)s wrote"),
    marked("it reports on a mail that %(user)s wrote"),
    marked("it is addressed to the reply tag of %(user)s"),
    marked("%(field)s names nobody"),
    marked('%(field)s names "%(written)s", which is nobody\'s name here'),
    marked('%(field)s names %(user)s as "%(written)s"'),
    marked("%(field)s names %(user)s"),
    marked("%(user)s wrote the mail that it answers"),
    marked("%(address)s is in neither To nor Cc"),
    marked("the header cannot be read"),
    marked("the header has more than %(count)s fields %(field)s"),
    marked("the account was removed or disabled before the delivery"),
    marked("mail loop: more than %(count)s servers have relayed the mail (Received fields)"),
    marked("requeued by the operator"),
    marked("given by the operator"),
    marked("taken by the operator"),
)
"""Reasons of the decision who gets a mail: shared/routing, services/router, services/mailbox."""
