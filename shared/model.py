"""The domain types without SQL: external and local accounts (manual chapter 4), and mail that we sent."""

from __future__ import annotations

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
    def most_octets(self) -> int | None:
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
    """A mail that one of us sent through an external account. header_id: one of its ids, without angle brackets.

    recipients: of its envelope.
    """

    header_id: str
    external_id: int
    author_id: int
    recipients: tuple[str, ...] = ()
