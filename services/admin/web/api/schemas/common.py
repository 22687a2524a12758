"""Schemas that the requests on several subjects share."""

from __future__ import annotations

from typing import Annotated

from fastapi import Header, Path, Query
from pydantic import BaseModel, ConfigDict, Field

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
MailStatus = Annotated[str, Field(description="The state in the words for people.", examples=["delivered"])]


class ResponseModel(BaseModel):
    """A response with the fields of the command line's JSON."""

    model_config = ConfigDict(extra="allow")


class ChangeLines(BaseModel):
    """The changes, one line each."""

    changed: list[str] = Field(examples=[["external account support@company.com: added"]])


class SystemStatus(ResponseModel):
    """The status of the system."""

    version: str = Field(__version__, examples=["0.1.0"])
    ok: bool
    problems: list[str]


class MailSelection(BaseModel):
    """Mails by their ids. reason: of a cancellation (the author's notice quotes it) or of a discard (the audit)."""

    model_config = ConfigDict(extra="forbid")
    ids: Ids
    reason: Annotated[str, Field(max_length=500, pattern=r"^[^\x00]*$", examples=["sent by mistake"])] = ""


class OperationOutcome(BaseModel):
    """The result of an operation. done: changed ids; left: unknown ids, and ids whose state does not allow it."""

    done: list[int]
    left: list[int]
