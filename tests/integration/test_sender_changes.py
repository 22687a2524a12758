"""Accounts and mails that change while their mails are claimed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from services.admin.mail import operations
from shared.store import relay_queue
from shared.store.relay_queue import Claimed, ClaimRequest
from tests.company import SALES, SUPPORT
from tests.polling import until
from tests.scripted_smtp import PIPELINING, ScriptedSmtp, scripted_smtp
from tests.sender_harness import MAIL, SenderHarness, harness_fixture, provider_fixture, replies

ANN = "ann@customer.org"


provider = provider_fixture(PIPELINING)
harness = harness_fixture(connections=3)


async def claim_one(harness: SenderHarness, provider: ScriptedSmtp) -> int:
    """Submit a mail whose transmission waits before its content."""
    provider.gates["DATA"] = asyncio.Event()
    id_ = await harness.submit(ANN)
    await harness.until(id_, state="claimed")
    await until(lambda: provider.said("DATA"))
    return id_


# ---------------------------------------------------------------------------------------------- the account


@pytest.mark.parametrize(
    ("change", "back"),
    [
        ("enabled = false", "enabled = true"),
        ("removed_at = now()", "removed_at = null"),
    ],
)
async def test_a_mail_of_an_account_that_is_disabled_meanwhile_stays(
    harness: SenderHarness, provider: ScriptedSmtp, change: str, back: str
) -> None:
    # given a mail that is announced to the provider
    id_ = await claim_one(harness, provider)
    # when its account is disabled or removed before the final dot
    await harness.rows(f"update external_accounts set {change} where address = '{SUPPORT}'")
    provider.gates["DATA"].set()
    # then it has not left, and waits without a failure
    found = await harness.until(id_, state="queued")
    await asyncio.sleep(1.5)
    assert (provider.taken, found.tries, found.uncertain) == ([], 0, False)
    assert (await harness.listed(id_)).state == "queued"
    # until the account is back
    await harness.rows(f"update external_accounts set {back} where address = '{SUPPORT}'")
    await harness.until(id_, state="done")
    assert len(provider.taken) == 1


@pytest.mark.parametrize("change", ["smtp_port = {port}", "login = 'another'", "address = 'new@company.com'"])
async def test_a_mail_leaves_only_as_its_account_is_at_the_final_dot(
    harness: SenderHarness, provider: ScriptedSmtp, change: str
) -> None:
    async with scripted_smtp() as other:
        id_ = await claim_one(harness, provider)
        # when the account gets another host, login or address before the final dot
        await harness.rows(f"update external_accounts set {change.format(port=other.port)} where address = '{SUPPORT}'")
        provider.gates["DATA"].set()
        # then the mail leaves once, as the account is now
        await harness.until(id_, state="done", uncertain=False, tries=0)
        [taken] = [*provider.taken, *other.taken]
        assert bool(other.taken) == change.startswith("smtp_port")
        logins = other.logins if other.taken else provider.logins
        assert logins[-1].split()[0] == ("another" if change.startswith("login") else SUPPORT)
        assert taken.sender == ("new@company.com" if change.startswith("address") else SUPPORT)
        assert f"<{taken.sender}>".encode() in taken.mail


async def test_a_changed_password_is_used_from_the_next_final_dot_on(
    harness: SenderHarness, provider: ScriptedSmtp
) -> None:
    id_ = await claim_one(harness, provider)
    [[password]] = await harness.rows("select password from external_accounts where address = %s", SALES)
    await harness.rows("update external_accounts set password = %s where address = %s", password, SUPPORT)
    provider.gates["DATA"].set()
    await harness.until(id_, state="done", tries=0)
    assert (len(provider.taken), len(provider.logins)) == (1, 2)


async def test_learnt_limits_and_renewed_tokens_disturb_no_mail(harness: SenderHarness, provider: ScriptedSmtp) -> None:
    oauth = """{"name": "x", "issuer": {}, "client_id": "c"}"""
    await harness.rows("update external_accounts set oauth = %s::jsonb where address = %s", oauth, SALES)
    before = await harness.rows("select smtp_version from external_accounts order by id")
    await harness.rows("update external_accounts set password = 'renewed' where address = %s", SALES)
    await harness.rows("update relays set size = 5000, refused = 4000")
    await harness.rows("update external_accounts set aliases = '{a@b.example}'")
    assert await harness.rows("select smtp_version from external_accounts order by id") == before
    await harness.rows("update external_accounts set enabled = false")
    after = await harness.rows("select smtp_version from external_accounts order by id")
    assert [row[0] for row in after] == [row[0] + 1 for row in before]


async def test_accepted_mail_of_a_removed_user_leaves_without_a_local_address(
    harness: SenderHarness, provider: ScriptedSmtp
) -> None:
    id_ = await claim_one(harness, provider)
    await harness.rows("update local_accounts set removed_at = now() where address = 'alex@local.com'")
    provider.gates["DATA"].set()
    await harness.until(id_, state="done")
    [taken] = provider.taken
    assert (
        b'From: "Alex" <support@company.com>' in taken.mail and b"local.com" not in taken.mail.split(b"Message-ID")[0]
    )


@pytest.mark.parametrize(
    "change", ["address = 'al@local.com'", "address = 'al@local.com', addresses = '{x@local.com}'"]
)
async def test_a_mail_leaves_without_an_address_that_its_author_gave_up(
    harness: SenderHarness, provider: ScriptedSmtp, change: str
) -> None:
    id_ = await claim_one(harness, provider)
    await harness.rows(f"update local_accounts set {change} where address = 'alex@local.com'")
    provider.gates["DATA"].set()
    await harness.until(id_, state="done")
    [taken] = provider.taken
    assert (
        b'From: "Alex" <support@company.com>' in taken.mail and b"local.com" not in taken.mail.split(b"Message-ID")[0]
    )


async def test_an_account_is_well_again_when_nothing_waits_for_it(harness: SenderHarness) -> None:
    async def failures() -> int:
        return int((await harness.rows("select sum(failures)::int from relays"))[0][0])

    # given a mail whose provider cannot be reached
    await harness.rows("update external_accounts set smtp_port = 1")
    id_ = await harness.submit(ANN)
    await until(failures)
    await harness.upkeep.end_idle_failures()
    assert await failures() > 0
    # when the operator cancels it, so that no later try can show the provider is back, then its failure is over
    async with harness.database.transaction() as connection:
        await operations.cancel(connection, [id_])
    await harness.upkeep.end_idle_failures()
    assert await failures() == 0
    # but a changed certificate and a refused login are not
    await harness.rows("update relays set failures = 1, last_error_kind = 'certificate'")
    await harness.upkeep.end_idle_failures()
    assert await failures() > 0
    await harness.rows("update relays set last_error_kind = 'login', paused_at = now()")
    await harness.upkeep.end_idle_failures()
    assert await failures() > 0


async def test_a_mail_being_sent_is_not_reported_as_cancelled(harness: SenderHarness, provider: ScriptedSmtp) -> None:
    id_ = await claim_one(harness, provider)
    # when the operator cancels it
    async with harness.database.transaction() as connection:
        done = await operations.cancel(connection, [id_])
    # then the answer is that it was left, and it leaves
    assert (done.done, done.left) == ([], [id_])
    provider.gates["DATA"].set()
    found = await harness.until(id_, state="done")
    assert replies(found) == [("relayed", "250 2.0.0 queued")] and len(provider.taken) == 1


async def test_a_mail_is_either_cancelled_or_sent(harness: SenderHarness, provider: ScriptedSmtp) -> None:
    # given mails that become due while the operator cancels all of them
    await harness.rows("update external_accounts set enabled = false")
    ids = [await harness.submit(ANN, message_id=f"{number}@many") for number in range(60)]
    await harness.rows("update external_accounts set enabled = true")
    harness.relaying.schedule(harness.externals[SUPPORT].id)
    cancelled: set[int] = set()
    for id_ in reversed(ids):
        async with harness.database.transaction() as connection:
            cancelled |= set((await operations.cancel(connection, [id_])).done)

    async def done() -> bool:
        return not await harness.rows("select 1 from submissions where state <> 'done'")

    await until(done)
    # then each mail is one or the other
    sent = {taken.mail.partition(b"Message-ID: <")[2].partition(b"@")[0] for taken in provider.taken}
    assert len(sent) == len(provider.taken)
    assert {number for number, id_ in enumerate(ids) if id_ not in cancelled} == set(map(int, sent))


# ---------------------------------------------------------------------------------------------- claims


async def claim(harness: SenderHarness, **wanted: Any) -> Claimed:
    async with harness.database.transaction() as connection:
        return await relay_queue.claim(
            connection, ClaimRequest(harness.externals[SUPPORT].id, "another", 45.0, **wanted)
        )


async def test_a_claim_takes_one_mail_for_each_free_lane_and_some_ahead(
    harness: SenderHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given ten mails that this sender leaves alone
    monkeypatch.setattr(harness.relaying, "schedule", lambda _: None)
    monkeypatch.setattr(harness.stage, "_wake", lambda _: None)
    await harness.rows("update external_accounts set enabled = false")
    for number in range(10):
        await harness.submit(ANN, message_id=f"{number}@many")
    assert (await claim(harness)).lanes == 0
    await harness.rows("update external_accounts set enabled = true")
    # when lanes are free, when one is, when none is, and with prefetching up to a limit of memory
    three = await claim(harness)
    assert (len(three.mails), three.lanes, three.more) == (3, 3, True)
    assert (len((await claim(harness, busy_lanes=2)).mails), (await claim(harness, busy_lanes=3)).more) == (1, True)
    exceeding = await claim(harness, busy_lanes=3, prefetch=5, prefetch_octets=1)
    assert (exceeding.mails, exceeding.more) == ([], True)
    octets = 3 * len(MAIL)
    assert len((await claim(harness, busy_lanes=3, prefetch=5, prefetch_octets=octets)).mails) == 3
    # then the rest follows, and nothing is left
    rest = await claim(harness, busy_lanes=3, prefetch=50, prefetch_octets=1_000_000)
    assert (len(rest.mails), rest.more) == (3, False)


async def test_an_account_in_trouble_gives_one_careful_try(
    harness: SenderHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness.relaying, "schedule", lambda _: None)
    monkeypatch.setattr(harness.stage, "_wake", lambda _: None)
    for number in range(3):
        await harness.submit(ANN, message_id=f"{number}@many")
    await harness.rows("update relays set failures = 2")
    careful = await claim(harness, prefetch=50, prefetch_octets=1_000_000)
    assert (len(careful.mails), careful.lanes) == (1, 1)
