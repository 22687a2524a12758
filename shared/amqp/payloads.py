"""What travels through the broker: small frozen types, as JSON. The bytes of a mail stay in the database."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from shared.errors import Permanent


class WorkItem(BaseModel):
    """Work: the id of the row that is to be worked on, and those of others where one message stands for several."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: int
    more_ids: tuple[int, ...] = ()

    @property
    def ids(self) -> tuple[int, ...]:
        """Of all rows that are to be worked on."""
        return self.id, *self.more_ids

    def to_json(self) -> bytes:
        """As the body of a broker message."""
        return self.model_dump_json(exclude_defaults=True).encode()


class FetchedItem(WorkItem):
    """Mails that wait for the router. ids: inbound.id. external: address of the external account."""

    external: str


class RoutedItem(WorkItem):
    """Mails that all go to these people. ids: inbound.id. recipients: addresses of local accounts."""

    recipients: tuple[str, ...]


class SubmittedItem(WorkItem):
    """Submissions that wait for the sender. ids: submissions.id. external: address of their authors' account."""

    external: str


E = TypeVar("E", bound=WorkItem)


def read_payload(kind: type[E], body: bytes) -> E:
    """Read a work item from a message's body.

    :raises Permanent: it is none of this kind.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise Permanent(f"not a {kind.__name__}: {error.errors()[0]['msg']}") from error
