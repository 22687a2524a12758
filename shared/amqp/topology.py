"""The whole wiring of the broker on one page.

    fetcher  ──fetched.<external>──▶ queue router ──▶ router  ──routed.<local>──▶ queue mailbox ──▶ mailbox
    smtp_in  ──submitted.<external>▶ queue sender ──▶ sender  ──routed.<local>──▶ queue mailbox
                                                      sender  ──fetched.<external>▶ queue router
    rejected by a consumer ──▶ exchange mail.dead ──▶ queue mail.dead-letters

Messages are envelopes (shared/amqp/payloads.py): ids and addresses, never bytes of a mail. The database is the truth; a
message that is lost is published again by the sweep of the stage that waits for it.
"""

from __future__ import annotations

from dataclasses import dataclass

EXCHANGE = "mail"
DEAD_EXCHANGE = "mail.dead"

ROUTER = "router"
MAILBOX = "mailbox"
SENDER = "sender"
DEAD_LETTERS = "mail.dead-letters"

FETCHED = "fetched"
ROUTED = "routed"
SUBMITTED = "submitted"

DELIVERY_LIMIT = 1_000_000
"""Of the quorum queues. In practice none: tries are counted in the database, for the mail at fault alone, and RabbitMQ
4 would otherwise take innocent mail out of the queue after 20 deaths of a consumer."""


@dataclass(frozen=True, slots=True)
class Queue:
    """A durable quorum queue and the routing keys that lead to it."""

    name: str
    bindings: tuple[str, ...]
    exchange: str = EXCHANGE


QUEUES = (
    Queue(ROUTER, (f"{FETCHED}.#",)),
    Queue(MAILBOX, (f"{ROUTED}.#",)),
    Queue(SENDER, (f"{SUBMITTED}.#",)),
    Queue(DEAD_LETTERS, ("#",), DEAD_EXCHANGE),
)


def routing_key(stage: str, address: str) -> str:
    """The routing key of a stage (FETCHED, ROUTED, SUBMITTED) for an address; at most 255 octets."""
    return f"{stage}.{address.casefold()}"
