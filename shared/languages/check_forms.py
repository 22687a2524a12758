"""The forms of the texts about the checks of a provider's servers (``stored_forms.py`` has the rules)."""

from __future__ import annotations

from typing import Final

from shared.languages.translation import marked

CHECKS: Final = (
    marked("%(address)s port %(port)s"),
    marked("speaks IMAP"),
    marked("as %(login)s"),
    marked("as %(login)s; %(list)s"),
    marked("no TLS"),
    marked("%(version)s; the certificate is for %(written)s, valid until %(list)s"),
    marked("%(version)s; the certificate is for %(written)s, which is the pinned one"),
    marked("the server offers no extensions"),
    marked("%(address)s may send here; taken back, nothing was sent"),
    marked("not checked: the server requires a pause between two logins"),
    marked(
        "the %(list)s of the mails changed between two sessions; every mail would be fetched again and again. Ask the "
        "provider, or delete mails there as soon as they are stored here"
    ),
    marked("their %(list)s are the same in a second session"),
    marked("IDLE is offered"),
    marked("no IDLE: polled every %(seconds)s s"),
    marked("single mails can be deleted (UIDPLUS)"),
    marked("no UIDPLUS: the server cannot delete single mails; the account deletes none"),
)
"""Results of the steps: services/admin/accounts/connection_check.py, maildrop_check.py."""

LOGINS: Final = (
    marked("too many failed logins, try again later"),
    marked("too many wrong passwords; wait a minute and try again"),
    marked("Password: at least %(count)s characters are needed."),
    marked("Name: %(written)s: has 1 to 100 letters and no @; people with an address need no user here."),
    marked("Name: %(written)s: is there already."),
    marked("%(written)s: there is no such user; there are: %(list)s"),
    marked("That is not there any more."),
    marked("Role: %(written)s: is administrator or observer."),
    marked("Days: %(number)s: is a number from 1 to %(most)s."),
    marked("The user was removed meanwhile"),
    marked("%(user)s was changed meanwhile, is %(why)s now or has another password"),
    marked("Somebody has to stay administrator."),
)
"""Errors of users of the console and of logins: services/admin/access, shared/auth."""

OPERATIONS: Final = (
    marked("is disabled, so it is not checked; enable it first"),
    marked("is shared by %(list)s; remove them first, or let them share another one with 'local set ... external=...'"),
    marked(
        "its access tokens are used by %(list)s; remove them first, or give them tokens of their own with 'external "
        "set'"
    ),
    marked("the part before the @ is too long for a tag (64 octets)"),
    marked("the account is disabled, so the probe mail would not be fetched"),
    marked("is there already, not removed"),
    marked("no removed local account has this address; did you mean %(list)s?"),
    marked("no removed local account has this address; there are: %(list)s"),
    marked("no removed local account has this address"),
    marked("was removed longer ago than mail is kept, its mail is purged; add it again"),
    marked("is to have it, so it is not taken from there"),
    marked("no mail that arrived has this id"),
    marked("is %(why)s, not delivered; see 'held list' and 'parked list'"),
    marked("is the same account"),
    marked("is a further address of %(address)s; name the main address"),
)
"""Errors of operations on accounts and mails: services/admin/accounts, services/admin/mail."""
