"""Whose mail a Message-ID is: the record of sent mail and its retention, through the router on PostgreSQL."""

from __future__ import annotations

import datetime

import pytest

from services.admin.maintenance import retention
from shared.db.database import Database
from shared.store import folder_admin, folder_mails, inbound_admin, sent_mail
from tests.company import COMPANY, SALES, SUPPORT, apply, everyone
from tests.correspondence import ALEX, JIM, SENT, customer_mail, fetch, purge, readers, submit
from tests.servers import rows_read


@pytest.fixture
async def company(database: Database) -> Database:
    """The manual's company."""
    await apply(database, COMPANY)
    return database


async def delete_everywhere(database: Database) -> None:
    _, people = await everyone(database)
    async with database.transaction() as connection:
        for person in people.values():
            listed = await folder_admin.list_mails(connection, person.id)
            await folder_mails.tombstone_mails(connection, person.id, [entry.uid for entry in listed])


# ---------------------------------------------------------------------------------------------- first authors


async def test_an_id_keeps_its_first_author_in_the_table(company: Database) -> None:
    await submit(company, "Alex", SENT)
    await submit(company, "Jim", SENT)
    answer = customer_mail("answer@x", answers="ours@local.com")
    await fetch(company, answer)
    assert await readers(company, answer) == [ALEX]


async def test_an_id_that_its_author_uses_again_is_not_searched_again(company: Database) -> None:
    # given a script of Alex whose 100 mails to Jim have one Message-ID
    await submit(company, "Alex", SENT)
    externals, people = await everyone(company)
    async with company.transaction() as connection:
        await connection.execute(
            """insert into inbound (source, blob_id, message_id, state)
               select 'submitted', (select max(id) from blobs), 'ours@local.com', 'delivered'
               from generate_series(1, 100)"""
        )
    # when another one is submitted
    async with company.transaction() as connection:
        await connection.execute("set local enable_seqscan = off")
        before = await rows_read(connection, "inbound")
        await sent_mail.add_sent(connection, [("ours@local.com", externals[SUPPORT].id, people["Alex"].id, 1)])
        # then the others are not looked at
        assert await rows_read(connection, "inbound") == before


async def test_who_submits_the_id_of_a_customers_mail_does_not_become_its_author(company: Database) -> None:
    # given a customer's mail, and Jim who submits its Message-ID, through either account
    await fetch(company, customer_mail("customer@x"))
    await submit(company, "Jim", SENT.replace(b"ours@local.com", b"customer@x"))
    await submit(company, "Kim", SENT.replace(b"ours@local.com", b"customer@x"), through=SALES)
    # when the customer goes on in the thread
    follow_up = customer_mail("second@x", answers="customer@x")
    await fetch(company, follow_up)
    # then it is everybody's
    assert await readers(company, follow_up) == [ALEX, JIM]


async def test_an_id_from_outside_stays_known_when_its_mail_is_purged(company: Database) -> None:
    # given a customer's mail that everybody deleted long ago
    rows = await fetch(company, customer_mail("customer@x"))
    await delete_everywhere(company)
    await purge(company, 15)
    async with company.transaction() as connection:
        assert [row for row in rows if await inbound_admin.list_holders(connection, row)] == []
    # when Jim and Kim submit its Message-ID, each through another account
    await submit(company, "Jim", SENT.replace(b"ours@local.com", b"customer@x"))
    await submit(company, "Kim", SENT.replace(b"ours@local.com", b"customer@x"), through=SALES)
    # then the thread is everybody's still
    async with company.transaction() as connection:
        assert await sent_mail.find_sent(connection, ["customer@x"]) == {}
    follow_up = customer_mail("second@x", answers="customer@x")
    await fetch(company, follow_up)
    assert await readers(company, follow_up) == [ALEX, JIM]
    # and the id is kept for a year, not for ever
    async with company.transaction() as connection:
        now = await retention.database_time(connection)
        for days, left in ((360, 1), (367, 0)):
            await sent_mail.purge_authorship(connection, now + datetime.timedelta(days=days), 100)
            cursor = await connection.execute("select 1 from sent_mail where author_id is null")
            assert len(await cursor.fetchall()) == left


async def test_what_was_sent_before_it_came_in_keeps_its_author(company: Database) -> None:
    # given a mail of Alex that a mailing list brings back, and that is purged
    await submit(company, "Alex", SENT)
    back = SENT.replace(b"\r\nTo:", b"\r\nList-Id: <announce.x.example>\r\nTo:")
    await fetch(company, back)
    assert await readers(company, back) == [ALEX, JIM]
    await delete_everywhere(company)
    await purge(company, 15)
    # then an answer is for Alex
    answer = customer_mail("answer@x", answers="ours@local.com")
    await fetch(company, answer)
    assert await readers(company, answer) == [ALEX]


async def test_an_id_in_a_providers_reply_gets_no_author_if_it_came_from_outside(company: Database) -> None:
    # given a customer's mail, then a mail of Jim, for which the provider names that id, a known one, and a new one
    await fetch(company, customer_mail("customer@x"))
    await submit(company, "Alex", SENT)
    id_ = await submit(company, "Jim", SENT.replace(b"ours@", b"jims@"))
    externals, people = await everyone(company)
    names = ("customer@x", "ours@local.com", "new@provider.example")
    async with company.transaction() as connection:
        await sent_mail.add_sent(connection, [(name, externals[SUPPORT].id, people["Jim"].id, id_) for name in names])
        known = await sent_mail.find_sent(connection, names)
    assert {name: sent[0].author_id for name, sent in known.items()} == {
        "ours@local.com": people["Alex"].id,
        "new@provider.example": people["Jim"].id,
    }


async def test_a_mail_that_is_fetched_before_its_id_is_recorded_keeps_its_author(company: Database) -> None:
    # given a mail that arrives by a list, with an id of the provider, before the reply with this id is recorded
    id_ = await submit(company, "Alex", SENT)
    await fetch(company, SENT.replace(b"ours@local.com", b"new@provider.example") + b"-- \r\na list\r\n")
    externals, people = await everyone(company)
    async with company.transaction() as connection:
        await sent_mail.add_sent(connection, [("new@provider.example", externals[SUPPORT].id, people["Alex"].id, id_)])
        assert list(await sent_mail.find_sent(connection, ["new@provider.example"])) == ["new@provider.example"]


async def test_an_own_copy_with_an_id_that_came_before_teaches_nothing(company: Database) -> None:
    # given a customer's mail with the id that the copy claims
    await fetch(company, customer_mail("theirs@gmail.example"))
    await submit(company, "Alex", SENT)
    copy = SENT.replace(b"Message-ID: <", b"Message-ID: <theirs@gmail.example>\r\nX-Google-Original-Message-ID: <")
    await fetch(company, copy)
    assert await readers(company, copy) == []
    # then the customer's thread is everybody's
    follow_up = customer_mail("second@x", answers="theirs@gmail.example")
    await fetch(company, follow_up)
    assert await readers(company, follow_up) == [ALEX, JIM]
