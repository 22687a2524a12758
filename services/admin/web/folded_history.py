"""The history of a mail as its page shows it: many alike recipients or events are one sentence, and a fold. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from services.admin.formatting import counted
from services.admin.mail.history import MailHistory, describe_reason
from shared.languages.translation import gettext, marked
from shared.store.inbound_admin import Copyholder

FOLDS_FROM = 5
"""Number of alike recipients or events above which they are folded."""


@dataclass(frozen=True, slots=True)
class ShownReason:
    """A sentence about one recipient, or about several. folded: their names and addresses."""

    sentence: str
    folded: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class ShownEvent:
    """An event, or several of one kind. at: time (ISO 8601, UTC). mark: done, waits or failed.

    folded: time and sentence of each.
    """

    at: str
    sentence: str
    mark: str
    folded: Sequence[tuple[str, str]] = ()


def fold_reasons(story: MailHistory) -> list[ShownReason]:
    """Return who got a mail and why, or why it waits."""
    if not story.holders:
        return [ShownReason(line) for line in story.sentences]
    groups: dict[tuple[bool, str], list[Copyholder]] = {}
    for holder in story.holders:
        groups.setdefault((holder.done_at is not None, describe_reason(holder)), []).append(holder)
    shown: list[ShownReason] = []
    for (done, reason), holders in groups.items():
        if len(holders) <= FOLDS_FROM:
            one = marked("%(who)s got this because %(reason)s.")
            if not done:
                one = marked("%(who)s is to get this because %(reason)s.")
            shown += [ShownReason(gettext(one, who=holder.user_name, reason=reason)) for holder in holders]
        else:
            many = marked("%(people)s got this because %(reason)s.")
            if not done:
                many = marked("%(people)s are to get this because %(reason)s.")
            names = [f"{holder.user_name} ({holder.address})" for holder in holders]
            text = gettext(many, people=counted(len(holders), "person"), reason=reason)
            shown.append(ShownReason(text, names))
    return shown


def fold_events(story: MailHistory) -> list[ShownEvent]:
    """Return what happened to a mail, in its order."""
    return list(_fold(story.events))


def _fold(events: Sequence[tuple[str, str, str]]) -> Iterator[ShownEvent]:
    for (kind, mark), group in groupby(events, lambda event: (_kind(event[1]), event[2])):
        alike = list(group)
        if len(alike) <= FOLDS_FROM:
            yield from (ShownEvent(*event) for event in alike)
        else:
            yield ShownEvent(alike[0][0], f"{kind}: {counted(len(alike), 'time')}", mark, [e[:2] for e in alike])


_KINDS = ("Put into the mailbox", "Deleted from the mailbox", "Brought back", "Sent to", "Not sent to", "Cancelled for")


def _kind(sentence: str) -> str:
    """Return the beginning that sentences of one kind share; the whole sentence if they are not folded."""
    return next((kind for kind in _KINDS if sentence.startswith(kind)), sentence)
