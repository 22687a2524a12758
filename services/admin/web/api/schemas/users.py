"""Schemas of the users of the console, their sessions, tokens, and the audit."""

from __future__ import annotations

import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from services.admin.access.users import MAX_TOKEN_DAYS, TOKEN_DAYS


class SessionEntry(BaseModel):
    """A session of the console."""

    peer: str = Field(examples=["192.168.0.17"])
    agent: str
    created_at: datetime.datetime
    seen_at: datetime.datetime


class AuditRecord(BaseModel):
    """An entry of the audit."""

    id: int
    at: datetime.datetime
    who: str
    did: str
    target: str
    detail: str


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
    """A token to create. name: of the script that uses it. days: until it expires."""

    model_config = ConfigDict(extra="forbid")
    name: _Given = Field(examples=["backup script"])
    role: Role
    days: Annotated[int, Field(ge=1, le=MAX_TOKEN_DAYS)] = TOKEN_DAYS


class TokenEntry(BaseModel):
    """A token of a script. expires_at: null for one from before tokens had an end."""

    id: int
    name: str = Field(examples=["backup script"])
    role: Role
    made_by: str = Field(examples=["admin"])
    created_at: datetime.datetime
    used_at: datetime.datetime | None
    expires_at: datetime.datetime | None
    expired: bool


class TokenSecret(NewToken):
    """A new token."""

    token: str = Field(examples=["mg_…"])
