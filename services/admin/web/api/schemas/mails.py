"""Schemas of mails, and of the names in them."""

from __future__ import annotations

import datetime
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from services.admin.accounts.file_format import Address, Name
from services.admin.web.api.schemas.common import MailStatus, ResponseModel


def _check_date(value: object) -> object:
    if isinstance(value, str) and not re.fullmatch(r"\d{4}-\d{2}-\d{2}", value, re.ASCII):
        raise ValueError("a day has the form 2026-11-30")  # pydantic would read a number as seconds
    return value


Day = Annotated[datetime.date, BeforeValidator(_check_date)]


class MailListEntry(BaseModel):
    """A mail in a list. sent: it is a submission. recipients: the first ones. further: number of the others."""

    id: int
    at: datetime.datetime
    external: str | None
    sender: str = Field(examples=["Anna Customer"])
    subject: str = Field(examples=["My printer does not print"])
    sent: bool
    state: str = Field(examples=["delivered"])
    status: MailStatus
    recipients: list[str] = Field(examples=[["alex@local.com"]])
    further: int


class MailDetails(ResponseModel):
    """A mail with its history. sentences: its recipients, and why each got it; or why a submission waits."""

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


class CopyRequest(BaseModel):
    """The account that gets a copy of a mail, and the account that loses the mail."""

    model_config = ConfigDict(extra="forbid")
    to: Address = Field(examples=["jim@local.com"])
    away_from: Address | None = None


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
