"""The labels of the fields of accounts, by their names in the accounts file: on the console's pages, and in every line
for people."""

from __future__ import annotations

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
    "history": "Existing mail at the provider",
    "poll_seconds": "Check for new mail every … seconds",
    "delete_after_days": "Delete at the provider after … days",
    "delete_history": "Delete existing mail, too",
    "aliases": "Further addresses of this mailbox",
    "reply_to_author": "An answer without a name goes to the author of the mail that it answers",
    "answer_notes": "Notify the others by mail when somebody has answered mail that went to everyone",
    "reply_tag": "Answers come to an address with the author’s tag",
    "smtp.connections": "Connections at once when sending",
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
