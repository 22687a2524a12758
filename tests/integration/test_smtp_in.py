"""services/smtp_in over real sockets: its replies, the stored mail, and the order of both."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from psycopg.errors import DiskFull

from services.admin.monitoring import problems
from services.sender import outcomes
from services.smtp_in import connection as smtp_connection
from services.smtp_in.commit_queue import CommittedSubmission, PendingSubmission
from services.smtp_in.recipient_policy import Directory
from shared.amqp import topology
from shared.amqp.broker import Broker
from shared.amqp.payloads import SubmittedItem, read_payload
from shared.auth.passwords import hash_password
from shared.db.database import Connection, Database
from shared.model import Content
from shared.store import account_changes, accounts, blobs, inbound, maillog, relay_notices, submissions
from shared.store.inbound import Arrival
from tests.polling import until
from tests.submission_harness import Client, Running, plain, running

DIALOGUES = {
    path.stem: path.read_text().splitlines()
    for path in sorted((Path(__file__).parent.parent / "dialogues" / "smtp").glob("*.txt"))
}


@pytest.fixture
async def server(database: Database, broker_url: str, tmp_path: Path) -> AsyncIterator[Running]:
    """A server with the settings of a first start."""
    async with running(database, broker_url, tmp_path) as started:
        yield started


# ------------------------------------------------------------------------------------------------ dialogues


@pytest.mark.parametrize("name", DIALOGUES)
async def test_the_dialogue_goes_as_written(name: str, server: Running) -> None:
    """C: says a line, C> too, without waiting. S: the next reply begins so; S+ and S- what its lines hold or do not.

    TLS: shake hands. CLOSED: the server closes.
    """
    first, *script = DIALOGUES[name]
    port = server.port(first.removeprefix("# port: "))
    trusting = ssl.create_default_context(cafile=str(server.cafile))
    client = await Client.connect(port, context=trusting if script[0] == "TLS" else None)
    lines: list[str] = []

    for number, step in enumerate(script):
        where, text = f"{name}.txt:{number + 2}: {step}", step[3:]
        match step[:2]:
            case "C:" | "C>":
                client.writer.write(text.encode() + b"\r\n")
            case "S:":
                lines = await client.reply()
                assert lines and lines[-1].startswith(text), f"{where}: {lines}"
            case "S+":
                assert any(line[4:].startswith(text) for line in lines), f"{where}: {lines}"
            case "S-":
                assert not any(line[4:].startswith(text) for line in lines), f"{where}: {lines}"
            case "TL" if number:
                await client.writer.start_tls(trusting, server_hostname="localhost")
            case "CL":
                assert await client.closed(), where
            case other:
                assert other in ("# ", "TL", ""), where
    client.writer.close()


# ------------------------------------------------------------------------------------------------ what is stored


async def test_a_mail_is_stored_with_its_recipients_and_announced(server: Running, broker_url: str) -> None:
    broker = Broker(broker_url, "consumer")
    consumer = broker.consume(topology.SENDER, 10)
    await broker.open()
    client = await Client.logged_in(server)

    reply = await client.send(
        b"From: alex@local.com\nMessage-ID: <1@local.com>\r\n\r\n..dot\r\nlone\n.\r\n\r\n.\r\n",
        "jim@local.com",
        "JIM@local.com",
        "away@local.com",
        "sales@company.com",
        "customer@example.net",
        "customer@EXAMPLE.net",
    )

    [(listed, stored)] = await server.stored()
    assert reply == f"250 2.0.0 Queued as {listed.id}"
    assert stored == b"From: alex@local.com\r\nMessage-ID: <1@local.com>\r\n\r\n.dot\r\nlone\r\n.\r\n\r\n"
    assert (listed.author, listed.external) == ("alex@local.com", "support@company.com")
    assert listed.message_id == "1@local.com"
    assert [(r.address, r.kind) for r in listed.recipients] == [
        ("jim@local.com", "local"),
        ("sales@company.com", "external"),
        ("customer@example.net", "relay"),
    ]
    async with server.database.transaction() as connection:
        cursor = await connection.execute("select event, submission_id, external, who from maillog")
        assert await cursor.fetchall() == [("submitted", listed.id, "support@company.com", "alex@local.com")]
    [delivery] = await asyncio.wait_for(consumer.batch(10), 10)
    assert read_payload(SubmittedItem, delivery.body) == SubmittedItem(id=listed.id, external="support@company.com")
    await broker.close()


async def test_lines_before_the_first_field_are_not_stored(server: Running) -> None:
    # given a mail with its fields, and what clients send before it
    mail = b"From: Alex <alex@local.com>\r\nTo: c@customer.example\r\nSubject: s\r\n\r\nx\r\n"
    mbox = b"From alex@local.com Mon Nov 30 10:00:00 2026"
    befores = [
        mbox + b"\r\n",
        b">" + mbox + b"\r\n" + mbox + b"\n",
        b"\xef\xbb\xbf",
        b"\r\n\n",
        mbox + b"\n\xef\xbb\xbf",
    ]
    client = await Client.logged_in(server)
    # when each is sent to a customer and to a colleague, with both line ends
    for before in befores:
        for written in (mail, mail.replace(b"\r\n", b"\n")):
            reply = await client.send(before + written + b"\r\n.\r\n", "c@customer.example", "jim@local.com")
            assert reply.startswith("250")
    # then the same mail is stored, without these lines; a foreign author behind them is refused like any other
    assert {stored.rstrip() for _, stored in await server.stored()} == {mail.rstrip()}
    assert len(await server.stored()) == 2 * len(befores)
    foreign = mail.replace(b"alex@local.com", b"boss@other.example")
    for before in befores:
        assert (await client.send(before + foreign + b".\r\n")).startswith("550 5.7.1")


async def test_a_mail_is_redirected_only_by_those_who_received_it(server: Running) -> None:
    # given a customer's mail in Alex's mailbox, and one that is still on its way there
    async with server.database.transaction() as connection:
        [blob_id] = await blobs.store_blobs(connection, [Content.from_bytes(b"Subject: x\r\n\r\n")])
        ids = await inbound.add_inbound(
            connection,
            [
                Arrival("fetched", blob_id, external_id=server.ids["support"], message_id=f"{name}@customer.org")
                for name in ("read", "late")
            ],
        )
        await connection.execute(
            """insert into deliveries (inbound_id, local_id, reason, done_at)
               values (%s, %s, '', now()), (%s, %s, '', null)""",
            (ids[0], server.ids["alex"], ids[1], server.ids["alex"]),
        )
    # when Alex, and then Jim, redirect them to another customer
    replies = {}
    for who in ("alex", "jim"):
        client = await Client.logged_in(server, who)
        for name in ("read", "late", "none"):
            mail = (
                f"Resent-From: {who}@local.com\r\nMessage-ID: <{name}@customer.org>\r\nFrom: ann@customer.org\r\n\r\n"
            )
            replies[who, name] = await client.send(mail.encode() + b".\r\n", sender=f"{who}@local.com")
    # then only the one that was delivered to its sender is accepted
    assert replies.pop(("alex", "read")).startswith("250")
    assert all(reply.startswith("550 5.7.1") and "forward it instead" in reply for reply in replies.values())
    # and answers to it belong to the customer's mail, not to Alex
    async with server.database.transaction() as connection:
        cursor = await connection.execute("select count(*)::int from sent_mail")
        assert await cursor.fetchall() == [(0,)]


async def test_an_invitation_with_a_local_organizer_is_counted_and_traced(server: Running) -> None:
    # given invitations with a local and an external organizer, and one for a colleague
    invitation = (
        b"Message-ID: <1@x.example>\r\nContent-Type: text/calendar\r\n\r\nORGANIZER:mailto:alex@local.com\r\n.\r\n"
    )
    client = await Client.logged_in(server)
    before = smtp_connection.LOCAL_ORGANIZERS._value.get()
    assert (await client.send(invitation)).startswith("250")
    assert (await client.send(invitation.replace(b"alex@local.com", b"support@company.com"))).startswith("250")
    assert (await client.send(invitation, "jim@local.com")).startswith("250")
    # then only the first is counted, and its trace says what to do
    assert smtp_connection.LOCAL_ORGANIZERS._value.get() == before + 1
    async with server.database.transaction() as connection:
        cursor = await connection.execute("select reply from maillog where event = 'submitted' order by id")
        first, *others = [row[0] for row in await cursor.fetchall()]
    assert "calendar to support@company.com" in first and others == ["<1@x.example>"] * 2
    # and so do status and alarms, for some days, with the author, the account and how many there were
    async with server.database.transaction() as connection:
        counted = await maillog.count_local_organizers(connection)
        assert counted == [maillog.LocalOrganizers("alex@local.com", "support@company.com", 1)]
        cursor = await connection.execute("select reply from maillog where event = 'local_organizer'")
        assert await cursor.fetchall() == [("alex@local.com",)]
        facts = await problems.load_facts(connection)
        [problem] = [each for each in problems.find_problems(facts) if each.kind == "organizer"]
        assert (
            problem.text.startswith("alex@local.com: 1 invitations in 3 days") and "support@company.com" in problem.text
        )
        await connection.execute("update maillog set at = now() - interval '73 hours'")
        assert await maillog.count_local_organizers(connection) == []


async def test_a_mail_without_a_good_message_id_gets_one_in_the_external_domain(server: Running) -> None:
    client = await Client.logged_in(server)

    await client.send(b"Message-ID: <bad\r\n\r\n.\r\n")

    [(listed, _)] = await server.stored()
    assert re.fullmatch(r"[0-9a-f-]{36}@company\.com", listed.message_id)


async def test_8bit_and_utf8_are_noted_only_where_they_are_needed(server: Running) -> None:
    client = await Client.logged_in(server)
    for header, body in ((b"Subject: a", b"b"), (b"Subject: a", b"\xe9"), (b"Subject: \xc3\xa9", b"b")):
        await client.ask("MAIL FROM:<alex@local.com> BODY=8BITMIME SMTPUTF8", "RCPT TO:<x@example.net>", "DATA")
        client.writer.write(header + b"\r\n\r\n" + body + b"\r\n.\r\n")
        assert (await client.reply())[0].startswith("250")

    async with server.database.transaction() as connection:
        cursor = await connection.execute("select body_8bit, smtputf8 from submissions order by id")
        assert await cursor.fetchall() == [(False, False), (True, False), (True, True)]


async def test_the_dsn_parameters_of_a_submission_are_stored(server: Running) -> None:
    client = await Client.logged_in(server)
    await client.ask(
        "MAIL FROM:<alex@local.com> RET=HDRS ENVID=QQ+3D1",
        "RCPT TO:<jim@local.com> NOTIFY=NEVER",
        "RCPT TO:<x@example.net> ORCPT=rfc822;x+2By@example.net NOTIFY=success",
        "RCPT TO:<y@example.net>",
        "DATA",
    )
    client.writer.write(b"Subject: x\r\n\r\n.\r\n")
    assert (await client.reply())[0].startswith("250")

    async with server.database.transaction() as connection:
        cursor = await connection.execute("select dsn_params from submissions")
        assert await cursor.fetchall() == [("RET=HDRS ENVID=QQ+3D1",)]
        cursor = await connection.execute("select dsn_params from submission_recipients order by position")
        assert [row[0] for row in await cursor.fetchall()] == [
            "NOTIFY=NEVER",
            "ORCPT=rfc822;x+2By@example.net NOTIFY=SUCCESS",
            None,
        ]


async def test_nothing_is_smuggled_inside_a_mail(server: Running) -> None:
    client = await Client.logged_in(server)
    for end in (b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"\r\n.\r"):
        reply = await client.send(
            b"Subject: x\r\n\r\na" + end + b"MAIL FROM:<alex@local.com>\r\n"
            b"RCPT TO:<evil@example.org>\r\nDATA\r\nSubject: smuggled\r\n\r\n.\r\n"
        )
        assert reply.startswith("250")
        assert (await client.ask("NOOP")).startswith("250 2.0.0")

    stored = await server.stored()
    assert len(stored) == 5
    assert all([r.address for r in listed.recipients] == ["x@example.net"] for listed, _ in stored)


# ------------------------------------------------------------------------------------------------ commit and answer


@pytest.mark.parametrize("octets", [0, blobs.HEAD_OCTETS])
async def test_no_250_precedes_the_commit(server: Running, octets: int) -> None:
    client = await Client.logged_in(server)

    # given a transaction that locks the last row that is written for a mail
    async with server.database.transaction() as connection:
        await connection.execute("lock table maillog in exclusive mode")
        sending = asyncio.create_task(client.send(b"Subject: x\r\n\r\n" + b"x\r\n" * (octets // 3) + b".\r\n"))
        await asyncio.sleep(0.5)
        assert not sending.done() and not await server.stored()

    assert (await sending).startswith("250") and len(await server.stored()) == 1


@pytest.mark.parametrize("error", [DiskFull("no room"), RuntimeError("of ours"), ValueError("secret detail")])
async def test_a_failing_commit_is_a_temporary_failure_without_details(
    server: Running, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async def fail(connection: Connection, batch: Sequence[submissions.Submission]) -> list[int | None]:
        raise error

    monkeypatch.setattr(submissions, "record_submissions", fail)
    client = await Client.logged_in(server)

    reply = await client.send(b"Subject: x\r\n\r\n.\r\n")

    assert reply == "451 4.3.0 The server cannot take it now, try again later"
    monkeypatch.undo()
    assert (await client.send(b"Subject: x\r\n\r\n.\r\n")).startswith("250")


async def test_a_client_gets_no_reply_if_the_outcome_of_its_commit_is_unknown(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a database whose connection ends before the reply to a commit
    record = submissions.record_submissions

    async def cut_off(connection: Connection, batch: Sequence[submissions.Submission]) -> list[int | None]:
        await record(connection, batch)
        raise psycopg.OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr(submissions, "record_submissions", cut_off)
    client = await Client.logged_in(server)

    # then neither a yes nor a no is said, so the client tries again
    assert await client.send(b"Subject: x\r\n\r\n.\r\n") == ""
    assert len(await server.stored()) == 1


async def test_a_bad_mail_fails_alone(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    record = submissions.record_submissions

    async def picky(connection: Connection, batch: Sequence[submissions.Submission]) -> list[int | None]:
        await asyncio.sleep(0.05)  # so that the others queue
        if any(b"poison" in each.content.body for each in batch):
            await connection.execute("select 1/0")
        return await record(connection, batch)

    monkeypatch.setattr(submissions, "record_submissions", picky)
    clients = [await Client.logged_in(server) for _ in range(6)]

    replies = await asyncio.gather(
        *(
            client.send(b"Subject: %s\r\n\r\n.\r\n" % (b"poison" if number == 3 else b"good"))
            for number, client in enumerate(clients)
        )
    )

    assert [reply[:3] for reply in replies] == ["250", "250", "250", "451", "250", "250"]
    assert len(await server.stored()) == 5


async def test_a_mail_is_stored_even_if_its_client_disconnects_after_the_dot(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    committing = asyncio.Event()
    record = submissions.record_submissions

    async def slow(connection: Connection, batch: Sequence[submissions.Submission]) -> list[int | None]:
        committing.set()
        await asyncio.sleep(0.3)
        return await record(connection, batch)

    monkeypatch.setattr(submissions, "record_submissions", slow)
    client = await Client.logged_in(server)
    sending = asyncio.create_task(client.send(b"Subject: x\r\n\r\n.\r\n"))
    await committing.wait()

    client.writer.transport.abort()

    await sending
    await until(server.stored)
    assert len(await server.stored()) == 1


async def test_a_client_that_closes_its_side_gets_the_outstanding_replies(server: Running) -> None:
    login, mail = plain("alex@local.com"), "MAIL FROM:<alex@local.com>\r\nRCPT TO:<x@example.net>\r\nDATA"
    for said, answers in (
        (f"EHLO x\r\n{login}\r\n{mail}\r\nSubject: x\r\n\r\nbody\r\n.\r\nQUIT\r\n", "220 250 235 250 250 354 250 221"),
        (f"EHLO x\r\n{login}\r\n{mail}\r\nSubject: x\r\n\r\nbody\r\n.\r\n", "220 250 235 250 250 354 250"),
        (f"EHLO x\r\n{login}\r\n{mail}\r\nSubject: x\r\n\r\nbody\r\n", "220 250 235 250 250 354"),
        ("EHLO x\r\nNOOP", "220 250"),
        ("EHLO x\r\nSTARTTLS\r\n", "220 250 220"),
    ):
        client = await Client.connect(server.port("smtp"))
        client.writer.write(said.encode())
        client.writer.write_eof()
        got = []
        while lines := await client.reply():
            got.append(lines[-1][:3])
        assert " ".join(got) == answers, said
        client.writer.close()
    async with asyncio.timeout(10):
        await server.listener.registry.closed.wait()
    assert [stored for _, stored in await server.stored()] == [b"Subject: x\r\n\r\nbody\r\n"] * 2


async def test_an_account_that_is_disabled_sends_nothing_more(server: Running) -> None:
    async def change(**changes: object) -> None:
        async with server.database.transaction() as connection:
            [alex] = await accounts.load_locals(connection, [server.ids["alex"]])
            await account_changes.save_local(connection, replace(alex, **changes))  # type: ignore[arg-type]  # fields

    first, second = await Client.logged_in(server), await Client.logged_in(server)
    assert (await second.ask("MAIL FROM:<alex@local.com>", "RCPT TO:<x@example.net>", "DATA")).startswith("354")

    await change(enabled=False)

    # then a mail is refused for good, and between mails the client is asked to log in again
    second.writer.write(b"Subject: x\r\n\r\n.\r\n")
    assert (await second.reply())[-1].startswith("550 5.7.1") and await second.closed()
    assert (await first.ask("MAIL FROM:<alex@local.com>")).startswith("421 4.7.0") and await first.closed()
    assert not await server.stored()


async def change_local(server: Running, who: str, **changes: object) -> None:
    """Commit a change of a local account."""
    async with server.database.transaction() as connection:
        [local] = await accounts.load_locals(connection, [server.ids[who]])
        await account_changes.save_local(connection, replace(local, **changes))  # type: ignore[arg-type]  # fields


async def test_a_change_of_accounts_counts_for_the_next_mail(server: Running) -> None:
    client = await Client.logged_in(server)
    for enabled, expected in ((True, "250 2.0.0"), (False, "550 5.2.1"), (True, "250 2.0.0")):
        await change_local(server, "gone", enabled=enabled)

        # then a recipient is refused by the accounts as they are, at RCPT or when the mail is complete
        replies = [await client.ask(line) for line in ("MAIL FROM:<alex@local.com>", "RCPT TO:<gone@local.com>")]
        if replies[-1].startswith("250"):
            assert (await client.ask("DATA")).startswith("354")
            replies = [await client.ask("Subject: x\r\n\r\n.")]
        assert replies[-1].startswith(expected)
        await client.ask("RSET")


async def test_an_accepted_command_does_not_wait_for_the_database(server: Running) -> None:
    # given two addresses that are the same person's, and a database that does not answer
    await change_local(server, "jim", addresses=("info@local.com",))
    client = await Client.logged_in(server)
    await client.ask("MAIL FROM:<alex@local.com>", "RCPT TO:<x@example.net>", "RSET")
    question: asyncio.Future[Directory] = asyncio.get_running_loop().create_future()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server.commit_queue, "refresh_directory", lambda: question)
        patch.setattr(server.commit_queue, "refresh_in_background", lambda: None)
        # then who is accepted does not wait, who is refused does
        assert (await client.ask("MAIL FROM:<alex@local.com>")).startswith("250")
        assert (await client.ask("RCPT TO:<jim@local.com>", "RCPT TO:<info@local.com>")).startswith("250")
        client.writer.write(b"RCPT TO:<nobody@local.com>\r\n")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.reply(), 0.3)
    # and when they are two people's by then, both get the mail
    await change_local(server, "jim", addresses=())
    await change_local(server, "gone", enabled=True, addresses=("info@local.com",))
    question.set_result(await server.commit_queue.refresh_directory())
    assert (await client.reply())[-1].startswith("550 5.1.1")
    assert (await client.ask("DATA")).startswith("354")
    assert (await client.ask("Subject: x\r\n\r\n.")).startswith("250")
    [(stored, _)] = await server.stored()
    assert {(each.address, each.kind) for each in stored.recipients} == {
        ("jim@local.com", "local"),
        ("info@local.com", "local"),
    }


async def test_a_mail_goes_to_the_owner_of_the_address_at_its_end(server: Running) -> None:
    await change_local(server, "jim", addresses=("info@local.com",))
    client = await Client.logged_in(server)
    await client.ask("MAIL FROM:<alex@local.com>", "RCPT TO:<info@local.com>", "RCPT TO:<new@local.com>", "DATA")
    # when another person gets both addresses, the accepted and the refused one
    await change_local(server, "jim", addresses=())
    await change_local(server, "gone", enabled=True, addresses=("info@local.com", "new@local.com"))

    assert (await client.ask("Subject: x\r\n\r\n.")).startswith("250")

    async with server.database.transaction() as connection:
        cursor = await connection.execute("select address, kind, target_id from submission_recipients")
        assert await cursor.fetchall() == [("info@local.com", "local", server.ids["gone"])]


async def test_a_recipient_gone_with_its_whole_domain_is_not_relayed(server: Running) -> None:
    # given a domain with one account
    async with server.database.transaction() as connection:
        [jim] = await accounts.load_locals(connection, [server.ids["jim"]])
        ann = await account_changes.save_local(connection, replace(jim, id=0, address="ann@alone.example"))
    client = await Client.logged_in(server)
    await client.ask("MAIL FROM:<alex@local.com>", "RCPT TO:<ann@alone.example>", "RCPT TO:<x@example.net>", "DATA")

    async with server.database.transaction() as connection:
        await account_changes.remove_account(connection, "local", ann)

    assert (await client.ask("Subject: x\r\n\r\n.")).startswith("250")
    [(listed, _)] = await server.stored()
    assert [(r.address, r.kind, r.state) for r in listed.recipients] == [
        ("x@example.net", "relay", "waiting"),
        ("ann@alone.example", "local", "cancelled"),
    ]


@pytest.mark.parametrize("how", ["removed", "disabled"])
async def test_the_author_gets_a_notice_about_a_recipient_gone_since_rcpt(server: Running, how: str) -> None:
    client = await Client.logged_in(server)
    await client.ask("MAIL FROM:<support@company.com>")
    await client.ask("RCPT TO:<jim@local.com> NOTIFY=FAILURE", "RCPT TO:<x@example.net>", "DATA")
    async with server.database.transaction() as connection:
        if how == "removed":
            await account_changes.remove_account(connection, "local", server.ids["jim"])
        else:
            [jim] = await accounts.load_locals(connection, [server.ids["jim"]])
            await account_changes.save_local(connection, replace(jim, enabled=False))

    assert (await client.ask("Message-ID: <1@local.com>\r\n\r\n.")).startswith("250")

    # then the mail goes to the others, the address is settled for good, and the sender tells the author
    [(listed, _)] = await server.stored()
    code = "550 5.1.1" if how == "removed" else "550 5.2.1"
    assert [(r.address, r.kind, r.state, (r.reply or "")[:9]) for r in listed.recipients] == [
        ("x@example.net", "relay", "waiting", ""),
        ("jim@local.com", "local", "cancelled", code),
    ]
    async with server.database.transaction() as connection:
        after = await outcomes.notify_cancelled(connection, await relay_notices.list_cancelled(connection))
        again = await outcomes.notify_cancelled(connection, await relay_notices.list_cancelled(connection))
        cursor = await connection.execute(
            "select event, who from maillog where submission_id = %s order by id", (listed.id,)
        )
        events = await cursor.fetchall()
    assert ("cancelled", "jim@local.com") in events and ("noticed", "alex@local.com") in events
    assert [event.who for event in after.events] == ["alex@local.com"] and not again.events


async def test_a_mail_whose_recipients_are_all_gone_is_refused(server: Running) -> None:
    client = await Client.logged_in(server)
    await client.ask("MAIL FROM:<alex@local.com>", "RCPT TO:<jim@local.com>", "DATA")
    await change_local(server, "jim", enabled=False)

    assert (await client.ask("Subject: x\r\n\r\n.")).startswith("550 5.2.1")
    assert not await server.stored()


async def test_a_change_under_way_delays_the_mail_of_that_account_only(server: Running) -> None:
    alex, jim = await Client.logged_in(server), await Client.logged_in(server, "jim")
    async with server.database.transaction() as connection:
        [account] = await accounts.load_locals(connection, [server.ids["alex"]])
        await account_changes.save_local(connection, replace(account, enabled=False))
        sending = asyncio.create_task(alex.send(b"Subject: x\r\n\r\n.\r\n"))
        # then others send meanwhile, also in the same commit, and the mail waits for the outcome
        for _ in range(3):
            assert (await jim.send(b"Subject: y\r\n\r\n.\r\n", sender="jim@local.com")).startswith("250")
        assert not sending.done()

    assert (await sending).startswith("550 5.7.1")
    assert len(await server.stored()) == 3


@pytest.mark.parametrize("who", ["alex", "jim"])
async def test_what_was_checked_holds_until_the_commit(
    server: Running, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    recorded, changed = asyncio.Event(), asyncio.Event()
    record = submissions.record_submissions

    async def slow(connection: Connection, batch: Sequence[submissions.Submission]) -> list[int | None]:
        ids = await record(connection, batch)
        recorded.set()
        with suppress(TimeoutError):
            await asyncio.wait_for(changed.wait(), 0.5)
        assert not changed.is_set()  # author and recipient are locked
        return ids

    monkeypatch.setattr(submissions, "record_submissions", slow)
    client = await Client.logged_in(server)
    mail = b"Subject: x\r\n\r\n" + b"x\r\n" * blobs.HEAD_OCTETS + b".\r\n"  # in a transaction
    sending = asyncio.create_task(client.send(mail, "jim@local.com"))
    await recorded.wait()

    await change_local(server, who, enabled=False)
    changed.set()

    assert (await sending).startswith("250")


async def test_accounts_that_change_all_the_time_are_a_temporary_failure(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smtp_connection, "COMMIT_PAUSES", (0.0, 0.01))
    client = await Client.logged_in(server)
    async with server.database.transaction() as connection:
        [account] = await accounts.load_locals(connection, [server.ids["alex"]])
        await account_changes.save_local(connection, replace(account, user_name="A."))
        assert (await client.send(b"Subject: x\r\n\r\n.\r\n")).startswith("451 4.3.0")
    assert (await client.send(b"Subject: x\r\n\r\n.\r\n")).startswith("250")


async def test_an_idle_database_connection_that_broke_causes_no_failure(server: Running) -> None:
    client = await Client.logged_in(server)
    assert (await client.ask("MAIL FROM:<alex@local.com>", "RSET")).startswith("250")
    async with server.database.statement() as connection:
        await connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where query like '%accounts_version%'"
            " and datname = current_database() and pid <> pg_backend_pid()"
        )

    assert (await client.ask("MAIL FROM:<alex@local.com>")).startswith("250")


async def test_a_session_in_the_middle_of_a_mail_ends_with_its_account(server: Running) -> None:
    watcher = asyncio.create_task(server.listener.registry.end_invalid_sessions(server.database, 0.1))
    alex, jim = await Client.logged_in(server), await Client.logged_in(server, "jim")
    for client, who in ((alex, "alex"), (jim, "jim")):
        await client.ask(f"MAIL FROM:<{who}@local.com>", "RCPT TO:<x@example.net>", "DATA")
        client.writer.write(b"Subject: x\r\n\r\n" + b"x" * 300_000)

    await change_local(server, "alex", enabled=False)

    assert (await alex.reply())[-1].startswith("421 4.7.0") and await alex.closed()
    await until(lambda: len(server.listener.registry.connections) == 1)
    jim.writer.write(b"\r\n.\r\n")
    assert (await jim.reply())[-1].startswith("250") and server.commit_queue.memory.in_use == 0
    assert len(await server.stored()) == 1
    watcher.cancel()


async def test_a_mail_that_is_being_committed_gets_its_reply_before_the_end(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = submissions.record_submissions

    async def ending(connection: Connection, batch: Sequence[submissions.Submission]) -> list[int | None]:
        ids = await record(connection, batch)
        for session in server.listener.registry.connections:
            session.on_account_changed()
        return ids

    monkeypatch.setattr(submissions, "record_submissions", ending)
    client = await Client.logged_in(server)

    assert (await client.send(b"Subject: x\r\n\r\n.\r\n")).startswith("250")
    assert (await client.reply())[-1].startswith("421 4.7.0") and await client.closed()


async def test_sessions_of_a_changed_account_end_by_themselves(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    watcher = asyncio.create_task(server.listener.registry.end_invalid_sessions(server.database, 0.1))
    alex, jim = await Client.logged_in(server), await Client.logged_in(server, "jim")
    async with server.database.transaction() as connection:
        [account] = await accounts.load_locals(connection, [server.ids["alex"]])
        await account_changes.save_local(connection, replace(account, password_hash=hash_password("new")))

    assert (await alex.reply())[-1].startswith("421") and await alex.closed()
    assert (await jim.ask("NOOP")).startswith("250")
    watcher.cancel()


async def test_every_accepted_mail_is_part_of_a_batch(server: Running) -> None:
    batches: list[int] = []
    write = server.commit_queue._group._write

    async def counted(connection: Connection, batch: Sequence[PendingSubmission]) -> Sequence[CommittedSubmission]:
        batches.append(len(batch))
        await asyncio.sleep(0.005)  # so that others arrive meanwhile, also with a fast disk
        return await write(connection, batch)

    server.commit_queue._group._write = counted

    async def worker() -> None:
        client = await Client.logged_in(server)
        for number in range(10):
            assert (await client.send(b"Subject: %d\r\n\r\nbody\r\n.\r\n" % number)).startswith("250")

    await asyncio.gather(*(worker() for _ in range(16)))

    assert sum(batches) == 160 == len(await server.stored())
    assert len(batches) < 160
