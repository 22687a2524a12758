"""Mails that hold up or break a batch of the sender."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import pytest

from services.sender import background, batches, outcomes, outgoing_message
from services.sender.outgoing_message import MessageSource
from shared.db.database import Database
from shared.model import External
from shared.runtime.liveness import hold_process_lock
from shared.store.relay_queue import QueuedMail
from tests.polling import until
from tests.scripted_smtp import PIPELINING, ScriptedSmtp
from tests.sender_harness import SenderHarness, harness_fixture, provider_fixture

ANN = "ann@customer.org"


provider = provider_fixture(PIPELINING)
harness = harness_fixture(connections=3)


async def submit_one_that_is_read_for(seconds: float, harness: SenderHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Submit ten mails in one batch; the reading of ``4@many`` takes this long."""
    read = outgoing_message.load_sources

    async def slow(database: Database, mails: Sequence[QueuedMail], external: External) -> dict[int, MessageSource]:
        if any(mail.message_id == "4@many" for mail in mails):
            await asyncio.sleep(seconds)
        return await read(database, mails, external)

    monkeypatch.setattr(outgoing_message, "load_sources", slow)
    await harness.rows("update external_accounts set enabled = false")
    for number in range(10):
        await harness.submit(ANN, message_id=f"{number}@many")
    await harness.rows("update external_accounts set enabled = true")


async def test_a_mail_whose_reading_never_ends_holds_up_no_other(
    harness: SenderHarness, provider: ScriptedSmtp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "BATCH_SECONDS", 3.0)
    monkeypatch.setattr(batches, "MAIL_SECONDS", 3.0)
    await submit_one_that_is_read_for(3600.0, harness, monkeypatch)

    async def others_left() -> bool:
        return len(provider.taken) == 9

    await until(others_left)
    assert await harness.rows("select message_id, state, failures from submissions where failures > 0") == [
        ("4@many", "queued", 1)
    ]


async def test_a_mail_that_needs_longer_than_a_batch_may_is_read_alone(
    harness: SenderHarness, provider: ScriptedSmtp, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a mail that is read longer than a batch may take, as a header of 1 MiB on a busy machine
    monkeypatch.setattr(batches, "BATCH_SECONDS", 0.5)
    await submit_one_that_is_read_for(1.0, harness, monkeypatch)

    async def all_left() -> bool:
        return len(provider.taken) == 10

    # then it leaves with the others, and no failure is counted
    await until(all_left)
    assert await harness.rows("select message_id from submissions where failures > 0") == []


@pytest.mark.parametrize("slow", [False, True])
async def test_a_mail_without_a_possible_notice_holds_up_no_other_notice(
    harness: SenderHarness, provider: ScriptedSmtp, monkeypatch: pytest.MonkeyPatch, slow: bool
) -> None:
    # given ten mails that have waited for six days, and one of them breaks its notice, or takes for ever
    monkeypatch.setattr(batches, "BATCH_SECONDS", 2.0)
    monkeypatch.setattr(batches, "MAIL_SECONDS", 2.0)
    monkeypatch.setattr(background, "NOTIFY_SECONDS", 0.5)
    compose = outcomes._compose

    async def broken(connection: Any, mail: QueuedMail, *rest: Any) -> Any:
        if mail.message_id == "4@many":
            if slow:
                await asyncio.sleep(3600)
            raise ZeroDivisionError("a fault of ours")
        return await compose(connection, mail, *rest)

    monkeypatch.setattr(outcomes, "_compose", broken)
    await harness.rows("update external_accounts set enabled = false")
    for number in range(10):
        await harness.submit(ANN, message_id=f"{number}@many")
    await harness.rows(
        "update submissions set created_at = now() - interval '6 days', delay_noticed_at = now() + interval '1 hour'"
    )

    async def is_parked() -> bool:
        await harness.upkeep.notify_authors()
        return bool(await harness.rows("select 1 from submissions where state = 'parked'"))

    await until(is_parked, 120)
    # then the others have failed and their authors know, and that one needs attention
    assert await harness.rows("select state, count(*)::int from submissions group by 1 order by 1") == [
        ("done", 9),
        ("parked", 1),
    ]
    assert len(await harness.notices("Alex")) == 9


async def test_a_claim_that_cannot_be_recovered_holds_up_no_other(
    harness: SenderHarness, provider: ScriptedSmtp, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given mails that a dead sender has sent twice without an answer, and one breaks its notice
    notify = outcomes._notify

    async def broken(connection: Any, mail: QueuedMail, *rest: Any) -> Any:
        if mail.message_id == "4@many":
            raise ZeroDivisionError("a fault of ours")
        return await notify(connection, mail, *rest)

    monkeypatch.setattr(outcomes, "_notify", broken)
    await harness.rows("update external_accounts set enabled = false")
    for number in range(10):
        await harness.submit(ANN, message_id=f"{number}@many")
    folder = harness.service.settings.data / "processes"
    await harness.rows(
        """update submissions set state = 'sent_unanswered', uncertain = true, claim_owner = 'sender@gone',
               claim_expires = now() + interval '1 hour'"""
    )
    with hold_process_lock(folder, "sender@gone"):
        pass

    async def others_failed() -> bool:
        [[failed]] = await harness.rows("select count(*)::int from submissions where state = 'done'")
        return bool(failed == 9)

    await until(others_failed)
    assert await harness.rows("select message_id from submissions where state = 'sent_unanswered'") == [("4@many",)]


async def test_a_long_header_does_not_stop_the_event_loop(harness: SenderHarness, provider: ScriptedSmtp) -> None:
    # given a header of almost 1 MiB whose addresses are all looked at
    addresses = b",\r\n ".join(b'"Person %d" <person%d@customer.org>' % (number, number) for number in range(20_000))
    long = b"From: alex@local.com\r\nTo: " + addresses + b"\r\nSubject: x\r\n\r\nbody\r\n"
    assert 700_000 < len(long) < 1_048_576
    await harness.rows("update external_accounts set enabled = false")
    id_ = await harness.submit(ANN, mail=long)
    busy = [0.0]

    async def tick() -> None:
        while True:
            began = time.thread_time()  # of this thread alone, on whatever machine
            await asyncio.sleep(0.005)
            busy.append(time.thread_time() - began)

    ticking = asyncio.create_task(tick())
    # when it is sent
    await harness.rows("update external_accounts set enabled = true")
    await harness.until(id_, state="done")
    ticking.cancel()
    # then no other mail would have waited for long
    assert max(busy) < 0.5, f"the event loop was busy for {max(busy):.2f} s"
    assert b'From: "Alex" <support@company.com>' in provider.taken[0].mail
