"""Decides whether a mail is accepted as its envelope and header are, by one state of the accounts. Pure.

A cached directory is enough to accept MAIL and RCPT, because the whole envelope is checked here once more when the mail
is complete, and the commit compares the version of the accounts. Only current accounts are enough to refuse.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from services.smtp_in import sender_policy
from services.smtp_in.data_reader import SmtpRefusal, Values
from services.smtp_in.recipient_policy import Directory, check_size, delivery_key, resolve
from shared.model import EnvelopeRecipient, External, Local

LOGIN_ENDED = SmtpRefusal(550, "5.7.1", "Your account was disabled, removed or given another password; log in again")
_NO_EXTERNAL = SmtpRefusal(451, "4.3.5", "The account has no external account")
_GONE = SmtpRefusal(550, "5.1.1", "there is no such account any more")


@dataclass(frozen=True, slots=True)
class Envelope:
    """The envelope of a mail by one state of the accounts."""

    directory: Directory
    author: Local
    external: External  # sends the mail
    recipients: tuple[EnvelopeRecipient, ...]  # one for each copy
    refused: tuple[tuple[EnvelopeRecipient, SmtpRefusal], ...]  # accepted at RCPT, and gone since
    redirected: str | None = None  # Message-ID of the mail that is redirected, which has to be one of the author's


def check_sender(directory: Directory, login: Local, address: str) -> Local | SmtpRefusal:
    """Check the login and MAIL FROM, whose syntax is checked before.

    :param login: the account as of the login. :return: the account as it is.
    """
    author = directory.local_ids.get(login.id)
    if author is None or not author.enabled or author.password_hash != login.password_hash:
        return LOGIN_ENDED
    return sender_policy.check_envelope(directory, author, address) or author


def check_recipient(directory: Directory, author: Local, address: str, octets: int) -> EnvelopeRecipient | SmtpRefusal:
    """Check RCPT TO, whose syntax is checked before. :param octets: size that the client announced, or 0."""
    recipient = resolve(directory, address)
    if isinstance(recipient, SmtpRefusal):
        return recipient
    return check_size(directory.external_ids.get(author.external_id), [recipient], octets) or recipient


def check_mail(
    directory: Directory, login: Local, sender: str, accepted: Sequence[EnvelopeRecipient], header: Values, octets: int
) -> Envelope | SmtpRefusal:
    """Check the whole mail.

    A recipient that no account has any more is ``refused``; it never becomes an outside address. If that leaves no
    recipient, the mail is refused.

    :param login: the account as of the login. :param sender: MAIL FROM. :param accepted: the recipients as of RCPT.
    :param octets: size of the mail.
    """
    author = check_sender(directory, login, sender)
    if isinstance(author, SmtpRefusal):
        return author
    external = directory.external_ids.get(author.external_id)
    if external is None:
        return _NO_EXTERNAL
    recipients: dict[tuple[str, object], EnvelopeRecipient] = {}
    refused = []
    for before in accepted:
        current = resolve(directory, before.address)
        if isinstance(current, EnvelopeRecipient) and current.kind == "relay" and before.kind == "local":
            current = _GONE
        if isinstance(current, SmtpRefusal):
            refused.append((before, current))
        else:
            current = replace(current, dsn_params=before.dsn_params) if before.dsn_params else current
            recipients.setdefault(delivery_key(current), current)
    if not recipients:
        return refused[0][1]
    refusal = sender_policy.check_header(directory, author, header)
    refusal = refusal or check_size(external, recipients.values(), octets)
    redirected = None if refusal else sender_policy.redirected_id(directory, author, header)
    return refusal or Envelope(directory, author, external, tuple(recipients.values()), tuple(refused), redirected)
