"""The labels of the fields of accounts, by their names in the accounts file: on the console's pages, and in every line
for people."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

EXTERNAL: Final = {
    "address": "Email address",
    "enabled": "Enabled",
    "login": "Login user name",
    "password": "Login password",
    "oauth.same_as": "Account with the access tokens",
    "oauth.client_id": "Client id",
    "oauth.tenant": "Tenant",
    "oauth.client_secret": "Client secret",
    "oauth.client_key": "Private key",
    "oauth.issuer.token_url": "Token endpoint",
    "oauth.issuer.scope": "Scope",
    "oauth.issuer.device_url": "Device endpoint",
    "oauth.issuer.authorize_url": "Authorization page",
    "protocol": "Fetch by",
    "pop3.host": "POP3 server",
    "pop3.port": "POP3 port",
    "pop3.tls": "POP3 security",
    "imap.host": "IMAP server",
    "imap.port": "IMAP port",
    "imap.tls": "IMAP security",
    "imap.folders": "Folders",
    "imap.answered": "Mark what was answered as answered at the provider",
    "imap.sent": "Folder at the provider for copies of sent mail",
    "smtp.host": "SMTP server",
    "smtp.port": "SMTP port",
    "smtp.tls": "SMTP security",
    "smtp.auth": "SMTP needs authentication",
    "smtp.login": "SMTP login user name",
    "smtp.password": "SMTP login password",
    "smtp.oauth.same_as": "SMTP account with the access tokens",
    "history": "Existing mail at the provider",
    "poll_seconds": "Check for new mail every … seconds",
    "delete_after_days": "Delete at the provider after … days",
    "delete_history": "Delete existing mail, too",
    "aliases": "Further addresses of this mailbox",
    "reply_to_author": "An answer without a name goes to the author of the mail that it answers",
    "answer_notes": "Notify the others by mail when somebody has answered mail that went to everyone",
    "reply_tag": "Answers come to an address with the author’s tag",
    "smtp.connections": "Connections at once when sending",
    "smtp.mails_per_minute": "SMTP mails a minute at most",
    "smtp.recipients_per_day": "SMTP recipients a day at most",
    "pop3.tls_fingerprint": "Only this POP3 certificate",
    "imap.tls_fingerprint": "Only this IMAP certificate",
    "smtp.tls_fingerprint": "Only this SMTP certificate",
}
"""Labels of an external account, in the order of the page."""
LOCAL: Final = {
    "address": "Email address",
    "enabled": "Enabled",
    "password": "Login password",
    "user_name": "User name",
    "external": "External email address",
    "aliases": "Further names",
    "addresses": "Further local addresses",
    "delegate": "Delegate",
    "junk": "Junk mail goes into the folder Junk",
    "language": "Language of notices",
}
"""Labels of a local account, in the order of the page."""
IN_CHANGES: Final = {
    "pop3": "POP3 server",
    "imap": "IMAP server",
    "smtp": "SMTP server",
    "oauth": "Log in with",
    "hold": "On hold until the account is started",
    "former_names": "Former names",
}
"""Labels of what a change names as a whole, or what no form has."""
ORDINALS: Final = ("First", "Second", "Third")
"""Words for the SMTP servers of an account, by position."""


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
