"""The forms of the texts that say what is wrong with the system (``stored_forms.py`` has the rules)."""

from __future__ import annotations

from typing import Final

from shared.languages.translation import marked, marked_plural

COUNTED: Final = (
    marked_plural(
        "%(num)s mail is on hold: no enabled user shares the external account",
        "%(num)s mails are on hold: no enabled user shares the external account",
    ),
    marked_plural(
        "%(num)s mail waits for a start, the oldest for %(span)s %(unit)s",
        "%(num)s mails wait for a start, the oldest for %(span)s %(unit)s",
    ),
    marked_plural("%(num)s mail needs attention: %(why)s", "%(num)s mails need attention: %(why)s"),
    marked_plural(
        "%(num)s mail could not be fetched and stays at the provider",
        "%(num)s mails could not be fetched and stay at the provider",
    ),
    marked_plural(
        "%(num)s mail cannot be filed or marked at the provider: %(problem)s",
        "%(num)s mails cannot be filed or marked at the provider: %(problem)s",
    ),
    marked_plural(
        "%(num)s mail in flight, the oldest for %(minutes)s minutes",
        "%(num)s mails in flight, the oldest for %(minutes)s minutes",
    ),
    marked_plural(
        "%(num)s submission waits to be relayed, the oldest for %(hours)s hours",
        "%(num)s submissions wait to be relayed, the oldest for %(hours)s hours",
    ),
)
"""Problems with a number of mails: services/admin/monitoring."""

SYSTEM: Final = (
    marked("processing failed five times"),
    marked("restored from a backup and perhaps relayed since"),
    marked("in a mail loop"),
    marked("broker: no connection within %(seconds)s s"),
    marked("the counts do not add up: %(fetched)s mails were fetched, %(total)s were accounted for"),
    marked("in flight for %(minutes)s minutes"),
    marked("local mail: in flight for %(minutes)s minutes"),
    marked("no sender has claimed a submission for %(minutes)s min"),
    marked(
        "%(count)s invitations in %(days)s days name a local address as organizer, which customers cannot answer; set "
        "the identity of the mail program's calendar to %(address)s"
    ),
    marked("PostgreSQL: %(used)s of %(limit)s connections are used"),
    marked("PostgreSQL accepts no changes, it is read-only: mail waits"),
    marked("PostgreSQL does not answer: %(problem)s"),
    marked("PostgreSQL did not answer for %(minutes)s minutes"),
    marked("PostgreSQL: the write-ahead log is not archived (archive_command fails)"),
    marked("PostgreSQL: the oldest transaction ids are %(count)s old, not frozen"),
    marked("PostgreSQL: the oldest multixacts are %(count)s old, not frozen"),
    marked("PostgreSQL: %(count)s standbys are not connected (replication slots)"),
    marked("PostgreSQL: %(count)s MiB of the write-ahead log wait for a standby"),
    marked("PostgreSQL reports corrupted data; its log and that of the service name the table or index"),
    marked("disk of %(folder)s: %(count)s MiB (%(share)s %%) are free"),
    marked("its certificate has expired"),
    marked("its certificate expires in %(days)s days"),
    marked("the certificate in its files cannot be used, the previous one is still in use; see the log"),
    marked("does not answer at %(url)s (%(text)s)"),
    marked("queue %(name)s: it has no consumer"),
    marked("the status is unknown; see the log of the service admin"),
    marked("is disabled, and the delegate %(address)s %(why)s"),
    marked("the delegate %(address)s %(why)s"),
    marked(
        "%(why)s: while this account is disabled, mail with this person's name goes to everyone who shares the account"
    ),
    marked("%(why)s: while this account is disabled, mail with this person's name stays on hold"),
    marked("%(why)s: mail with this person's name goes to everyone who shares the account"),
    marked("%(why)s: mail with this person's name stays on hold"),
    marked("is removed"),
    marked("is disabled"),
    marked("shares another account"),
    marked("mail waits to be relayed: %(problem)s"),
    marked("not checked yet"),
    marked("not checked yet (%(problem)s)"),
    marked("no successful check since %(day)s %(time)s UTC"),
    marked("no successful check since %(day)s %(time)s UTC (%(problem)s)"),
    marked("limit of %(count)s mails a minute reached, next at %(time)s UTC"),
    marked("limit of %(count)s recipients a day reached, next at %(time)s UTC"),
    marked("limit of %(count)s mails a minute reached"),
    marked("limit of %(count)s recipients a day reached"),
)
"""Problems of the system: services/admin/monitoring."""

CONNECTIONS: Final = (
    marked("no such host; check the host's name"),
    marked("connection refused; check host and port"),
    marked("no connection within %(seconds)s s; check host, port, firewall"),
    marked("network is unreachable; check host and port"),
    marked("no route to host; check host and port"),
    marked("no answer; check host and port"),
    marked("no response to the request"),
    marked("the response takes too long"),
    marked(
        "%(address)s is a private address, and those are not allowed; the operator allows it with "
        "MAILGROUP_ALLOW_PRIVATE_UPSTREAM=yes, or with the host's name there"
    ),
    marked("port %(port)s is not allowed on a public host; allowed are %(text)s"),
    marked(
        "the certificate is not the pinned one (its SHA-256 is %(hash)s); set tls_fingerprint to that only if the "
        "provider confirms it"
    ),
    marked(
        "the certificate is not trusted (%(text)s); correct the host's name, or pin the certificate with "
        "tls_fingerprint"
    ),
    marked(
        "the server does not speak TLS on this port, but clear text; check port and tls: this port is for STARTTLS or "
        "for no encryption, SSL/TLS (implicit) has a port of its own"
    ),
    marked("the connection ended during the TLS handshake; check port and tls; TLS 1.2 or newer is needed"),
    marked("TLS failed (%(text)s); TLS 1.2 or newer is needed"),
    marked("the server refuses service now: %(text)s"),
    marked("the server offers no login by name and password"),
    marked("the mailbox cannot be opened now: %(text)s"),
    marked("the login was refused; check login name and password: %(text)s"),
    marked("the server ends the session: %(text)s"),
    marked("the reply is not an IMAP reply; check host, port and tls"),
    marked("the reply is not a POP3 reply; check host, port and tls"),
    marked("refused for now: %(text)s"),
    marked("refused: %(text)s"),
    marked("the provider refuses every mail now: %(text)s"),
    marked("the stored password cannot be decrypted with this key; set it again"),
)
"""Errors of connections to providers: shared/net, shared/provider."""

REASONS: Final = (
    marked("Connection refused"),
    marked("Connection reset by peer"),
    marked("No route to host"),
    marked("Network is unreachable"),
    marked("Name or service not known"),
    marked("timed out"),
)
"""Texts of the operating system and of Python for a service that does not answer: services/admin/monitoring."""

AROUND: Final = (
    marked("paused: retried once an hour, and at once when the account is changed or tested"),
    marked("%(problem)s (paused: one try an hour)"),
    marked("service %(name)s: %(problem)s"),
    marked("fetching: %(problem)s"),
    marked("relaying: %(problem)s"),
    marked("relaying by %(host)s: %(problem)s"),
    marked("%(place)s: %(problem)s"),
    marked("%(problem)s; check host and port"),
    marked("%(problem)s; %(text)s"),
)
"""What stands around another text."""
