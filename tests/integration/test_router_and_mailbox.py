"""Router and mailbox on a real database: batches, repeats, removed people, faults."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import pytest

from services.mailbox.worker import MailboxWorker
from services.router.worker import RouterWorker
from shared.amqp.broker import Publication
from shared.amqp.payloads import FetchedItem, RoutedItem, WorkItem, read_payload
from shared.db.database import Connection, Database
from shared.errors import Temporary
from shared.metrics import FETCH_TO_READABLE
from shared.model import Content
from shared.store import account_changes, blobs, folder_admin, inbound, inbound_admin, maillog
from shared.store.inbound import Arrival
from tests.company import COMPANY, SALES, SUPPORT, apply, arrive, everyone, external, local, mailbox_of
from tests.polling import until
from tests.servers import opened


def mail(to: str, subject: str = "x") -> bytes:
    return f"From: anna@x.example\r\nTo: {to}\r\nSubject: {subject}\r\n\r\nHello\r\n".encode()


def work(publications: Sequence[Publication]) -> list[Publication]:
    """The messages for a stage, without the hints that a mailbox has changed."""
    return [publication for publication in publications if not publication.transient]


def ids(publications: Sequence[Publication]) -> list[int]:
    return [row for publication in work(publications) for row in read_payload(WorkItem, publication.body).ids]


async def deliver(database: Database, rows: list[int]) -> list[Publication]:
    routed = await RouterWorker(database, 5).handle(rows)
    return work(await MailboxWorker(database, 5).handle(ids(routed)))


async def states(database: Database) -> list[str]:
    async with database.transaction() as connection:
        return [row[0] for row in await (await connection.execute("select state from inbound order by id")).fetchall()]


async def test_a_batch_is_routed_by_the_names_in_to_and_delivered(database: Database) -> None:
    await apply(database, COMPANY)
    externals, _ = await everyone(database)
    first = mail(f'"Alex" <{SUPPORT}>')
    rows = await arrive(database, externals[SUPPORT].id, [first, mail(SUPPORT)])
    rows += await arrive(database, externals[SALES].id, [mail(f"kim <{SALES}>")])
    routed = await RouterWorker(database, 5).handle(rows)
    [hint] = await MailboxWorker(database, 5).handle(ids(routed))
    assert hint.transient and {hint.key, *hint.copies} == {
        f"changed.{name}@local.com" for name in ("alex", "jim", "kim")
    }
    assert await mailbox_of(database, "alex@local.com") == [first, mail(SUPPORT)]
    assert await mailbox_of(database, "jim@local.com") == [mail(SUPPORT)]
    assert await mailbox_of(database, "kim@local.com") == [mail(f"kim <{SALES}>")]
    assert await mailbox_of(database, "tom@local.com") == []
    assert await states(database) == ["delivered"] * 3


async def test_the_copies_of_a_mail_are_one_row_and_one_event_each(database: Database) -> None:
    await apply(database, COMPANY)
    externals, _ = await everyone(database)
    [row] = await arrive(database, externals[SUPPORT].id, [mail(SUPPORT)])
    await deliver(database, [row])
    async with database.transaction() as connection:
        cursor = await connection.execute("select who from maillog where event = 'delivered'")
        assert await cursor.fetchall() == [("alex@local.com, jim@local.com",)]
        history = await maillog.load_history(connection, [row], [])
        holders = await inbound_admin.list_holders(connection, row)
    assert [(event.event, event.who, event.rule) for _, event in history][-2:] == [
        ("delivered", "alex@local.com", 5),
        ("delivered", "jim@local.com", 5),
    ]
    assert [holder.address for holder in holders if holder.there and holder.done_at] == [
        "alex@local.com",
        "jim@local.com",
    ]


async def test_delivered_copies_stay_recorded_when_a_mail_is_routed_again(database: Database) -> None:
    # given a mail to Alex and Jim, and Alex was removed before the delivery
    await apply(database, COMPANY)
    externals, _ = await everyone(database)
    [row] = await arrive(database, externals[SUPPORT].id, [mail(SUPPORT)])
    await RouterWorker(database, 5).handle([row])
    await apply(database, COMPANY | {"local_accounts": COMPANY["local_accounts"][1:]}, prune=True)
    # when Jim gets it
    back = await MailboxWorker(database, 5).handle([row])
    # then it is routed again, and Jim's copy counts as delivered already
    assert ids(back) == [row]
    async with database.transaction() as connection:
        holders = await inbound_admin.list_holders(connection, row)
    assert [(holder.address, holder.done_at is not None) for holder in holders] == [("jim@local.com", True)]
    await deliver(database, [row])
    assert await states(database) == ["delivered"]
    assert len(await mailbox_of(database, "jim@local.com")) == 1


async def test_handling_again_delivers_nothing_twice(database: Database) -> None:
    await apply(database, COMPANY)
    externals, _ = await everyone(database)
    rows = await arrive(database, externals[SUPPORT].id, [mail(SUPPORT)])
    for _ in range(3):
        await deliver(database, rows)
        await MailboxWorker(database, 5).handle(rows)
    assert len(await mailbox_of(database, "alex@local.com")) == 1


async def test_a_deleted_mail_is_not_resurrected_by_a_repeated_delivery(database: Database) -> None:
    await apply(database, COMPANY)
    externals, _ = await everyone(database)
    rows = await arrive(database, externals[SUPPORT].id, [mail(SUPPORT)])
    routed = await RouterWorker(database, 5).handle(rows)
    await MailboxWorker(database, 5).handle(ids(routed))
    async with database.transaction() as connection:
        await connection.execute("update folder_mails set expunged_at = now(), expunged_as = 'deleted'")
        await connection.execute("update inbound set state = 'routed'")
        await connection.execute("update deliveries set done_at = null")
    await MailboxWorker(database, 5).handle(rows)
    assert await mailbox_of(database, "alex@local.com") == []


async def test_a_delivery_decided_before_a_removal_goes_back_to_the_router(database: Database) -> None:
    await apply(database, COMPANY)
    externals, _ = await everyone(database)
    rows = await arrive(database, externals[SUPPORT].id, [mail(f'"Alex" <{SUPPORT}>')])
    routed = await RouterWorker(database, 5).handle(rows)
    await apply(database, COMPANY | {"local_accounts": COMPANY["local_accounts"][1:]}, prune=True)
    back = await MailboxWorker(database, 5).handle(ids(routed))
    assert [read_payload(FetchedItem, publication.body).external for publication in work(back)] == [SUPPORT]
    await deliver(database, ids(back))
    assert len(await mailbox_of(database, "jim@local.com")) == 1


async def test_a_mail_is_held_until_a_sharer_is_enabled(database: Database) -> None:
    document: dict[str, Any] = {"external_accounts": [external()], "local_accounts": [local("Alex", enabled=False)]}
    await apply(database, document)
    externals, _ = await everyone(database)
    rows = await arrive(database, externals[SUPPORT].id, [mail(f'"Alex" <{SUPPORT}>')])
    assert await deliver(database, rows) == []
    assert await states(database) == ["held"]
    lines = await apply(database, document | {"local_accounts": [local("Alex")]})
    assert "1 mail on hold is routed again" in lines
    swept = await RouterWorker(database, 5).sweep()
    await deliver(database, ids(swept))
    assert len(await mailbox_of(database, "alex@local.com")) == 1


async def test_a_lost_message_is_published_again_once_the_grace_period_is_over(database: Database) -> None:
    await apply(database, COMPANY)
    externals, _ = await everyone(database)
    rows = await arrive(database, externals[SUPPORT].id, [mail(SUPPORT)])
    assert await RouterWorker(database, 3600).sweep() == []
    async with database.transaction() as connection:
        await connection.execute("update inbound set state_at = now() - interval '10 s'")
    assert ids(await RouterWorker(database, 5).sweep()) == rows
    assert await RouterWorker(database, 5).sweep() == []  # its time is recorded
    routed = await RouterWorker(database, 5).handle(rows)
    async with database.transaction() as connection:
        await connection.execute("update inbound set state_at = now() - interval '10 s'")
    [again] = await MailboxWorker(database, 5).sweep()
    assert again == routed[0]
    assert read_payload(RoutedItem, again.body).recipients == ("alex@local.com", "jim@local.com")


async def test_a_mail_is_parked_at_its_own_fifth_failure(database: Database) -> None:
    await apply(database, COMPANY)
    externals, _ = await everyone(database)
    rows = await arrive(database, externals[SUPPORT].id, [mail(SUPPORT)])
    for fault in range(5):
        assert await states(database) == ["fetched"], fault
        await RouterWorker(database, 5).count_failure(rows[0], "router: test", "Traceback: boom")
    assert await states(database) == ["parked"]
    async with database.transaction() as connection:
        [listed] = await inbound_admin.list_inbound(connection, "parked")
        assert (listed.origin, listed.error) == ("router: test", "Traceback: boom")
        assert await inbound_admin.requeue_inbound(connection, rows) == rows
    await deliver(database, rows)
    assert await states(database) == ["delivered"]


async def test_the_counts_of_inbound_mail_balance(database: Database) -> None:
    await apply(database, COMPANY)
    externals, _ = await everyone(database)
    rows = await arrive(database, externals[SUPPORT].id, [mail(SUPPORT, str(n)) for n in range(5)])
    await deliver(database, rows[:2])
    for _ in range(5):
        await RouterWorker(database, 5).count_failure(rows[2], "router", "boom")
    async with database.transaction() as connection:
        found = (await inbound_admin.count_inbound(connection))[externals[SUPPORT].id]
    assert (found.delivered, found.parked, found.in_flight, found.total) == (2, 1, 2, 5)


@pytest.mark.parametrize(
    "octets",
    [
        0,
        1,
        blobs.HEAD_OCTETS - 1,
        blobs.HEAD_OCTETS,
        blobs.HEAD_OCTETS + 1,
        blobs.HEAD_OCTETS + blobs.CHUNK_OCTETS,
        blobs.HEAD_OCTETS + 2 * blobs.CHUNK_OCTETS + 5,
    ],
)
async def test_bytes_come_back_as_they_were_stored(database: Database, octets: int) -> None:
    body = bytes(range(256)) * (octets // 256) + bytes(range(octets % 256))
    async with database.transaction() as connection:
        [blob_id] = await blobs.store_blobs(connection, [Content.from_bytes(bytearray(body))])
    assert b"".join([piece async for piece in blobs.stream(database, blob_id)]) == body


async def test_a_mail_to_known_people_needs_no_router(database: Database) -> None:
    await apply(database, COMPANY)
    _, people = await everyone(database)
    async with database.transaction() as connection:
        [blob_id] = await blobs.store_blobs(connection, [Content.from_bytes(mail("jim@local.com"))])
        rows = await inbound.add_inbound(
            connection, [Arrival("local", blob_id, recipients=((people["Jim"].id, "To Jim"),))]
        )
    assert await RouterWorker(database, 5).handle(rows) == []
    await MailboxWorker(database, 5).handle(rows)
    assert len(await mailbox_of(database, "jim@local.com")) == 1


async def test_a_delivery_decided_before_a_disabling_goes_back_to_the_router(database: Database) -> None:
    await apply(database, COMPANY)
    externals, _ = await everyone(database)
    rows = await arrive(database, externals[SUPPORT].id, [mail(f'"Alex" <{SUPPORT}>')])
    routed = await RouterWorker(database, 5).handle(rows)
    await apply(database, {"local_accounts": [local("Alex", enabled=False)]})
    back = await MailboxWorker(database, 5).handle(ids(routed))
    await deliver(database, ids(back))
    assert await mailbox_of(database, "alex@local.com") == []
    assert len(await mailbox_of(database, "jim@local.com")) == 1


async def end_account(
    database: Database, local_id: int, change: str, locked: asyncio.Event, go_on: asyncio.Event
) -> None:
    """Remove or disable a person as the console does: lock the mailbox, change the account, commit."""
    async with database.transaction() as connection:
        await account_changes.lock_folders(connection, [local_id])
        locked.set()
        if change == "removed":
            await account_changes.remove_account(connection, "local", local_id)
        else:
            await connection.execute("update local_accounts set enabled = false where id = %s", (local_id,))
        await go_on.wait()


async def waits_for_a_lock(database: Database) -> bool:
    async with database.statement() as connection:
        cursor = await connection.execute(
            "select 1 from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
        )
        return bool(await cursor.fetchall())


@pytest.mark.parametrize("change", ["removed", "disabled"])
async def test_a_change_that_commits_before_the_delivery_sends_the_mail_back(
    database: Database, database_url: str, change: str
) -> None:
    # given a mail to Alex, on its way, and Alex is just being removed or disabled by another process
    await apply(database, COMPANY)
    externals, people = await everyone(database)
    rows = await arrive(database, externals[SUPPORT].id, [mail(f'"Alex" <{SUPPORT}>')])
    await RouterWorker(database, 5).handle(rows)
    locked, go_on = asyncio.Event(), asyncio.Event()
    async with opened(database_url) as console:
        changing = asyncio.create_task(end_account(console, people["Alex"].id, change, locked, go_on))
        await locked.wait()
        # when the mail is delivered meanwhile
        delivering = asyncio.create_task(MailboxWorker(database, 5).handle(rows))
        await until(lambda: waits_for_a_lock(console))
        go_on.set()
        await changing
        back = await delivering
    # then Alex does not get it, and the router decides again
    assert await mailbox_of(database, "alex@local.com") == []
    assert ids(back) == rows
    await deliver(database, rows)
    assert len(await mailbox_of(database, "jim@local.com")) == 1


@pytest.mark.parametrize("change", ["removed", "disabled"])
async def test_a_change_waits_for_the_delivery_that_began_before_it(
    database: Database, database_url: str, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a delivery to Alex that is not committed yet
    await apply(database, COMPANY)
    externals, people = await everyone(database)
    rows = await arrive(database, externals[SUPPORT].id, [mail(f'"Alex" <{SUPPORT}>')])
    await RouterWorker(database, 5).handle(rows)
    reached, go_on, locked, changed = asyncio.Event(), asyncio.Event(), asyncio.Event(), asyncio.Event()
    record_events = maillog.record_events

    async def hold(connection: Connection, events: Sequence[maillog.MailEvent]) -> None:
        reached.set()
        await go_on.wait()
        await record_events(connection, events)

    monkeypatch.setattr(maillog, "record_events", hold)
    changed.set()
    async with opened(database_url) as console:
        delivering = asyncio.create_task(MailboxWorker(database, 5).handle(rows))
        await reached.wait()
        # when Alex is removed or disabled
        changing = asyncio.create_task(end_account(console, people["Alex"].id, change, locked, changed))
        await until(lambda: waits_for_a_lock(console))
        assert not locked.is_set()
        go_on.set()
        # then the mail is in the mailbox before, and nothing goes back
        assert work(await delivering) == []
        await changing
    async with database.statement() as connection:
        assert len(await folder_admin.list_mails(connection, people["Alex"].id)) == 1
    assert await states(database) == ["delivered"]


async def test_a_mailbox_that_is_locked_for_long_delays_nobody_else(database: Database, database_url: str) -> None:
    # given mails to Alex, to Jim and to both, and Alex's mailbox is being handed over, which takes long
    await apply(database, COMPANY)
    externals, people = await everyone(database)
    names = [f'"Alex" <{SUPPORT}>', f'"Jim" <{SUPPORT}>', SUPPORT] * 3
    rows = await arrive(database, externals[SUPPORT].id, [mail(name) for name in names])
    await RouterWorker(database, 5).handle(rows)
    async with opened(database_url) as console, console.transaction() as connection:
        await account_changes.lock_folders(connection, [people["Alex"].id])
        # when they are delivered
        began = time.monotonic()
        assert work(await MailboxWorker(database, 5).handle(rows)) == []
        # then Jim has all of his at once, and only Alex's copies wait
        assert time.monotonic() - began < 8
        assert len(await mailbox_of(database, "jim@local.com")) == 6
        assert await states(database) == ["routed", "delivered", "routed"] * 3
        # also if they are delivered once more
        assert work(await MailboxWorker(database, 5).handle(rows)) == []
        assert len(await mailbox_of(database, "jim@local.com")) == 6
    # until the mailbox is free
    await MailboxWorker(database, 5).handle(rows)
    assert len(await mailbox_of(database, "jim@local.com")) == 6
    assert len(await mailbox_of(database, "alex@local.com")) == 6
    assert await states(database) == ["delivered"] * 9


async def test_a_returned_copy_of_a_mail_waits_for_a_locked_mailbox(database: Database, database_url: str) -> None:
    # given a mail to Alex and Jim, whose account was removed since, and Alex's mailbox is locked for long
    await apply(database, COMPANY)
    externals, people = await everyone(database)
    rows = await arrive(database, externals[SUPPORT].id, [mail(SUPPORT)])
    await RouterWorker(database, 5).handle(rows)
    async with database.transaction() as connection:
        await account_changes.remove_account(connection, "local", people["Jim"].id)
    async with opened(database_url) as console, console.transaction() as connection:
        await account_changes.lock_folders(connection, [people["Alex"].id])
        # when it is delivered, it stays as it is
        assert work(await MailboxWorker(database, 5).handle(rows)) == []
        assert await states(database) == ["routed"]
    # then Alex gets it once, and the router decides about Jim
    back = await MailboxWorker(database, 5).handle(rows)
    assert ids(back) == rows
    await deliver(database, rows)
    assert len(await mailbox_of(database, "alex@local.com")) == 1
    assert await states(database) == ["delivered"]


async def test_a_person_has_received_what_was_delivered_and_nothing_else(database: Database) -> None:
    # given a mail to Alex alone
    await apply(database, COMPANY)
    externals, people = await everyone(database)
    sent = b"Message-ID: <read@x.example>\r\n" + mail(f'"Alex" <{SUPPORT}>')
    rows = await arrive(database, externals[SUPPORT].id, [sent])
    await RouterWorker(database, 5).handle(rows)

    async def receivers() -> list[str]:
        async with database.transaction() as connection:
            return [
                name
                for name in ("Alex", "Jim")
                if await inbound.was_delivered(connection, "read@x.example", people[name].id)
            ]

    # when it is delivered, then he has received it
    assert await receivers() == []
    await MailboxWorker(database, 5).handle(rows)
    assert await receivers() == ["Alex"]


async def test_a_mailbox_that_is_locked_for_a_moment_is_waited_for(database: Database, database_url: str) -> None:
    await apply(database, COMPANY)
    externals, people = await everyone(database)
    rows = await arrive(database, externals[SUPPORT].id, [mail(f'"Alex" <{SUPPORT}>')])
    await RouterWorker(database, 5).handle(rows)
    async with opened(database_url) as console:
        async with console.transaction() as connection:
            await account_changes.lock_folders(connection, [people["Alex"].id])
            delivering = asyncio.create_task(MailboxWorker(database, 5).handle(rows))
            async with opened(database_url) as observer:
                await until(lambda: waits_for_a_lock(observer))
        await delivering
    assert len(await mailbox_of(database, "alex@local.com")) == 1


async def test_a_schema_that_does_not_fit_counts_as_no_failure_of_the_mail(database: Database) -> None:
    await apply(database, COMPANY)
    externals, _ = await everyone(database)
    rows = await arrive(database, externals[SUPPORT].id, [mail(SUPPORT)])
    async with database.transaction() as connection:
        await connection.execute("alter table local_accounts rename column former_names to later_names")
    with pytest.raises(Temporary, match="schema is not that of this version"):
        await RouterWorker(database, 5).handle(rows)


def _observed() -> tuple[float, float]:
    """How many mails the histogram of the objective has counted, and how many of them in time."""
    [family] = FETCH_TO_READABLE.collect()
    values = {(s.name, s.labels.get("le")): s.value for s in family.samples}
    name = "mailgroup_fetch_to_readable_seconds"
    return values[f"{name}_count", None], values[f"{name}_bucket", "60.0"]


async def test_each_fetched_mail_is_measured_once_by_the_times_of_its_row(database: Database) -> None:
    # given a mail to two people that was fetched just now, one of ten minutes ago, and one that was on hold meanwhile
    await apply(database, COMPANY)
    externals, _ = await everyone(database)
    now, old, held = await arrive(database, externals[SUPPORT].id, [mail(SUPPORT)] * 3)
    async with database.transaction() as connection:
        await connection.execute(
            "update inbound set created_at = now() - interval '10 minutes' where id = any(%s)", ([old, held],)
        )
        await maillog.record_events(connection, [maillog.MailEvent("held", inbound_id=held)])
    count, in_time = _observed()
    # when they are delivered, and delivered again
    for _ in range(2):
        await deliver(database, [now, old, held])
    # then the mail that waited for an account counts for no objective
    assert _observed() == (count + 2, in_time + 1)
