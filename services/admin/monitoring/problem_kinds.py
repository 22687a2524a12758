"""The kinds of problem that are reported to a person, with their meaning and what to do. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from shared.languages.translation import marked

MIN_DURATION_SECONDS = 60.0
"""Seconds that a problem has to last before it is reported; most shorter ones end without help."""


KINDS = {
    "login": marked(
        "The provider refuses the login. Correct the password ('mailgroup external set ADDRESS password=-'); "
        "until then mailgroup tries once an hour, and no mail is bounced."
    ),
    "grant": marked(
        "The provider gives no access token. Authorize the account again, on its page in the console or by "
        "'mailgroup external authorize ADDRESS'."
    ),
    "poll": marked(
        "No mail of this account arrives. 'mailgroup external test ADDRESS' shows step by step what is wrong."
    ),
    "filing": marked(
        "The mail has left, but its copy or the mark of the answered mail is missing at the provider. It is "
        "tried for five days; correct the folder or its rights there, or switch imap.sent and imap.answered off."
    ),
    "full": marked(
        "All SMTP servers of this account have reached a limit (yours or their own), or do not work, so its mail "
        "waits. Raise smtp.mails_per_minute or smtp.recipients_per_day if the provider allows more, or add another "
        "server."
    ),
    "held": marked(
        "These mails are on hold ('mailgroup held list'): no enabled user shares their external account. "
        "They are delivered as soon as one does."
    ),
    "start": marked(
        "These mails wait until you say that everybody who shares the account is there: choose 'Everybody is "
        "here, start' on the first page of the console, or run 'mailgroup external start ADDRESS'."
    ),
    "delegate": marked(
        "This person's mail does not reach the delegate. Name another one ('mailgroup local set ADDRESS "
        "delegate=COLLEAGUE', or an empty value for nobody), or enable the person or the delegate again."
    ),
    "parked": marked(
        "These mails are not processed any more; 'mailgroup parked list' and 'parked show ID' show why. They "
        "wait for 'parked requeue' or 'parked discard'."
    ),
    "books": marked(
        "Fetched mails are missing, or there are mails that were never fetched. Something outside of mailgroup "
        "changed its database; compare with the latest backup."
    ),
    "late": marked("Mails have been in flight for over ten minutes. 'mailgroup status' shows what is down."),
    "organizer": marked(
        "Customers see the local address as the organizer of these invitations, and cannot answer them. Set "
        "the identity of the calendar in this person's mail program to the external address, and send them again. "
        "This is shown for three days after the last one."
    ),
    "disk": marked("A full disk stops all mail. Free some space, or give the system a larger disk."),
    "certificate": marked(
        "Mail clients will refuse to connect. Install the renewed certificate; mailgroup reloads it."
    ),
    "provider_certificate": marked(
        "The provider shows a certificate that is not the pinned one, so mail waits. 'mailgroup "
        "external test ADDRESS' shows it. Trust it only if the provider confirms it."
    ),
    "background": marked(
        "A periodic work of the service admin fails. Its log names the cause; the work is tried again."
    ),
    "corrupted": marked(
        "PostgreSQL cannot read some of its data: a disk fails, or files were changed. Mail that needs the "
        "data waits. Make a backup now, then follow the runbook DatabaseCorrupted."
    ),
    "connections": marked(
        "When all connections of PostgreSQL are used, no service can open another one. Raise "
        "max_connections of PostgreSQL, run fewer replicas, or lower MAILGROUP_DATABASE_CONNECTIONS."
    ),
    "wraparound": marked(
        "PostgreSQL will refuse all writes if its old ids are not frozen. End what holds them (long "
        "transactions, prepared transactions, replication slots), then run VACUUM (FREEZE)."
    ),
    "replication": marked(
        "A standby of PostgreSQL lags, or is gone; the write-ahead log that it lacks fills the disk. Start "
        "it, or drop its replication slot."
    ),
    "archiving": marked(
        "No backup reaches beyond the last archived segment, and the write-ahead log fills the disk. The log "
        "of PostgreSQL has the error of archive_command."
    ),
    "database": marked("No service works without the database. See the log of PostgreSQL."),
}
"""Meaning and remedy of each kind of problem."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is wrong now."""

    kind: str
    subject: str  # what it concerns; '' for the whole system
    text: str
    min_duration: float = MIN_DURATION_SECONDS  # seconds that it lasts before it is reported
