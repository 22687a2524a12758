"""The server's clock is set back: work that is due in the future happens now, not hours later."""

from __future__ import annotations

from services.router.worker import RouterWorker
from shared.db.database import Database
from shared.store import polls, relay_queue, relay_status
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
            await relay_status.unpause(connection, external.id)
        await connection.execute("update polls set next_poll_at = now() + interval '1 hour'")
        await connection.execute("update relay_status set next_try_at = now() + interval '1 hour'")
        await connection.execute(
            "update relay_status set last_success_at = now() - interval '1 day' where external_id = %s",
            (externals[SUPPORT].id,),
        )
        # then they are due at once
        assert await polls.fix_clock_jump(connection) == 2
        assert await relay_status.fix_clock_jump(connection) == 2
        # and one that backs off for good reason is left alone
        await relay_status.record_failure(connection, externals[SUPPORT].id, "unreachable", "no", 3600)
        assert await relay_status.fix_clock_jump(connection) == 0


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
            """update relay_status set last_success_at = now() + interval '1 hour',
               next_try_at = now() + interval '1 hour'"""
        )
        await harness.rows("update external_accounts set enabled = true")
        await harness.upkeep.renew_leases()
        await harness.until(id_, state="done")
        async with harness.database.transaction() as connection:
            assert await relay_queue.fix_clock_jump(connection) == 0
            assert await relay_status.fix_clock_jump(connection) == 0
