"""Reply tags: switched on after a probe mail, in the Reply-To of what leaves, and followed by what comes back."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from services.admin.accounts import tag_probe
from services.admin.accounts.errors import AccountsError
from services.admin.cli.app import app
from services.admin.context import AdminContext
from services.admin.mail import operations
from services.admin.monitoring import reconciliation
from services.admin.monitoring.found_authors import describe_found, load_found_authors
from shared.auth.passwords import HashingPool
from shared.db.database import Database
from shared.errors import Permanent
from shared.mime import headers
from shared.mime.reply_tags import author_of, make_tag
from shared.provider.vault import Vault
from shared.settings import Settings
from shared.store import reply_tags
from tests import company, servers
from tests.company import COMPANY, SALES, SUPPORT, apply, everyone, external, mailbox_of
from tests.correspondence import ALEX, JIM, SENT, fetch, submit
from tests.scripted_smtp import ScriptedSmtp, scripted_smtp
from tests.sender_harness import MAIL, SenderHarness, harness_fixture, provider_fixture

provider = provider_fixture()
harness = harness_fixture()
ANN = "ann@customer.org"


def tagged(**fields: Any) -> dict[str, Any]:
    """The company with reply tags for support@company.com."""
    return COMPANY | {"external_accounts": [external(SUPPORT, reply_tag=True, **fields), external(SALES)]}


async def prove(database: Database, address: str = SUPPORT) -> None:
    """A probe mail has come back."""
    externals, _ = await everyone(database)
    async with database.transaction() as connection:
        await reply_tags.ensure_key(connection)
        await reply_tags.record_probe(connection, externals[address].id, "proof@company.com", "1aaaaaaaaaaaa")
        await reply_tags.record_results(connection, [(externals[address].id, "proof@company.com", "arrived")])


async def make_tagged(database: Database) -> None:
    await apply(database, COMPANY)
    await prove(database)
    await apply(database, tagged())


def system_of(database: Database, database_url: str) -> AdminContext:
    settings = Settings(database_url=database_url, secret_key=company.KEY, allow_private_upstream=True)
    return AdminContext(settings, database, HashingPool())


async def keys_of(database: Database) -> list[bytes]:
    async with database.transaction() as connection:
        return await reply_tags.load_keys(connection)


# ---------------------------------------------------------------------------------------------- switching on


async def test_reply_tags_are_switched_on_after_a_proof_alone(database: Database) -> None:
    # given accounts without a probe mail
    await apply(database, COMPANY)
    with pytest.raises(AccountsError) as refused:
        await apply(database, tagged())
    assert str(refused.value) == (
        f"external account {SUPPORT}: reply_tag: true: can be switched on after a probe mail has come back to the "
        f"address with a tag; send one first; 'external probe-tag {SUPPORT}' does that"
    )
    # when one has come back
    await prove(database)
    # then it is possible, and saving the account again is none of a change
    assert await apply(database, tagged()) == [f"external account {SUPPORT}: changed reply_tag false -> true"]
    assert await apply(database, tagged()) == []


@pytest.mark.parametrize("result", ["untagged", "refused", "failed", None])
async def test_no_other_result_is_a_proof(database: Database, result: reply_tags.ProbeResult | None) -> None:
    await apply(database, COMPANY)
    externals, _ = await everyone(database)
    async with database.transaction() as connection:
        await reply_tags.record_probe(connection, externals[SUPPORT].id, "m@company.com", "1aaaaaaaaaaaa")
        if result is not None:
            await reply_tags.record_results(connection, [(externals[SUPPORT].id, "m@company.com", result)], "550 no")
    with pytest.raises(AccountsError, match=r"The probe mail of .* UTC "):
        await apply(database, tagged())


async def test_another_mailbox_needs_another_proof(database: Database) -> None:
    # given an account with reply tags
    await make_tagged(database)
    moved = {"host": "127.0.0.2", "port": 1, "tls": "none"}
    # when it is pointed at another server, then it is refused as long as tags would leave
    with pytest.raises(AccountsError, match="another mailbox"):
        await apply(database, tagged(pop3=moved))
    without = COMPANY | {"external_accounts": [external(SUPPORT, pop3=moved), external(SALES)]}
    await apply(database, without)
    # and the old proof counts no more
    with pytest.raises(AccountsError, match="the account has another mailbox since then"):
        await apply(database, tagged(pop3=moved))


async def test_a_new_account_has_no_reply_tags(database: Database) -> None:
    with pytest.raises(AccountsError, match="probe-tag"):
        await apply(database, tagged())


async def test_after_a_rotation_old_tags_are_still_verified(database: Database) -> None:
    await make_tagged(database)
    externals, people = await everyone(database)
    [key] = await keys_of(database)
    old = make_tag(key, externals[SUPPORT].id, people["Jim"].id)
    # when the key is rotated
    async with database.transaction() as connection:
        await operations.rotate_key(connection, Vault(company.KEY))
    # then another key makes tags, and both verify them
    keys = await keys_of(database)
    assert len(keys) == 2 and keys[1] == key
    assert author_of(old, externals[SUPPORT].id, keys) == people["Jim"].id
    mail = f"From: {ANN}\r\nTo: support+{old}@company.com\r\n\r\nafter the rotation\r\n".encode()
    await fetch(database, mail)
    assert mail in await mailbox_of(database, JIM) and mail not in await mailbox_of(database, ALEX)


async def test_a_rotation_without_reply_tags_makes_no_key(database: Database) -> None:
    async with database.transaction() as connection:
        await operations.rotate_key(connection, Vault(company.KEY))
    assert await keys_of(database) == []


# ---------------------------------------------------------------------------------------------- mail that leaves


async def switch_on(harness: SenderHarness) -> str:
    """Switch reply tags on. Return Alex's tag."""
    await prove(harness.database)
    await harness.rows("update external_accounts set reply_tag = true where address = %s", SUPPORT)
    harness.externals, harness.people = await everyone(harness.database)
    [key] = await keys_of(harness.database)
    return make_tag(key, harness.externals[SUPPORT].id, harness.people["Alex"].id)


@pytest.mark.parametrize(
    ("written", "left"),
    [
        (b"", [' "Alex" <support+TAG@company.com>']),
        (b"Reply-To: alex@local.com\r\n", [' "Alex" <support+TAG@company.com>']),
        (b"Reply-To: A. Smith <ALEX@local.com>\r\n", [' "Alex" <support+TAG@company.com>']),
        (b"Reply-To: support@company.com\r\n", [' "Alex" <support+TAG@company.com>']),
        (b"Reply-To: alex <help@company.com>\r\n", [' "Alex" <support+TAG@company.com>']),
        # what the author has chosen
        (b"Reply-To: boss@elsewhere.org\r\n", [" boss@elsewhere.org"]),
        (
            b"Reply-To: alex@local.com, boss@elsewhere.org\r\n",
            [' "Alex" <support+TAG@company.com>, boss@elsewhere.org'],
        ),
        (b"Reply-To: jim@local.com\r\n", [' "Jim" <support@company.com>']),
        (b"Reply-To: Everybody <support@company.com>\r\n", [" Everybody <support@company.com>"]),
        (b"Resent-From: alex@local.com\r\n", []),  # a redirect: answers go to the first author
    ],
)
async def test_mail_leaves_with_the_authors_tag(
    harness: SenderHarness, provider: ScriptedSmtp, written: bytes, left: list[str]
) -> None:
    tag = await switch_on(harness)
    mail = written + (MAIL.replace(b"alex@local.com", b"ann@customer.org") if b"Resent" in written else MAIL)
    await harness.until(await harness.submit(ANN, mail=mail), state="done")
    [taken] = provider.taken
    assert [v.decode().replace(tag, "TAG") for v in headers.values(taken.mail, "reply-to")] == left
    assert taken.sender == SUPPORT  # reports come to the address without a tag


async def test_an_automatic_answer_and_another_account_leave_without_a_tag(
    harness: SenderHarness, provider: ScriptedSmtp
) -> None:
    await switch_on(harness)
    automatic = b"Auto-Submitted: auto-replied\r\n" + MAIL
    await harness.until(await harness.submit(ANN, mail=automatic, sender=""), state="done")
    by_kim = MAIL.replace(b"alex", b"kim")
    await harness.until(await harness.submit(ANN, mail=by_kim, author="Kim"), state="done")
    assert [headers.values(taken.mail, "reply-to") for taken in provider.taken] == [[], []]


# ---------------------------------------------------------------------------------------------- mail that comes back


async def test_an_answer_without_name_and_reference_reaches_its_author(database: Database) -> None:
    # given an answer of a program that keeps neither name nor In-Reply-To
    await make_tagged(database)
    externals, people = await everyone(database)
    [key] = await keys_of(database)
    tag = make_tag(key, externals[SUPPORT].id, people["Jim"].id)
    answer = f"From: {ANN}\r\nTo: support+{tag}@company.com\r\n\r\nan answer\r\n".encode()
    other = tag[:-1] + ("y" if tag.endswith("x") else "x")
    forged = f"From: {ANN}\r\nTo: support+{other}@company.com\r\n\r\nforged\r\n".encode()
    # when both are fetched
    [row, _] = await fetch(database, answer, forged)
    # then the tag of ours counts, and the other one nothing
    assert await mailbox_of(database, JIM) == [answer, forged]
    assert await mailbox_of(database, ALEX) == [forged]
    # and the trace says why
    async with database.transaction() as connection:
        cursor = await connection.execute("select rule, reason from inbound where id = %s", (row,))
        assert await cursor.fetchall() == [(3, "it is addressed to the reply tag of Jim")]


def test_route_knows_the_tag(database_url: str, tmp_path: Path) -> None:
    async def prepare() -> str:
        async with servers.opened(database_url) as database:
            await make_tagged(database)
            externals, people = await everyone(database)
            [key] = await keys_of(database)
            return make_tag(key, externals[SUPPORT].id, people["Jim"].id)

    file = tmp_path / "mail.eml"
    file.write_text(f"To: support+{asyncio.run(prepare())}@company.com\n\n")
    where = {"MAILGROUP_DATABASE_URL": database_url, "MAILGROUP_DATA": str(tmp_path)}
    done = CliRunner(env=where).invoke(app, ["route", str(file), "--external", SUPPORT, "--json"])
    assert json.loads(done.stdout) == {
        "recipients": [JIM],
        "rule": 3,
        "reason": "it is addressed to the reply tag of Jim",
    }


async def test_the_statistic_counts_the_answers_of_the_last_30_days(database: Database) -> None:
    # given answers of each kind, new mail, and an answer from long ago
    await make_tagged(database)
    externals, people = await everyone(database)
    [key] = await keys_of(database)
    tag = make_tag(key, externals[SUPPORT].id, people["Jim"].id)
    await submit(database, "Alex", SENT)
    answers = ("In-Reply-To: <ours@local.com>\r\n", "In-Reply-To: <unknown@x.example>\r\n")
    heads = [
        *(f'To: "Alex" <{SUPPORT}>\r\n{answers[0]}', f'Cc: "Jim" <{SUPPORT}>\r\n', f'To: "Alex" <{SUPPORT}>\r\n'),
        *(f"To: support+{tag}@company.com\r\n", f"To: support+{tag}@company.com\r\n{answers[0]}"),
        *(f"To: {SUPPORT}\r\n{answers[0]}", f"To: {SUPPORT}\r\n{answers[1]}"),
        *(f"To: {SUPPORT}\r\n", f'To: "Nobody" <{SUPPORT}>\r\n', REPORT.format(to=ANN, id="ours@local.com")[:-2]),
        f"To: {SUPPORT}\r\n{answers[0]}",
    ]
    rows = await fetch(database, *(f"{head}\r\n{number}\r\n".encode() for number, head in enumerate(heads)))
    async with database.transaction() as connection:
        await connection.execute(
            "update inbound set created_at = now() - interval '31 days' where id = %s", (rows[-1],)
        )
        # when they are counted
        found = await load_found_authors(connection, externals[SUPPORT].id)
        nothing = await load_found_authors(connection, externals[SALES].id)
    # then
    assert found == {"days": 30, "name": 3, "tag": 2, "reference": 1, "report": 1, "nobody": 1}
    assert set(nothing.values()) == {30, 0}
    assert describe_found(found)[0] == ("the name in To or Cc", 3, "38 %")
    assert {share for _, _, share in describe_found(nothing)} == {"–"}


async def test_the_statistic_reads_an_index_alone(database: Database) -> None:
    # given as many answers as a busy account gets
    await apply(database, COMPANY)
    externals, _ = await everyone(database)
    await fetch(database, f"To: {SUPPORT}\r\n\r\nx\r\n".encode())
    async with database.transaction() as connection:
        await connection.execute(
            """insert into inbound (source, external_id, blob_id, state, found_by)
               select 'fetched', %s, (select min(id) from blobs), 'delivered', 'name' from generate_series(1, 20000)""",
            (externals[SUPPORT].id,),
        )
        await connection.execute("analyze inbound")
        cursor = await connection.execute(
            """explain select found_by from inbound where external_id = %s and found_by is not null
                   and created_at > now() - make_interval(days => 30) order by created_at desc limit 100000""",
            (externals[SUPPORT].id,),
        )
        plan = "\n".join(row[0] for row in await cursor.fetchall())
        found = await load_found_authors(connection, externals[SUPPORT].id)
    assert "inbound_found" in plan
    assert found["name"] == 20_000


# ---------------------------------------------------------------------------------------------- the probe mail


async def by_smtp(database: Database, port: int) -> None:
    smtp = {"host": "127.0.0.1", "port": port, "tls": "none"}
    await apply(database, COMPANY | {"external_accounts": [external(SUPPORT, smtp=smtp), external(SALES)]})


async def probe_of(database: Database) -> reply_tags.TagProbe:
    externals, _ = await everyone(database)
    async with database.transaction() as connection:
        found = await reply_tags.load_probe(connection, externals[SUPPORT].id)
    assert found is not None
    return found


async def test_a_probe_mail_that_comes_back_is_the_proof(database: Database, database_url: str) -> None:
    async with scripted_smtp() as smtp:
        await by_smtp(database, smtp.port)
        system = system_of(database, database_url)
        externals, _ = await everyone(database)
        # when a probe mail is sent
        sent = await tag_probe.send_probe(system, externals[SUPPORT], "tester")
        [taken] = smtp.taken
    assert sent.result is None and "has not come back yet" in tag_probe.describe_probe(sent)
    assert taken.sender == SUPPORT and taken.recipients == [f"support+{sent.tag}@company.com"]
    assert headers.values(taken.mail, "auto-submitted") == [b" auto-generated"]
    # and it is fetched
    [row] = await fetch(database, taken.mail)
    # then the result is known, nobody has the mail, and the books balance
    found = await tag_probe.wait_for_result(system, externals[SUPPORT].id, 0)
    assert found is not None and found.result == "arrived"
    assert await mailbox_of(database, ALEX) == await mailbox_of(database, JIM) == []
    async with database.transaction() as connection:
        cursor = await connection.execute("select state, reason from inbound where id = %s", (row,))
        assert await cursor.fetchall() == [("discarded", "it is the probe mail for reply tags")]
        cursor = await connection.execute("select event, reply from maillog where inbound_id = %s", (row,))
        assert ("discarded", "it is the probe mail for reply tags") in await cursor.fetchall()
        cursor = await connection.execute("select did, who from audit")
        assert ("sent probe mail for reply tags", "tester") in await cursor.fetchall()
    await apply(database, tagged(smtp={"host": "127.0.0.1", "port": 1, "tls": "none"}))


REPORT = (
    "From: MAILER-DAEMON@company.com\r\nTo: support@company.com\r\nAuto-Submitted: auto-replied\r\n"
    'Content-Type: multipart/report; report-type=delivery-status; boundary="b"\r\n\r\n'
    "--b\r\nContent-Type: message/delivery-status\r\n\r\nFinal-Recipient: rfc822; {to}\r\nAction: failed\r\n"
    "Status: 5.1.1\r\n\r\n--b\r\nContent-Type: text/rfc822-headers\r\n\r\nMessage-ID: <{id}>\r\n\r\n--b--\r\n"
)


async def test_what_became_of_a_probe_mail_is_told_and_reaches_nobody(database: Database, database_url: str) -> None:
    async with scripted_smtp() as smtp:
        await by_smtp(database, smtp.port)
        system = system_of(database, database_url)
        externals, _ = await everyone(database)
        account = externals[SUPPORT]
        # when it comes back without its tag, then a report comes
        sent = await tag_probe.send_probe(system, account, "tester")
        to = smtp.taken[0].recipients[0]
        await fetch(database, smtp.taken[0].mail.replace(to.encode(), SUPPORT.encode()))
        assert (await probe_of(database)).result == "untagged"
        await fetch(database, REPORT.format(to=to, id=sent.message_id).encode())
        assert (await probe_of(database)).result == "refused"
        # and an earlier one comes after the next one was sent, it says nothing about that
        await tag_probe.send_probe(system, account, "tester")
        await fetch(database, smtp.taken[0].mail)
        assert (await probe_of(database)).result is None
        # and the provider refuses the recipient, the mail, or for now
        for verb, reply, result in (
            ("RCPT", "550 5.1.1 no such user", "refused"),
            ("RCPT", "451 4.3.0 later", "failed"),
            ("MAIL", "550 5.7.1 not you", "failed"),
            ("END", "554 5.7.1 no such mailbox", "refused"),
            ("GREETING", "554 5.3.2 not now", "failed"),
        ):
            smtp.say(verb, reply)
            refused = await tag_probe.send_probe(system, account, "tester")
            assert refused.result == result, reply
            assert refused.reply.endswith(reply) or verb == "GREETING"
    # and the server is away
    assert (await tag_probe.send_probe(system, account, "tester")).result == "failed"
    assert await mailbox_of(database, ALEX) == await mailbox_of(database, JIM) == []
    async with database.transaction() as connection:
        books = await reconciliation.load_accounts(connection)
    assert [(account.address, account.difference) for account in books] == [(SALES, 0), (SUPPORT, 0)]


async def test_a_foreign_mail_with_such_an_id_is_ordinary(database: Database) -> None:
    await apply(database, COMPANY)
    mail = f"From: {ANN}\r\nTo: {SUPPORT}\r\nMessage-ID: <reply-tag-probe.{'0' * 32}@company.com>\r\n\r\nx\r\n".encode()
    await fetch(database, mail)
    assert await mailbox_of(database, ALEX) == [mail]


async def test_no_probe_mail_leaves_a_disabled_account(database: Database, database_url: str) -> None:
    fields = [external(SUPPORT, enabled=False), external(SALES), external("x" * 60 + "@company.com")]
    await apply(database, COMPANY | {"external_accounts": fields})
    externals, _ = await everyone(database)
    system = system_of(database, database_url)
    for address, why in ((SUPPORT, "disabled"), ("x" * 60 + "@company.com", "too long for a tag")):
        with pytest.raises(Permanent, match=why):
            await tag_probe.send_probe(system, externals[address], "tester")
