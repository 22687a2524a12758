"""The labels of the fields of accounts, by their names in the accounts file: on the console's pages, and in every line
for people."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from shared.languages.translation import SOURCE, gettext, language, lookup, marked

EXTERNAL: Final = {
    "address": marked("Email address"),
    "enabled": marked("Enabled"),
    "login": marked("Login user name"),
    "password": marked("Login password"),
    "oauth.same_as": marked("Account with the access tokens"),
    "oauth.client_id": marked("Client id"),
    "oauth.tenant": marked("Tenant"),
    "oauth.client_secret": marked("Client secret"),
    "oauth.client_key": marked("Private key"),
    "oauth.issuer.token_url": marked("Token endpoint"),
    "oauth.issuer.scope": marked("Scope"),
    "oauth.issuer.device_url": marked("Device endpoint"),
    "oauth.issuer.authorize_url": marked("Authorization page"),
    "protocol": marked("Fetch by"),
    "pop3.host": marked("POP3 server"),
    "pop3.port": marked("POP3 port"),
    "pop3.tls": marked("POP3 security"),
    "imap.host": marked("IMAP server"),
    "imap.port": marked("IMAP port"),
    "imap.tls": marked("IMAP security"),
    "imap.folders": marked("Folders"),
    "imap.answered": marked("Mark what was answered as answered at the provider"),
    "imap.sent": marked("Folder at the provider for copies of sent mail"),
    "smtp.host": marked("SMTP server"),
    "smtp.port": marked("SMTP port"),
    "smtp.tls": marked("SMTP security"),
    "smtp.auth": marked("SMTP needs authentication"),
    "smtp.login": marked("SMTP login user name"),
    "smtp.password": marked("SMTP login password"),
    "smtp.oauth.same_as": marked("SMTP account with the access tokens"),
    "history": marked("Existing mail at the provider"),
    "poll_seconds": marked("Check for new mail every … seconds"),
    "delete_after_days": marked("Delete at the provider after … days"),
    "delete_history": marked("Delete existing mail, too"),
    "aliases": marked("Further addresses of this mailbox"),
    "reply_to_author": marked("An answer without a name goes to the author of the mail that it answers"),
    "answer_notes": marked("Notify the others by mail when somebody has answered mail that went to everyone"),
    "reply_tag": marked("Answers come to an address with the author’s tag"),
    "smtp.connections": marked("Connections at once when sending"),
    "smtp.mails_per_minute": marked("SMTP mails a minute at most"),
    "smtp.recipients_per_day": marked("SMTP recipients a day at most"),
    "pop3.tls_fingerprint": marked("Only this POP3 certificate"),
    "imap.tls_fingerprint": marked("Only this IMAP certificate"),
    "smtp.tls_fingerprint": marked("Only this SMTP certificate"),
}
"""Labels of an external account, in the order of the page."""
LOCAL: Final = {
    "address": marked("Email address"),
    "enabled": marked("Enabled"),
    "password": marked("Login password"),
    "user_name": marked("User name"),
    "external": marked("External email address"),
    "aliases": marked("Further names"),
    "addresses": marked("Further local addresses"),
    "delegate": marked("Delegate"),
    "junk": marked("Junk mail goes into the folder Junk"),
    "language": marked("Language of notices"),
}
"""Labels of a local account, in the order of the page."""
IN_CHANGES: Final = {
    "pop3": marked("POP3 server"),
    "imap": marked("IMAP server"),
    "smtp": marked("SMTP server"),
    "oauth": marked("Log in with"),
    "hold": marked("On hold until the account is started"),
    "former_names": marked("Former names"),
}
"""Labels of what a change names as a whole, or what no form has."""
ORDINALS: Final = ("First", "Second", "Third")
"""Words for the SMTP servers of an account, by position."""
RELAY_TITLES: Final = (marked("First SMTP server"), marked("Second SMTP server"), marked("Third SMTP server"))


def of_field(known: Mapping[str, str], name: str) -> str:
    """Return the label of a field, also of a further SMTP server (smtp[1].port). :param known: of the account."""
    found = re.fullmatch(r"smtp\[(\d)\](.*)", name)
    if found is None:
        return known.get(name) or IN_CHANGES[name]
    return of_further(int(found[1]), of_field(known, f"smtp{found[2]}"))


def of_further(position: int, label: str) -> str:
    """Return the label of a field of a further SMTP server. :param label: of the first one."""
    rest = label.removeprefix("SMTP ")
    if rest in ("server", "port", "security"):
        return f"{ORDINALS[position]} SMTP {rest}"
    return f"{ORDINALS[position]} SMTP server: {rest[0].lower()}{rest[1:]}"


def translated(known: Mapping[str, str], name: str) -> str:
    """Return the label of a field, as ``of_field``, in the language that applies."""
    found = re.fullmatch(r"smtp\[(\d)\](.*)", name)
    if found is None or language() == SOURCE:
        return lookup(of_field(known, name))
    field = lookup(of_field(known, f"smtp{found[2]}"))
    return gettext("%(server)s: %(field)s", server=lookup(RELAY_TITLES[int(found[1])]), field=field)
