"""The server's clock is set back: work that is due in the future happens now, not hours later."""

from __future__ import annotations

import datetime
from dataclasses import replace

from services.router.worker import RouterWorker
from services.sender.claims import CLAIM_SECONDS
from shared.db import leases
from shared.db.database import Database
from shared.model import PollOutcome
from shared.store import polls, relay_queue, relays
from tests.company import COMPANY, SUPPORT, apply, arrive, everyone
from tests.scripted_smtp import scripted_smtp
from tests.sender_harness import sending


async def test_accounts_and_mails_with_times_in_the_future_become_due(database: Database) -> None:
    # given an account that was polled, a mail that was fetched and swept, all of it in an hour from now
    await apply(database, COMPANY)
    externals, _ = await everyone(database)
    await arrive(database, externals[SUPPORT].id, [b"Subject: x\r\n\r\n"])
    async with database.transaction() as connection:
        await connection.execute(
            """update polls set next_poll_at = now() + interval '61 minutes',
                      last_success_at = now() + interval '1 hour' where external_id = %s""",
            (externals[SUPPORT].id,),
        )
        await connection.execute(
            "update inbound set state_at = now() + interval '1 hour', swept_at = now() + interval '1 hour'"
        )
    # when
    async with database.transaction() as connection:
        assert await polls.fix_clock_jump(connection) == 1
        claimed, _ = await polls.claim_due(connection, "one/1", 10)
    assert externals[SUPPORT].id in [poll.external_id for poll in claimed]
    # then the mail is swept, after a grace period that starts now
    assert await RouterWorker(database, 0.0).sweep() == []
    assert len(await RouterWorker(database, 0.0).sweep()) == 1


async def test_an_account_that_backs_off_for_good_reason_is_left_alone(database: Database) -> None:
    await apply(database, COMPANY)
    async with database.transaction() as connection:
        await connection.execute(
            "update polls set next_poll_at = now() + interval '1 hour', last_error_at = now() - interval '1 minute'"
        )
        assert await polls.fix_clock_jump(connection) == 0


async def test_accounts_made_or_changed_before_the_clock_was_set_back_are_due(database: Database) -> None:
    # given accounts that were never used, and one whose pause ended, while the clock was an hour ahead
    await apply(database, COMPANY)
    externals, _ = await everyone(database)
    async with database.transaction() as connection:
        for external in externals.values():
            await relays.unpause(connection, external.id)
        await connection.execute("update polls set next_poll_at = now() + interval '1 hour'")
        await connection.execute("update relays set next_try_at = now() + interval '1 hour'")
        await connection.execute(
            "update relays set last_success_at = now() - interval '1 day' where external_id = %s",
            (externals[SUPPORT].id,),
        )
        # then they are due at once
        assert await polls.fix_clock_jump(connection) == 2
        assert await relays.fix_clock_jump(connection) == 2
        # and one that backs off for good reason is left alone
        await relays.record_failure(connection, externals[SUPPORT].id, "unreachable", "no", 3600)
        assert await relays.fix_clock_jump(connection) == 0


async def test_queued_mail_with_times_in_the_future_is_relayed_at_once(database_url: str) -> None:
    async with scripted_smtp() as provider, sending(database_url) as harness:
        await harness.accounts({SUPPORT: provider.port})
        await harness.rows("update external_accounts set enabled = false")
        id_ = await harness.submit("ann@customer.org")
        await harness.rows(
            """update submissions set state_at = now() + interval '1 hour', next_try_at = now() + interval '2 hours',
               swept_at = now() + interval '1 hour'"""
        )
        await harness.rows(
            """update relays set last_success_at = now() + interval '1 hour',
               next_try_at = now() + interval '1 hour'"""
        )
        await harness.rows("update external_accounts set enabled = true")
        await harness.upkeep.renew_leases()
        await harness.until(id_, state="done")
        async with harness.database.transaction() as connection:
            assert await relay_queue.fix_clock_jump(connection, CLAIM_SECONDS) == 0
            assert await relays.fix_clock_jump(connection) == 0


async def test_a_claim_that_is_released_after_the_clock_was_set_back_is_due(database_url: str) -> None:
    async with scripted_smtp() as provider, sending(database_url) as harness:
        await harness.accounts({SUPPORT: provider.port})
        await harness.rows("update external_accounts set enabled = false")
        id_ = await harness.submit("ann@customer.org")
        # given a mail that a sender claimed while the clock was a day ahead, and that died
        await harness.rows(
            """update submissions set state = 'claimed', claim_owner = 'another', state_at = now() + interval '1 day',
               next_try_at = now() + interval '1 day', claim_expires = now() + interval '1 day'"""
        )
        # when its claims are recovered before the times are fixed
        async with harness.database.transaction() as connection:
            await relay_queue.release_claims(connection, [id_])
        # then the mail is due
        assert await harness.rows("select state, next_try_at <= now() from submissions") == [("queued", True)]


async def test_leases_of_the_dead_from_before_the_clock_was_set_back_expire(database: Database) -> None:
    # given leases that processes took while the clock was a day ahead; nobody renews them
    await apply(database, COMPANY)
    externals, _ = await everyone(database)
    async with database.transaction() as connection:
        await connection.execute("update polls set owner = 'dead/1', lease_expires = now() + interval '1 day'")
        assert await leases.take_lease(connection, "watch", "dead", 86_400)
    # when the clock is as now
    async with database.transaction() as connection:
        await polls.fix_clock_jump(connection)
        assert not await leases.take_lease(connection, "watch", "one", 60)
    # then they last as long as a new lease
    async with database.transaction() as connection:
        cursor = await connection.execute(
            "select lease_expires - now() between interval '1 s' and interval '16 s' from polls where owner = 'dead/1'"
        )
        assert await cursor.fetchall() == [(True,)] * len(externals)
        cursor = await connection.execute(
            "select expires - now() between interval '1 s' and interval '61 s' from leases where name = 'watch'"
        )
        assert await cursor.fetchall() == [(True,)]


async def test_claims_of_the_dead_from_before_the_clock_was_set_back_expire(database_url: str) -> None:
    async with scripted_smtp() as provider, sending(database_url) as harness:
        await harness.accounts({SUPPORT: provider.port})
        await harness.rows("update external_accounts set enabled = false")
        await harness.submit("ann@customer.org")
        await harness.rows(
            """update submissions set state = 'sent_unanswered', claim_owner = 'another',
               claim_expires = now() + interval '1 day'"""
        )
        async with harness.database.transaction() as connection:
            await relay_queue.fix_clock_jump(connection, CLAIM_SECONDS)
        assert await harness.rows("select claim_expires < now() + interval '46 s' from submissions") == [(True,)]


async def test_a_poll_during_which_the_clock_is_set_back_is_repeated_as_usual(database: Database) -> None:
    # given a poll that began while the clock was a day ahead
    await apply(database, COMPANY)
    async with database.transaction() as connection:
        claimed, _ = await polls.claim_due(connection, "one/1", 1)
    began = claimed[0].now + datetime.timedelta(days=1)
    poll = replace(claimed[0], now=began)
    # when it succeeds with the clock as now, and the next one has to follow a minute after its beginning
    outcome = PollOutcome(began + datetime.timedelta(minutes=1), 0, (), None, None, None)
    async with database.transaction() as connection:
        await polls.record_outcome(connection, poll, outcome)
        # then it follows within a minute
        cursor = await connection.execute(
            "select next_poll_at <= now() + interval '1 minute' from polls where external_id = %s", (poll.external_id,)
        )
        assert await cursor.fetchall() == [(True,)]
