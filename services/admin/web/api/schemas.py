"""The schemas of the REST API's requests and responses; /api/openapi.json is generated from them."""

from __future__ import annotations

import datetime
import re
from typing import Annotated, Any, Literal

from fastapi import Header, Path, Query
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from services.admin.accounts.file_format import Address, LocalFields, Name
from shared import __version__


class ApiError(BaseModel):
    """An error. detail: the text; problems: one line for each mistake."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"detail": "there is no such account"}]})
    detail: str
    problems: list[str] | None = None


AddressInPath = Annotated[str, Path(max_length=400, pattern=r"^[^\x00/]+@[^\x00/]+$", examples=["support@company.com"])]
IfMatch = Annotated[
    str | None, Header(max_length=100, description="The ETag of the account as it was read; it must not have changed.")
]
PageLimit = Annotated[int, Query(ge=1, le=200, description="Largest number of entries.")]
Before = Annotated[int | None, Query(ge=1, le=2**63 - 1, description="Return entries before this id.")]
ApiText = Annotated[str, Query(max_length=400, pattern=r"^[^\x00]*$")]
_Whole = Annotated[int, Field(ge=1, le=2**53 - 1)]  # the integers that JSON parsers keep exactly (RFC 8259 section 6)
Ids = Annotated[list[_Whole], Field(max_length=1000, examples=[[42]])]


def _check_date(value: object) -> object:
    if isinstance(value, str) and not re.fullmatch(r"\d{4}-\d{2}-\d{2}", value, re.ASCII):
        raise ValueError("a day has the form 2026-11-30")  # pydantic would read a number as seconds
    return value


Day = Annotated[datetime.date, BeforeValidator(_check_date)]
MailStatus = Annotated[str, Field(description="The state in the words for people.", examples=["delivered"])]


class ResponseModel(BaseModel):
    """A response with the fields of the command line's JSON."""

    model_config = ConfigDict(extra="allow")


class ExternalAccount(ResponseModel):
    """An external account as in the accounts file, without its password."""

    address: str = Field(examples=["support@company.com"])
    enabled: bool
    login: str = Field(examples=["support@company.com"])
    pop3: dict[str, Any] = Field(examples=[{"host": "pop3.company.com", "port": 995, "tls": "implicit"}])
    smtp: dict[str, Any] = Field(examples=[{"host": "smtp.company.com", "port": 465, "tls": "implicit", "auth": True}])
    poll_seconds: int = Field(examples=[60])
    history: Literal["all", "from_now"]
    delete_after_days: int | None
    delete_history: bool
    reply_to_author: bool
    answer_notes: bool
    hold: bool
    aliases: list[str]


class LocalAccount(ResponseModel):
    """A local account as in the accounts file, without its password."""

    address: str = Field(examples=["alex@local.com"])
    enabled: bool
    user_name: str = Field(examples=["Alex"])
    aliases: list[str]
    addresses: list[str]
    external: str | None = Field(examples=["support@company.com"])
    delegate: str | None


class SkippedMailEntry(BaseModel):
    """A skipped mail, which stays at the provider. next_try_at: null: only an operator retries it."""

    id: int
    uidl: str
    octets: int | None
    reason: str
    tries: int
    since: datetime.datetime
    next_try_at: datetime.datetime | None
    acknowledged_at: datetime.datetime | None


class LastLoginEntry(BaseModel):
    """The last login of a mail client. peer: its IP address."""

    protocol: Literal["pop3", "smtp"]
    at: datetime.datetime
    peer: str = Field(examples=["192.168.0.17"])


class SessionEntry(BaseModel):
    """A session of the console."""

    peer: str = Field(examples=["192.168.0.17"])
    agent: str
    created_at: datetime.datetime
    seen_at: datetime.datetime


class AccountLogins(BaseModel):
    """Logins of a local account. last: of mail clients, written every few minutes; sessions: of the console."""

    last: list[LastLoginEntry]
    sessions: list[SessionEntry]


class ChangeLines(BaseModel):
    """The changes, one line each."""

    changed: list[str] = Field(examples=[["external account support@company.com: added"]])


class LocalRequest(LocalFields):
    """A local account as in the accounts file. generate_password: set a random password, and return it."""

    generate_password: bool = False


class LocalChange(ChangeLines):
    """The changes, one line each. password: the generated one; missing if none was asked for."""

    password: str | None = Field(None, examples=["kPqzv7Rm4wXcNdha"])


class RefusedCertificate(BaseModel):
    """A certificate that is not trusted, or not the pinned one. fingerprint: SHA-256; names: that it is for."""

    server: Literal["pop3", "smtp"]
    fingerprint: str
    subject: str
    issuer: str
    names: list[str]
    valid_from: datetime.datetime | None = None  # missing if the certificate cannot be read
    valid_until: datetime.datetime | None = None


class ConnectionCheckStep(BaseModel):
    """A step of the test of an account. mails: at the provider, of the step that counts them."""

    step: str = Field(examples=["POP3: log in"])
    ok: bool
    result: str = Field(examples=["as support@company.com"])
    seconds: float
    mails: int | None = None
    certificate: RefusedCertificate | None = None


class AuthorizationState(BaseModel):
    """The state of an OAuth authorization. flow, url and user_code are set while it waits for the user's consent.

    flow `device`: the user types the code at the page (RFC 8628). flow `browser`: the provider redirects the browser;
    if that page is unreachable, pass its address to `answer`. words: why the authorization or the latest poll failed.
    """

    state: Literal["waits", "authorized", "failed"]
    flow: Literal["device", "browser"] | None
    url: str = Field(examples=["https://microsoft.com/devicelogin"])
    user_code: str = Field(examples=["ABCD-EFGH"])
    words: str
    begun_by: str = Field(examples=["token script"])
    begun_at: datetime.datetime
    ends_at: datetime.datetime


class RedirectAddress(BaseModel):
    """The redirect address to which the provider sent the browser."""

    model_config = ConfigDict(extra="forbid")
    url: Annotated[
        str,
        Field(max_length=8000, pattern=r"^[^\x00]*$", examples=["http://127.0.0.1:8080/authorized?state=x&code=y"]),
    ]


class SystemStatus(ResponseModel):
    """The status of the system."""

    version: str = Field(__version__, examples=["0.1.0"])
    ok: bool
    problems: list[str]


class AuditRecord(BaseModel):
    """An entry of the audit."""

    id: int
    at: datetime.datetime
    who: str
    did: str
    target: str
    detail: str


class MailListEntry(BaseModel):
    """A mail in a list. sent: it is a submission."""

    id: int
    at: datetime.datetime
    external: str | None
    sender: str = Field(examples=["Anna Customer"])
    subject: str = Field(examples=["My printer does not print"])
    sent: bool
    state: str = Field(examples=["delivered"])
    status: MailStatus


class MailDetails(ResponseModel):
    """A mail with its history. sentences: its recipients, and why each got it."""

    id: int
    message_id: str | None
    state: str = Field(examples=["delivered"])
    status: MailStatus
    sentences: list[str] = Field(examples=[["Jim got this because To names nobody (rule 5)."]])
    events: list[dict[str, Any]]


class QueuedSubmissionEntry(ResponseModel):
    """A submission that waits to be sent. why: the last error."""

    id: int
    author: str
    state: str = Field(examples=["queued"])
    status: MailStatus
    why: str | None


class HeldMail(ResponseModel):
    """A mail on hold (held): no enabled user shares the account."""

    id: int
    state: Literal["held"]
    status: MailStatus
    reason: str | None


class ParkedMail(ResponseModel):
    """A mail that needs attention (parked). error: the traceback of its last failure, or another cause."""

    id: int
    kind: Literal["inbound", "submission"]
    state: Literal["parked"]
    status: MailStatus
    error: str | None


class DeletedMailEntry(BaseModel):
    """A deleted mail that is still kept."""

    id: int
    sender: str = Field(examples=["Anna Customer"])
    subject: str = Field(examples=["My printer does not print"])
    octets: int
    deleted_at: str


class MailSelection(BaseModel):
    """Mails by their ids. reason: of a cancellation (the author's notice quotes it) or of a discard (the audit)."""

    model_config = ConfigDict(extra="forbid")
    ids: Ids
    reason: Annotated[str, Field(max_length=500, pattern=r"^[^\x00]*$", examples=["sent by mistake"])] = ""


class CopyRequest(BaseModel):
    """The account that gets a copy of a mail, and the account that loses the mail."""

    model_config = ConfigDict(extra="forbid")
    to: Address = Field(examples=["jim@local.com"])
    away_from: Address | None = None


class RetirementRequest(BaseModel):
    """What becomes of a person's mail and account.

    mailbox_to: gets a copy of every mail. delegate: gets future mail. then: what becomes of the account.
    """

    model_config = ConfigDict(extra="forbid")
    mailbox_to: Address | None = Field(None, examples=["jim@local.com"])
    delegate: Address | None = Field(None, examples=["jim@local.com"])
    then: Literal["disable", "remove", "keep"] = "disable"


class NewName(BaseModel):
    """A further name of a local account."""

    model_config = ConfigDict(extra="forbid")
    name: Name = Field(examples=["Alexander"])


class OperationOutcome(BaseModel):
    """The result of an operation. done: changed ids; left: unknown ids, and ids whose state does not allow it."""

    done: list[int]
    left: list[int]


class Colleague(BaseModel):
    """The local account that gets the mail of another one."""

    model_config = ConfigDict(extra="forbid")
    to: Address = Field(examples=["jim@local.com"])


class RemovedAccount(BaseModel):
    """A removed local account that can be restored."""

    address: str = Field(examples=["alex@local.com"])
    user_name: str = Field(examples=["Alex"])
    removed_at: datetime.datetime


class HistoryProgress(BaseModel):
    """How much of the mail that was at the provider at the first contact is fetched: mails.

    total: null before the first contact. wanted: `history` is `all`. done: nothing of it is left to fetch.
    """

    wanted: bool
    fetched: int
    total: int | None
    done: bool


class SharedMailEntry(BaseModel):
    """A mail that went to everyone who shares an external account. author: the person who answered it."""

    mail_id: int
    external: str = Field(examples=["support@company.com"])
    at: datetime.datetime
    sender: str = Field(examples=["Anna Customer"])
    subject: str = Field(examples=["My printer does not print"])
    author: str | None = Field(examples=["Alex"])
    answered_at: datetime.datetime | None
    submission_id: int | None


class UnknownNameEntry(BaseModel):
    """A name beside the address of an external account that no sharer has. mails: the number of mails with it."""

    external: str = Field(examples=["support@company.com"])
    name: str = Field(examples=["Alexander"])
    mails: int
    last_mail_id: int
    last_at: datetime.datetime


_Word = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00]*$")]


class HiddenName(BaseModel):
    """A name that the list of unknown names shows."""

    model_config = ConfigDict(extra="forbid")
    external: Address = Field(examples=["support@company.com"])
    name: _Word = Field(examples=["Alexander"])


class AssignedName(HiddenName):
    """A name that the list of unknown names shows, and the local account that is meant."""

    name: Name = Field(examples=["Alexander"])
    to: Address = Field(examples=["alex@local.com"])


Role = Literal["administrator", "observer"]
_Given = Annotated[str, Field(max_length=1000, pattern=r"^[^\x00]*$")]


class ConsoleUserEntry(BaseModel):
    """A user of the console."""

    id: int
    name: str = Field(examples=["admin"])
    role: Role
    created_at: datetime.datetime
    signed_in_at: datetime.datetime | None


class NewUser(BaseModel):
    """A user of the console to add. password: at least 10 characters."""

    model_config = ConfigDict(extra="forbid")
    name: _Given = Field(examples=["auditor"])
    role: Role
    password: _Given = Field(examples=["correct horse battery"])


class NewPassword(BaseModel):
    """A password of at least 10 characters."""

    model_config = ConfigDict(extra="forbid")
    password: _Given = Field(examples=["correct horse battery"])


class NewRole(BaseModel):
    """The role of a user."""

    model_config = ConfigDict(extra="forbid")
    role: Role


class UserSession(SessionEntry):
    """A browser in which a user of the console is signed in."""

    id: int
    who: str = Field(examples=["admin"])


class NewToken(BaseModel):
    """A token to create. name: of the script that uses it."""

    model_config = ConfigDict(extra="forbid")
    name: _Given = Field(examples=["backup script"])
    role: Role


class TokenEntry(BaseModel):
    """A token of a script."""

    id: int
    name: str = Field(examples=["backup script"])
    role: Role
    made_by: str = Field(examples=["admin"])
    created_at: datetime.datetime
    used_at: datetime.datetime | None


class TokenSecret(NewToken):
    """A new token."""

    token: str = Field(examples=["mg_…"])
