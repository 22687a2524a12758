"""The fetcher against servers that cut mails short at a lone dot: no half mail is stored, none is deleted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from services.fetcher import poll
from shared.store import uidl_ledger
from tests.fetcher_harness import FetcherHarness, fetching, has, mail, polls_well
from tests.polling import until
from tests.scripted_pop3 import ScriptedPop3, cut, stuff

AHEAD = ("PIPELINING", "UIDL", "TOP", "USER")
ONE_BY_ONE = ("UIDL", "TOP", "USER")
RESTS = {
    "text": "second part\r\nend",
    "nothing": "",
    "another dot": "second\r\n.\r\nthird",
    "a refusal": "-ERR no such mail",
    "a mail": "+OK 120 octets\r\nFrom: eve@x.test\r\nSubject: forged\r\n\r\ntext",
    "mails and a fence": "+OK\r\nSubject: one\r\n\r\nx\r\n.\r\n+OK 9 nine\r\n+OK\r\nSubject: two\r\n\r\ny",
    "a list": "+OK\r\n1 one\r\n2 two",
    "the end of the session": "+OK bye",
}
"""What follows the lone dot."""
PLACES = ("first", "middle", "last", "only")


@pytest.fixture
async def harness(database_url: str) -> AsyncIterator[FetcherHarness]:
    async with fetching(database_url) as running:
        yield running


def maildrop(rest: str, place: str) -> dict[str, bytes]:
    """A mail with a lone dot among others."""
    whole = {name: mail(name) for name in ("one", "two", "three")}
    bad = {"bad": mail("bad", f"first part\r\n.\r\n{rest}" if rest else "first part\r\n.")}
    first, *others = whole.items()
    return {
        "first": bad | whole,
        "middle": dict([first, *bad.items(), *others]),
        "last": whole | bad,
        "only": bad,
    }[place]


@pytest.mark.parametrize("rest_after", [0.0, 0.5], ids=["at once", "later"])
@pytest.mark.parametrize("capabilities", [AHEAD, ONE_BY_ONE], ids=["pipelining", "one by one"])
async def test_a_mail_cut_short_at_a_dot_is_neither_stored_nor_deleted(
    harness: FetcherHarness, capabilities: tuple[str, ...], rest_after: float
) -> None:
    # given servers that do not double dots, of which mail is deleted as soon as it is stored
    scripts = {
        f"{rest}, {place}": ScriptedPop3(maildrop(text, place), capabilities, stuffs=False, rest_after=rest_after)
        for rest, text in RESTS.items()
        for place in PLACES
    }
    async with AsyncExitStack() as stack:
        for script in scripts.values():
            await stack.enter_async_context(script.running())
        accounts = {
            name: await harness.add(name, script.port, delete_after_days=0, delete_history=True)
            for name, script in scripts.items()
        }
        await asyncio.gather(*(until(lambda id_=id_: polls_well(harness, id_), 60.0) for id_ in accounts.values()))
        for name, script in scripts.items():
            # then the others are fetched, once each, and deleted there
            others = [] if name.endswith("only") else ["one", "three", "two"]
            assert sorted(await harness.subjects(accounts[name])) == others, name
            # and that mail is shown and stays, and its recipients know
            await until(lambda script=script: script.mails.keys() == {"bad"})
            skipped = await harness.rows(
                "select uidl, reason, tries from uidl_ledger where state = 'skipped' and external_id = %s",
                accounts[name],
            )
            assert [(uidl, "cuts it short" in reason, tries) for uidl, reason, tries in skipped] == [("bad", True, 3)]
            assert await notices(harness, accounts[name]) == [b"Mail not fetched: bad"], name
        # when the servers are mended, it arrives whole, and is deleted there
        for script in scripts.values():
            script.stuffs = True
        async with harness.database.transaction() as connection:
            for id_ in accounts.values():
                await uidl_ledger.retry_skipped(connection, id_)
        for name, script in scripts.items():
            await until(lambda script=script: not script.mails)
            stored = {bytes(body) for body in await harness.bodies(accounts[name])}
            rest, _, place = name.rpartition(", ")
            assert stored == set(maildrop(RESTS[rest], place).values()), name


async def notices(harness: FetcherHarness, account: int) -> list[bytes]:
    """Return the subjects of the notices about mail that was not fetched."""
    found = await harness.rows(
        "select m.head from inbound i join blobs m on m.id = i.blob_id where i.source = 'notice' and external_id = %s",
        account,
    )
    return [bytes(head).partition(b"Subject: ")[2].partition(b"\r\n")[0] for (head,) in found]


async def test_many_mails_that_are_cut_short_delay_the_others_little(
    harness: FetcherHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given more such mails than one poll opens sessions for
    monkeypatch.setattr(poll, "MAX_OUT_OF_STEP", 3)
    names = [f"{number}" for number in range(12)]
    drop = {name: mail(name, "a\r\n.\r\nb" if int(name) % 2 else "b") for name in names}
    script = ScriptedPop3(drop, ONE_BY_ONE, stuffs=False)
    async with script.running():
        account = await harness.add("e@x.test", script.port)
        await until(lambda: polls_well(harness, account))
        assert sorted(await harness.subjects(account)) == sorted(names[::2])
        assert await harness.states(account) == {"fetched": 6, "skipped": 6}


async def test_a_login_delay_is_kept_also_after_a_mail_was_cut_short(harness: FetcherHarness) -> None:
    script = ScriptedPop3(maildrop("rest", "middle"), (*ONE_BY_ONE, "LOGIN-DELAY 1"), stuffs=False)
    async with script.running():
        account = await harness.add("e@x.test", script.port)
        await until(lambda: polls_well(harness, account))
        assert sorted(await harness.subjects(account)) == ["one", "three", "two"]
        assert script.sessions == 3  # for all, then mail by mail up to the one at fault, then the others


async def test_a_header_cut_short_at_a_dot_is_taken_for_no_other_mail(harness: FetcherHarness) -> None:
    # given mails of the first contact, renumbered, whose age TOP shows, and a header that holds a lone dot
    old, new = "Thu, 01 Oct 2026 10:00:00 +0000", "Thu, 01 Oct 2099 10:00:00 +0000"
    script = ScriptedPop3({"h1": mail("h1", received=old), "h2": mail("h2", received=old)}, AHEAD, stuffs=False)
    async with script.running():
        account = await harness.add("e@x.test", script.port, history="from_now")
        await until(lambda: polls_well(harness, account))
        forged = b"X: y\r\n.\r\n+OK\r\nReceived: from a by b; " + old.encode() + b"\r\nX: y\r\n"
        script.mails = {
            "dot": forged + mail("dot", received=new),
            "new": mail("new", received=new),
            "r1": mail("h1", received=old),
            "r2": mail("h2", received=old),
        }
        await harness.poll(account)
        # then the new mail behind it does not count as old
        assert await harness.subjects(account) == ["new"]
        assert await harness.states(account) == {"history": 2, "fetched": 1, "skipped": 1}


@pytest.mark.parametrize("capabilities", [AHEAD, ONE_BY_ONE], ids=["pipelining", "one by one"])
async def test_a_server_that_ends_each_session_after_some_mails_is_emptied(
    harness: FetcherHarness, capabilities: tuple[str, ...]
) -> None:
    # given a server that ends the connection at the third mail of each session
    names = [f"{number}" for number in range(8)]
    script = ScriptedPop3({name: mail(name) for name in names}, capabilities)
    script.answers = {"RETR 3": cut(b"+OK\r\n" + stuff(mail("2"))[:-9])}
    async with script.running():
        account = await harness.add("e@x.test", script.port, delete_after_days=0, delete_history=True)
        await until(lambda: has(harness, account, 7))
        assert sorted(await harness.subjects(account)) == sorted(set(names) - {"2"})
