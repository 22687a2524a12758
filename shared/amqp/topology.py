"""Exchanges, queues and routing keys: the whole wiring of the broker on one page.

    fetcher  ──fetched.<external>──▶ queue router ──▶ router  ──routed.<local>──▶ queue mailbox ──▶ mailbox
    smtp_in  ──submitted.<external>▶ queue sender ──▶ sender  ──routed.<local>──▶ queue mailbox
                                                      sender  ──fetched.<external>▶ queue router
    mailbox, smtp_in, pop3_out, imap_out, admin ──changed.<local>──▶ imap_out: a queue of each process, while it runs
    rejected by a consumer ──▶ exchange mail.dead ──▶ queue mail.dead-letters

A message holds ids and addresses (shared/amqp/payloads.py), never bytes of a mail. The database is the truth: the sweep
of the stage that waits for a lost message publishes it again.
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
CHANGED = "changed"

DELIVERY_LIMIT = 1_000_000
"""x-delivery-limit of the quorum queues, effectively unlimited. We count the attempts of each mail in the database;
RabbitMQ 4's default (20) would dead-letter healthy messages that were delivered together with a bad one."""


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
    """Return the routing key of a stage (FETCHED, ROUTED, SUBMITTED), or of CHANGED, for an address: at most 255
    octets.
    """
    return f"{stage}.{address.casefold()}"
