"""Recognises copies of our own mail that a provider lists again, as Gmail does in its ``recent:`` mode. Pure.

Anybody who knows a Message-ID can write a header that looks like such a copy. So the body has to be the one that we
relayed, and any sign that the mail was sent to the account makes it an ordinary mail.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shared.mime.addresses import address_matcher
from shared.mime.headers import header_end
from shared.mime.provider_ids import sent_key
from shared.model import External, Local, Sent
from shared.routing.decision import Decision, RoutedRecipient
from shared.routing.facts import HEAD_OCTETS, HeaderFacts, account_addresses

BODY_OCTETS = 64 * 1024
"""Limits the beginning of a body that has to be the same: octets."""


@dataclass(frozen=True, slots=True)
class OwnCopy:
    """A mail whose header is that of a copy of our own mail; it is one if ``has_same_body`` says so."""

    decision: Decision
    copy_of: str  # the Message-ID by which we know that mail
    blob_id: int  # its bytes as submitted
    further_id: str | None  # a new Message-ID from the provider, to be recorded for the author


def find_own_copy(
    facts: HeaderFacts, external: External, sharers: Sequence[Local], known: Mapping[str, Sequence[Sent]]
) -> OwnCopy | None:
    """Return what to do with a fetched mail if it is a copy of a mail that we relayed; None for any other mail.

    :param known: the mails that we sent, by the ids of ``referenced_ids``, the earliest first.
    """
    if facts.problem or not facts.from_account or facts.has_transit or facts.to.found or facts.cc.found:
        return None
    is_own = address_matcher(account_addresses(external))
    people = {local.id: local for local in sharers}
    own_id = sent_key(facts.message_id) if facts.message_id else None
    for message_id in ([own_id] if own_id else []) + [sent_key(original) for original in facts.original_ids]:
        sent = [mail for mail in known.get(message_id, ()) if mail.external_id == external.id]
        if not sent or sent[0].author_id not in people:
            continue
        if any(is_own(address) for mail in sent for address in mail.recipients):
            return None
        if sent[0].blob_id is None:
            continue
        author = people[sent[0].author_id]
        further = own_id if own_id and own_id not in known else None
        reason = f"it is a copy of what {author.user_name} sent through {external.address}; kept as deleted mail"
        decision = Decision((RoutedRecipient(author.id, reason, 3),), 3, reason, own_copy=True)
        return OwnCopy(decision, message_id, sent[0].blob_id, further)
    return None


def has_same_body(copy: bytes, submission: bytes) -> bool:
    """Whether a mail has the body of a submission: the first 64 KiB, but for line ends at its end.

    A provider rewrites the header and may add or remove final line ends; any other difference makes it another mail.
    A shorter body has to be the same as a whole, because the beginning of a short one is easily guessed. An empty body
    proves nothing, and neither does a header that leaves no space for 64 KiB of the body.

    :param copy: the first 256 KiB of the mail. :param submission: the first 256 KiB of the submission.
    """
    bodies = []
    for head in (copy[:HEAD_OCTETS], submission[:HEAD_OCTETS]):
        end = header_end(head)
        if end > HEAD_OCTETS - BODY_OCTETS:
            return False
        bodies.append(head[end : end + BODY_OCTETS].rstrip(b"\r\n"))
    return bodies[0] == bodies[1] != b""
