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
)
"""Errors of users of the console and of logins: services/admin/access, shared/auth."""
