"""The domain types without SQL: accounts (manual chapter 4), polls, the UIDL ledger, bytes, sent mail, alerts."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

Tls = Literal["none", "starttls", "implicit"]


@dataclass(frozen=True, slots=True)
class Server:
    """The address of a provider's server."""

    host: str
    port: int
    tls: Tls
    tls_fingerprint: str | None = None  # SHA-256 of the only certificate to accept, 64 hex digits


def compared_host(host: str) -> str:
    """Return the name of a host in the form in which two of them are compared. Pure."""
    return host.strip("[]").rstrip(".").casefold()


INBOX = "INBOX"
"""The folder of each IMAP mailbox into which mail is delivered (RFC 9051 section 5.1)."""


@dataclass(frozen=True, slots=True)
class ImapServer(Server):
    """The address of a provider's IMAP server, with the folders whose mail is fetched."""

    folders: tuple[str, ...] = (INBOX,)  # names as people write them, NFC; the hierarchy has the server's delimiter
    answered: bool = False  # mark what was answered through us
    sent: str | None = None  # the folder that gets a copy of sent mail; '': the one marked as \\Sent; None: none does


@dataclass(frozen=True, slots=True)
class Relay:
    """An SMTP server through which an account sends."""

    server: Server
    auth: bool = True
    connections: int = 2  # limit of connections at the same time
    login: str | None = None  # None: login and password are the account's
    password: bytes | None = field(default=None, repr=False)  # sealed by the vault; with ``login`` alone
    tokens_of: str | None = None  # with ``login``, instead of a password: the account whose access tokens are used
    mails_per_minute: int | None = None  # limits of the provider; None: none is known
    recipients_per_day: int | None = None
    position: int = field(default=0, compare=False)  # among the account's relays, from 0
    size: int | None = field(default=None, compare=False)  # octets: the SIZE limit that it announces
    refused: int | None = field(default=None, compare=False)  # octets of the smallest mail refused as too large

    @property
    def place(self) -> str:
        """Server, port and own login: the column of this name."""
        own = "" if self.login is None else f" {self.login}"
        return f"{self.server.host.lower()}:{self.server.port}{own}"

    @property
    def has_limit(self) -> bool:
        """Whether what it takes is counted."""
        return self.mails_per_minute is not None or self.recipients_per_day is not None

    @property
    def max_octets(self) -> int | None:
        """Limit of the size of a mail, as far as it is known."""
        known = [self.size, self.refused and self.refused - 1]
        return min((octets for octets in known if octets), default=None)


FetchProtocol = Literal["pop3", "imap"]


@dataclass(frozen=True, slots=True)
class Issuer:
    """The token endpoints of a provider (URLs) and the scope that mail needs. One of the last two may be missing."""

    token_url: str
    scope: str
    device_url: str | None = None
    authorize_url: str | None = None


GrantType = Literal["authorization", "client_credentials", "jwt_bearer"]
"""How access tokens are obtained: by a person's authorization (RFC 6749 section 4.1, RFC 8628), by the application for
itself (RFC 6749 section 4.4), or by a request that the application signs for the account (RFC 7523 section 2.1)."""


@dataclass(frozen=True, slots=True)
class OAuth:
    """How an account gets its access tokens.

    Code from before ``grant`` reads only the first three fields, and takes the account for one that nobody has
    authorized.
    """

    name: str  # of a known issuer, otherwise ''
    issuer: Issuer
    client_id: str
    grant: GrantType = "authorization"
    tenant: str | None = None  # Microsoft's: the organisation whose endpoints the issuer has
    same_as: str | None = None  # address of the account whose tokens are used; the other fields mean nothing then

    @classmethod
    def of_account(cls, address: str) -> OAuth:
        """Return the settings of an account that uses the tokens of another one."""
        return cls("", Issuer("", ""), "", same_as=address)

    @property
    def needs_consent(self) -> bool:
        """Whether a person has to authorize the account."""
        return self.grant == "authorization" and self.same_as is None


@dataclass(frozen=True, slots=True)
class External:
    """A mailbox at a provider (manual 4.1), fetched by POP3 or by IMAP. Times in seconds or days as named.

    :raises ValueError: ``pop3`` and ``imap`` are both given, or both missing; or there is no relay.
    """

    id: int
    address: str
    enabled: bool
    login: str
    password: bytes = field(repr=False)  # sealed by the vault; with oauth: a Grant (provider/credentials.py)
    pop3: Server | None  # None: mail is fetched by IMAP
    relays: tuple[Relay, ...]  # the first choice, then those that are used while it does not work
    poll_seconds: int
    history: Literal["all", "from_now"]  # what to do with mail from before the first contact
    delete_after_days: int | None  # None: never, 0: at once
    delete_history: bool  # also delete mail from before the first contact
    reply_to_author: bool  # route an answer without a known name to the author
    aliases: tuple[str, ...]
    oauth: OAuth | None = None
    answer_notes: bool = False  # notify the sharers when one of them has answered a mail to everyone
    hold: bool = False  # its mail is on hold until the operator says that everybody is there
    imap: ImapServer | None = None  # None: mail is fetched by POP3
    reply_tag: bool = False  # its mails leave with a Reply-To address that names their author

    def __post_init__(self) -> None:
        if (self.pop3 is None) == (self.imap is None):
            raise ValueError(f"{self.address}: mail is fetched by POP3 or by IMAP")
        if not self.relays:
            raise ValueError(f"{self.address}: mail is sent by an SMTP server")

    @property
    def protocol(self) -> FetchProtocol:
        """The protocol by which mail is fetched."""
        return "pop3" if self.imap is None else "imap"

    @property
    def incoming(self) -> Server:
        """The server from which mail is fetched, whatever its protocol."""
        server = self.pop3 or self.imap
        assert server is not None, "__post_init__ has checked that"
        return server

    @property
    def relay(self) -> Relay:
        """The first relay."""
        return self.relays[0]

    @property
    def smtp(self) -> Server:
        """The server of the first relay."""
        return self.relay.server

    def through(self, position: int) -> External:
        """Return the account with the relay of this position as the first one."""
        chosen = self.relays[position]
        return replace(self, relays=(chosen, *(each for each in self.relays if each is not chosen)))

    @property
    def hosts(self) -> frozenset[str]:
        """The hosts that get its password or access tokens, as names are compared."""
        servers = (self.incoming, *(relay.server for relay in self.relays if relay.login is None))
        return frozenset(compared_host(server.host) for server in servers)

    def uses_tokens(self, relay: Relay) -> bool:
        """Whether the login at this relay of the account is by an access token, not a password."""
        return self.oauth is not None if relay.login is None else relay.tokens_of is not None

    @property
    def max_octets(self) -> int | None:
        """Limit of the size of a mail to this provider, as far as it is known: of the first relay."""
        return self.relay.max_octets

    @property
    def own_addresses(self) -> frozenset[str]:
        """The address and the aliases, in lower case."""
        return frozenset(address.casefold() for address in (self.address, *self.aliases))


@dataclass(frozen=True, slots=True)
class Local:
    """A person (manual 4.2)."""

    id: int
    address: str
    enabled: bool
    password_hash: str = field(repr=False)  # argon2id, PHC string
    user_name: str
    aliases: tuple[str, ...]  # further names
    addresses: tuple[str, ...]  # further local addresses
    external_id: int
    delegate_id: int | None  # of a local account
    former_names: tuple[str, ...] = ()  # earlier user names; they stay valid until another person has them
    weak_password: bool = False  # it had too few characters when it was set; False for a hash from a file
    junk: bool = False  # junk mail goes into the folder Junk, which POP3 does not show
    language: str | None = None  # of mails that mailgroup writes to the person; None: the setting LANGUAGE

    @property
    def names(self) -> tuple[str, ...]:
        """The user name, the aliases and the former names, as written."""
        return (self.user_name, *self.aliases, *self.former_names)

    @property
    def own_addresses(self) -> frozenset[str]:
        """The main address and the further ones, in lower case."""
        return frozenset(address.casefold() for address in (self.address, *self.addresses))


@dataclass(frozen=True, slots=True)
class Sent:
    """A mail that a local account sent through an external account."""

    message_id: str  # one of its Message-IDs, without angle brackets
    external_id: int
    author_id: int
    recipients: tuple[str, ...] = ()  # of its envelope
    blob_id: int | None = None  # its bytes as submitted; None once the submission is purged


POLLER_DIED = "ended"
"""Error kind of an account whose poll ended with the death of the process."""


POLLER_DIED_TIMES = 5
"""Number of consecutive deaths after which the account itself is taken for their cause."""


@dataclass(frozen=True, slots=True)
class Poll:
    """A claimed account, as its row was when it was claimed."""

    external_id: int
    owner: str  # the process, a slash, and what is unique to this claim
    now: datetime.datetime  # the database's clock at the claim
    next_poll_at: datetime.datetime
    first_contact_at: datetime.datetime | None
    last_success_at: datetime.datetime | None
    last_error_kind: str | None
    failures: int  # consecutive failed polls
    refusals: Sequence[datetime.datetime]  # login refusals of the last hour
    paused_at: datetime.datetime | None  # set while the credentials are refused
    login_delay: int | None  # seconds, learnt from CAPA
    quiet_list: bytes | None = None  # digest of a list that needs no action before quiet_until
    quiet_until: datetime.datetime | None = None
    quiet_state: bytes | None = None  # digest of the maildrop's state when it had that list; None if it tells none

    @property
    def kills_process(self) -> bool:
        """Whether polling this account seems to end the process."""
        return self.last_error_kind == POLLER_DIED and self.failures >= POLLER_DIED_TIMES


@dataclass(frozen=True, slots=True)
class PollOutcome:
    """How a poll ended."""

    next_poll_at: datetime.datetime
    failures: int
    refusals: tuple[datetime.datetime, ...]
    paused_at: datetime.datetime | None
    login_delay: int | None
    backlog: int | None  # mails listed and not fetched; None if unknown
    error: str | None = None  # None after success
    kind: str | None = None  # label of fetch_errors_total
    quiet_list: bytes | None = None  # as in Poll; None if this poll had something to do
    quiet_until: datetime.datetime | None = None
    quiet_state: bytes | None = None


LedgerState = Literal["history", "fetched", "skipped", "deleting", "vanished", "closed"]


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """A row of the UIDL ledger."""

    id: int
    key: str  # the UIDL, with a number if a list repeated it
    state: LedgerState
    before: Literal["history", "fetched", "skipped"] | None  # the state before vanished
    was_history: bool  # it was in the maildrop at the first contact
    octets: int | None  # of the mail as stored
    sha256: bytes | None  # of the mail as stored
    fetched_at: datetime.datetime | None
    tries: int  # failed fetches
    next_try_at: datetime.datetime | None
    state_at: datetime.datetime


AlertState = Literal["pending", "raised", "calm"]


@dataclass(frozen=True, slots=True)
class Alert:
    """A row of the table alerts; the schema defines the states."""

    kind: str
    subject: str  # '' for the whole system
    state: AlertState
    text: str  # for people, as last seen
    flaps: int  # how often the problem came back
    changed_at: datetime.datetime  # of the state
    seen_at: datetime.datetime  # when the problem was last seen


@dataclass(frozen=True, slots=True)
class Content:
    """The bytes of a mail with their digest."""

    body: bytes | bytearray
    octets: int
    sha256: bytes  # 32 bytes

    @classmethod
    def from_bytes(cls, body: bytes | bytearray) -> Content:
        """Compute the digest of ``body`` (CRLF line ends)."""
        return cls(body, len(body), hashlib.sha256(body).digest())


FoundBy = Literal["name", "tag", "reference", "report", "nobody"]
"""How the recipients of an answer were found: by a name (rules 1 and 2), a reply tag or a reference (rule 3), as the
author of a mail that it reports on (rule 4), or not at all (rule 5)."""

RecipientKind = Literal["relay", "local", "external"]


@dataclass(frozen=True, slots=True)
class EnvelopeRecipient:
    """A recipient of an envelope."""

    address: str
    kind: RecipientKind
    target_id: int | None = None  # of the local account (local) or of our external account (external)
    dsn_params: str | None = None  # requested notifications (shared/mime/dsn_options.py)
