"""Many lanes of one account: pipelined commands, prefetched mails, and results that are committed together."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pytest

from services.sender import account_queue, claims, delivery, lane, outcomes, outgoing_message, retry_policy
from services.sender.outgoing_message import MessageSource
from shared.db.database import Database
from shared.errors import Temporary
from shared.model import External
from shared.runtime.liveness import CHECK_SECONDS, FOLDER, hold_process_lock
from shared.store import relays
from shared.store.relay_queue import QueuedMail
from tests.company import SUPPORT
from tests.polling import until
from tests.scripted_smtp import CLOSE, HANG, PIPELINING, ScriptedSmtp
from tests.sender_harness import MAIL, SenderHarness, harness_fixture, provider_fixture, replies, sending

ANN, BOB, CAT = "ann@customer.org", "bob@customer.org", "cat@customer.org"


provider = provider_fixture(PIPELINING)
harness = harness_fixture(connections=3)


async def queue(harness: SenderHarness, count: int, *to: str) -> list[int]:
    """Queue mails that are due at the same time."""
    await harness.rows("update external_accounts set enabled = false")
    ids = [await harness.submit(*(to or (ANN,)), message_id=f"{number}@many") for number in range(count)]
    await harness.rows("update external_accounts set enabled = true")
    harness.relaying.schedule(harness.externals[SUPPORT].id)
    return ids


async def states(harness: SenderHarness) -> Counter[str]:
    return Counter(
        {row[0]: row[1] for row in await harness.rows("select state, count(*)::int from submissions group by 1")}
    )


async def until_states(harness: SenderHarness, **wanted: int) -> None:
    async def so() -> bool:
        return await states(harness) == Counter(wanted)

    try:
        await until(so)
    except TimeoutError as error:
        raise AssertionError(f"never so: {wanted}, but {await states(harness)}") from error


def copies(provider: ScriptedSmtp) -> Counter[bytes]:
    """Return how often the provider accepted each mail, by Message-ID."""
    return Counter(taken.mail.partition(b"Message-ID: <")[2].partition(b">")[0] for taken in provider.taken)


def once_each(count: int) -> Counter[bytes]:
    return Counter({b"%d@many" % number: 1 for number in range(count)})


# ---------------------------------------------------------------------------------------------- pipelining


async def test_many_mails_leave_once_each_and_whole(harness: SenderHarness, provider: ScriptedSmtp) -> None:
    await queue(harness, 200)
    await until_states(harness, done=200)
    assert copies(provider) == once_each(200)
    assert all(taken.recipients == [ANN] and taken.mail.endswith(b"\r\n.with dots\r\n") for taken in provider.taken)
    assert provider.connections <= 3
    assert not provider.said("RSET")


async def test_a_refused_sender_settles_everyone_by_that_reply_alone(
    harness: SenderHarness, provider: ScriptedSmtp
) -> None:
    # given a server that refuses MAIL for now, and so every command behind it for good
    provider.say("MAIL", "451 4.3.0 slowly")
    id_ = await harness.submit(ANN, BOB)
    found = await harness.until(id_, state="queued", tries=1)
    # then no recipient has failed
    assert replies(found) == [("waiting", "451 4.3.0 slowly")] * 2
    assert await harness.notices("Alex") == []
    await harness.make_due()
    await harness.until(id_, state="done")
    assert (len(provider.taken), provider.connections) == (1, 1)


async def test_one_refused_recipient_of_a_group_of_commands_fails_alone(
    harness: SenderHarness, provider: ScriptedSmtp
) -> None:
    provider.by_recipient[BOB] = "550 5.1.1 no such user"
    found = await harness.until(await harness.submit(ANN, BOB, CAT), state="done")
    assert [state for state, _ in replies(found)] == ["relayed", "failed", "relayed"]
    assert provider.taken[0].recipients == [ANN, CAT]
    assert len(await harness.notices("Alex")) == 1


@pytest.mark.parametrize("answer", ["554 5.5.1 no valid recipients", "354 go on"])
async def test_a_mail_without_any_accepted_recipient_is_not_sent(
    harness: SenderHarness, provider: ScriptedSmtp, answer: str
) -> None:
    # given a server that refuses all recipients, but may still ask for the data (RFC 2920 section 3.1)
    provider.by_recipient[BOB] = "550 5.1.1 no such user"
    provider.say("DATA", answer)
    found = await harness.until(await harness.submit(BOB), state="done")
    assert replies(found) == [("failed", "550 5.1.1 no such user")]
    # then it got no body, and the connection serves the next mail
    assert [taken.raw for taken in provider.taken] in ([], [b""])
    await harness.until(await harness.submit(ANN), state="done")
    assert provider.connections == 1
    assert provider.taken[-1].recipients == [ANN] and b"a body" in provider.taken[-1].mail


async def test_a_server_that_refuses_data_is_retried_later(harness: SenderHarness, provider: ScriptedSmtp) -> None:
    provider.say("DATA", "451 4.3.0 no room")
    id_ = await harness.submit(ANN)
    found = await harness.until(id_, state="queued", tries=1)
    assert replies(found) == [("waiting", "451 4.3.0 no room")]
    await harness.make_due()
    await harness.until(id_, state="done", uncertain=False)


async def test_an_invalid_reply_to_data_does_not_count_as_success(
    harness: SenderHarness, provider: ScriptedSmtp
) -> None:
    provider.say("DATA", "250 2.0.0 ok")
    id_ = await harness.submit(ANN)
    await harness.until(id_, state="queued", tries=1)
    assert provider.taken == []


async def test_without_pipelining_each_command_waits_for_its_reply(
    harness: SenderHarness, provider: ScriptedSmtp
) -> None:
    # given a slow server that does not announce pipelining
    provider.always("EHLO", None)
    provider.gates["RCPT"] = asyncio.Event()
    id_ = await harness.submit(ANN, BOB)

    async def asked() -> bool:
        return bool(provider.said("RCPT"))

    await until(asked)
    await asyncio.sleep(0.2)
    assert len(provider.said("RCPT")) == 1 and not provider.said("DATA")
    provider.gates["RCPT"].set()
    await harness.until(id_, state="done")


@pytest.mark.parametrize("verb", ["MAIL", "RCPT", "DATA"])
async def test_421_within_a_group_of_commands_costs_a_used_connection_and_no_try(
    harness: SenderHarness, provider: ScriptedSmtp, verb: str
) -> None:
    await harness.until(await harness.submit(ANN), state="done")
    provider.say(verb, "421 4.3.2 going down")
    found = await harness.until(await harness.submit(BOB), state="done")
    assert (found.tries, found.uncertain, provider.connections, len(provider.taken)) == (0, False, 2, 2)


async def test_a_server_that_closes_behind_a_mail_makes_only_that_one_uncertain(
    harness: SenderHarness, provider: ScriptedSmtp
) -> None:
    # given one lane, and a server that hangs up instead of answering the tenth mail
    await harness.rows("update external_accounts set smtp_connections = 1")
    provider.say("END", *["250 ok"] * 9, CLOSE)
    await queue(harness, 30)
    await until_states(harness, done=30)
    # then the pipelined mail was sent by another connection, without a mark
    assert copies(provider) == once_each(30)
    assert await harness.rows("select count(*)::int, sum(tries)::int from submissions where uncertain") == [(1, 0)]
    assert provider.connections == 2


async def test_421_instead_of_the_final_reply_delays_only_that_mail(
    harness: SenderHarness, provider: ScriptedSmtp
) -> None:
    await harness.rows("update external_accounts set smtp_connections = 1")
    provider.say("END", *["250 ok"] * 9, "421 4.3.2 going down")
    await queue(harness, 30)
    await until_states(harness, done=29, queued=1)
    assert await harness.rows("select tries, uncertain from submissions where state = 'queued'") == [(1, False)]


async def test_a_refused_mail_does_not_disturb_the_pipelined_one(
    harness: SenderHarness, provider: ScriptedSmtp
) -> None:
    await harness.rows("update external_accounts set smtp_connections = 1")
    provider.say("END", *["250 ok"] * 9, "554 5.7.1 spam")
    await queue(harness, 30)
    await until_states(harness, done=30)
    assert len(provider.taken) == 29 and provider.connections == 1
    assert len(await harness.notices("Alex")) == 1


async def test_a_mail_pipelined_behind_a_lost_reply_goes_to_another_lane(
    harness: SenderHarness, provider: ScriptedSmtp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane, "PIPELINED_SECONDS", 0.2)
    provider.say("END", *["250 ok"] * 9, HANG)
    await queue(harness, 40)
    await until_states(harness, done=39, sent_unanswered=1)
    assert max(copies(provider).values()) == 1


async def test_nothing_is_pipelined_behind_a_slow_reply_the_connection_is_kept(
    harness: SenderHarness, provider: ScriptedSmtp, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given every reply counts as slow, and a pipelined mail would be requeued at once
    monkeypatch.setattr(lane, "PROMPT_SECONDS", 0.0)
    monkeypatch.setattr(lane, "PIPELINED_SECONDS", 0.0)
    await harness.rows("update external_accounts set smtp_connections = 1")
    await queue(harness, 30)
    await until_states(harness, done=30)
    assert (copies(provider), provider.connections) == (once_each(30), 1)


async def test_a_mail_that_cannot_be_pipelined_does_not_affect_the_one_before(
    harness: SenderHarness, provider: ScriptedSmtp
) -> None:
    # given one lane, and a mail in the middle whose recipient would be two commands
    await harness.rows("update external_accounts set smtp_connections = 1, enabled = false")
    for number in range(30):
        await harness.submit(ANN if number != 15 else "a\rb@customer.org", message_id=f"{number}@many")
    await harness.rows("update external_accounts set enabled = true")
    await until_states(harness, done=29, queued=1)
    assert await harness.rows("select message_id, tries from submissions where tries > 0") == [("15@many", 1)]
    assert copies(provider) == once_each(30) - Counter([b"15@many"])


# ---------------------------------------------------------------------------------------------- claimed ahead


async def test_prefetched_mails_are_released_when_no_lane_can_send_them(
    harness: SenderHarness, provider: ScriptedSmtp, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a provider that answers some mails, and then no lane any more
    provider.say("END", *["250 ok"] * 20, HANG, HANG, HANG)
    await queue(harness, 60)

    async def hanging() -> bool:
        found = await states(harness)
        return (found["done"], found["sent_unanswered"]) == (20, 3)

    await until(hanging)
    monkeypatch.setattr(account_queue, "PREFETCHED_SECONDS", 0.0)

    async def given_back() -> bool:
        await harness.relaying.release_idle()
        found = await states(harness)
        return found["claimed"] <= 3 and found["queued"] >= 60 - 23 - 3

    # then only the mails on the wire and those pipelined behind them are claimed
    await until(given_back)


async def test_stopping_releases_prefetched_mails(database_url: str, provider: ScriptedSmtp) -> None:
    async with sending(database_url) as harness:
        await harness.accounts({SUPPORT: provider.port}, connections=1)
        provider.say("END", *["250 ok"] * 20, HANG)
        await queue(harness, 60)

        async def hanging() -> bool:
            found = await states(harness)
            return (found["done"], found["sent_unanswered"]) == (20, 1)

        await until(hanging)
        assert (await states(harness))["claimed"] > 1
        await harness.rows("update external_accounts set smtp_connections = 2")  # one is for the hanging mail
    # when it has stopped, then another sender has all of it at once, and the mail without an answer is uncertain
    async with sending(database_url) as harness:
        await until_states(harness, done=60)
        assert await harness.rows("select count(*)::int from submissions where uncertain") == [(1,)]
    assert copies(provider) == once_each(60)


async def test_an_account_that_fails_keeps_nothing_claimed(harness: SenderHarness, provider: ScriptedSmtp) -> None:
    # given some mails were sent, and then the provider refuses the login
    provider.say("END", *["250 ok"] * 20, CLOSE, CLOSE, CLOSE)
    provider.say("AUTH", *["235 ok"] * 3)
    provider.always("AUTH", "535 5.7.8 wrong")
    await queue(harness, 60)

    async def paused() -> bool:
        return bool(await harness.rows("select 1 from relays where paused_at is not null"))

    await until(paused)
    await until_states(harness, done=20, queued=40)


async def failures_of(harness: SenderHarness) -> int:
    [[count]] = await harness.rows("select failures from relays where external_id = %s", harness.externals[SUPPORT].id)
    return int(count)


async def test_a_login_that_fails_stops_no_lane_that_works(
    harness: SenderHarness, provider: ScriptedSmtp, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a lane that sends a mail, and logins that fail for now
    failed = asyncio.Event()

    def pause(failures: int, chance: float) -> float:
        failed.set()
        return 0.5

    monkeypatch.setattr(retry_policy, "reconnect_delay", pause)
    provider.gates["END"] = asyncio.Event()
    ids = [await harness.submit(ANN)]
    await until(lambda: provider.mails_at_once == 1)
    provider.always("AUTH", "454 4.7.0 not now")
    ids += [await harness.submit(ANN) for _ in range(20)]
    await failed.wait()
    # when the provider goes on
    provider.gates["END"].set()
    for id_ in ids:
        await harness.until(id_, state="done")
    # then all mail has left over the one connection, and nothing counts against mails and account
    assert provider.most_mails_at_once == 1
    assert await failures_of(harness) == 0
    assert [row[0] for row in await harness.rows("select distinct tries from submissions")] == [0]
    # and several connections are used as soon as logins succeed
    provider.always("AUTH", None)

    async def several() -> bool:
        for _ in range(10):
            await harness.submit(ANN)
        return provider.most_mails_at_once > 1

    await until(several)


async def test_a_mail_over_an_old_connection_ends_the_failure_of_the_account(
    harness: SenderHarness, provider: ScriptedSmtp
) -> None:
    # given an idle connection, and a login that another process could not do
    await harness.until(await harness.submit(ANN), state="done")
    await harness.rows("update relays set failures = 3")
    # when a mail leaves over the connection
    ids = await queue(harness, 20)
    for id_ in ids:
        await harness.until(id_, state="done")

    # then the account works again, with all of its lanes
    async def recovered() -> bool:
        return await failures_of(harness) == 0

    await until(recovered)
    assert provider.connections > 1


async def test_claims_are_not_renewed_if_a_failure_cannot_be_recorded(
    harness: SenderHarness, provider: ScriptedSmtp, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given some mails were sent, then the provider refuses the login, and recording that is a fault of ours
    async def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a fault of ours")

    monkeypatch.setattr(relays, "record_failure", broken)
    monkeypatch.setattr(claims, "CLAIM_SECONDS", 3600.0)  # the test ends before the claims do
    provider.say("END", *["250 ok"] * 20, CLOSE, CLOSE, CLOSE)
    provider.say("AUTH", *["235 ok"] * 3)
    provider.always("AUTH", "535 5.7.8 wrong")
    await queue(harness, 40)
    # then no claim is renewed, also of the mails that were prefetched
    await until_states(harness, done=20, claimed=20)

    async def none_renewed() -> bool:
        return not harness.relaying.claims.claimed_ids

    await until(none_renewed)


async def test_mails_whose_bytes_cannot_be_read_fail_alone(
    harness: SenderHarness, provider: ScriptedSmtp, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a mail that breaks the reading of any batch that it is in
    read = outgoing_message.load_sources

    async def broken(database: Database, groups: Sequence[QueuedMail], external: External) -> dict[int, MessageSource]:
        if any(group.message_id == "4@many" for group in groups):
            raise ZeroDivisionError("a fault of ours")
        return await read(database, groups, external)

    monkeypatch.setattr(outgoing_message, "load_sources", broken)
    await queue(harness, 10)
    await until_states(harness, done=9, queued=1)
    assert await harness.rows("select message_id, failures from submissions where state = 'queued'") == [("4@many", 1)]


# ---------------------------------------------------------------------------------------------- written down together


async def test_a_lost_claim_within_a_batch_keeps_only_that_mail_back(
    harness: SenderHarness, provider: ScriptedSmtp
) -> None:
    # given three mails whose data command is next, one of them taken over by another sender
    provider.gates["DATA"] = asyncio.Event()
    await queue(harness, 3)
    await until_states(harness, claimed=3)
    await harness.rows(
        """update submissions set claim_owner = 'another', claim_expires = now() + interval '1 hour'
           where message_id = '1@many'"""
    )
    provider.gates["DATA"].set()
    await until_states(harness, done=2, claimed=1)
    assert copies(provider) == once_each(3) - Counter([b"1@many"])


async def test_a_sender_that_dies_between_mark_and_dot_has_its_mails_sent_again(
    database_url: str, provider: ScriptedSmtp, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a sender that dies when three mails are marked and none of them has its dot
    async with sending(database_url) as harness:
        await harness.accounts({SUPPORT: provider.port}, connections=3)
        mark = harness.relaying.claims.mark_sending

        async def dies(mail: QueuedMail, account_version: int) -> None:
            await mark(mail, account_version)
            await asyncio.sleep(3600)

        monkeypatch.setattr(harness.relaying.claims, "mark_sending", dies)
        await queue(harness, 3)
        await until_states(harness, sent_unanswered=3)
    assert provider.taken == []
    # when another sender starts, long before the claims expire
    async with sending(database_url) as harness:
        await until_states(harness, done=3)
        assert await harness.rows("select count(*)::int from submissions where uncertain") == [(3,)]
    # then each is sent and marked, since its outcome is unknown
    assert copies(provider) == once_each(3)


async def test_a_sender_that_dies_between_replies_and_commit_repeats_only_those(
    database_url: str, provider: ScriptedSmtp, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a sender that dies when three mails are answered, before it writes that down
    monkeypatch.setattr(delivery, "RECORD_SECONDS", 0.0)
    async with sending(database_url) as harness:
        await harness.accounts({SUPPORT: provider.port}, connections=3)
        settle = outcomes.record_results

        async def dies(connection: Any, batch: Sequence[Any], *rest: Any) -> Any:
            if batch:
                raise Temporary("dead")
            return await settle(connection, batch, *rest)

        monkeypatch.setattr(outcomes, "record_results", dies)
        await queue(harness, 3)

        async def taken() -> bool:
            return len(provider.taken) == 3

        await until(taken)
        await until_states(harness, sent_unanswered=3)
    monkeypatch.setattr(outcomes, "record_results", settle)
    async with sending(database_url) as harness:
        await until_states(harness, done=3)
        assert await harness.rows("select count(*)::int from submissions where uncertain") == [(3,)]
    assert set(copies(provider).values()) == {2}


async def test_claims_of_a_living_sender_are_not_released(harness: SenderHarness, provider: ScriptedSmtp) -> None:
    # given a mail that another sender, which does nothing, has claimed
    with hold_process_lock(harness.service.settings.data / FOLDER, "sender@another"):
        provider.gates["DATA"] = asyncio.Event()
        await queue(harness, 1)
        await until_states(harness, claimed=1)
        await harness.rows(
            "update submissions set claim_owner = 'sender@another', claim_expires = now() + interval '1 hour'"
        )
        provider.gates["DATA"].set()
        # when this one has checked often enough
        await asyncio.sleep(4 * CHECK_SECONDS)
        await until_states(harness, claimed=1)
    # then it takes the mail only when that one has ended
    await until_states(harness, done=1)
    assert copies(provider) == once_each(1)


async def test_a_database_that_drops_all_connections_loses_and_repeats_nothing(
    harness: SenderHarness, provider: ScriptedSmtp
) -> None:
    # given mails without a reply, and others that are queued
    provider.gates["END"] = asyncio.Event()
    await queue(harness, 30)
    await until_states(harness, sent_unanswered=3, queued=27)
    # when the database ends every connection, several times, while the lanes send
    for number in range(5):
        await _cut_off(harness)
        provider.gates["END"].set()
        await asyncio.sleep(0.05 * number)

    # then each is sent once; a claim cut off between mark and dot expires, and its mail is sent too
    marked: set[bytes] = set()

    async def done() -> bool:
        with suppress(Temporary):  # an idle connection of the pool may have been cut off
            await harness.rows(
                """update submissions set claim_expires = now() - interval '1 second'
                   where state = 'sent_unanswered' and state_at < now() - interval '3 seconds'"""
            )
            await harness.rows("update submissions set next_try_at = now() where state = 'queued'")
            await harness.rows("update relays set next_try_at = now()")
            await harness.upkeep.renew_leases()
            uncertain = await harness.rows("select message_id from submissions where uncertain")
            marked.update(message_id.encode() for (message_id,) in uncertain)
            return await states(harness) == Counter(done=30)
        return False

    await until(done, 60)
    sent = copies(provider)
    assert set(sent) == set(once_each(30))
    assert {number for number, count in sent.items() if count > 1} <= marked


async def _cut_off(harness: SenderHarness) -> None:
    with suppress(Temporary):  # it was cut off itself
        await harness.rows(
            """select pg_terminate_backend(pid) from pg_stat_activity
               where datname = current_database() and pid <> pg_backend_pid() and application_name like 'mailgroup%%'"""
        )


async def test_an_error_at_one_result_of_a_batch_parks_only_that_mail(
    harness: SenderHarness, provider: ScriptedSmtp, monkeypatch: pytest.MonkeyPatch
) -> None:
    notify = outcomes._notify

    async def broken(connection: Any, group: QueuedMail, *rest: Any) -> Any:
        if group.message_id == "1@many":
            raise ValueError("nobody thought of this")
        return await notify(connection, group, *rest)

    monkeypatch.setattr(outcomes, "_notify", broken)
    provider.by_recipient[BOB] = "550 5.1.1 no such user"
    await queue(harness, 9, ANN, BOB)
    await until_states(harness, done=8, parked=1)
    assert copies(provider) == once_each(9)
    assert len(await harness.notices("Alex")) == 8


async def test_a_mail_with_a_large_body_is_pipelined_like_others(
    harness: SenderHarness, provider: ScriptedSmtp
) -> None:
    # given small and large mails in turn, over one connection
    await harness.rows("update external_accounts set smtp_connections = 1, enabled = false")
    large = MAIL + b"." * 70 + b"\r\n" + (b"x" * 70 + b"\r\n") * 20_000
    for number in range(12):
        await harness.submit(ANN, mail=large if number % 3 == 1 else MAIL, message_id=f"{number}@many")
    await harness.rows("update external_accounts set enabled = true")
    await until_states(harness, done=12)
    assert copies(provider) == once_each(12)
    assert sorted(taken.mail.partition(b"\r\n\r\n")[2] for taken in provider.taken) == sorted(
        [MAIL.partition(b"\r\n\r\n")[2]] * 8 + [large.partition(b"\r\n\r\n")[2]] * 4
    )
