"""The sender with a real PostgreSQL and a scripted provider."""

from __future__ import annotations

import asyncio
import datetime
from pathlib import Path

import pytest

from services.sender import dead_owners, outgoing_message
from services.sender.outgoing_message import MessageSource
from services.sender.smtp_transaction import OutgoingMessage
from shared.db.database import Database
from shared.metrics import SUBMIT_TO_RELAYED
from shared.mime import headers
from shared.model import External
from shared.store import relays, sent_mail, submissions, submissions_admin
from shared.store.relay_queue import QueuedMail
from tests.company import SALES, SUPPORT
from tests.polling import until
from tests.scripted_smtp import CLOSE, DSN, HANG, PIPELINING, ScriptedSmtp, scripted_smtp
from tests.sender_harness import MAIL, SenderHarness, harness_fixture, provider_fixture, replies, sending
from tests.servers import rows_read

ANN, BOB, CAT = "ann@customer.org", "bob@customer.org", "cat@customer.org"
MIB = 1024 * 1024


provider = provider_fixture()
harness = harness_fixture()


# ---------------------------------------------------------------------------------------------- handing over


async def test_a_mail_leaves_as_user_name_and_external_address(harness: SenderHarness, provider: ScriptedSmtp) -> None:
    # when Alex writes to a customer and, in Cc, to a colleague (manual 4.3)
    mail = MAIL.replace(b"Subject", b"Cc: kim@local.com\r\nBcc: bob@customer.org\r\nSubject")
    id_ = await harness.submit(ANN, BOB, mail=mail, message_id="one@local.com")
    await harness.until(id_, state="done")
    # then the provider got it once, rewritten, the body untouched
    [taken] = provider.taken
    header, _, body = taken.mail.partition(b"\r\n\r\n")
    assert (taken.sender, taken.recipients) == (SUPPORT, [ANN, BOB])
    assert header.split(b"\r\n")[1:] == [
        b"Message-ID: <one@local.com>",
        b'From: "Alex" <support@company.com>',
        b"To: ann@customer.org",
        b'Cc: "Kim" <sales@company.com>',
        b"Subject: hello",
    ]
    assert body == b"a body\r\n.with dots\r\n"
    assert provider.logins == [f"{SUPPORT} secret"]
    # and its reply is on record for each recipient
    assert replies(await harness.listed(id_)) == [("relayed", "250 2.0.0 queued")] * 2
    assert await harness.events(id_) == [("relayed", ANN), ("relayed", BOB)]


async def test_a_relayed_mail_is_measured_by_the_times_of_its_row(
    harness: SenderHarness, provider: ScriptedSmtp
) -> None:
    def observed() -> dict[str, float]:
        [family] = SUBMIT_TO_RELAYED.collect()
        return {s.labels.get("le", s.name.rpartition("_")[2]): s.value for s in family.samples}

    before = observed()
    await harness.until(await harness.submit(BOB, message_id="one@local.com"), state="done")
    # given a mail that the provider refuses for good, and one that it accepts an hour later
    provider.by_recipient |= {CAT: "550 5.1.1 unknown", ANN: "450 4.2.0 later"}
    await harness.until(await harness.submit(CAT, message_id="two@local.com"), state="done")
    late = await harness.submit(ANN, message_id="three@local.com")
    await harness.until(late, state="queued", tries=1)
    provider.by_recipient.clear()
    await harness.rows(
        "update submissions set created_at = now() - interval '1 hour', next_try_at = now() where id = %s", late
    )
    await harness.upkeep.schedule_due()
    await harness.until(late, state="done")
    # then
    after = observed()
    assert after["count"] == before["count"] + 2
    assert after["300.0"] == before["300.0"] + 1


async def test_local_recipients_get_mail_in_any_state_of_the_external_account(
    harness: SenderHarness, provider: ScriptedSmtp
) -> None:
    # given a disabled external account
    await harness.rows("update external_accounts set enabled = false")
    # when Alex writes to Jim, to Kim and to a customer
    id_ = await harness.submit("jim@local.com", "kim@local.com", ANN)
    # then the colleagues' copy is on its way, unrewritten
    [[source, state, body]] = await harness.rows(
        "select source, i.state, head from inbound i join blobs m on m.id = i.blob_id"
    )
    assert (source, state, bytes(body)) == ("local", "routed", MAIL)
    assert [(p.key, p.copies) for p in harness.publications] == [("routed.jim@local.com", ("routed.kim@local.com",))]
    # and the customer's waits until the account is enabled
    await asyncio.sleep(1.5)
    assert replies(await harness.listed(id_)) == [("delivered", None), ("delivered", None), ("waiting", None)]
    await harness.rows("update external_accounts set enabled = true")
    await harness.until(id_, state="done")
    assert len(provider.taken) == 1


async def test_a_colleague_removed_meanwhile_is_not_shown_with_a_local_address(
    harness: SenderHarness, provider: ScriptedSmtp
) -> None:
    # given a mail to a customer and Jim that waits
    mail = MAIL.replace(b"Subject", b"Cc: jim@local.com, tom@local.com\r\nSubject")
    await harness.rows("update external_accounts set enabled = false")
    early = await harness.submit(ANN, mail=mail)
    # when Jim is removed, and a mail names his address long after that
    await harness.rows("update submissions set created_at = now() - interval '1 hour'")
    await harness.rows(
        "update local_accounts set removed_at = now() - interval '1 hour' where address = 'jim@local.com'"
    )
    late = await harness.submit(BOB, mail=mail)
    await harness.rows("update external_accounts set enabled = true")
    for id_ in (early, late):
        await harness.until(id_, state="done")
    # then only the second one, whose author may mean another person, leaves with it
    shown = {taken.recipients[0]: headers.values(taken.mail, "cc") for taken in provider.taken}
    assert shown == {
        ANN: [b' "Jim" <support@company.com>, "Tom" <sales@company.com>'],
        BOB: [b' jim@local.com, "Tom" <sales@company.com>'],
    }


async def test_an_external_address_of_ours_goes_to_the_router(harness: SenderHarness, provider: ScriptedSmtp) -> None:
    # when Kim writes to support@ and to Tom
    id_ = await harness.submit(SUPPORT, "tom@local.com", author="Kim")
    # then nothing is left to relay
    assert (await harness.listed(id_)).state == "done"
    assert await harness.rows("select source, state, external_id, author_id from inbound order by source") == [
        ("local", "routed", None, harness.people["Kim"].id),
        ("submitted", "fetched", harness.externals[SUPPORT].id, harness.people["Kim"].id),
    ]
    assert sorted(p.key for p in harness.publications) == [f"fetched.{SUPPORT}", "routed.tom@local.com"]


async def test_handing_over_twice_delivers_once(harness: SenderHarness) -> None:
    id_ = await harness.submit("jim@local.com", ANN)
    assert await harness.stage.handle([id_, id_ + 1000]) == []
    assert await harness.rows("select count(*)::int from inbound") == [(1,)]


async def test_a_resubmitted_mail_is_sent_and_reported(harness: SenderHarness, provider: ScriptedSmtp) -> None:
    # when a client that got no reply submits a mail twice, and another one for hidden recipients
    first = await harness.submit(ANN, message_id="one@local.com")
    again = await harness.submit(ANN, message_id="one@local.com")
    hidden = await harness.submit(BOB, message_id="one@local.com")
    for id_ in (first, again, hidden):
        await harness.until(id_, state="done")
    # then all of them leave, and the trace says which may be a repetition
    assert len(provider.taken) == 3
    told = {id_: "uncertain" in [event for event, _ in await harness.events(id_)] for id_ in (first, again, hidden)}
    assert told == {first: False, again: True, hidden: False}


async def test_a_mail_submitted_twice_is_reported_once_whichever_commits_first(
    harness: SenderHarness,
) -> None:
    first, again = [await harness.submit(ANN, message_id="one@local.com") for _ in range(2)]
    for id_ in (first, again):
        await harness.until(id_, state="done")

    async def told(*ids: int) -> dict[int, int]:
        async with harness.database.transaction() as connection:
            return await submissions.find_duplicates(connection, ids)

    # when the second one was handed over before the first one was committed
    assert await told(first) == {first: again}
    # or the clock was set between the two
    await harness.rows("update submissions set created_at = now() + interval '2 days' where id = %s", again)
    assert await told(again) == {again: first}
    # or both are handed over at once, by one process or by two
    assert await told(first, again) == {again: first}
    await harness.rows("update submissions set state = 'submitted'")
    assert (await told(first), await told(again)) == ({}, {again: first})


async def test_mails_with_one_message_id_are_compared_with_the_nearest(harness: SenderHarness) -> None:
    # given a script that gives all its mails one Message-ID: 100, or 400
    read = []
    for mails in (100, 300):
        [id_] = [await harness.submit(ANN, message_id="one@local.com")]
        await harness.until(id_, state="done")
        await harness.rows(
            """with made as (
                   insert into submissions (author_id, external_id, blob_id, envelope_from, message_id, body_8bit,
                       smtputf8, state)
                   select author_id, external_id, blob_id, envelope_from, message_id, body_8bit, smtputf8, 'done'
                   from submissions, generate_series(1, %s) where id = %s returning id)
               insert into submission_recipients (submission_id, position, address, kind, state)
               select id, 0, %s, 'relay', 'relayed' from made returning submission_id""",
            mails,
            id_,
            ANN,
        )
        last = await harness.submit(ANN, message_id="one@local.com")
        # when the last one is compared
        async with harness.database.transaction() as connection:
            await connection.execute("set local enable_seqscan = off")
            before = await rows_read(connection, "submissions", "blobs", "submission_recipients")
            found = await submissions.find_duplicates(connection, [last])
            read.append(await rows_read(connection, "submissions", "blobs", "submission_recipients") - before)
        # then it is known to be one of many
        assert found == {last: last - 1}
    # and as few rows were read for 400 as for 100
    assert max(read) < 200


async def test_a_message_that_the_broker_lost_is_published_again_later(harness: SenderHarness) -> None:
    # given a submission whose message was lost
    id_ = await harness.submit(ANN)
    await harness.rows("update submissions set state = 'submitted', state_at = now() - interval '6 seconds'")
    # when the stage sweeps, twice
    swept = [await harness.stage.sweep(), await harness.stage.sweep()]
    # then it is published once
    assert swept[1] == []
    assert [(p.key, p.body) for p in swept[0]] == [
        (f"submitted.{SUPPORT}", b'{"id":%d,"external":"%s"}' % (id_, SUPPORT.encode()))
    ]


# ---------------------------------------------------------------------------------------------- refusals


async def test_a_refused_recipient_fails_alone_and_the_author_gets_a_notice(
    harness: SenderHarness, provider: ScriptedSmtp
) -> None:
    # given a provider that does not know Bob
    provider.by_recipient[BOB] = "550 5.1.1 no such user"
    # when
    id_ = await harness.submit(ANN, BOB)
    found = await harness.until(id_, state="done")
    # then Ann has it, and Alex a notice about Bob
    assert replies(found) == [("relayed", "250 2.0.0 queued"), ("failed", "550 5.1.1 no such user")]
    assert provider.taken[0].recipients == [ANN]
    [notice] = await harness.notices("Alex")
    assert b"Final-Recipient: rfc822; bob@customer.org\r\nAction: failed\r\nStatus: 5.1.1\r\n" in notice
    assert b"From: alex@local.com\r\nTo: ann@customer.org\r\nSubject: hello" in notice
    assert b"a body" not in notice
    assert [p.key for p in harness.publications] == ["routed.alex@local.com"]
    assert ("noticed", "alex@local.com") in await harness.events(id_)


async def test_a_notice_is_in_the_language_of_the_author(harness: SenderHarness, provider: ScriptedSmtp) -> None:
    provider.by_recipient[BOB] = "550 5.1.1 no such user"
    await harness.rows("update local_accounts set language = 'de' where address = 'alex@local.com'")
    await harness.until(await harness.submit(BOB), state="done")
    [notice] = await harness.notices("Alex")
    assert b"Content-Language: de\r\n" in notice
    assert "Ihre Mail konnte den folgenden Empfängern nicht zugestellt werden.".encode() in notice
    assert b"Diagnostic-Code: smtp; 550 5.1.1 no such user" in notice


async def test_a_recipient_without_notify_causes_no_notice(harness: SenderHarness, provider: ScriptedSmtp) -> None:
    # given a provider that refuses everybody
    provider.always("RCPT", "550 5.1.1 no such user")
    # when Alex wants notices about Bob, and for Cat about success alone
    dsn_params = {
        ANN: "NOTIFY=NEVER",
        BOB: "NOTIFY=DELAY,FAILURE ORCPT=rfc822;Bob+2Bx@customer.org",
        CAT: "NOTIFY=SUCCESS",
    }
    id_ = await harness.submit(ANN, BOB, CAT, dsn_params="RET=HDRS ENVID=QQ+3D1", dsn_params_of=dsn_params)
    await harness.until(id_, state="done")
    # then the one notice is about Bob, with the client's names for him and the mail
    [notice] = await harness.notices("Alex")
    assert b"Original-Envelope-Id: QQ=1\r\nReporting-MTA: dns; local.com\r\n" in notice
    assert (
        b"\r\n\r\nOriginal-Recipient: rfc822;Bob+x@customer.org\r\nFinal-Recipient: rfc822; bob@customer.org\r\n"
        in notice
    )
    assert b"ann@customer.org\r\nAction" not in notice and b"cat@customer.org\r\nAction" not in notice
    assert [line for line in provider.lines if "NOTIFY" in line or "RET=" in line or "ENVID" in line] == []


async def test_a_notice_returns_the_whole_mail_if_that_was_asked_and_it_is_small(
    harness: SenderHarness, provider: ScriptedSmtp
) -> None:
    provider.always("RCPT", "550 5.1.1 no such user")
    large = MAIL + b"x" * 70 * 5000 + b"\r\n"
    for mail in (MAIL, large):
        id_ = await harness.submit(ANN, mail=mail, dsn_params="RET=FULL")
        await harness.until(id_, state="done")
    small, other = await harness.notices("Alex")
    assert b"Content-Type: message/rfc822\r\nContent-Transfer-Encoding: 8bit\r\n\r\n" + MAIL in small
    assert b"text/rfc822-headers" in other and len(other) < 10_000


async def test_the_author_is_notified_of_success_if_the_provider_does_not(
    harness: SenderHarness, provider: ScriptedSmtp
) -> None:
    provider.always("RCPT", None)
    id_ = await harness.submit(
        ANN, BOB, "jim@local.com", dsn_params_of=dict.fromkeys((ANN, "jim@local.com"), "NOTIFY=SUCCESS")
    )
    await harness.until(id_, state="done")

    inside, outside = await harness.notices("Alex")
    assert b"Final-Recipient: rfc822; jim@local.com\r\nAction: delivered\r\nStatus: 2.1.5\r\n" in inside
    assert b"Final-Recipient: rfc822; ann@customer.org\r\nAction: relayed\r\nStatus: 2.0.0\r\n" in outside
    assert inside.count(b"Final-Recipient") == outside.count(b"Final-Recipient") == 1
    assert [p.key for p in harness.publications].count("routed.alex@local.com") == 2
    assert [who for event, who in await harness.events(id_) if event == "noticed"] == ["alex@local.com"] * 2


async def test_a_provider_with_dsn_gets_the_dsn_parameters(harness: SenderHarness, provider: ScriptedSmtp) -> None:
    provider.always("EHLO", DSN)
    id_ = await harness.submit(
        ANN,
        BOB,
        dsn_params="RET=FULL ENVID=a+2Bb",
        dsn_params_of={ANN: "NOTIFY=SUCCESS,DELAY ORCPT=rfc822;ann@customer.org"},
    )
    await harness.until(id_, state="done")

    assert provider.said("MAIL") == [f"MAIL FROM:<{SUPPORT}> RET=FULL ENVID=a+2Bb"]
    assert provider.said("RCPT") == [
        "RCPT TO:<ann@customer.org> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;ann@customer.org",
        "RCPT TO:<bob@customer.org>",
    ]
    assert len(provider.taken) == 1 and not await harness.notices("Alex")


async def test_a_mail_with_a_null_sender_gets_no_notice(harness: SenderHarness, provider: ScriptedSmtp) -> None:
    provider.always("RCPT", "550 5.1.1 no such user")
    id_ = await harness.submit(ANN, sender="")
    await harness.until(id_, state="done")
    assert await harness.notices("Alex") == []


async def test_a_temporary_refusal_is_retried_a_minute_later(harness: SenderHarness, provider: ScriptedSmtp) -> None:
    # given a provider that greylists once
    provider.say("RCPT", "450 4.2.0 greylisted")
    id_ = await harness.submit(ANN)
    found = await harness.until(id_, state="queued", tries=1)
    # then it waits about a minute
    assert found.next_try_at is not None
    assert 50 < (found.next_try_at - datetime.datetime.now(datetime.UTC)).total_seconds() < 67
    assert replies(found) == [("waiting", "450 4.2.0 greylisted")]
    # and is relayed then, without a notice
    await harness.make_due()
    await harness.until(id_, state="done")
    assert await harness.events(id_) == [("delayed", ANN), ("relayed", ANN)]
    assert await harness.notices("Alex") == []


@pytest.mark.parametrize("hello", [None, PIPELINING])
@pytest.mark.parametrize(
    "crowded",
    [
        "452 4.5.3 too many",
        "452 too many",
        "552 too many",
        "552 5.5.3 no",
        "550 5.5.3 no",
        "421 too many",
        "421 4.5.3 no",
    ],
)
async def test_too_many_recipients_are_sent_in_further_mails_at_once(
    harness: SenderHarness, provider: ScriptedSmtp, crowded: str, hello: str | None
) -> None:
    # given a provider that accepts two recipients of a transaction, and one of its customers is unknown
    provider.always("EHLO", hello)
    provider.most_recipients, provider.crowded = 2, crowded
    provider.by_recipient[BOB] = "550 5.1.1 unknown"
    others = [f"{name}@customer.org" for name in ("dan", "eva", "fay")]
    id_ = await harness.submit(ANN, BOB, CAT, *others)
    # then the mail leaves in three transactions, no try is counted, and only the unknown one fails
    found = await harness.until(id_, state="done")
    assert [taken.recipients for taken in provider.taken] == [[ANN, CAT], others[:2], others[2:]]
    assert [state for state, _ in replies(found)] == ["relayed", "failed", *["relayed"] * 4]
    assert found.tries == 0
    assert [event for event in await harness.events(id_) if event[0] == "relayed"] == [
        ("relayed", address) for address in (ANN, CAT, *others)
    ]


@pytest.mark.parametrize("crowded", ["552 too many", "550 5.5.3 no"])
async def test_a_recipient_that_is_refused_alone_fails(
    harness: SenderHarness, provider: ScriptedSmtp, crowded: str
) -> None:
    # given a provider that gives one recipient this reply in any transaction
    provider.by_recipient[BOB] = crowded
    found = await harness.until(await harness.submit(ANN, BOB, CAT), state="done")
    assert replies(found) == [("relayed", "250 2.0.0 queued"), ("failed", crowded), ("relayed", "250 2.0.0 queued")]
    assert [taken.recipients for taken in provider.taken] == [[ANN, CAT]]


async def test_a_recipient_that_always_ends_the_connection_waits(
    harness: SenderHarness, provider: ScriptedSmtp
) -> None:
    provider.by_recipient[BOB] = "421 4.3.0 no"
    id_ = await harness.submit(ANN, BOB)
    found = await harness.until(id_, tries=1)
    assert [state for state, _ in replies(found)] == ["relayed", "waiting"]
    assert len(provider.said("RCPT")) <= 5


async def test_a_refusal_before_the_end_of_a_large_mail_is_read(harness: SenderHarness, provider: ScriptedSmtp) -> None:
    # given a provider that refuses while the mail is still being sent, and reads no further
    provider.early = "552 5.3.4 too large"
    id_ = await harness.submit(ANN, mail=MAIL + b"x" * 70 * 1024 * 1024)
    # then that is the reply that counts
    found = await harness.until(id_, state="done")
    assert replies(found) == [("failed", "552 5.3.4 too large")]


async def test_an_international_address_needs_a_provider_that_accepts_it(
    harness: SenderHarness, provider: ScriptedSmtp
) -> None:
    # when the provider does not
    id_ = await harness.submit(ANN, "jörg@customer.org", smtputf8=True)
    found = await harness.until(id_, state="done")
    # then that recipient fails and says why
    assert [state for state, _ in replies(found)] == ["relayed", "failed"]
    assert "5.6.7" in str(found.recipients[1].reply)
    # when it does
    provider.always("EHLO", "250-hi\r\n250-SMTPUTF8\r\n250-8BITMIME\r\n250 AUTH LOGIN PLAIN")
    await harness.rows("update external_accounts set login = 'other'")  # a new connection
    id_ = await harness.submit(ANN, "jörg@customer.org", smtputf8=True)
    await harness.until(id_, state="done")
    assert provider.taken[1].recipients == [ANN, "jörg@customer.org"]
    assert provider.said("MAIL")[-1].endswith(" SMTPUTF8")


async def test_an_account_whose_domain_is_beyond_ascii_needs_no_such_provider(
    harness: SenderHarness, provider: ScriptedSmtp
) -> None:
    # given an account of such a domain, and a provider that accepts ASCII alone
    await harness.rows("update external_accounts set address = 'support@bücher.example' where address = %s", SUPPORT)
    # when Alex sends a mail
    await harness.until(await harness.submit(ANN), state="done")
    # then its domain is written so that every server understands it
    [taken] = provider.taken
    assert taken.sender == "support@xn--bcher-kva.example"
    assert b'From: "Alex" <support@xn--bcher-kva.example>' in taken.mail


async def test_an_id_in_the_providers_reply_belongs_to_the_author(
    harness: SenderHarness, provider: ScriptedSmtp
) -> None:
    provider.always("END", f"250 2.0.0 OK <Made.Up@provider.example> for <{ANN}>")
    id_ = await harness.submit(ANN, message_id="own@local.com")
    await harness.until(id_, state="done")
    async with harness.database.transaction() as connection:
        known = await sent_mail.find_sent(connection, ["own@local.com", "Made.Up@provider.example", ANN])
    assert sorted(
        (message_id, sent.author_id, sent.external_id, list(sent.recipients))
        for message_id, found in known.items()
        for sent in found
    ) == [
        (message_id, harness.people["Alex"].id, harness.externals[SUPPORT].id, [ANN])
        for message_id in ("Made.Up@provider.example", "own@local.com")
    ]


# ---------------------------------------------------------------------------------------------- accounts in trouble


async def test_refused_credentials_pause_the_account_and_bounce_nothing(
    harness: SenderHarness, provider: ScriptedSmtp
) -> None:
    # given a provider that refuses the login
    provider.always("AUTH", "535 5.7.8 wrong")
    ids = [await harness.submit(ANN) for _ in range(3)]
    support = harness.externals[SUPPORT].id

    async def paused() -> bool:
        return bool(
            await harness.rows("select 1 from relays where external_id = %s and paused_at is not null", support)
        )

    await until(paused)
    await asyncio.sleep(2.5)
    # then nothing was tried again, no try was counted, nothing has failed
    assert 1 <= len(provider.said("AUTH")) <= 2  # of the two connections that were made together
    assert {(await harness.listed(id_)).state for id_ in ids} == {"queued"}
    assert {(await harness.listed(id_)).tries for id_ in ids} == {0}
    async with harness.database.transaction() as connection:
        [relay] = (await relays.load_status(connection))[support]
    assert relay.last_error_kind == "credentials" and "535 5.7.8 wrong" in str(relay.last_error)
    assert 3500 < (relay.next_try_at - datetime.datetime.now(datetime.UTC)).total_seconds() <= 3600
    # when an hour has passed, one careful try is made
    tries = len(provider.said("AUTH"))
    await harness.make_due()
    await until(lambda: len(provider.said("AUTH")) > tries)
    await asyncio.sleep(1.0)
    assert len(provider.said("AUTH")) == tries + 1
    # and when the account is changed, everything leaves at once
    provider.always("AUTH", None)
    async with harness.database.transaction() as connection:
        await relays.unpause(connection, support)
    for id_ in ids:
        await harness.until(id_, state="done")


async def test_a_temporary_login_failure_only_backs_off(harness: SenderHarness, provider: ScriptedSmtp) -> None:
    provider.say("AUTH", "454 4.7.0 later", "454 4.7.0 later")
    id_ = await harness.submit(ANN)

    async def failing() -> bool:
        return bool(await harness.rows("select 1 from relays where failures > 0 and paused_at is null"))

    await until(failing)
    assert (await harness.listed(id_)).tries == 0
    provider.always("AUTH", None)
    provider.answers["AUTH"].clear()
    await harness.make_due()
    await harness.until(id_, state="done")
    assert await harness.rows("select failures from relays where last_success_at is not null") == [(0,)]


async def test_a_provider_that_hangs_delays_no_other_account(database_url: str) -> None:
    # given support@'s provider hangs with its greeting, and sales@'s works
    async with scripted_smtp() as hanging, scripted_smtp() as working, sending(database_url) as harness:
        hanging.always("GREETING", HANG)
        await harness.accounts({SUPPORT: hanging.port, SALES: working.port})
        stuck = [await harness.submit(ANN) for _ in range(5)]
        # when Kim writes
        id_ = await harness.submit(ANN, author="Kim")
        # then hers is relayed while Alex's wait, two of them claimed
        await harness.until(id_, state="done")
        states = sorted([(await harness.listed(other)).state for other in stuck])
        assert states == ["claimed"] * 2 + ["queued"] * 3


async def test_an_unreachable_provider_backs_off_the_account_not_each_mail(harness: SenderHarness) -> None:
    # given nothing listens
    await harness.rows("update external_accounts set smtp_port = 9 where address = %s", SUPPORT)
    ids = [await harness.submit(ANN) for _ in range(5)]

    async def failing() -> bool:
        return bool(await harness.rows("select 1 from relays where failures > 0 and last_error_kind = 'unreachable'"))

    await until(failing)
    await asyncio.sleep(1.5)
    [[failures]] = await harness.rows("select failures from relays where failures > 0")
    assert failures <= 2
    assert {(await harness.listed(id_)).tries for id_ in ids} == {0}


async def test_no_mail_and_no_password_leave_without_the_tls_that_is_configured(
    harness: SenderHarness, provider: ScriptedSmtp
) -> None:
    # given a provider that does not offer the STARTTLS that the account demands
    await harness.rows("update external_accounts set smtp_tls = 'starttls'")
    id_ = await harness.submit(ANN)

    async def failing() -> bool:
        return bool(await harness.rows("select 1 from relays where last_error_kind = 'tls'"))

    await until(failing)
    # then it gets no more than our host name
    assert not provider.said("AUTH") and not provider.said("MAIL")
    assert (await harness.listed(id_)).state == "queued"


async def test_too_many_connections_lower_their_number(database_url: str) -> None:
    # given a provider with room for one
    async with scripted_smtp() as provider, sending(database_url) as harness:
        provider.room = 1
        await harness.accounts({SUPPORT: provider.port}, connections=3)
        provider.gates["MAIL"] = asyncio.Event()
        ids = [await harness.submit(ANN)]

        async def connected() -> bool:
            return bool(provider.said("MAIL"))

        # when more mail arrives while one connection is open: refusing the first one is the account's failure
        await until(connected)
        ids += [await harness.submit(ANN) for _ in range(3)]

        async def lowered() -> bool:
            return bool(await harness.rows("select 1 from relays where connections_limit = 1"))

        await until(lowered)
        # then one connection does the work, and no try is counted
        provider.gates["MAIL"].set()
        for id_ in ids:
            assert (await harness.until(id_, state="done")).tries == 0


# ---------------------------------------------------------------------------------------------- connections


async def test_one_connection_is_used_for_many_mails(database_url: str) -> None:
    async with scripted_smtp() as provider, sending(database_url) as harness:
        await harness.accounts({SUPPORT: provider.port}, connections=1)
        ids = [await harness.submit(ANN) for _ in range(5)]
        for id_ in ids:
            await harness.until(id_, state="done")
        provider.by_recipient[BOB] = "550 no"
        await harness.until(await harness.submit(BOB), state="done")  # the refused transaction is reset (RSET)
        await harness.until(await harness.submit(ANN), state="done")
        assert (len(provider.taken), provider.connections, len(provider.said("RSET"))) == (6, 1, 1)


@pytest.mark.parametrize("ended", [CLOSE, "421 4.4.2 idle"])
async def test_a_connection_that_the_provider_ended_while_idle_costs_no_try(
    harness: SenderHarness, provider: ScriptedSmtp, ended: str
) -> None:
    # given a connection that has worked
    await harness.until(await harness.submit(ANN), state="done")
    # when it ends as the next mail starts
    provider.say("MAIL", ended)
    found = await harness.until(await harness.submit(BOB), state="done")
    # then the mail took another one
    assert (found.tries, provider.connections, len(provider.taken)) == (0, 2, 2)


@pytest.mark.parametrize("hello", [None, PIPELINING])
async def test_all_senders_together_have_no_more_mails_on_the_wire_than_allowed(
    database_url: str, hello: str | None
) -> None:
    # given two senders and an account with two connections
    async with scripted_smtp() as provider, sending(database_url) as one, sending(database_url) as other:
        provider.always("EHLO", hello)
        await one.accounts({SUPPORT: provider.port}, connections=2)
        other.externals, other.people = one.externals, one.people
        await one.rows("update external_accounts set enabled = false")
        ids = [await one.submit(ANN) for _ in range(60)]
        await one.rows("update external_accounts set enabled = true")
        # when both work at it
        for _ in range(20):
            one.relaying.schedule(one.externals[SUPPORT].id)
            other.relaying.schedule(one.externals[SUPPORT].id)
            await asyncio.sleep(0.01)

        async def done() -> bool:
            return bool(await one.rows("select 1 having not exists (select from submissions where state <> 'done')"))

        await until(done)
        # then never more than two were on the wire, and each mail left once
        assert provider.most_mails_at_once <= 2
        assert len(provider.taken) == len(ids)


# ---------------------------------------------------------------------------------------------- without an answer


async def test_a_mail_whose_reply_was_lost_is_sent_once_more_and_marked(
    harness: SenderHarness, provider: ScriptedSmtp
) -> None:
    # given a provider that hangs up between the final dot and its reply, once
    provider.say("END", CLOSE)
    id_ = await harness.submit(ANN)
    found = await harness.until(id_, state="done")
    # then it was sent again at once
    assert (found.uncertain, found.tries, len(provider.taken)) == (True, 0, 1)
    assert await harness.events(id_) == [("uncertain", ANN), ("relayed", ANN)]


async def test_after_two_lost_replies_the_author_learns_of_the_unknown_outcome(
    harness: SenderHarness, provider: ScriptedSmtp
) -> None:
    provider.always("END", CLOSE)
    id_ = await harness.submit(ANN)
    await harness.until(id_, state="done", uncertain=True)
    assert len(provider.said("DATA")) == 2
    assert [event for event, _ in await harness.events(id_)] == ["uncertain", "failed", "uncertain", "noticed"]


@pytest.mark.parametrize(("state", "uncertain"), [("claimed", False), ("sent_unanswered", True)])
async def test_expired_claims_that_nobody_renews_are_taken_over(
    harness: SenderHarness,
    provider: ScriptedSmtp,
    monkeypatch: pytest.MonkeyPatch,
    state: str,
    uncertain: bool,
) -> None:
    # given a claim of a dead sender
    await harness.rows("update external_accounts set enabled = false")
    id_ = await harness.submit(ANN)
    await harness.rows(
        """update submissions set state = %s, claim_owner = 'dead',
                        claim_expires = now() + interval '1 hour'""",
        state,
    )
    await harness.rows("update external_accounts set enabled = true")
    await harness.upkeep.renew_leases()
    assert (await harness.listed(id_)).state == state
    # when it has run out
    await harness.rows("update submissions set claim_expires = now() - interval '1 second'")
    await harness.upkeep.renew_leases()
    assert (await harness.listed(id_)).state == state
    # and nobody has renewed it for a while
    monkeypatch.setattr(dead_owners, "UNRENEWED_SECONDS", 0.0)
    await harness.upkeep.renew_leases()
    # then the mail is sent, and marked if it may be there twice
    found = await harness.until(id_, state="done")
    assert (found.uncertain, len(provider.taken)) == (uncertain, 1)
    assert [event for event, _ in await harness.events(id_)] == (["uncertain"] if uncertain else []) + ["relayed"]


async def test_a_mail_that_ended_five_senders_in_isolation_is_parked_unsent(
    harness: SenderHarness, provider: ScriptedSmtp
) -> None:
    await harness.rows("update external_accounts set enabled = false")
    id_, innocent = await harness.submit(ANN), await harness.submit(ANN)
    await harness.rows(
        "insert into poison (stage, id, crashes) values ('relay', %s, 5), ('relay', %s, 4)", id_, innocent
    )
    await harness.rows("update external_accounts set enabled = true")
    found = await harness.until(id_, state="parked")
    assert "each of the 5 times" in str(found.error)
    # one that survives a try is sent as ever, and forgotten
    await harness.until(innocent, state="done")
    assert len(provider.taken) == 1
    assert await harness.rows("select id from poison") == []


async def test_a_sender_that_lost_its_claim_does_not_send_the_final_dot(
    harness: SenderHarness, provider: ScriptedSmtp
) -> None:
    # given a claimed mail
    provider.gates["DATA"] = asyncio.Event()
    id_ = await harness.submit(ANN)
    await harness.until(id_, state="claimed")
    # when another sender takes it over before the final dot
    await harness.rows("update submissions set claim_owner = 'another', claim_expires = now() + interval '1 hour'")
    provider.gates["DATA"].set()
    await asyncio.sleep(1.0)
    # then this one has not sent it
    assert provider.taken == []
    assert (await harness.listed(id_)).state == "claimed"


async def test_the_state_is_committed_before_the_final_dot(harness: SenderHarness, provider: ScriptedSmtp) -> None:
    provider.gates["END"] = asyncio.Event()
    id_ = await harness.submit(ANN)
    await harness.until(id_, state="sent_unanswered")
    assert provider.taken == []
    provider.gates["END"].set()
    await harness.until(id_, state="done", uncertain=False)


async def test_stopping_releases_mails_that_are_not_sent(database_url: str) -> None:
    async with scripted_smtp() as provider:
        async with sending(database_url) as harness:
            await harness.accounts({SUPPORT: provider.port})
            provider.gates["RCPT"] = asyncio.Event()
            id_ = await harness.submit(ANN)
            await harness.until(id_, state="claimed")
        # when another sender starts
        provider.gates["RCPT"].set()
        async with sending(database_url) as harness:
            found = await harness.until(id_, state="done")
            # then it has the mail without waiting for a claim to run out
            assert (found.uncertain, len(provider.taken)) == (False, 1)


async def test_stopping_waits_longer_for_a_mail_whose_final_dot_has_gone_out(database_url: str) -> None:
    async with scripted_smtp() as provider:
        async with sending(database_url) as harness:
            await harness.accounts({SUPPORT: provider.port})
            # given a mail that waits for its reply, and one that was not sent yet
            provider.gates["END"] = asyncio.Event()
            owed = await harness.submit(ANN)
            await harness.until(owed, state="sent_unanswered")
            provider.gates["RCPT"] = asyncio.Event()
            other = await harness.submit(CAT)
            await harness.until(other, state="claimed")
            # when the sender stops, and the reply arrives late
            stopping = asyncio.create_task(harness.relaying.stop(0.2, 20.0))
            await asyncio.sleep(0.5)
            assert not stopping.done() and (await harness.listed(owed)).state == "sent_unanswered"
            provider.gates["END"].set()
            await stopping
            # then that mail is done, and the other one was given back
            assert ((await harness.listed(owed)).state, (await harness.listed(other)).state) == ("done", "queued")
            assert [taken.recipients for taken in provider.taken] == [[ANN]]
        # and the next sender sends that one alone
        provider.gates["RCPT"].set()
        async with sending(database_url) as harness:
            await harness.until(other, state="done", uncertain=False)
        assert [taken.recipients for taken in provider.taken] == [[ANN], [CAT]]


async def test_stopping_waits_for_a_reply_for_a_limited_time(database_url: str) -> None:
    async with scripted_smtp() as provider:
        async with sending(database_url) as harness:
            await harness.accounts({SUPPORT: provider.port})
            provider.say("END", HANG)
            id_ = await harness.submit(ANN)
            await harness.until(id_, state="sent_unanswered")
            await harness.relaying.stop(0.1, 0.3)
            assert (await harness.listed(id_)).state == "sent_unanswered"
        # then it is sent once more, and marked
        async with sending(database_url) as harness:
            await harness.until(id_, state="done", uncertain=True)
        assert len(provider.taken) == 1  # of two that came


async def test_stopping_waits_for_no_reply_on_a_connection_that_has_ended(database_url: str) -> None:
    async with scripted_smtp() as provider, sending(database_url) as harness:
        await harness.accounts({SUPPORT: provider.port}, connections=1)
        # given some mails, one whose connection ended without a reply, and a next connection that hangs
        await harness.rows("update external_accounts set enabled = false")
        for _ in range(20):
            await harness.submit(ANN)
        provider.say("GREETING", "220 ready")
        provider.always("GREETING", HANG)
        provider.say("END", *["250 ok"] * 9, CLOSE)
        await harness.rows("update external_accounts set enabled = true")

        async def waits() -> bool:
            return provider.connections == 2

        await until(waits)
        # when the sender stops, it does not wait for a reply that cannot come
        async with asyncio.timeout(10):
            await harness.relaying.stop(0.2, 30.0)
        assert await harness.rows("select count(*)::int from submissions where uncertain") == [(1,)]


# ---------------------------------------------------------------------------------------------- time


async def test_a_late_mail_gets_a_notice_after_four_hours_then_daily(
    harness: SenderHarness, provider: ScriptedSmtp
) -> None:
    # given a paused account
    provider.always("AUTH", "535 5.7.8 wrong")
    id_ = await harness.submit(ANN)
    await until(lambda: harness.rows("select 1 from relays where paused_at is not null"))
    await harness.upkeep.notify_authors()
    assert await harness.notices("Alex") == []
    # when four hours have passed
    await harness.rows("update submissions set created_at = now() - interval '4 hours 1 second'")
    await harness.upkeep.notify_authors()
    await harness.upkeep.notify_authors()
    # then there is one notice, with the account's trouble in it
    [notice] = await harness.notices("Alex")
    assert b"Action: delayed\r\nStatus: 4.4.1\r\n" in notice and b"535 5.7.8 wrong" in notice
    # and a day later another one
    await harness.rows("update submissions set delay_noticed_at = now() - interval '1 day'")
    await harness.upkeep.notify_authors()
    assert len(await harness.notices("Alex")) == 2
    assert (await harness.listed(id_)).state == "queued"


async def test_after_five_days_a_mail_has_failed(harness: SenderHarness, provider: ScriptedSmtp) -> None:
    # given a mail that was refused for five days
    provider.always("RCPT", "451 4.3.0 later")
    id_ = await harness.submit(ANN, BOB)
    await harness.until(id_, state="queued", tries=1)
    await harness.rows("update submissions set created_at = now() - interval '5 days 1 second'")
    # when
    await harness.upkeep.notify_authors()
    # then it is done, and the author gets a notice with the last reply
    found = await harness.listed(id_)
    assert (found.state, [state for state, _ in replies(found)]) == ("done", ["failed", "failed"])
    [notice] = await harness.notices("Alex")
    assert notice.count(b"Action: failed\r\nStatus: 4.4.7\r\n") == 2 and b"451 4.3.0 later" in notice


async def test_a_paused_account_bounces_nothing_and_later_tries_its_old_mail(
    harness: SenderHarness, provider: ScriptedSmtp
) -> None:
    # given an account whose login has been refused for six days
    provider.always("AUTH", "535 5.7.8 wrong")
    id_ = await harness.submit(ANN)
    await until(lambda: harness.rows("select 1 from relays where paused_at is not null"))
    await harness.rows("update submissions set created_at = now() - interval '6 days', delay_noticed_at = now()")
    await harness.upkeep.notify_authors()
    assert (await harness.listed(id_)).state == "queued"
    # when it is corrected, then its mail is not given up before it was tried
    provider.always("AUTH", None)
    async with harness.database.transaction() as connection:
        await relays.unpause(connection, harness.externals[SUPPORT].id)
    await harness.upkeep.notify_authors()
    await harness.until(id_, state="done")
    assert len(provider.taken) == 1 and await harness.notices("Alex") == []


async def test_mail_of_a_disabled_account_has_failed_after_five_days_too(harness: SenderHarness) -> None:
    await harness.rows("update external_accounts set enabled = false")
    id_ = await harness.submit(ANN)
    await harness.rows("update submissions set created_at = now() - interval '5 days 1 second'")
    await harness.upkeep.notify_authors()
    assert (await harness.listed(id_)).state == "done"
    [notice] = await harness.notices("Alex")
    assert b"Action: failed" in notice


# ---------------------------------------------------------------------------------------------- failures, sizes, hands


async def test_a_mail_whose_handling_fails_five_times_is_parked_others_go_on(
    harness: SenderHarness, provider: ScriptedSmtp, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a mail that cannot be written, and another one
    write = outgoing_message.build_message

    def broken(
        database: Database, group: QueuedMail, external: External, source: MessageSource | None
    ) -> OutgoingMessage:
        if group.message_id == "broken@local.com":
            raise ZeroDivisionError("a fault of ours")
        return write(database, group, external, source)

    monkeypatch.setattr(outgoing_message, "build_message", broken)
    bad = await harness.submit(ANN, message_id="broken@local.com")
    await harness.until(await harness.submit(ANN), state="done")
    # when it is tried five times
    for failures in range(1, 6):

        async def counted(failures: int = failures) -> bool:
            return bool(await harness.rows("select 1 from submissions where id = %s and failures = %s", bad, failures))

        await until(counted)
        await harness.make_due()
    # then it is parked with its traceback
    found = await harness.listed(bad)
    assert (found.state, found.origin) == ("parked", "sender: relay")
    assert "ZeroDivisionError: a fault of ours" in str(found.error)
    # and it is sent when the cause is fixed and the mail is requeued
    monkeypatch.undo()
    async with harness.database.transaction() as connection:
        assert await submissions_admin.requeue_submissions(connection, [bad]) == [bad]
    await harness.until(bad, state="done")
    assert len(provider.taken) == 2


async def test_fifty_megabytes_leave_in_bounded_memory(harness: SenderHarness, provider: ScriptedSmtp) -> None:
    # given 50 MB of lines that start with dots, and a provider that reads slowly and only counts octets
    provider.discards, provider.pause = True, 0.003
    line = b"." + b"x" * 74 + b"\r\n"
    count = 50 * MIB // len(line)
    await harness.rows("update external_accounts set enabled = false")
    id_ = await harness.submit(ANN, mail=MAIL + line * count)
    before = _peak(reset=True)
    # when it is relayed
    await harness.rows("update external_accounts set enabled = true")
    await harness.until(id_, state="done")
    # then all of it went, each dot doubled, and memory grew by a few pieces
    assert provider.octets_seen > count * (len(line) + 1)
    assert _peak() - before < 16 * MIB


def _peak(reset: bool = False) -> int:
    if reset:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    [line] = [line for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines() if "VmHWM" in line]
    return int(line.split()[1]) * 1024


async def test_a_long_header_is_rewritten_too(harness: SenderHarness, provider: ScriptedSmtp) -> None:
    # given a header larger than the 256 KiB that are stored separately
    padding = b"".join(b"X-%d: %s\r\n" % (n, b"y" * 900) for n in range(600))
    await harness.until(await harness.submit(ANN, mail=padding + MAIL), state="done")
    assert b'From: "Alex" <support@company.com>\r\n' in provider.taken[0].mail
    assert provider.taken[0].mail.endswith(b"\r\n\r\na body\r\n.with dots\r\n")


async def test_the_operator_lists_retries_and_cancels(harness: SenderHarness, provider: ScriptedSmtp) -> None:
    # given two mails that wait for another try
    provider.say("RCPT", "451 4.3.0 later", "451 4.3.0 later")
    first, second = await harness.submit(ANN, "jim@local.com"), await harness.submit(BOB)
    for id_ in (first, second):
        await harness.until(id_, state="queued", tries=1)
    async with harness.database.transaction() as connection:
        assert [found.id for found in await submissions_admin.list_submissions(connection)] == [first, second]
        assert list(await submissions_admin.find_submission(connection, BOB)) == [second]
        assert list(await submissions_admin.find_submission(connection, str(first))) == [first]
        # when one is cancelled and everything else retried
        assert await submissions_admin.cancel_submissions(connection, [first, 10_000], "not wanted any more") == {
            first: [ANN]
        }
        assert await submissions_admin.retry_submissions(connection) == [second]
    # then only the other one leaves
    await harness.until(second, state="done")
    assert [taken.recipients for taken in provider.taken] == [[BOB]]
    assert [state for state, _ in replies(await harness.listed(first))] == ["cancelled", "delivered"]


async def test_authorship_precedes_any_answer_and_an_id_keeps_its_first_author(
    harness: SenderHarness,
) -> None:
    # given the same Message-ID from two people of the share, before anything is relayed
    await harness.rows("update external_accounts set enabled = false")
    await harness.submit(ANN, message_id="same@x")
    await harness.submit(ANN, message_id="same@x", author="Jim")
    async with harness.database.transaction() as connection:
        [sent] = (await sent_mail.find_sent(connection, ["same@x"]))["same@x"]
        assert sent.author_id == harness.people["Alex"].id
        # and after five years it is forgotten
        await connection.execute("update sent_mail set recorded_at = now() - interval '5 years 1 day'")
        assert await sent_mail.find_sent(connection, ["same@x"]) == {}
