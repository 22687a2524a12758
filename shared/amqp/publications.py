"""Which envelope goes out under which routing keys: the one place that joins envelopes.py and topology.py.

What one transaction committed travels together, as far as it goes the same way: a message costs the broker and both
stages as much for one mail as for fifty.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import TypeVar

from shared.amqp.broker import Publication
from shared.amqp.payloads import FetchedItem, RoutedItem, SubmittedItem
from shared.amqp.topology import FETCHED, ROUTED, SUBMITTED, routing_key

RECIPIENTS_A_MESSAGE = 100
"""A message's header has to fit a frame of 128 KiB; a mail to more people is announced in several messages."""
MAILS_A_MESSAGE = 50

_Way = TypeVar("_Way", bound=Hashable)


def fetched(mails: Iterable[tuple[int, str]]) -> list[Publication]:
    """Mails for the router: inbound.id, each with the address of its external account."""
    return [
        Publication(
            routing_key(FETCHED, external or "none"), FetchedItem(id=id_, more_ids=others, external=external).to_json()
        )
        for external, id_, others in _together(mails)
    ]


def routed(mails: Iterable[tuple[int, Sequence[str]]]) -> list[Publication]:
    """Mails for the mailbox service: inbound.id, each with its recipients' addresses.

    The first recipient's key and the others as copies: so anyone may bind a queue to one person's mail, while the
    service's queue gets it once.
    """
    publications = []
    for recipients, id_, others in _together((id_, tuple(recipients)) for id_, recipients in mails):
        for start in range(0, len(recipients), RECIPIENTS_A_MESSAGE):
            part = recipients[start : start + RECIPIENTS_A_MESSAGE]
            first, *copies = [routing_key(ROUTED, address) for address in part]
            body = RoutedItem(id=id_, more_ids=others, recipients=part).to_json()
            publications.append(Publication(first, body, tuple(copies)))
    return publications


def submitted(submissions: Iterable[tuple[int, str]]) -> list[Publication]:
    """Submissions for the sender: submissions.id, each with the address of its author's external account."""
    return [
        Publication(
            routing_key(SUBMITTED, external), SubmittedItem(id=id_, more_ids=others, external=external).to_json()
        )
        for external, id_, others in _together(submissions)
    ]


def _together(mails: Iterable[tuple[int, _Way]]) -> Iterator[tuple[_Way, int, tuple[int, ...]]]:
    """Those that go the same way, in portions: the way, an id, and further ids."""
    by_way: dict[_Way, list[int]] = {}
    for id_, way in mails:
        by_way.setdefault(way, []).append(id_)
    for way, ids in by_way.items():
        for start in range(0, len(ids), MAILS_A_MESSAGE):
            first, *others = ids[start : start + MAILS_A_MESSAGE]
            yield way, first, tuple(others)
