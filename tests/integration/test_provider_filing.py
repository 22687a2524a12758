"""What follows a relayed mail at the provider, by IMAP: a copy among its sent mail, and the mark of answered mail."""

from __future__ import annotations

import imaplib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import structlog

from deploy.machine.dovecot_postfix import DemoProvider
from services.admin.accounts.errors import AccountsError
from services.admin.monitoring import problems
from services.admin.monitoring.system_metrics import SystemMetrics
from services.sender.provider_filing import FILINGS
from shared.errors import Temporary
from shared.mime import headers
from shared.provider import imap_client
from shared.store import provider_filings
from tests import company
from tests.company import SALES, SUPPORT, arrive, by_imap, everyone
from tests.polling import until
from tests.scripted_imap import ScriptedFolder, ScriptedImap
from tests.scripted_pop3 import cut, hang, say
from tests.scripted_smtp import SWALLOW, ScriptedSmtp
from tests.sender_harness import MAIL, SenderHarness, provider_fixture, sending

provider_smtp = provider_fixture()
ANN = "ann@customer.org"
QUESTION = b"From: ann@customer.org\r\nMessage-ID: <question@customer.org>\r\n\r\nhow much?\r\n"
ANSWER = b"In-Reply-To: <question@customer.org>\r\n" + MAIL


@pytest.fixture(autouse=True)
def prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first try follows at once."""
    monkeypatch.setattr(provider_filings, "FIRST_SECONDS", 0.0)


@pytest.fixture
async def imap() -> AsyncIterator[ScriptedImap]:
    sent = ScriptedFolder({}, 50, attributes="\\HasNoChildren \\Sent")
    async with ScriptedImap({7: QUESTION}, others={"Sent Items": sent}).running() as script:
        yield script


@pytest.fixture
async def harness(database_url: str, provider_smtp: ScriptedSmtp) -> AsyncIterator[SenderHarness]:
    async with sending(database_url) as running:
        await running.accounts({SUPPORT: provider_smtp.port})
        yield running


async def by(harness: SenderHarness, smtp_port: int, imap_port: int, **imap: Any) -> None:
    """Fetch the account by IMAP."""
    server = {"host": "127.0.0.1", "tls": "none"}
    entry = by_imap(server | {"port": imap_port} | imap, smtp=server | {"port": smtp_port})
    await company.apply(harness.database, {"external_accounts": [entry]})
    harness.externals, harness.people = await everyone(harness.database)


async def filed(harness: SenderHarness) -> bool:
    """Whether nothing is left to do."""
    return await harness.rows("select 1 from provider_filings") == []


async def failure(harness: SenderHarness) -> str:
    """The error of the latest try, when there is one."""

    async def failed() -> bool:
        return bool(await harness.rows("select 1 from provider_filings where error is not null"))

    await until(failed)
    [(error,)] = await harness.rows("select error from provider_filings where error is not null")
    return str(error)


async def try_again(harness: SenderHarness) -> None:
    await harness.rows("update provider_filings set next_try_at = now()")
    await until(lambda: filed(harness))


async def put_question(harness: SenderHarness, imap: ScriptedImap, uid: int = 7) -> None:
    """The question, as it was fetched from the INBOX."""
    [row] = await arrive(harness.database, harness.externals[SUPPORT].id, [QUESTION])
    key = f"INBOX:{imap.inbox.uidvalidity}:{uid}"
    await harness.rows("update uidl_ledger set uidl = %s where inbound_id = %s", key, row)


# ---------------------------------------------------------------------------------------------- copies of sent mail


async def test_a_copy_of_what_left_lies_in_the_folder_for_sent_mail(
    harness: SenderHarness, provider_smtp: ScriptedSmtp, imap: ScriptedImap
) -> None:
    # given an account with sent: true
    await by(harness, provider_smtp.port, imap.port, sent=True)
    # when a mail is sent
    await harness.until(await harness.submit(ANN), state="done")
    await until(lambda: filed(harness))
    # then the folder that is marked as \Sent has what left, read; and nothing was opened to write
    folder = imap.others["Sent Items"]
    [taken] = provider_smtp.taken
    assert list(folder.mails.values()) == [taken.mail] and b"@local.com" not in headers.values(taken.mail, "from")[0]
    assert list(folder.flagged.values()) == ["(\\Seen)"]
    assert not [command for command in imap.commands if command.startswith("SELECT")]


async def test_a_mail_to_several_transactions_has_one_copy(
    harness: SenderHarness, provider_smtp: ScriptedSmtp, imap: ScriptedImap
) -> None:
    await by(harness, provider_smtp.port, imap.port, sent="Sent Items")
    provider_smtp.most_recipients = 1
    await harness.until(await harness.submit(ANN, "bob@customer.org", "cid@customer.org"), state="done")
    await until(lambda: filed(harness))
    assert len(provider_smtp.taken) == 3 and len(imap.others["Sent Items"].mails) == 1


async def test_after_an_unknown_outcome_no_second_copy_appears(
    harness: SenderHarness, provider_smtp: ScriptedSmtp, imap: ScriptedImap
) -> None:
    # given a server that takes the copy, and ends the connection before it says so
    await by(harness, provider_smtp.port, imap.port, sent=True)
    folder = imap.others["Sent Items"]
    imap.answers = {"APPEND": cut()}
    await harness.until(await harness.submit(ANN), state="done")
    assert "APPEND: the server ended the connection" in await failure(harness)
    folder.mails[1] = provider_smtp.taken[0].mail
    # when it is tried again
    imap.answers = {}
    await try_again(harness)
    # then the copy is found
    assert list(folder.mails) == [1]


async def test_where_the_provider_files_it_itself_no_second_copy_appears(
    harness: SenderHarness, provider_smtp: ScriptedSmtp, imap: ScriptedImap, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provider_filings, "FIRST_SECONDS", 3600.0)
    await by(harness, provider_smtp.port, imap.port, sent=True)
    await harness.until(await harness.submit(ANN), state="done")
    imap.others["Sent Items"].mails[1] = provider_smtp.taken[0].mail
    await try_again(harness)
    assert list(imap.others["Sent Items"].mails) == [1]


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ({"LIST": say(b"<tag> OK none\r\n")}, "the provider marks no folder as \\Sent; name the folder in imap.sent"),
        ({"APPEND": say(b"<tag> NO [OVERQUOTA] full\r\n")}, "APPEND: refused"),
        ({"UID SEARCH HEADER": say(b"<tag> BAD no search\r\n")}, "SEARCH: refused"),
        ({"EXAMINE": say(b"<tag> NO [UNAVAILABLE] later\r\n")}, "later"),
        ({"AUTHENTICATE": say(b"<tag> NO [AUTHENTICATIONFAILED] wrong\r\n")}, "wrong"),
        ({"greeting": say(b"* BYE [UNAVAILABLE] later\r\n")}, "refuses service now"),
    ],
)
async def test_a_failure_delays_no_mail_and_is_shown(
    harness: SenderHarness, provider_smtp: ScriptedSmtp, imap: ScriptedImap, answers: dict[str, Any], words: str
) -> None:
    before = FILINGS.labels("sent", "failed")._value.get()
    await by(harness, provider_smtp.port, imap.port, sent=True)
    imap.answers = answers
    # when mails are sent, then they leave
    await harness.until(await harness.submit(ANN), state="done")
    assert words in await failure(harness)
    assert len(provider_smtp.taken) == 1 and not imap.others["Sent Items"].mails
    assert FILINGS.labels("sent", "failed")._value.get() > before
    # and the operator sees it
    async with harness.database.transaction() as connection:
        facts = await problems.load_facts(connection)
    [found] = [each for each in problems.find_problems(facts) if each.kind == "filing"]
    assert found.subject == SUPPORT and words in found.text
    metrics = SystemMetrics()
    metrics.update(facts)
    [shown] = [each for each in metrics.collect() if each.name == "mailgroup_provider_filings_failing"]
    assert {each.labels["external"]: each.value for each in shown.samples} == {SUPPORT: 1, SALES: 0}
    # until the server works
    imap.answers = {}
    await try_again(harness)
    assert len(imap.others["Sent Items"].mails) == 1


async def test_a_server_that_hangs_holds_no_other_account_and_no_mail(
    harness: SenderHarness, provider_smtp: ScriptedSmtp, imap: ScriptedImap
) -> None:
    await by(harness, provider_smtp.port, imap.port, sent=True)
    imap.answers = {"APPEND": hang()}
    first = await harness.submit(ANN)
    await harness.until(first, state="done")
    await until(lambda: _async(any(command.startswith("APPEND") for command in imap.commands)))
    await harness.until(await harness.submit(ANN), state="done")
    assert len(provider_smtp.taken) == 2


async def _async(value: bool) -> bool:
    return value


async def test_a_session_that_ends_badly_after_the_work_is_no_failure_of_it(
    harness: SenderHarness, provider_smtp: ScriptedSmtp, imap: ScriptedImap, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = FILINGS.labels("sent", "failed")._value.get()
    await by(harness, provider_smtp.port, imap.port, sent=True)

    async def quit_badly(_: imap_client.ImapClient) -> bool:
        raise Temporary("the session took too long")

    monkeypatch.setattr(imap_client.ImapClient, "quit", quit_badly)
    # when two mails are filed, the second one in another round
    with structlog.testing.capture_logs() as logged:
        for number in (1, 2):
            await harness.until(await harness.submit(ANN), state="done")
            await until(lambda number=number: _async(len(imap.others["Sent Items"].mails) == number))
            await until(lambda: filed(harness))
    # then the end of the session is reported, and nothing else
    warned = {entry["event"] for entry in logged if entry["log_level"] in ("warning", "error")}
    assert warned == {"filing at the provider failed"}
    assert FILINGS.labels("sent", "failed")._value.get() == before


async def test_after_five_days_a_copy_is_given_up(
    harness: SenderHarness, provider_smtp: ScriptedSmtp, imap: ScriptedImap
) -> None:
    before = FILINGS.labels("sent", "given_up")._value.get()
    await by(harness, provider_smtp.port, imap.port, sent="Nowhere")
    await harness.until(await harness.submit(ANN), state="done")
    assert "there is no folder 'Nowhere' for sent mail" in await failure(harness)
    await harness.rows("update provider_filings set created_at = now() - interval '6 days'")
    await try_again(harness)
    assert FILINGS.labels("sent", "given_up")._value.get() == before + 1


async def test_nothing_is_filed_for_reports_other_accounts_or_after_a_change(
    harness: SenderHarness, provider_smtp: ScriptedSmtp, imap: ScriptedImap, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provider_filings, "FIRST_SECONDS", 3600.0)
    await by(harness, provider_smtp.port, imap.port, sent=True)
    # a report, which people do not look for among sent mail
    automatic = b"Auto-Submitted: auto-replied\r\n" + MAIL
    await harness.until(await harness.submit(ANN, mail=automatic, sender=""), state="done")
    # a mail that the provider refuses
    provider_smtp.by_recipient = {"nobody@customer.org": "550 5.1.1 no"}
    await harness.until(await harness.submit("nobody@customer.org"), state="done")
    assert await filed(harness)
    # and an account that does not want it any more
    await harness.until(await harness.submit(ANN), state="done")
    assert not await filed(harness)
    await by(harness, provider_smtp.port, imap.port)
    await try_again(harness)
    assert not imap.others["Sent Items"].mails


async def test_a_mail_whose_outcome_at_smtp_is_unknown_is_filed_once_it_is_known(
    harness: SenderHarness, provider_smtp: ScriptedSmtp, imap: ScriptedImap
) -> None:
    await by(harness, provider_smtp.port, imap.port, sent=True)
    provider_smtp.say("END", SWALLOW)
    await harness.until(await harness.submit(ANN), state="done")
    await until(lambda: filed(harness))
    assert len(provider_smtp.taken) == 2 and len(imap.others["Sent Items"].mails) == 1


# ---------------------------------------------------------------------------------------------- answered mail


async def test_an_answered_mail_is_marked_and_stays_unread(
    harness: SenderHarness, provider_smtp: ScriptedSmtp, imap: ScriptedImap
) -> None:
    # given a fetched question, and an account with answered: true
    await by(harness, provider_smtp.port, imap.port, answered=True)
    await put_question(harness, imap)
    # when it is answered, and another mail is sent
    await harness.until(await harness.submit(ANN, mail=ANSWER), state="done")
    await harness.until(await harness.submit(ANN), state="done")
    await until(lambda: filed(harness))
    # then the question is marked, and as unread as before; nothing else is changed
    assert imap.inbox.flagged == {7: "+FLAGS.SILENT (\\Answered)"}
    assert not [command for command in imap.commands if "\\Seen" in command]
    assert len([command for command in imap.commands if command.startswith("SELECT")]) == 1


@pytest.mark.parametrize("change", ["renumbered", "gone", "deleted here"])
async def test_a_mail_that_is_not_there_any_more_is_left_out(
    harness: SenderHarness, provider_smtp: ScriptedSmtp, imap: ScriptedImap, change: str
) -> None:
    await by(harness, provider_smtp.port, imap.port, answered=True)
    await put_question(harness, imap)
    if change == "renumbered":
        imap.inbox.uidvalidity += 1
    elif change == "gone":
        del imap.mails[7]
    else:
        await harness.rows("update uidl_ledger set state = 'closed'")
    await harness.until(await harness.submit(ANN, mail=ANSWER), state="done")
    await until(lambda: filed(harness))
    assert imap.inbox.flagged == {}


async def test_a_read_only_folder_is_reported(
    harness: SenderHarness, provider_smtp: ScriptedSmtp, imap: ScriptedImap
) -> None:
    await by(harness, provider_smtp.port, imap.port, answered=True)
    await put_question(harness, imap)
    opened = b"* 1 EXISTS\r\n* OK [UIDVALIDITY 1700000000]\r\n<tag> OK [READ-ONLY] opened\r\n"
    imap.answers = {"SELECT": say(opened)}
    await harness.until(await harness.submit(ANN, mail=ANSWER), state="done")
    assert "the folder 'INBOX' is read-only" in await failure(harness)


# ---------------------------------------------------------------------------------------------- with Dovecot


async def test_dovecot_has_the_copy_and_the_mark(
    harness: SenderHarness, provider_smtp: ScriptedSmtp, provider: DemoProvider
) -> None:
    # given a question in a mailbox of Dovecot
    provider.add_mailbox(SUPPORT, "secret")
    provider.put(SUPPORT, QUESTION)
    with imaplib.IMAP4(provider.host, provider.imap_port) as owner:
        owner.login(SUPPORT, "secret")
        owner.create("Sent")
    await by(harness, provider_smtp.port, provider.imap_port, answered=True, sent=True)
    external = harness.externals[SUPPORT]
    async with imap_client.open_session(external.incoming, True) as client:
        await client.login(await harness.relaying.credentials.credential_for(external))
        listing = await client.fetch_list()
    [row] = await arrive(harness.database, external.id, [QUESTION])
    await harness.rows("update uidl_ledger set uidl = %s where inbound_id = %s", listing.mails[-1][1], row)
    # when it is answered with a mail in 8-bit, of several buffers
    large = ANSWER + b"\r\n".join([b"\xc3\xa4" * 400] * 4000) + b"\r\n"
    await harness.until(await harness.submit(ANN, mail=large), state="done")
    await until(lambda: filed(harness))
    # then the copy is in the folder for sent mail, and the question is marked, and as unread as before
    with imaplib.IMAP4(provider.host, provider.imap_port) as reader:
        reader.login(SUPPORT, "secret")
        reader.select("INBOX", readonly=True)
        assert reader.search(None, "ANSWERED", "UNSEEN") == ("OK", [b"1"])
        reader.select("Sent", readonly=True)
        _, fetched = reader.fetch("1:*", "(BODY.PEEK[])")
    assert isinstance(fetched[0], tuple) and fetched[0][1] == provider_smtp.taken[-1].mail


# ---------------------------------------------------------------------------------------------- accounts


@pytest.mark.parametrize(
    ("imap", "words"),
    [
        (
            {"host": "imap.gmail.com", "sent": True},
            "imap.sent: True: this provider puts sent mail into its folder itself",
        ),
        ({"host": "h.test", "sent": "INBOX"}, "sent mail is not put into the INBOX"),
        ({"host": "h.test", "sent": 7}, "imap.sent"),
        ({"host": "h.test", "answered": "often"}, "imap.answered"),
    ],
)
async def test_wrong_settings_are_named(harness: SenderHarness, imap: dict[str, Any], words: str) -> None:
    with pytest.raises(AccountsError, match=words):
        await company.apply(harness.database, {"external_accounts": [by_imap(imap)]})
