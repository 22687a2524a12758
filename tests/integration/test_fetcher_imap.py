"""The fetcher with IMAP servers: a real Dovecot, and scripted ones with the habits of providers."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

import pytest

from deploy.machine.dovecot_postfix import DemoProvider
from services.fetcher import poll
from shared.model import External, Tls
from shared.provider.imap_client import ImapClient, open_session
from shared.provider.imap_listing import ImapListReply
from shared.provider.imap_transfer import MALFORMED
from shared.provider.maildrop import MaildropSession
from shared.settings import PrivateHosts
from tests.fetcher_harness import FetcherHarness, fails, fetching, has, is_quiet, mail, polls_well
from tests.polling import until
from tests.scripted_imap import CAPABILITIES, ScriptedFolder, ScriptedImap
from tests.scripted_pop3 import Answer, cut, hang, say

SECOND = "UID FETCH 2 (UID BODY.PEEK[])"
HALF = b"* 2 FETCH (UID 2 BODY[] {500}\r\nSubject"
_names = itertools.count()


@dataclass
class Folders:
    """The folders that all accounts of a test watch."""

    names: list[str] = field(default_factory=lambda: ["INBOX"])


@pytest.fixture
def folders(monkeypatch: pytest.MonkeyPatch) -> Folders:
    """Let the fetcher use IMAP at the address of the account's server."""
    watched = Folders()

    def open_maildrop(account: External, allow: PrivateHosts) -> AbstractAsyncContextManager[MaildropSession]:
        return open_session(account.incoming, allow, folders=watched.names, read_seconds=2.0)

    monkeypatch.setattr(poll, "open_maildrop", open_maildrop)
    return watched


@pytest.fixture
async def harness(database_url: str, folders: Folders) -> AsyncIterator[FetcherHarness]:
    async with fetching(database_url, max_message_bytes=1_000_000) as running:
        yield running


@pytest.fixture
def box(provider: DemoProvider) -> str:
    """A fresh mailbox at the provider, password 'secret'."""
    address = f"box{next(_names)}@imap-fetch.test"
    provider.add_mailbox(address, "secret")
    return address


def mails(*names: str) -> dict[int, bytes]:
    return {uid: mail(name, received="Thu, 01 Oct 2026 10:00:00 +0000") for uid, name in enumerate(names, 1)}


# ------------------------------------------------------------------------------------------------ with Dovecot


@pytest.mark.parametrize("tls", ["none", "starttls", "implicit"])
async def test_mail_is_fetched_once_in_each_tls_mode_and_stays_upstream(
    harness: FetcherHarness, provider: DemoProvider, box: str, tls: Tls
) -> None:
    provider.put(box, mail("one", ".\r\n..dots"))
    provider.put(box, mail("two"))
    account = await harness.add(
        box,
        provider.imaps_port if tls == "implicit" else provider.imap_port,
        pop3_tls=tls,
        pop3_tls_fingerprint=None if tls == "none" else provider.fingerprint,
    )
    await until(lambda: polls_well(harness, account))
    polled = await harness.poll(account)
    assert await harness.bodies(account) == [mail("one", ".\r\n..dots"), mail("two")]
    assert await harness.states(account) == {"fetched": 2}
    assert len(provider.mail_of(box)) == 2
    assert (polled.last_error, polled.backlog, polled.failures) == (None, 0, 0)
    keys = [key for (key,) in await harness.rows("select uidl from uidl_ledger order by id")]
    assert len({key.rpartition(":")[0] for key in keys}) == 1 and [key[-2:] for key in keys] == [":1", ":2"]


async def test_from_now_leaves_existing_mail_and_deletes_only_what_was_fetched(
    harness: FetcherHarness, provider: DemoProvider, box: str
) -> None:
    provider.put(box, mail("old"))
    account = await harness.add(box, provider.imap_port, history="from_now", delete_after_days=0)
    await until(lambda: polls_well(harness, account))
    provider.put(box, mail("new"))
    await harness.poll(account)
    await harness.poll(account)
    assert await harness.subjects(account) == ["new"]
    assert await harness.states(account) == {"history": 1, "closed": 1}
    assert provider.mail_of(box) == [mail("old")]


async def test_an_unchanged_mailbox_is_known_by_its_state(
    harness: FetcherHarness, provider: DemoProvider, box: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a mailbox of which everything is fetched
    provider.put(box, mail("one"))
    provider.put(box, mail("two"))
    account = await harness.add(box, provider.imap_port)
    await until(lambda: has(harness, account, 2))
    await until(lambda: is_quiet(harness, account))
    # when it is polled again, then no list is asked for
    lists = count_lists(monkeypatch)
    await harness.polled(account)
    assert lists == []
    # when a mail leaves and another comes, so their number stays, then both are noticed
    [gone] = [path for path in provider.maildir(box).glob("*/*.provider*") if b"Subject: one" in path.read_bytes()]
    gone.unlink()
    provider.put(box, mail("three"))
    await until(lambda: has(harness, account, 3))
    await until(lambda: is_quiet(harness, account))
    assert lists and await harness.states(account) == {"fetched": 2, "vanished": 1}


def count_lists(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that gets the address of each mailbox whose mails are listed."""
    lists: list[str] = []
    fetch_list_reply = ImapClient.fetch_list_reply

    async def counted(client: ImapClient) -> ImapListReply:
        lists.append(client.server.host)
        return await fetch_list_reply(client)

    monkeypatch.setattr(ImapClient, "fetch_list_reply", counted)
    return lists


# ------------------------------------------------------------------------------------------------ what changes there


async def quiet_account(harness: FetcherHarness, script: ScriptedImap) -> int:
    """Add an account whose one mail is fetched, and poll it once more when it has nothing to do.

    :return: its id; the commands are those of that poll.
    """
    account = await harness.add("e@x.test", script.port)
    await until(lambda: has(harness, account, 1))
    await until(lambda: is_quiet(harness, account))
    script.commands.clear()
    await harness.polled(account)
    return account


async def test_a_flag_that_changes_costs_one_list_and_no_work(harness: FetcherHarness) -> None:
    script = ScriptedImap(mails("one"), (*CAPABILITIES, "CONDSTORE"))
    script.inbox.modseq = 7
    async with script.running():
        account = await quiet_account(harness, script)
        assert searches(script) == 0
        # when somebody reads the mail there, then the mails are listed once more
        script.inbox.modseq = 8
        await harness.polled(account)
        await harness.polled(account)
        assert searches(script) == 1
        # when a mail comes, it is fetched
        script.mails[2] = mail("two")
        script.inbox.modseq = 9
        await until(lambda: has(harness, account, 2))


async def test_without_a_count_of_changes_each_poll_lists(harness: FetcherHarness) -> None:
    script = ScriptedImap(mails("one"))
    async with script.running():
        await quiet_account(harness, script)
        assert searches(script) > 0


def searches(script: ScriptedImap) -> int:
    return len([command for command in script.commands if command.startswith("UID SEARCH")])


async def test_a_renumbered_folder_is_recognised_by_its_bytes(harness: FetcherHarness) -> None:
    script = ScriptedImap(mails("one", "two"))
    async with script.running():
        account = await harness.add("e@x.test", script.port)
        await until(lambda: has(harness, account, 2))
        await harness.poll(account)
        # when the folder gets another UIDVALIDITY, other UIDs, and a new mail
        one, two = script.mails.pop(1), script.mails.pop(2)
        script.mails |= {11: one, 12: two, 13: mail("three")}
        script.inbox.uidvalidity += 1
        await harness.poll(account)
        await harness.poll(account)
        assert await harness.subjects(account) == ["one", "two", "three"]
        assert await harness.states(account) == {"fetched": 3}


async def test_a_mail_of_another_uidvalidity_is_never_deleted(harness: FetcherHarness) -> None:
    # given a deletion that was recorded and did not happen
    script = ScriptedImap(mails("one"), answers={"SELECT": cut()})
    async with script.running():
        account = await harness.add("e@x.test", script.port, delete_after_days=0, delete_history=True)
        await until(lambda: fails(harness, account))
        assert await harness.states(account) == {"deleting": 1}
        # when the folder is made again, and another mail has the same UID
        script.answers = {}
        script.mails[1] = mail("another")
        script.inbox.uidvalidity += 1
        script.commands.clear()
        await until(lambda: has(harness, account, 2))
        assert await harness.subjects(account) == ["one", "another"]


async def test_a_mail_moved_between_folders_arrives_once(harness: FetcherHarness, folders: Folders) -> None:
    folders.names = ["INBOX", "Done"]
    script = ScriptedImap(mails("one", "two"), others={"Done": ScriptedFolder({}, 50)})
    async with script.running():
        account = await harness.add("e@x.test", script.port)
        await until(lambda: has(harness, account, 2))
        await harness.poll(account)
        script.others["Done"].mails[7] = script.mails.pop(1)
        await harness.poll(account)
        await harness.poll(account)
        assert await harness.subjects(account) == ["one", "two"]
        assert await harness.states(account) == {"fetched": 2}


class MovesMeanwhile(dict[str, ScriptedFolder]):
    """Folders beside the INBOX. When one is opened, a person has just moved a mail into it from the INBOX, whose list
    was read before."""

    script: ScriptedImap
    moving: int | None = None  # UID in the INBOX

    def get(self, name: str, default: Any = None) -> Any:
        if self.moving is not None and name in self:
            self[name].mails[7] = self.script.mails.pop(self.moving)
            self.moving = None
        return super().get(name, default)


async def test_a_mail_moved_while_the_lists_are_read_arrives_once(harness: FetcherHarness, folders: Folders) -> None:
    folders.names = ["INBOX", "Done"]
    others = MovesMeanwhile(Done=ScriptedFolder({}, 50))
    script = others.script = ScriptedImap(mails("one", "two"), others=others)
    async with script.running():
        account = await harness.add("e@x.test", script.port)
        await until(lambda: has(harness, account, 2))
        await harness.poll(account)
        # when a mail is in the list of the first folder, and in that of the second one, too
        others.moving = 1
        await harness.poll(account)
        await harness.poll(account)
        # then it is one mail
        assert others.moving is None
        assert await harness.subjects(account) == ["one", "two"]
        assert await harness.states(account) == {"fetched": 2}


async def test_mail_moved_from_junk_to_the_inbox_arrives_once(harness: FetcherHarness, folders: Folders) -> None:
    # given an account that watches the folder for junk, too
    folders.names = ["INBOX", "Junk"]
    junk = ScriptedFolder({5: mail("no junk")}, 50, attributes="\\Junk")
    script = ScriptedImap(mails("one"), others={"Junk": junk})
    async with script.running():
        account = await harness.add("e@x.test", script.port)
        await until(lambda: has(harness, account, 2))
        await harness.poll(account)
        # when somebody moves a mail out of it at the provider
        script.mails[2] = junk.mails.pop(5)
        await harness.poll(account)
        await harness.poll(account)
        # then nobody gets it again
        assert sorted(await harness.subjects(account)) == ["no junk", "one"]
        assert await harness.states(account) == {"fetched": 2}


async def test_a_folder_that_is_gone_stops_no_other(harness: FetcherHarness, folders: Folders) -> None:
    folders.names = ["INBOX", "Orders"]
    script = ScriptedImap(mails("one"), others={"Orders": ScriptedFolder({1: mail("order")}, 50)})
    async with script.running():
        account = await harness.add("e@x.test", script.port)
        await until(lambda: has(harness, account, 2))
        del script.others["Orders"]
        script.mails[2] = mail("two")
        polled = await harness.poll(account)
        assert "the list of mails is incomplete: there is no folder 'Orders'" in str(polled.last_error)
        # and its mails do not count as deleted there
        assert await harness.states(account) == {"fetched": 3}


# ------------------------------------------------------------------------------------------------ what servers do


async def test_without_uidplus_the_mail_stays_and_the_account_says_why(harness: FetcherHarness) -> None:
    script = ScriptedImap(mails("one", "two"), capabilities=("IMAP4rev1",))
    async with script.running():
        account = await harness.add("e@x.test", script.port, delete_after_days=0, delete_history=True)
        await until(lambda: has(harness, account, 2))
        polled = await harness.poll(account)
        assert "refuses to delete 2 mails (the server has no UIDPLUS" in str(polled.last_error)
        assert len(script.mails) == 2


async def test_one_malformed_mail_is_skipped_and_the_others_arrive(harness: FetcherHarness) -> None:
    bad = b"* 2 FETCH (UID 2 BODY[] {5}\r\n" + mail("two") + b")\r\n"
    script = ScriptedImap(mails("one", "two", "three"))
    script.answers = {SECOND: say(bad, b"<tag> OK\r\n")}
    async with script.running():
        account = await harness.add("e@x.test", script.port)
        await until(lambda: polls_well(harness, account))
        assert await harness.subjects(account) == ["one", "three"]
        assert await harness.states(account) == {"fetched": 2, "skipped": 1}
        [[reason, sha256]] = await harness.rows("select reason, sha256 from uidl_ledger where state = 'skipped'")
        assert (reason, sha256) == (MALFORMED, None)


@pytest.mark.parametrize(
    ("answers", "kind", "words", "gets"),
    [
        ({"greeting": hang()}, "timeout", "greeting: no answer", 0),
        ({"greeting": say(b"* BYE [UNAVAILABLE] later\r\n")}, "busy", "refuses service now", 0),
        ({"LOGIN": say(b"<tag> NO [AUTHENTICATIONFAILED] no\r\n")}, "refused", "paused: retried once an hour", 0),
        ({"LOGIN": say(b"<tag> NO [LIMIT] Rate limit hit.\r\n")}, "busy", "Rate limit hit", 0),
        ({"EXAMINE": say(b"<tag> BAD User is authenticated but not connected.\r\n")}, "busy", "not connected", 0),
        ({"UID SEARCH": cut(b"* SEARCH 1")}, "unreachable", "SEARCH: the server ended the connection", 0),
        ({"UID FETCH 1:3": say(b"<tag> NO no sizes\r\n")}, None, "", 3),
        ({SECOND: say(b"<tag> OK\r\n")}, None, "", 2),
        (
            {SECOND: hang(HALF)},
            "timeout",
            "FETCH of mail 2",
            2,
        ),
        (
            {SECOND: cut(HALF)},
            "unreachable",
            "FETCH of mail 2",
            2,
        ),
        ({"UID FETCH": say(b"<tag> NO [UNAVAILABLE] later\r\n")}, "busy", "refuses every mail now", 0),
    ],
)
async def test_what_a_server_does_is_reported_and_loses_no_mail(
    harness: FetcherHarness, answers: dict[str, Answer], kind: str | None, words: str, gets: int
) -> None:
    script = ScriptedImap(mails("one", "two", "three"), capabilities=("IMAP4rev1",), answers=answers)
    async with script.running():
        account = await harness.add("e@x.test", script.port, history="all")
        await until(lambda: has(harness, account, gets))
        polled = await harness.poll(account)
        assert polled.last_error_kind == kind if kind else polled.last_error is None
        assert words in str(polled.last_error)
        assert len(await harness.bodies(account)) == gets
        # when it behaves, everything arrives once
        script.answers = {}
        await harness.rows("update uidl_ledger set next_try_at = now() where state = 'skipped'")
        await harness.poll(account)
        await until(lambda: has(harness, account, 3))
        assert sorted(await harness.subjects(account)) == ["one", "three", "two"]
        assert await harness.states(account) == {"fetched": 3}
