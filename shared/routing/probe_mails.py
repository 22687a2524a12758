"""Recognises the probe mail for reply tags when it comes back, and the reports on it. Pure.

A probe mail is known by its Message-ID, which nobody but the provider has seen. It reaches nobody's mailbox, and
neither does a report that it could not be delivered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from shared.mime.reply_tags import probe_ids
from shared.routing.facts import HeaderFacts


@dataclass(frozen=True, slots=True)
class ProbeMail:
    """A fetched mail that is a probe mail, or a report on one. reason: an English sentence without full stop."""

    message_id: str  # of the probe mail
    result: Literal["arrived", "untagged", "refused"]
    reason: str


def probes_named(facts: HeaderFacts) -> Sequence[str]:
    """Return the Message-IDs in the form of a probe mail's: the mail's own, and those that a notice refers to."""
    own = [facts.message_id] if facts.message_id else []
    reported = (*facts.reported, *facts.in_reply_to, *facts.references) if facts.is_notice else ()
    return probe_ids((*own, *reported))


def read_probe(facts: HeaderFacts, message_id: str, tag: str | None) -> ProbeMail:
    """Return what a mail says about the probe mail that it names (``probes_named``).

    :param tag: of that probe mail; None: another one was sent after it.
    """
    if facts.message_id != message_id:
        return ProbeMail(message_id, "refused", "it reports on the probe mail for reply tags")
    if tag is None or tag in (*facts.to.tags, *facts.cc.tags):
        return ProbeMail(message_id, "arrived", "it is the probe mail for reply tags")
    return ProbeMail(message_id, "untagged", "it is the probe mail for reply tags, without its tag")
