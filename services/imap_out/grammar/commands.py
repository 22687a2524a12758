"""The commands of mail clients as values (RFC 3501 and RFC 9051, section 6)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, NamedTuple

from services.imap_out.grammar.fetch_items import FetchAttribute
from services.imap_out.grammar.keys import SearchKey, SortKey
from services.imap_out.number_sets import NumberSet


@dataclass(frozen=True, slots=True)
class NoArguments:
    """Of CAPABILITY, NOOP, LOGOUT, STARTTLS, IDLE, CHECK, CLOSE, UNSELECT, EXPUNGE and NAMESPACE."""


@dataclass(frozen=True, slots=True)
class LoginArguments:
    """LOGIN (RFC 3501 section 6.2.3). The octets are as sent; UTF-8 if they are no ASCII."""

    user: bytes
    password: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class AuthenticateArguments:
    """AUTHENTICATE (RFC 3501 section 6.2.2). initial: the decoded initial response (RFC 4959); None: none is sent."""

    mechanism: str  # in upper case
    initial: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class IdArguments:
    """ID (RFC 2971): what a client says of itself, names in lower case."""

    fields: Mapping[str, str | None]


@dataclass(frozen=True, slots=True)
class EnableArguments:
    """ENABLE (RFC 5161): capabilities in upper case, known or not."""

    capabilities: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Resynchronization:
    """The QRESYNC parameter of SELECT (RFC 7162 section 3.2.5)."""

    uidvalidity: int
    modseq: int
    known_uids: NumberSet | None = None
    known_numbers: NumberSet | None = None  # message numbers, place by place those of ``their_uids``
    their_uids: NumberSet | None = None


@dataclass(frozen=True, slots=True)
class SelectArguments:
    """SELECT and EXAMINE (RFC 3501 sections 6.3.1 and 6.3.2)."""

    mailbox: str
    read_only: bool = False  # EXAMINE
    condstore: bool = False  # RFC 7162 section 3.1.8
    resynchronization: Resynchronization | None = None


@dataclass(frozen=True, slots=True)
class MailboxArguments:
    """DELETE, SUBSCRIBE, UNSUBSCRIBE and GETQUOTAROOT."""

    mailbox: str


@dataclass(frozen=True, slots=True)
class CreateArguments:
    """CREATE (RFC 3501 section 6.3.3). special_use: of RFC 6154 section 3, as ``\\Sent``."""

    mailbox: str
    special_use: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RenameArguments:
    """RENAME (RFC 3501 section 6.3.5)."""

    mailbox: str
    new_name: str


@dataclass(frozen=True, slots=True)
class ListArguments:
    """LIST (RFC 3501 section 6.3.8, RFC 5258) and LSUB. Options are in upper case."""

    reference: str
    patterns: tuple[str, ...]
    selects: frozenset[str] = frozenset()  # selection options
    returns: frozenset[str] = frozenset()  # return options
    status: tuple[str, ...] = ()  # items of RETURN (STATUS …) (RFC 5819)
    extended: bool = False  # in a form of RFC 5258


@dataclass(frozen=True, slots=True)
class StatusArguments:
    """STATUS (RFC 3501 section 6.3.10). items: in upper case, of ``STATUS_ITEMS``."""

    mailbox: str
    items: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AppendArguments:
    """APPEND (RFC 3501 section 6.3.11). The mail itself follows: see ``CommandInput``."""

    mailbox: str
    flags: tuple[str, ...]
    internal_date: datetime | None
    octets: int  # of the mail
    utf8: bool = False  # the mail is announced with UTF8 (RFC 6855 section 4)


@dataclass(frozen=True, slots=True)
class ExpungeArguments:
    """UID EXPUNGE (RFC 4315 section 2.1)."""

    numbers: NumberSet


@dataclass(frozen=True, slots=True)
class SearchArguments:
    """SEARCH (RFC 3501 section 6.4.4).

    returns: MIN, MAX, ALL, COUNT, SAVE (RFC 4731, RFC 5182); None: the answer is a SEARCH response.
    """

    key: SearchKey
    returns: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class SortArguments:
    """SORT (RFC 5256 section 3)."""

    order: tuple[SortKey, ...]
    key: SearchKey


@dataclass(frozen=True, slots=True)
class ThreadArguments:
    """THREAD (RFC 5256 section 3). algorithm: REFERENCES or ORDEREDSUBJECT."""

    algorithm: str
    key: SearchKey


@dataclass(frozen=True, slots=True)
class FetchArguments:
    """FETCH (RFC 3501 section 6.4.5, RFC 7162 section 3.1.4).

    changed_since: only mails with a greater mod-sequence; 0 is a value, too. vanished: RFC 7162 section 3.2.6.
    """

    numbers: NumberSet
    items: tuple[FetchAttribute, ...]
    changed_since: int | None = None
    vanished: bool = False


@dataclass(frozen=True, slots=True)
class StoreArguments:
    """STORE (RFC 3501 section 6.4.6). unchanged_since: RFC 7162 section 3.1.3; None: not asked for."""

    numbers: NumberSet
    action: Literal["replace", "add", "remove"]
    flags: tuple[str, ...]
    silent: bool = False
    unchanged_since: int | None = None


@dataclass(frozen=True, slots=True)
class CopyArguments:
    """COPY (RFC 3501 section 6.4.7) and MOVE (RFC 6851)."""

    numbers: NumberSet
    mailbox: str


@dataclass(frozen=True, slots=True)
class QuotaArguments:
    """GETQUOTA and SETQUOTA (RFC 9208). limits: by resource, in the units of the resource; None: GETQUOTA."""

    root: str
    limits: Mapping[str, int] | None = None


Arguments = (
    NoArguments
    | LoginArguments
    | AuthenticateArguments
    | IdArguments
    | EnableArguments
    | SelectArguments
    | MailboxArguments
    | CreateArguments
    | RenameArguments
    | ListArguments
    | StatusArguments
    | AppendArguments
    | ExpungeArguments
    | SearchArguments
    | SortArguments
    | ThreadArguments
    | FetchArguments
    | StoreArguments
    | CopyArguments
    | QuotaArguments
)


class ImapCommand(NamedTuple):
    """A command. name: in upper case, without UID. uid: numbers in it, and in its answer, are UIDs."""

    tag: str
    name: str
    arguments: Arguments
    uid: bool = False

    @property
    def shown(self) -> str:
        """The name for the tagged response and for metrics: ``UID FETCH``."""
        return f"UID {self.name}" if self.uid else self.name
