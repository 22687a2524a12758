"""What requests to the REST API may hold, and what it answers; /api/openapi.json is made from these."""

from __future__ import annotations

import datetime
import re
from typing import Annotated, Any, Literal

from fastapi import Path, Query
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from services.admin.accounts.file_format import Address, Name
from shared import __version__


class ApiError(BaseModel):
    """What is wrong, for people. problems: a line for each mistake."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"detail": "there is no such account"}]})
    detail: str
    problems: list[str] | None = None


AddressInPath = Annotated[str, Path(max_length=400, pattern=r"^[^\x00/]+@[^\x00/]+$", examples=["support@company.com"])]
PageLimit = Annotated[int, Query(ge=1, le=200, description="At most so many.")]
Before = Annotated[int | None, Query(ge=1, le=2**63 - 1, description="Entries before this id.")]
ApiText = Annotated[str, Query(max_length=400, pattern=r"^[^\x00]*$")]
_Whole = Annotated[int, Field(ge=1, le=2**53 - 1)]  # as JSON's readers keep them exactly
Ids = Annotated[list[_Whole], Field(max_length=1000, examples=[[42]])]


def _date(given: object) -> object:
    if isinstance(given, str) and not re.fullmatch(r"\d{4}-\d{2}-\d{2}", given, re.ASCII):
        raise ValueError("a day has the form 2026-11-30")  # a number would be taken for seconds
    return given


Day = Annotated[datetime.date, BeforeValidator(_date)]
MailStatus = Annotated[str, Field(description="The state in the words for people.", examples=["delivered"])]


class ResponseModel(BaseModel):
    """What is answered. Fields as in the command line's JSON."""

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
    """A mail that could not be fetched and stays at the provider. next_try_at: null: it is not tried by itself."""

    id: int
    uidl: str
    octets: int | None
    reason: str
    tries: int
    since: datetime.datetime
    next_try_at: datetime.datetime | None
    acknowledged_at: datetime.datetime | None


class LastLoginEntry(BaseModel):
    """A mail client's last login. peer: its IP address."""

    protocol: Literal["pop3", "smtp"]
    at: datetime.datetime
    peer: str = Field(examples=["192.168.0.17"])


class SessionEntry(BaseModel):
    """A browser that is signed in to the console."""

    peer: str = Field(examples=["192.168.0.17"])
    agent: str
    created_at: datetime.datetime
    seen_at: datetime.datetime


class AccountLogins(BaseModel):
    """Where a person is. last: of mail clients, up to a few minutes behind. sessions: in the console."""

    last: list[LastLoginEntry]
    sessions: list[SessionEntry]


class ChangeLines(BaseModel):
    """What was changed, a line each."""

    changed: list[str] = Field(examples=[["external account support@company.com: added"]])


class ConnectionCheckStep(BaseModel):
    """A step of a test."""

    step: str = Field(examples=["POP3: log in"])
    ok: bool
    result: str = Field(examples=["as support@company.com"])
    seconds: float


class AuthorizationState(BaseModel):
    """How an account's authorization stands. flow, url, user_code: what the person is to do, while it waits for one.

    flow: device: the code is typed at that page. browser: the provider sends the browser to an address with the answer;
    if that is not reached, it is given to `answer`. words: why it failed, or what was wrong at the latest try.
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
    """The address to which the provider sent the browser in the end."""

    model_config = ConfigDict(extra="forbid")
    url: Annotated[
        str,
        Field(max_length=8000, pattern=r"^[^\x00]*$", examples=["http://127.0.0.1:8080/authorized?state=x&code=y"]),
    ]


class SystemStatus(ResponseModel):
    """Whether mail flows."""

    version: str = Field(__version__, examples=["0.1.0"])
    ok: bool
    problems: list[str]


class AuditRecord(BaseModel):
    """What somebody did."""

    id: int
    at: datetime.datetime
    who: str
    did: str
    target: str
    detail: str


class MailListEntry(BaseModel):
    """A mail in a list."""

    id: int
    at: datetime.datetime
    external: str | None
    sender: str = Field(examples=["Anna Customer"])
    subject: str = Field(examples=["My printer does not print"])
    sent: bool
    state: str = Field(examples=["delivered"])
    status: MailStatus


class MailDetails(ResponseModel):
    """A mail with its history. sentences: who got it, and why."""

    id: int
    message_id: str | None
    state: str = Field(examples=["delivered"])
    status: MailStatus
    sentences: list[str] = Field(examples=[["Jim got this because To names nobody (rule 5)."]])
    events: list[dict[str, Any]]


class QueuedSubmissionEntry(ResponseModel):
    """A submission that waits to be sent."""

    id: int
    author: str
    state: str = Field(examples=["queued"])
    status: MailStatus
    why: str | None


class HeldMail(ResponseModel):
    """A mail that nobody is there to get."""

    id: int
    state: Literal["held"]
    status: MailStatus
    reason: str | None


class ParkedMail(ResponseModel):
    """A mail that is set apart until somebody decides. error: the traceback of its last failure, or why else."""

    id: int
    kind: Literal["inbound", "submission"]
    state: Literal["parked"]
    status: MailStatus
    error: str | None


class DeletedMailEntry(BaseModel):
    """A deleted mail that is still kept."""

    id: int
    octets: int
    deleted_at: str


class MailSelection(BaseModel):
    """Mails, by their ids. reason: where one is needed; the author is told."""

    model_config = ConfigDict(extra="forbid")
    ids: Ids
    reason: Annotated[str, Field(max_length=500, pattern=r"^[^\x00]*$", examples=["sent by mistake"])] = ""


class CopyRequest(BaseModel):
    """Who is to have a mail, and from whom it is taken."""

    model_config = ConfigDict(extra="forbid")
    to: Address = Field(examples=["jim@local.com"])
    away_from: Address | None = None


class NewName(BaseModel):
    """A further name for a person."""

    model_config = ConfigDict(extra="forbid")
    name: Name = Field(examples=["Alexander"])


class OperationOutcome(BaseModel):
    """done: to these it was done. left: no such mail in a state that allows it."""

    done: list[int]
    left: list[int]
