"""Payloads of the broker messages: small frozen types, as JSON. The bytes of a mail stay in the database."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from shared.errors import Permanent


class WorkItem(BaseModel):
    """The rows that a stage has to process: one id, and ``more_ids`` if one message announces several rows."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: int
    more_ids: tuple[int, ...] = ()

    @property
    def ids(self) -> tuple[int, ...]:
        """The ids of all rows to process."""
        return self.id, *self.more_ids

    def to_json(self) -> bytes:
        """Return the body of a broker message."""
        return self.model_dump_json(exclude_defaults=True).encode()


class FetchedItem(WorkItem):
    """Mails that wait for the router. ids: inbound.id. external: the address of the external account."""

    external: str


class RoutedItem(WorkItem):
    """Mails that all go to the same recipients. ids: inbound.id. recipients: addresses of local accounts."""

    recipients: tuple[str, ...]


class SubmittedItem(WorkItem):
    """Submissions that wait for the sender. ids: submissions.id. external: the address of their authors' account."""

    external: str


class ChangedItem(WorkItem):
    """Mailboxes that have changed. ids: of local accounts. origin: the process that has changed them, if it says so."""

    origin: str = ""


E = TypeVar("E", bound=WorkItem)


def read_payload(kind: type[E], body: bytes) -> E:
    """Read a work item from a message's body. :raises Permanent: the body is not a work item of this kind."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise Permanent(f"not a {kind.__name__}: {error.errors()[0]['msg']}") from error
