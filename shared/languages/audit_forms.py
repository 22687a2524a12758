"""The forms of what the record of changes says: verbs with their objects, and the details of some.

``stored_forms.py`` has the rules. The rows are English, for commands and the REST API.
"""

from __future__ import annotations

from typing import Final

from shared.languages.translation import marked

AUDIT: Final = (
    marked("signed in"),
    marked("sign-in refused"),
    marked("signed out everywhere"),
    marked("changed external account"),
    marked("changed local account"),
    marked("removed external account"),
    marked("removed local account"),
    marked("restored local account"),
    marked("started external account"),
    marked("authorized external account"),
    marked("began to authorize external account"),
    marked("stopped authorizing external account"),
    marked("requested a check"),
    marked("sent probe mail for reply tags"),
    marked("changed their language"),
    marked("changed their password"),
    marked("made a token"),
    marked("console: add"),
    marked("console: password"),
    marked("console: role"),
    marked("console: remove"),
    marked("console: end-session"),
    marked("console: end-token"),
    marked("brought back deleted mail"),
    marked("brought back"),
    marked("gave a mail"),
    marked("handed mail over"),
    marked("looked into a mail"),
    marked("sent again"),
    marked("discarded"),
    marked("tried now"),
    marked("requeued"),
    marked("tries again mails not fetched"),
    marked("acknowledged mails not fetched"),
    marked("unknown name"),
    marked("%(user)s (command line)"),
    marked("command line"),
    marked("%(text)s, days: %(days)s"),
    marked("from %(peer)s"),
    marked("of %(address)s"),
    marked("to %(address)s"),
    marked("User %(user)s: added as %(text)s."),
    marked("User %(user)s: changed password."),
    marked("User %(user)s: removed."),
    marked("User %(user)s: signed out of one browser."),
    marked("User %(user)s: %(text)s."),
    marked("Token %(user)s: revoked."),
)
"""Texts of the columns who, did and detail that are of no other list, and what was done to users and tokens."""
