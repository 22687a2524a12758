"""Builds the broker messages of each stage: payloads.py gives the body, topology.py the routing keys.

Mails that one transaction committed share a message if they have the same routing keys: a message costs the broker and
both stages as much for one mail as for fifty.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import TypeVar

from shared.amqp.broker import Publication
from shared.amqp.payloads import ChangedItem, FetchedItem, RoutedItem, SubmittedItem
from shared.amqp.topology import CHANGED, FETCHED, ROUTED, SUBMITTED, routing_key

RECIPIENTS_A_MESSAGE = 100
"""Recipients of one message: the header has to fit a frame of 128 KiB; further recipients get further messages."""
MAILS_A_MESSAGE = 50
"""Mails of one message."""

_Key = TypeVar("_Key", bound=Hashable)


def fetched(mails: Iterable[tuple[int, str]]) -> list[Publication]:
    """Build messages for the router. :param mails: pairs of inbound.id and the address of the external account."""
    return [
        Publication(
            routing_key(FETCHED, external or "none"),
            FetchedItem(id=first_id, more_ids=more_ids, external=external).to_json(),
        )
        for external, first_id, more_ids in _grouped(mails)
    ]


def routed(mails: Iterable[tuple[int, Sequence[str]]]) -> list[Publication]:
    """Build messages for the mailbox service. :param mails: pairs of inbound.id and the recipients' addresses.

    The first recipient's key is the routing key, the others are copies (the CC header). A queue can thus be bound to
    the mail of one person, and the service's own queue gets the message once.
    """
    publications = []
    for recipients, first_id, more_ids in _grouped((row_id, tuple(recipients)) for row_id, recipients in mails):
        for start in range(0, len(recipients), RECIPIENTS_A_MESSAGE):
            part = recipients[start : start + RECIPIENTS_A_MESSAGE]
            key, *copies = [routing_key(ROUTED, address) for address in part]
            body = RoutedItem(id=first_id, more_ids=more_ids, recipients=part).to_json()
            publications.append(Publication(key, body, tuple(copies)))
    return publications


def submitted(submissions: Iterable[tuple[int, str]]) -> list[Publication]:
    """Build messages for the sender.

    :param submissions: pairs of submissions.id and the address of the author's external account.
    """
    return [
        Publication(
            routing_key(SUBMITTED, external),
            SubmittedItem(id=first_id, more_ids=more_ids, external=external).to_json(),
        )
        for external, first_id, more_ids in _grouped(submissions)
    ]


def changed(people: Iterable[tuple[int, str]], origin: str = "") -> list[Publication]:
    """Build the hints that the mailboxes of these people have changed, for programs that watch them.

    A hint that is lost is published by nobody again: watchers compare versions from time to time, too.

    :param people: pairs of the id of the local account and its address.
    :param origin: names the process, which hears its own hints, too.
    """
    known = list(dict.fromkeys(people))
    hints = []
    for start in range(0, len(known), RECIPIENTS_A_MESSAGE):
        part = known[start : start + RECIPIENTS_A_MESSAGE]
        key, *copies = [routing_key(CHANGED, address) for _, address in part]
        first_id, *more_ids = [local_id for local_id, _ in part]
        body = ChangedItem(id=first_id, more_ids=tuple(more_ids), origin=origin).to_json()
        hints.append(Publication(key, body, tuple(copies), transient=True))
    return hints


def _grouped(mails: Iterable[tuple[int, _Key]]) -> Iterator[tuple[_Key, int, tuple[int, ...]]]:
    """Group ids by key, MAILS_A_MESSAGE at most: the key, the first id, and further ids."""
    by_key: dict[_Key, list[int]] = {}
    for row_id, key in mails:
        by_key.setdefault(key, []).append(row_id)
    for key, ids in by_key.items():
        for start in range(0, len(ids), MAILS_A_MESSAGE):
            first_id, *more_ids = ids[start : start + MAILS_A_MESSAGE]
            yield key, first_id, tuple(more_ids)
