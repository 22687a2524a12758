"""The domain types without SQL: accounts (manual chapter 4), polls, the UIDL ledger, bytes, sent mail, alerts."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Tls = Literal["none", "starttls", "implicit"]


@dataclass(frozen=True, slots=True)
class Server:
    """Where a provider's server is. tls_fingerprint: SHA-256 of the one certificate to accept, 64 hex digits."""

    host: str
    port: int
    tls: Tls
    tls_fingerprint: str | None = None


@dataclass(frozen=True, slots=True)
class Issuer:
    """A provider's endpoints for tokens (URLs) and the scope that mail needs. One of the last two may be missing."""

    token_url: str
    scope: str
    device_url: str | None = None
    authorize_url: str | None = None


@dataclass(frozen=True, slots=True)
class OAuth:
    """How access tokens for an account are got. name: of the issuer, '' if it is none that we know by name."""

    name: str
    issuer: Issuer
    client_id: str


@dataclass(frozen=True, slots=True)
class External:
    """A mailbox at a provider (manual 4.1). Times in seconds or days as named.

    password: sealed by the vault; with ``oauth`` that is a ``Grant`` of shared/provider/credentials.py. smtp_size:
    octets that its server announces as the most that it takes; smtp_refused: of the smallest mail that it refused as
    too large. answer_notes: its sharers are told when one of them has answered a mail to everyone.
    """

    id: int
    address: str
    enabled: bool
    login: str
    password: bytes = field(repr=False)
    pop3: Server
    smtp: Server
    smtp_auth: bool
    smtp_connections: int
    poll_seconds: int
    history: Literal["all", "from_now"]
    delete_after_days: int | None
    delete_history: bool
    reply_to_author: bool
    aliases: tuple[str, ...]
    oauth: OAuth | None = None
    smtp_size: int | None = field(default=None, compare=False)
    smtp_refused: int | None = field(default=None, compare=False)
    answer_notes: bool = False

    @property
    def max_octets(self) -> int | None:
        """Of a mail that the provider takes, as far as is known."""
        known = [self.smtp_size, self.smtp_refused and self.smtp_refused - 1]
        return min((octets for octets in known if octets), default=None)

    @property
    def own_addresses(self) -> frozenset[str]:
        """Its address and aliases, in lower case."""
        return frozenset(address.casefold() for address in (self.address, *self.aliases))


@dataclass(frozen=True, slots=True)
class Local:
    """A person (manual 4.2). aliases: further names. addresses: further local addresses. delegate_id: a local account.

    former_names: user names of before, which go on finding this person until somebody else has them.
    """

    id: int
    address: str
    enabled: bool
    password_hash: str = field(repr=False)
    user_name: str
    aliases: tuple[str, ...]
    addresses: tuple[str, ...]
    external_id: int
    delegate_id: int | None
    former_names: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The user name and the further and former ones, as written."""
        return (self.user_name, *self.aliases, *self.former_names)

    @property
    def own_addresses(self) -> frozenset[str]:
        """The address and the further ones, in lower case."""
        return frozenset(address.casefold() for address in (self.address, *self.addresses))


@dataclass(frozen=True, slots=True)
class Sent:
    """A mail that one of us sent through an external account. message_id: one of its ids, without angle brackets.

    recipients: of its envelope.
    """

    message_id: str
    external_id: int
    author_id: int
    recipients: tuple[str, ...] = ()


POLLER_DIED = "ended"
"""Kind of an error of the account: the process that polled it died, for whatever reason."""


POLLER_DIED_TIMES = 5
"""So many of them, one after the other, are no chance any more."""


@dataclass(frozen=True, slots=True)
class Poll:
    """A claimed account, as its row was then. now: the database's clock at that time. login_delay: seconds.

    quiet_list: digest of a list with which there is nothing to do before quiet_until.
    """

    external_id: int
    owner: str
    now: datetime.datetime
    next_poll_at: datetime.datetime
    first_contact_at: datetime.datetime | None
    last_success_at: datetime.datetime | None
    last_error_kind: str | None
    failures: int
    refusals: Sequence[datetime.datetime]
    paused_at: datetime.datetime | None
    login_delay: int | None
    quiet_list: bytes | None = None
    quiet_until: datetime.datetime | None = None

    @property
    def kills_process(self) -> bool:
        """Whether polling this account seems to be what ends processes."""
        return self.last_error_kind == POLLER_DIED and self.failures >= POLLER_DIED_TIMES


@dataclass(frozen=True, slots=True)
class PollOutcome:
    """How a poll ended. error: None after success. kind: label of fetch_errors_total. backlog: None if not known.

    quiet_list, quiet_until: as in Poll, where this poll found nothing to do.
    """

    next_poll_at: datetime.datetime
    failures: int
    refusals: tuple[datetime.datetime, ...]
    paused_at: datetime.datetime | None
    login_delay: int | None
    backlog: int | None
    error: str | None = None
    kind: str | None = None
    quiet_list: bytes | None = None
    quiet_until: datetime.datetime | None = None


LedgerState = Literal["history", "fetched", "skipped", "deleting", "vanished", "closed"]


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """A ledger row. key: its UIDL, with a number where a list repeated it. octets, sha256: of the mail as stored."""

    id: int
    key: str
    state: LedgerState
    before: Literal["history", "fetched", "skipped"] | None
    was_history: bool
    octets: int | None
    sha256: bytes | None
    fetched_at: datetime.datetime | None
    tries: int
    next_try_at: datetime.datetime | None
    state_at: datetime.datetime


AlertState = Literal["pending", "raised", "calm"]


@dataclass(frozen=True, slots=True)
class Alert:
    """A row; the schema says what its states mean. subject: '' for the whole system."""

    kind: str
    subject: str
    state: AlertState
    text: str
    flaps: int
    changed_at: datetime.datetime
    seen_at: datetime.datetime


@dataclass(frozen=True, slots=True)
class Content:
    """The bytes of a mail with their digest. octets: their count. sha256: 32 bytes."""

    body: bytes | bytearray
    octets: int
    sha256: bytes

    @classmethod
    def from_bytes(cls, body: bytes | bytearray) -> Content:
        """Take the digest of ``body`` (CRLF line ends)."""
        return cls(body, len(body), hashlib.sha256(body).digest())


RecipientKind = Literal["relay", "local", "external"]


@dataclass(frozen=True, slots=True)
class EnvelopeRecipient:
    """An envelope recipient. target_id: of the local account (local) or of the external account of ours (external).

    dsn_params: what is to be told about the delivery (shared/mime/dsn_options.py).
    """

    address: str
    kind: RecipientKind
    target_id: int | None = None
    dsn_params: str | None = None
