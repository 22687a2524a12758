"""services/sender/smtp_transaction.py: the classification of a provider's replies for each recipient."""

from __future__ import annotations

import pytest

from services.sender import retry_policy
from services.sender.smtp_transaction import Replies, classify, classify_interrupted, limit_of, provider_message_ids
from shared.provider.smtp_client import Reply
from shared.store.relay_queue import QueuedRecipient

ANN, BOB, CAT = (QueuedRecipient(n, f"{name}@customer.org", None) for n, name in enumerate(("ann", "bob", "cat")))
OK = Reply(250, "2.0.0 queued as 123")


def states(replies: Replies) -> list[str]:
    return [outcome.state for outcome in classify((ANN, BOB, CAT), replies).outcomes]


def rcpt(*replies: str) -> dict[int, Reply]:
    return {n: Reply(int(reply[:3]), reply[4:]) for n, reply in enumerate(replies)}


def test_each_recipient_has_the_result_of_its_own_reply() -> None:
    # given an accepted, an unknown and a greylisted recipient
    replies = Replies(rcpt("250 ok", "550 5.1.1 unknown", "450 4.2.0 greylisted"), OK)
    verdict = classify((ANN, BOB, CAT), replies)
    # then each has its state and the words that made it
    assert [(o.state, o.reply) for o in verdict.outcomes] == [
        ("relayed", "250 2.0.0 queued as 123"),
        ("failed", "550 5.1.1 unknown"),
        ("waiting", "450 4.2.0 greylisted"),
    ]
    assert (verdict.retry_now, verdict.count_try) == (False, True)


@pytest.mark.parametrize(
    ("final", "state"),
    [
        (OK, "relayed"),
        (Reply(554, "5.7.1 spam"), "failed"),
        (Reply(451, "4.3.0 later"), "waiting"),
        (Reply(354, "odd"), "waiting"),
    ],
)
def test_the_reply_to_the_mail_decides_for_accepted_recipients(final: Reply, state: str) -> None:
    assert states(Replies(rcpt("250 ok", "251 ok", "550 no"), final)) == [state, state, "failed"]


def test_a_refused_sender_decides_for_all_recipients() -> None:
    assert states(Replies({}, Reply(550, "5.7.1 not you"))) == ["failed"] * 3
    assert states(Replies({}, Reply(451, "4.7.1 slowly"))) == ["waiting"] * 3


@pytest.mark.parametrize(
    ("reply", "seconds"),
    [
        ("550 5.4.5 Daily user sending limit exceeded.", retry_policy.QUOTA_PAUSE),
        ("550 Domain a.b has exceeded the max emails per hour (50/50 (100%)) allowed.", retry_policy.QUOTA_PAUSE),
        ("550 User has exceeded its 24-hour sending limit. Messages to 500 of 500", retry_policy.QUOTA_PAUSE),
        ("450 Mail send limit exceeded. For explanation visit", retry_policy.QUOTA_PAUSE),
        ("454 Throttling failure: Daily message quota exceeded.", retry_policy.QUOTA_PAUSE),
        ("454 Throttling failure: Maximum sending rate exceeded.", retry_policy.THROTTLE_PAUSE),
        ("451 4.7.1 Ratelimit 'out' exceeded", retry_policy.THROTTLE_PAUSE),
        ("450 4.7.1 Error: too much mail from 192.0.2.1", retry_policy.THROTTLE_PAUSE),
        ("421 4.7.0 Sender is rate-limited", retry_policy.THROTTLE_PAUSE),
        # of the recipient's mailbox, of the mail, or of nothing that is known
        ("452 4.2.2 The email account that you tried to reach is over quota", None),
        ("552 5.2.2 mailbox full, quota exceeded", None),
        ("552 5.3.4 Message size exceeds fixed limit", None),
        ("450 4.2.1 The user you are trying to contact is receiving mail at a rate that prevents", None),
        ("450 4.2.0 greylisted, limited service", None),
        ("250 2.0.0 within the daily sending limit", None),
    ],
)
def test_a_limit_for_sending_is_known_by_its_words(reply: str, seconds: float | None) -> None:
    found = limit_of(Reply(int(reply[:3]), reply[4:]))
    assert (found and found.seconds) == seconds
    # and at RCPT it fails no recipient, as it concerns the relay
    if seconds is not None and not reply.startswith("421"):
        verdict = classify((ANN,), Replies(rcpt(reply)))
        assert [outcome.state for outcome in verdict.outcomes] == ["waiting"]
        assert verdict.rejection == found


CROWDED = [
    "452 4.5.3 too many recipients",
    "452 too many",
    "451 4.5.3 too many",
    "552 5.5.3 too many",
    "552 too many recipients",
    "550 5.5.3 too many",
    "554 5.5.3 too many",
    "421 4.5.3 too many",
    "421 too many",
]


@pytest.mark.parametrize("crowded", CROWDED)
def test_too_many_recipients_sends_the_rest_at_once_and_counts_no_try(crowded: str) -> None:
    verdict = classify((ANN, BOB, CAT), Replies(rcpt("250 ok", crowded, crowded), OK))
    assert [o.state for o in verdict.outcomes] == ["relayed", "waiting", "waiting"]
    assert (verdict.retry_now, verdict.count_try) == (True, False)


def test_too_many_recipients_without_progress_counts_as_a_try() -> None:
    # given no accepted recipient, or a temporarily refused mail
    nobody = classify((ANN,), Replies(rcpt("452 4.5.3 too many")))
    later = classify((ANN, BOB), Replies(rcpt("250 ok", "552 5.5.3 too many"), Reply(451, "later")))
    # then there is no loop, and no recipient fails
    assert (nobody.retry_now, nobody.count_try) == (False, True)
    assert (later.retry_now, later.count_try) == (False, True)
    assert [o.state for o in later.outcomes] == ["waiting", "waiting"]


@pytest.mark.parametrize("crowded", CROWDED)
def test_the_refusal_of_the_first_recipient_is_judged_like_any_other(crowded: str) -> None:
    verdict = classify((ANN, BOB), Replies(rcpt(crowded, "250 ok"), OK))
    assert [o.state for o in verdict.outcomes] == ["failed" if crowded.startswith("5") else "waiting", "relayed"]
    assert (verdict.retry_now, verdict.count_try) == (False, not crowded.startswith("5"))


@pytest.mark.parametrize("final", ["552 too large", "550 5.5.3 no", "554 5.7.1 spam"])
def test_a_refusal_of_the_mail_is_not_one_of_too_many_recipients(final: str) -> None:
    assert states(Replies(rcpt("250 ok", "250 ok", "250 ok"), Reply(int(final[:3]), final[4:]))) == ["failed"] * 3


@pytest.mark.parametrize("full", ["452 4.2.2 mailbox full", "452 4.3.1 no space"])
def test_another_452_is_a_temporary_refusal(full: str) -> None:
    verdict = classify((ANN, BOB), Replies(rcpt("250 ok", full), OK))
    assert (verdict.retry_now, verdict.count_try) == (False, True)


def test_a_full_mailbox_does_not_mean_too_many_recipients() -> None:
    assert states(Replies(rcpt("250 ok", "552 5.2.2 mailbox full", "250 ok"), OK)) == ["relayed", "failed", "relayed"]


def test_after_an_interruption_only_refusals_are_final() -> None:
    replies = Replies(rcpt("250 ok", "550 5.1.1 unknown"))
    verdict = classify_interrupted((ANN, BOB, CAT), replies, "connection lost", unanswered=True)
    assert [(o.state, o.reply) for o in verdict.outcomes] == [
        ("waiting", "connection lost"),
        ("failed", "550 5.1.1 unknown"),
        ("waiting", "connection lost"),
    ]
    assert verdict.unanswered


def test_an_id_in_the_final_reply_is_a_message_id_of_the_provider() -> None:
    reply = "250 2.0.0 OK <New.Id@provider.example> [Hostname=x] for <Ann@customer.org> <no> <a b@c>"
    assert provider_message_ids(reply, {"ann@customer.org"}) == ["New.Id@provider.example"]
