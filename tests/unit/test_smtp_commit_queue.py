"""services/smtp_in/commit_queue.py: what one commit takes together."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from services.smtp_in.commit_queue import CommitQueue, PendingSubmission
from shared.model import Content, EnvelopeRecipient
from shared.store.maillog import MailEvent
from shared.store.submissions import Submission

UNUSED = cast(Any, None)
MIB = 1024 * 1024


def pending(octets: int, recipients: int) -> PendingSubmission:
    """A mail of this size, to so many recipients."""
    addresses = tuple(EnvelopeRecipient(f"user{number}@example.net", "relay") for number in range(recipients))
    content = Content.from_bytes(bytes(octets))
    submission = Submission(1, 1, content, "alex@local.com", "1@local.com", False, False, addresses)
    return PendingSubmission(submission, MailEvent("submitted"), "support@company.com")


@pytest.mark.parametrize(
    ("octets", "recipients", "together"),
    [(1000, 1, 200), (1000, 1000, 1), (1000, 100, 10), (3 * MIB, 1, 2), (20 * MIB, 1, 1)],
)
async def test_a_commit_is_limited_by_octets_and_recipients(octets: int, recipients: int, together: int) -> None:
    queue = CommitQueue(UNUSED, UNUSED, 50 * MIB)
    mail = pending(octets, recipients)
    waiting = [asyncio.create_task(queue.commit(mail)) for _ in range(250)]
    await asyncio.sleep(0)

    assert len(queue._group._next_batch()) == together

    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
