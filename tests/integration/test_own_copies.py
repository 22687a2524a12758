"""Copies of our own mail that a provider lists again, and mail that only looks like one: the router on PostgreSQL."""

from __future__ import annotations

import pytest

from shared.db.database import Database
from shared.store import folder_admin, inbound_admin
from tests.company import COMPANY, SUPPORT, apply, everyone, mailbox_of
from tests.correspondence import ALEX, BODY, JIM, SENT, customer_mail, fetch, purge, readers, submit


@pytest.fixture
async def company(database: Database) -> Database:
    """The manual's company."""
    await apply(database, COMPANY)
    return database


COPY = SENT.replace(
    b"Message-ID: <ours@local.com>",
    b"Message-ID: <theirs@gmail.example>\r\nX-Google-Original-Message-ID: <ours@local.com>",
)


async def test_an_own_copy_is_stored_as_deleted_and_its_provider_id_is_learnt(company: Database) -> None:
    await submit(company, "Alex", SENT)
    await fetch(company, COPY + b"\r\n")
    assert await mailbox_of(company, ALEX) == []
    externals, people = await everyone(company)
    async with company.transaction() as connection:
        [entry] = await folder_admin.list_latest_deleted(connection, people["Alex"].id)
        assert (await inbound_admin.count_inbound(connection))[externals[SUPPORT].id].own_copies == 1
        await folder_admin.undelete_mails(connection, people["Alex"].id, [entry.key])
    assert await mailbox_of(company, ALEX) == [COPY + b"\r\n"]
    answer = customer_mail("answer@x", answers="theirs@gmail.example")
    await fetch(company, answer)
    assert await readers(company, answer) == [ALEX]


@pytest.mark.parametrize("body", [b"Dear Anna,\r\n\r\npay to another account.\r\n", b"", BODY + b"more\r\n"])
async def test_a_forged_own_copy_is_ordinary_mail_and_teaches_nothing(company: Database, body: bytes) -> None:
    # given an outsider who knows the id of a mail of Alex, but not its body
    await submit(company, "Alex", SENT)
    forged = COPY.replace(BODY, body)
    await fetch(company, forged)
    # then everybody gets the mail, and its own id belongs to nobody
    assert await readers(company, forged) == [ALEX, JIM]
    follow_up = customer_mail("second@x", answers="theirs@gmail.example")
    await fetch(company, follow_up)
    assert await readers(company, follow_up) == [ALEX, JIM]


async def test_a_copy_of_a_purged_submission_is_ordinary_mail(company: Database) -> None:
    await submit(company, "Alex", SENT)
    async with company.transaction() as connection:
        await connection.execute("update submissions set state = 'done'")
    await purge(company, 15)
    await fetch(company, COPY)
    assert await readers(company, COPY) == [ALEX, JIM]


async def test_many_own_copies_are_compared_each_with_its_own_submission(company: Database) -> None:
    # given twenty mails, each longer than what is read with the header
    sent = [SENT.replace(b"ours@", b"ours%d@" % n) + b"%d\r\n" % n + b"x" * 20_000 for n in range(20)]
    for mail in sent:
        await submit(company, "Alex", mail)
    # when the copies come back, three of them with another's body
    copies = [*sent[:17], *(mail.replace(b"x", b"y", 50) for mail in sent[17:])]
    await fetch(company, *copies)
    # then those are ordinary mail
    assert await mailbox_of(company, ALEX) == copies[17:]
