"""Which envelope goes out under which routing keys: the one place that joins envelopes.py and topology.py."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from shared.broker import Publication
from shared.envelopes import Fetched, Routed, Submitted
from shared.topology import FETCHED, ROUTED, SUBMITTED, key

RECIPIENTS_A_MESSAGE = 100
"""A message's header has to fit a frame of 128 KiB; a mail to more people is announced in several messages."""
SUBMISSIONS_A_MESSAGE = 50


def fetched(inbound_id: int, external: str) -> Publication:
    """A mail for the router. external: address of the external account."""
    return Publication(key(FETCHED, external or "none"), Fetched(id=inbound_id, external=external).to_json())


def routed(inbound_id: int, recipients: Sequence[str]) -> list[Publication]:
    """A mail for the mailbox service: the first recipient's key and the others as copies.

    So anyone may bind a queue to one person's mail, while the service's queue gets it once.
    """
    publications = []
    for start in range(0, len(recipients), RECIPIENTS_A_MESSAGE):
        part = tuple(recipients[start : start + RECIPIENTS_A_MESSAGE])
        first, *others = [key(ROUTED, address) for address in part]
        publications.append(Publication(first, Routed(id=inbound_id, recipients=part).to_json(), tuple(others)))
    return publications


def submitted(submissions: Iterable[tuple[int, str]]) -> list[Publication]:
    """Submissions for the sender, each with the address of its author's external account.

    Those of one account that were committed together travel together: the sender wakes for an account, not for a mail.
    """
    by_external: dict[str, list[int]] = {}
    for submission_id, external in submissions:
        by_external.setdefault(external, []).append(submission_id)
    return [
        Publication(
            key(SUBMITTED, external), Submitted(id=part[0], others=tuple(part[1:]), external=external).to_json()
        )
        for external, ids in by_external.items()
        for part in (ids[start : start + SUBMISSIONS_A_MESSAGE] for start in range(0, len(ids), SUBMISSIONS_A_MESSAGE))
    ]
