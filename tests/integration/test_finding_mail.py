"""How a mail is found: the trace to its last event, and the lists with sender, subject and search."""

from __future__ import annotations

import asyncio
import itertools
import re
from typing import Any

from typer.testing import CliRunner

from services.admin.cli.app import app
from services.admin.formatting import MAIL_RESULTS
from services.admin.mail import history, mail_search, operations
from services.admin.mail.indexing import SearchIndexer
from services.admin.mail.mail_search import Filter
from services.admin.mail.trace import trace
from services.mailbox.worker import MailboxWorker
from services.router.worker import RouterWorker
from shared.db.database import Database
from shared.store import folder_admin
from tests import servers
from tests.company import COMPANY, SALES, SUPPORT, apply, arrive, everyone, external, local
from tests.scripted_smtp import scripted_smtp
from tests.sender_harness import sending

ALEX, JIM, KIM, ANN = "alex@local.com", "jim@local.com", "kim@local.com", "ann@customer.org"


def mail(subject: str, message_id: str = "", sender: str = "Anna <anna@x.example>") -> bytes:
    named = f"Message-ID: <{message_id}>\r\n" if message_id else ""
    return f"From: {sender}\r\nTo: {SUPPORT}\r\n{named}Subject: {subject}\r\n\r\nHello\r\n".encode()


async def index(database: Database) -> None:
    """Index all mail as it will be in a minute: the index leaves out mail that is only seconds old."""
    async with database.transaction() as connection:
        for table in ("inbound", "submissions"):
            await connection.execute(f"update {table} set created_at = now() - interval '1 minute'".encode())
    indexer = SearchIndexer(database)
    while (await indexer.index_next()).mails:
        pass


async def traced(database: Database, what: str) -> list[dict[str, Any]]:
    async with database.transaction() as connection:
        return await trace(connection, what)


async def test_the_trace_of_a_mail_between_colleagues_ends_at_its_delivery(database_url: str) -> None:
    async with scripted_smtp() as provider, sending(database_url) as harness:
        # given a mail of Alex to Jim and to a customer, and to the other team
        await harness.accounts({SUPPORT: provider.port, SALES: provider.port})
        id_ = await harness.submit(JIM, SALES, ANN, mail=mail("Lunch"), message_id="lunch@local.com")
        await harness.until(id_, state="done")
        [(inside,), (to_sales,)] = await harness.rows("select id from inbound order by id")
        # when all of it has arrived
        await RouterWorker(harness.database, 5).handle([to_sales])
        await MailboxWorker(harness.database, 5).handle([inside, to_sales])
        # then there is one mail with one history, by each of its names
        by_id = await traced(harness.database, str(id_))
        assert by_id == await traced(harness.database, "<lunch@local.com>")
        assert [found["id"] for found in by_id] == [id_]
        events = [(event["event"], event["who"]) for event in by_id[0]["events"]]
        assert ("relayed", ANN) in events and ("delivered", JIM) in events
        assert events[-1][0] == "delivered"
        # the mail inside has a history of its own only if it is asked for
        assert [found["id"] for found in await traced(harness.database, str(inside))] == [inside]
        # and the page of the console says the same
        async with harness.database.transaction() as connection:
            shown = await history.load_mail_history(connection, id_)
        assert shown is not None
        assert f"Put into the mailbox of {JIM}: sent to {JIM}" in [sentence for _, sentence, _ in shown.events]


async def test_each_result_finds_the_mails_that_have_it(database: Database) -> None:
    # given arrived mails in each state, and sent ones in each state and with each mixture of recipients, done
    await apply(database, COMPANY)
    externals, people = await everyone(database)
    inbound = ["fetched", "routed", "held", "parked", "delivered", "discarded"]
    await arrive(database, externals[SUPPORT].id, [mail(state) for state in inbound])
    ends = ["relayed", "failed", "delivered", "cancelled"]
    mixtures = [list(some) for count in range(5) for some in itertools.combinations(ends, count)]
    sent = [("queued", ["waiting"]), ("parked", ["waiting", "failed"]), *(("done", mixture) for mixture in mixtures)]
    async with database.transaction() as connection:
        await connection.execute("update inbound set state = 'delivered'")  # others are indexed later
        for state, recipients in sent:
            await connection.execute(
                """with s as (
                       insert into submissions (author_id, external_id, blob_id, envelope_from, message_id, body_8bit,
                                                smtputf8, state)
                       select %s, %s, min(id), %s, gen_random_uuid(), false, false, %s from blobs returning id)
                   insert into submission_recipients (submission_id, position, address, kind, state)
                   select s.id, r.position, 'r@x.example', 'relay', r.state
                   from s, unnest(%s::text[]) with ordinality as r (state, position)""",
                (people["Alex"].id, externals[SUPPORT].id, ALEX, state, recipients),
            )
    await index(database)
    async with database.transaction() as connection:
        for number, state in enumerate(inbound):
            await connection.execute(
                "update inbound set state = %s where id = (select id from inbound order by id offset %s limit 1)",
                (state, number),
            )
        every = await mail_search.search(connection, Filter())
        assert len(every) == len(inbound) + len(sent) and {one.status for one in every} == set(MAIL_RESULTS)
        for result in MAIL_RESULTS:
            # then a search for a result finds what the list of all mails shows with it, the latest first, in pages too
            having = [one for one in every if one.status == result]
            query = await mail_search.prepare(connection, Filter(result=result))
            assert await mail_search.search(connection, query) == having, result
            first = await mail_search.search(connection, query, limit=1)
            assert first + await mail_search.search(connection, query, before=first[0].id) == having
            # and their number is known where they are few
            total = await mail_search.count(connection, Filter(result=result), query)
            assert total == (None if result in ("delivered", "sent") else str(len(having)))


async def test_words_find_a_mail_as_in_the_console(database: Database) -> None:
    await apply(database, COMPANY)
    externals, _ = await everyone(database)
    ids = await arrive(
        database,
        externals[SUPPORT].id,
        [mail("My printer smokes", "a@x.example"), mail("Printer ink", "b@x.example", "Bob <bob@y.example>")],
    )
    await RouterWorker(database, 5).handle(ids)
    await MailboxWorker(database, 5).handle(ids)
    await index(database)
    assert [found["id"] for found in await traced(database, "printer")] == ids
    assert [found["id"] for found in await traced(database, "printer bob")] == ids[1:]
    assert [found["id"] for found in await traced(database, "bob@y.example")] == ids[1:]
    assert [found["id"] for found in await traced(database, "a@x.example")] == ids[:1]  # a Message-ID names one mail
    assert await traced(database, "fax") == [] and await traced(database, "") == []
    [found] = await traced(database, "smokes")
    assert (found["sender"], found["subject"]) == ("Anna", "My printer smokes") and found["at"].endswith("Z")


def commands(url: str, *words: str) -> str:
    where = {"MAILGROUP_DATABASE_URL": url, "MAILGROUP_BROKER_URL": "amqp://127.0.0.1:1/", "COLUMNS": "300"}
    done = CliRunner(env=where).invoke(app, words)
    assert done.exit_code == 0, done.output
    return re.sub(r" +", " ", done.stdout)


async def test_held_and_deleted_mails_are_listed_with_subject_and_found(database_url: str) -> None:
    async with servers.opened(database_url) as database:
        # given deleted mails of Alex, and held mail
        await apply(database, {"external_accounts": [external(), external(SALES)], "local_accounts": [local("Alex")]})
        externals, people = await everyone(database)
        ids = await arrive(database, externals[SUPPORT].id, [mail("Printer smokes"), mail("Invoice 7")])
        held = await arrive(database, externals[SALES].id, [mail("Offer", sender="Bob <bob@y.example>")])
        await RouterWorker(database, 5).handle([*ids, *held])
        await MailboxWorker(database, 5).handle(ids)
        async with database.transaction() as connection:
            await folder_admin.delete_everywhere(connection, people["Alex"].id, ids)
            # before it is indexed a mail has no subject
            assert [row["subject"] for row in await operations.list_deleted(connection, ALEX)] == ["", ""]
        await index(database)
        async with database.transaction() as connection:
            assert [row["subject"] for row in await operations.list_deleted(connection, ALEX)] == [
                "Printer smokes",
                "Invoice 7",
            ]
            assert [row["id"] for row in await operations.list_deleted(connection, ALEX, "smokes anna")] == ids[:1]
            assert [row["id"] for row in await operations.list_held(connection, "offer")] == held
            assert await operations.list_held(connection, "printer") == []
            assert await operations.list_parked(connection, text="printer") == []


def test_the_commands_show_sender_and_subject_and_search(database_url: str) -> None:
    async def given() -> None:
        async with scripted_smtp() as provider, sending(database_url) as harness:
            await harness.accounts({SUPPORT: provider.port})
            provider.by_recipient[ANN] = "451 4.3.0 later"
            for subject in ("Answer about the printer", "Answer about the fax"):
                id_ = await harness.submit(ANN, mail=mail(subject, sender="Alex <alex@local.com>"))
                await harness.until(id_, state="queued", tries=1)
            await index(harness.database)

    asyncio.run(given())
    told = commands(database_url, "queue", "list")
    assert "Answer about the printer" in told and "Answer about the fax" in told and ALEX in told
    found = commands(database_url, "queue", "list", "--search", "printer")
    assert "Answer about the printer" in found and "fax" not in found
    assert "Alex: Answer about the fax" in commands(database_url, "trace", "fax")
