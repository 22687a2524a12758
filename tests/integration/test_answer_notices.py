"""Notices of an answer to a mail to everyone: one each, to the other recipients, never outside."""

from __future__ import annotations

import asyncio
import datetime
import email
import email.policy
import re
from dataclasses import replace
from email.message import EmailMessage
from typing import Any

import pytest

from services.admin.mail import answer_notices, indexing
from services.admin.mail.answer_notices import Answered
from services.admin.mail.header_summary import HeaderSummary
from services.admin.mail.indexing import SearchIndexer
from services.mailbox.worker import MailboxWorker
from services.router.worker import RouterWorker
from shared.db.database import Database
from shared.model import Content, EnvelopeRecipient, Local
from shared.store import blobs, inbound, submissions
from shared.store.inbound import Arrival
from shared.store.maillog import MailEvent
from shared.store.submissions import Submission
from tests.company import COMPANY, HASH, SALES, SUPPORT, apply, everyone, external, local, mailbox_of
from tests.integration.test_router_and_mailbox import ids

QUESTION = (
    b"From: Anna <anna@customer.example>\r\nTo: %s<support@company.com>\r\nSubject: Printer smokes\r\n"
    b"Message-ID: <q@customer.example>\r\n\r\nHelp!\r\n"
)
ANSWER = (
    b"From: %s@local.com\r\nSubject: =?utf-8?q?Re=3A_F=C3=BCr_alle?=\r\nIn-Reply-To: <q@customer.example>\r\n\r\nHi\r\n"
)


def people(notes: bool = True, **jim: Any) -> dict[str, Any]:
    return COMPANY | {
        "external_accounts": [external(SUPPORT, answer_notes=notes), external(SALES, answer_notes=True)],
        "local_accounts": [local("Alex"), local("Jim", **jim), local("Eve"), local("Kim", SALES)],
    }


async def ask(database: Database, name: bytes = b"", author: str | None = None) -> None:
    """A customer's mail, or that of a person here, is delivered."""
    externals, everybody = await everyone(database)
    async with database.transaction() as connection:
        stored = await blobs.store_blobs(connection, [Content.from_bytes(QUESTION % name)])
        arrival = Arrival("fetched", stored[0], externals[SUPPORT].id, "q@customer.example")
        if author is not None:
            arrival = replace(arrival, source="submitted", author_id=everybody[author].id)
        rows = await inbound.add_inbound(connection, [arrival])
    routed = await RouterWorker(database, 5).handle(rows)
    await MailboxWorker(database, 5).handle(ids(routed))


async def answer(database: Database, name: str, ago: str = "10 seconds", to: str = "anna@customer.example") -> None:
    """A colleague answers the mail, to the customer or ``to`` a person."""
    externals, everybody = await everyone(database)
    inside = [person.id for person in everybody.values() if person.address == to]
    recipient = EnvelopeRecipient(to, "local", inside[0]) if inside else EnvelopeRecipient(to, "relay")
    address = f"{name.lower()}@local.com"
    async with database.transaction() as connection:
        [sent] = await submissions.record_submissions(
            connection,
            [
                Submission(
                    everybody[name].id,
                    externals[SUPPORT].id,
                    Content.from_bytes(ANSWER % name.lower().encode()),
                    address,
                    f"answer.{name}@local.com",
                    False,
                    False,
                    (recipient,),
                    event=MailEvent("submitted", who=address),
                )
            ],
        )
        await connection.execute("update inbound set created_at = now() - interval '1 minute'")
        await connection.execute("update submissions set created_at = now() - %s::interval where id = %s", (ago, sent))


async def look(database: Database) -> list[str]:
    """Index new mail, and deliver the notices. :return: their recipients."""
    async with database.transaction() as connection:
        step = await indexing.index_next(connection)
    await MailboxWorker(database, 5).handle([note.inbound_id for note in step.notes])
    return sorted(address for note in step.notes for address in note.recipients)


async def notes_of(database: Database, name: str) -> list[EmailMessage]:
    mails = [
        email.message_from_bytes(mail, policy=email.policy.default)
        for mail in await mailbox_of(database, f"{name}@local.com")
    ]
    return [mail for mail in mails if mail["Auto-Submitted"]]


async def count(database: Database, query: str) -> int:
    async with database.transaction() as connection:
        row = await (await connection.execute(query.encode())).fetchone()
    assert row is not None
    return int(row[0])


async def test_only_the_other_recipients_get_a_notice_of_an_answer(database: Database) -> None:
    await apply(database, people())
    await ask(database)
    await answer(database, "Alex")

    assert await look(database) == ["eve@local.com", "jim@local.com"]

    [note] = await notes_of(database, "jim")
    assert note["Subject"] == "Alex answered: Re: Für alle"
    assert note["Auto-Submitted"] == "auto-generated"
    assert note["In-Reply-To"] == "<q@customer.example>"
    body = note.get_content()
    assert "which went to everyone who shares support@company.com" in body
    assert "Subject: Printer smokes" in body
    assert len(await notes_of(database, "eve")) == 1
    assert await notes_of(database, "alex") == []
    assert await notes_of(database, "kim") == []
    assert await count(database, "select count(*) from submissions") == 1  # the answer itself: nothing is relayed


async def test_each_person_gets_the_notice_in_their_language(database: Database) -> None:
    # given Jim and Eve, one of whom reads German
    await apply(database, people())
    async with database.transaction() as connection:
        await connection.execute("update local_accounts set language = 'de' where address = 'eve@local.com'")
    await ask(database)
    # when Alex answers
    await answer(database, "Alex")
    assert await look(database) == ["eve@local.com", "jim@local.com"]
    # then each gets one notice, in their language
    [german], [english] = await notes_of(database, "eve"), await notes_of(database, "jim")
    assert (german["Content-Language"], english["Content-Language"]) == ("de", "en")
    assert german["Subject"] == "Alex hat geantwortet: Re: Für alle"
    body = german.get_content()
    assert "die an alle ging, die sich support@company.com teilen" in body and "Betreff: Printer smokes" in body
    assert re.search(r"^Beantwortet: \d+\. \w+ \d{4}, \d\d:\d\d UTC\s", body, re.MULTILINE)
    assert english["Subject"] == "Alex answered: Re: Für alle"
    assert await count(database, "select count(*) from inbound where source = 'notice'") == 2


async def test_the_operator_s_language_applies_to_whom_has_chosen_none(database: Database) -> None:
    await apply(database, people())
    await ask(database)
    await answer(database, "Alex")
    notes = (await SearchIndexer(database, "de").index_next()).notes
    await MailboxWorker(database, 5).handle([note.inbound_id for note in notes])
    assert [note["Content-Language"] for note in await notes_of(database, "jim")] == ["de"]


async def test_further_answers_and_parallel_runs_make_no_second_notice(database: Database) -> None:
    await apply(database, people())
    await ask(database)
    await answer(database, "Alex")
    told = await asyncio.gather(*(look(database) for _ in range(4)))
    assert [name for names in told for name in names] == ["eve@local.com", "jim@local.com"]
    await answer(database, "Jim")
    assert await look(database) == []
    assert len(await notes_of(database, "eve")) == 1


async def test_after_a_run_that_fails_the_next_one_makes_the_notice(database: Database) -> None:
    await apply(database, people())
    await ask(database)
    await answer(database, "Alex")
    with pytest.raises(ZeroDivisionError):
        async with database.transaction() as connection:
            assert (await indexing.index_next(connection)).notes
            raise ZeroDivisionError
    assert await count(database, "select count(*) from inbound where source = 'notice'") == 0
    assert await look(database) == ["eve@local.com", "jim@local.com"]


async def test_no_notice_is_made_unless_the_account_wants_it(database: Database) -> None:
    await apply(database, people(notes=False))
    await ask(database)
    await answer(database, "Alex")
    assert await look(database) == []
    assert await count(database, "select count(*) from shared_mails where answered_at is not null") == 1


async def test_an_answer_to_a_mail_to_one_person_makes_no_notice(database: Database) -> None:
    await apply(database, people())
    await ask(database, b'"Alex" ')
    await answer(database, "Alex")
    assert await look(database) == []


async def test_a_mail_among_the_recipients_is_no_answer(database: Database) -> None:
    # given
    await apply(database, people())
    await ask(database)
    # when Alex asks Jim to answer it
    await answer(database, "Alex", to="jim@local.com")
    # then it is not answered
    assert await look(database) == []
    assert await count(database, "select count(*) from shared_mails where answered_at is not null") == 0
    # until Jim writes to the customer
    await answer(database, "Jim")
    assert await look(database) == ["alex@local.com", "eve@local.com"]


@pytest.mark.parametrize("asker", ["Kim", "Jim"])
async def test_a_colleague_who_wrote_to_everyone_is_answered(database: Database, asker: str) -> None:
    # given a mail to everyone from a colleague at another external account, or at the same
    await apply(database, people())
    await ask(database, author=asker)
    # when Alex answers
    await answer(database, "Alex", to=f"{asker.lower()}@local.com")
    # then that is known
    assert "eve@local.com" in await look(database)


async def test_an_answer_of_last_week_makes_no_notice(database: Database) -> None:
    await apply(database, people())
    await ask(database)
    await answer(database, "Alex", "7 days")
    assert await look(database) == []


async def test_a_disabled_person_gets_no_notice(database: Database) -> None:
    await apply(database, people(enabled=False))
    await ask(database)
    await answer(database, "Alex")
    assert await look(database) == ["eve@local.com"]


def test_no_text_from_outside_begins_a_line_of_the_notice() -> None:
    now = datetime.datetime(2026, 11, 5, 12, 0, tzinfo=datetime.UTC)
    alex = Local(1, "alex@local.com", True, HASH, "Alex", (), (), 1, None)
    evil = "x\r\nBcc: eve@evil.example\r\n\r\n<b>" + "é" * 300
    told = Answered(SUPPORT, "q@x>\r\nBcc: <e@x", evil, evil, now, alex, HeaderSummary(None, (), evil), now)
    head, _, body = answer_notices.compose(told)[0].partition(b"\r\n\r\n")
    assert b"\nBcc" not in head + body
    assert b"In-Reply-To" not in head
    assert max(map(len, head.split(b"\r\n"))) <= 78
    assert answer_notices.compose(replace(told, message_id="q@x"))[0].count(b"<q@x>") == 2
