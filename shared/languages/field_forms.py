"""The forms of the texts about fields of accounts: what is wrong, and what was changed.

``stored_forms.py`` has the rules. The texts are also those of commands and of the REST API, where they are English.
"""

from __future__ import annotations

from typing import Final

from shared.languages.translation import marked, marked_plural

_HINTS: Final = (
    marked("%(problem)s; did you mean %(list)s?"),
    marked("%(problem)s; there are: %(list)s"),
    marked("%(problem)s; allowed here are %(list)s"),
    marked("%(problem)s (a number has no quotes)"),
    marked("has to be given again, because the stored one is for another server (%(list)s)"),
    marked("has to be given again, because the stored one is for another server"),
)
_VALUES: Final = (
    marked("fill this in"),
    marked("choose one of the list"),
    marked("is missing"),
    marked("is missing, and none is stored"),
    marked("there is no such field"),
    marked("is made of the fields %(list)s"),
    marked("is not one of %(list)s"),
    marked("is not a number from %(least)s to %(most)s"),
    marked("is not true or false"),
    marked("is not a list, for example [one, two]"),
    marked("is not a list of accounts"),
    marked("is empty"),
    marked("is longer than %(count)s characters"),
    marked("is longer than %(count)s octets"),
    marked("is not text; put it in quotes"),
    marked("is not UTF-8 text"),
    marked("is not a text file"),
    marked("an address has the form name@domain and at most 200 octets"),
    marked("a host is a name or an IP address"),
    marked("a name has at least one visible letter and no control characters"),
    marked("a folder is named by at least one visible character, without control characters"),
    marked("from 1 to %(count)s folders are allowed"),
    marked("from 1 to %(count)s SMTP servers are allowed"),
    marked("%(host)s, port %(port)s, is named twice"),
    marked("%(written)s is named twice"),
    marked("sent mail is not put into the INBOX; name another folder, or true for the provider's"),
    marked("a fingerprint is the SHA-256 of the certificate: 64 hex digits"),
    marked("a password hash is argon2id in PHC form"),
    marked("an endpoint is an https URL without a user name (http: on private addresses only)"),
    marked("auth is false, so nobody logs in; leave one of them out"),
    marked("login is missing beside it; without both, the account's login and password are used"),
    marked("is missing, and imap, too: one of them names the server from which mail is fetched"),
    marked("imap is given, too; mail is fetched from one of them"),
    marked("only one of %(list)s may be given, not %(written)s"),
    marked("is for a file beside the accounts file; give the password itself"),
    marked("is for a file beside the accounts file; give the key itself, as client_key"),
    marked("at least %(count)s characters are needed"),
)
"""Errors of a single field: services/admin/accounts/file_format.py, field_problems.py, passwords.py."""
_OAUTH: Final = (
    marked("is not allowed beside same_as: the access tokens are those of %(address)s"),
    marked("has no grant %(grant)s; it has %(list)s, and authorization by a person"),
    marked("is missing: the name or id of your organisation at Microsoft"),
    marked("names no organisation; client_credentials needs the name or id of yours at Microsoft"),
    marked("is for the issuer microsoft only"),
    marked("is not used by jwt_bearer, which signs with client_key"),
    marked("is for the grant jwt_bearer; google takes a client_secret with a person's authorization"),
    marked("is not allowed beside %(field)s; one of them proves who the application is"),
    marked("is the key of %(owner)s, which has to be the client_id"),
    marked("is not one private key in PEM form, or the JSON key file of a Google service account"),
    marked("is not the name or id of an organisation: letters, digits, dots and hyphens"),
    marked("is this account itself; name another one, which has oauth"),
    marked("has no access tokens; name an account with oauth"),
    marked("has no access tokens of its own; name %(address)s"),
    marked("has other servers (%(list)s); access tokens are sent to no other ones"),
    marked("%(address)s uses the access tokens of this account; change that first"),
)
"""Errors of access tokens: services/admin/accounts/oauth_rules.py, token_users.py."""
_RULES: Final = (
    marked("is given twice"),
    marked("is there already"),
    marked("is the address of another account already; two accounts cannot become one"),
    marked("is the address of no account; without this field the account is added as a new one"),
    marked("is the address of another entry, too; change the address first, and add that account afterwards"),
    marked("is the address of an account that is changed, too; change that one before"),
    marked("is named by two entries"),
    marked("has this address as its former one, too; let one of them have a third address meanwhile"),
    marked("there is no such external account"),
    marked("there is no such local account"),
    marked("this provider puts sent mail into its folder itself; leave it off"),
    marked("is disabled and gets no mail; enable it first, or name another colleague"),
    marked("its external account is removed; name another"),
    marked("is an address of external account %(address)s already"),
    marked("is an address of local account %(address)s already"),
    marked(
        "%(domain)s is a public mail provider's domain; mail to everyone there would stay here. Use one of your own, "
        "for example local.com"
    ),
    marked("%(address)s has this name in the same share; a name may belong to one person only"),
    marked("%(address)s has this person as delegate and stays; name another delegate there first"),
    marked("has to be another local account that shares the same external account"),
    marked("the account has %(count)s SMTP servers; the next one is %(next)s"),
    marked("an account keeps its address; add another account, and remove this one"),
    marked(
        "cannot be switched on: this person logs in by POP3 alone, which shows no folder but INBOX, and would not see "
        "junk mail; possible after a login by IMAP, which counts for %(days)s days"
    ),
    marked("no enabled user shares it yet; add the people first, then start it"),
    marked("can be switched on after a probe mail has come back to the address with a tag; send one first"),
    marked(
        "the account gets another mailbox, which may not deliver mail to an address with a tag; switch it off, and "
        "send a probe mail later"
    ),
)
"""Errors of accounts together: services/admin/accounts/plan.py, conflicts.py, edit.py, apply.py."""
_CHANGES: Final[tuple[str | tuple[str, str], ...]] = (
    marked("changed"),
    marked("added"),
    marked("added; its mail is on hold until it is started"),
    marked("removed"),
    marked("removed; its mail is kept for the retention time ('local restore' brings it back)"),
    marked("has no delegate any more"),
    marked("not reachable now: %(problem)s"),
    marked("started for %(text)s; %(why)s"),
    marked_plural("%(num)s person", "%(num)s people"),
    marked_plural("%(num)s mail on hold is routed now", "%(num)s mails on hold are routed now"),
    marked_plural("%(num)s mail on hold is routed again", "%(num)s mails on hold are routed again"),
    marked("%(address)s was changed meanwhile, and nothing is saved yet. The latest changes:"),
    marked("%(address)s was removed meanwhile, and nothing is saved yet. The latest changes:"),
    marked_plural("%(num)s mail copied to %(address)s", "%(num)s mails copied to %(address)s"),
    marked_plural("%(num)s mail to %(address)s", "%(num)s mails to %(address)s"),
    marked("local account %(address)s"),
    marked("external account %(address)s"),
    marked("local account %(address)s: %(problem)s"),
    marked("external account %(address)s: %(problem)s"),
)
"""What was changed: services/admin/accounts/change_lines.py, apply.py, start.py, edit.py,
services/admin/mail/retirement.py."""

FIELDS: Final = (*_HINTS, *_VALUES, *_OAUTH, *_RULES, *_CHANGES)
