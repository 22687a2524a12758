"""The fetcher against misbehaving providers: no mail lost, none delivered twice, every failure reported."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import pytest
import structlog
from prometheus_client import REGISTRY

from services.admin.mail import operations
from services.admin.monitoring.status import find_account_problem
from services.fetcher import scheduler
from services.fetcher.memory_budget import MemoryShare, OverflowBudget
from shared.model import Tls
from shared.provider import pop3_client, session_stream
from shared.store import polls, uidl_ledger
from shared.store.accounts import load_externals
from tests.fetcher_harness import FetcherHarness, fails, fetching, has, mail, polls_well
from tests.polling import until
from tests.scripted_pop3 import Answer, ScriptedPop3, cut, hang, say, stuff

LIMIT = 1_000_000
LONG = b"Subject: long\r\n\r\n" + b"x" * 30_000_000 + b"\r\n"


def mails(*names: str) -> dict[str, bytes]:
    return {name: mail(name, received="Thu, 01 Oct 2026 10:00:00 +0000") for name in names}


@pytest.fixture
async def harness(database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FetcherHarness]:
    wait_for_providers(monkeypatch, 1.0)
    async with fetching(database_url, max_message_bytes=LIMIT) as running:
        yield running


def wait_for_providers(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Set the timeouts of the POP3 client to ``seconds`` instead of a minute."""
    patient = partial(pop3_client.open_session, connect_seconds=seconds, read_seconds=seconds)
    monkeypatch.setattr(pop3_client, "open_session", patient)
    monkeypatch.setattr(session_stream, "CONNECT_SECONDS", seconds)


@dataclass(frozen=True)
class Misbehaviour:
    """A misbehaviour of a provider with the mails one, two and three, and the fetcher's report."""

    name: str
    answers: Mapping[str, Answer]
    kind: str | None  # of the failed polls
    words: str = ""  # part of the error, or of the reason of skipped mails
    gets: int = 0  # mails that arrive nevertheless
    skipped: int = 0  # mails reported as not fetched; then the poll succeeds in the end
    tls: Tls = "none"
    capabilities: tuple[str, ...] | None = ("PIPELINING", "UIDL", "TOP", "USER")

    @property
    def deletes(self) -> int | None:
        """delete_after_days: at once; never where the scripted list stays the same after a deletion."""
        return None if "UIDL" in self.answers else 0


def _list(*lines: bytes) -> Answer:
    return say(b"+OK\r\n" + b"".join(line + b"\r\n" for line in lines) + b".\r\n")


_SLOW = ("UIDL", "TOP", "USER")
_WHOLE = b"+OK\r\n" + stuff(mail("three"))
_HALF = b"+OK\r\nSubject: two\r\n\r\nhal"
TABLE = [
    # hanging, at every stage
    Misbehaviour("says nothing", {"greeting": hang()}, "timeout", "greeting: no answer"),
    Misbehaviour("says half a greeting", {"greeting": hang(b"+OK rea")}, "timeout", "greeting: no answer"),
    Misbehaviour("hangs in the TLS handshake", {"greeting": hang()}, "tls", "TLS handshake", tls="implicit"),
    Misbehaviour("hangs behind STLS", {"STLS": hang(b"+OK\r\n")}, "tls", "TLS", tls="starttls", capabilities=("STLS",)),
    Misbehaviour("hangs at CAPA", {"CAPA": hang(b"+OK\r\nUIDL\r\n")}, "timeout", "CAPA: no answer"),
    Misbehaviour("hangs at USER", {"USER": hang()}, "timeout", "USER: no answer"),
    Misbehaviour("hangs at PASS", {"PASS": hang()}, "timeout", "PASS: no answer"),
    Misbehaviour("hangs at STAT", {"STAT": hang()}, "timeout", "STAT: no answer"),
    Misbehaviour("hangs in the list", {"UIDL": hang(b"+OK\r\n1 one\r\n2 t")}, "timeout", "UIDL: no answer"),
    Misbehaviour("hangs in the sizes", {"LIST": hang(b"+OK\r\n1 1")}, "timeout", "LIST: no answer"),
    Misbehaviour("hangs before a mail", {"RETR 2": hang()}, "timeout", "RETR of mail 2: no", gets=2, skipped=1),
    Misbehaviour("hangs in a mail", {"RETR 2": hang(_HALF)}, "timeout", "RETR of mail 2: no", gets=2, skipped=1),
    Misbehaviour("hangs at DELE", {"DELE": hang()}, "timeout", "DELE: no answer", gets=3),
    Misbehaviour("hangs at QUIT", {"QUIT": hang()}, "timeout", "QUIT: no answer", gets=3),
    # dropping
    Misbehaviour("drops at once", {"greeting": cut()}, "unreachable", "greeting: the server ended"),
    Misbehaviour("drops in the handshake", {"greeting": cut()}, "tls", "during the TLS", tls="implicit"),
    Misbehaviour("drops at PASS", {"PASS": cut()}, "unreachable", "PASS: the server ended"),
    Misbehaviour("drops in the list", {"UIDL": cut(b"+OK\r\n1 one\r\n")}, "unreachable", "UIDL: the server ended"),
    Misbehaviour("drops in a mail", {"RETR 2": cut(_HALF)}, "unreachable", "RETR of mail 2: the", gets=2, skipped=1),
    Misbehaviour(
        "drops behind a mail", {"RETR 3": cut(_WHOLE)}, "unreachable", "behind mail 3: the", gets=2, skipped=1
    ),
    Misbehaviour("drops at DELE", {"DELE": cut()}, "unreachable", "DELE: the server ended", gets=3),
    Misbehaviour("drops at QUIT", {"QUIT": cut()}, "unreachable", "QUIT: the server ended", gets=3),
    # garbage
    Misbehaviour("is something else", {"greeting": say(b"SSH-2.0-x\r\n")}, "protocol", "the reply is not a POP3 reply"),
    Misbehaviour(
        "never ends its greeting", {"greeting": say(b"+OK " + b"x" * 9000)}, "protocol", "a reply line of more"
    ),
    Misbehaviour("counts nothing", {"STAT": say(b"+OK many\r\n")}, "protocol", "STAT: no count"),
    Misbehaviour("counts to infinity", {"STAT": say(b"+OK " + b"9" * 50 + b" 1\r\n")}, "protocol", "STAT: no count"),
    Misbehaviour(
        "lists noise", {"UIDL": _list(b"\x00\xff", b"x y z", b"-1 a", b"2 two")}, "protocol", "is incomplete", 1
    ),
    Misbehaviour("lists too few", {"UIDL": _list(b"2 two")}, "protocol", "STAT counts 3, 1 are", 1),
    Misbehaviour(
        "lists one twice", {"UIDL": _list(b"1 one", b"1 x", b"2 two", b"3 three")}, "protocol", "is incomplete", 3
    ),
    Misbehaviour("measures noise", {"LIST": _list(b"1 x", b"\xff", b"2")}, None, gets=3),
    Misbehaviour("refuses to measure", {"LIST": say(b"-ERR no\r\n")}, None, gets=3),
    Misbehaviour(
        "sends junk behind a mail", {"RETR 3": say(_WHOLE + b"junk\r\n")}, None, "cuts it short", gets=2, skipped=1
    ),
    Misbehaviour(
        "greets with an error", {"greeting": cut(b"-ERR too many connections\r\n")}, "busy", "too many connec"
    ),
    # sizes
    Misbehaviour("says too little", {"LIST": _list(b"1 1", b"2 0", b"3 5")}, None, gets=3),
    Misbehaviour("says somewhat too much", {"LIST": _list(b"1 1900000", b"2 1900000", b"3 5")}, None, gets=3),
    Misbehaviour("says far too much", {"LIST": _list(b"1 9", b"2 99999999999", b"3 9")}, None, gets=2, skipped=1),
    Misbehaviour(
        "sends more than is allowed", {"RETR 2": say(b"+OK 9 octets\r\n" + stuff(LONG[:1500000]))}, None, "", 2, 1
    ),
    Misbehaviour("sends a mail without end", {"RETR 2": say(b"+OK\r\n" + LONG)}, "protocol", "is larger than", 2, 1),
    Misbehaviour(
        "sends a list line of 30 MB", {"UIDL": _list(b"1 one", b"2 " + LONG[20:-2], b"3 three")}, None, gets=3
    ),
    # unique ids
    Misbehaviour(
        "has long and odd ids", {"UIDL": _list(b"1 " + b"u" * 3000, b"2 \x00\x01", b"3 \xe9 x")}, None, gets=3
    ),
    Misbehaviour("has equal ids", {"UIDL": _list(b"1 a", b"2 a", b"3 a")}, None, gets=3),
    Misbehaviour("has no ids for some", {"UIDL": _list(b"1", b"2 ", b"3 three")}, None, gets=3),
    # the mail that is missing
    Misbehaviour("knows no UIDL", {"UIDL": say(b"-ERR what?\r\n")}, None, gets=3, capabilities=("TOP",)),
    Misbehaviour("announces UIDL only", {"UIDL": say(b"-ERR not now\r\n")}, "protocol", "does not list them"),
    Misbehaviour("lists nothing for now", {"UIDL": say(b"-ERR [SYS/TEMP] no\r\n")}, "busy", "lists no mails now"),
    Misbehaviour("knows no TOP", {"TOP": say(b"-ERR what?\r\n")}, None, gets=3, capabilities=("UIDL",)),
    Misbehaviour("knows no CAPA", {}, None, gets=3, capabilities=None),
    # logins
    Misbehaviour("asks to wait", {"PASS": say(b"-ERR [LOGIN-DELAY] 60 s\r\n")}, "busy", "[LOGIN-DELAY] 60 s"),
    Misbehaviour("is in use", {"PASS": say(b"-ERR [IN-USE] locked\r\n")}, "busy", "[IN-USE]"),
    Misbehaviour("is in use, without a code", {"PASS": say(b"-ERR lock busy! Try again.\r\n")}, "busy", "lock busy"),
    Misbehaviour(
        "counts logins as Outlook.com does",
        {"PASS": say(b"-ERR Exceeded the login limit for a 15 minute period.\r\n")},
        "busy",
        "login limit",
    ),
    Misbehaviour(
        "has too many connections",
        {"PASS": say(b"-ERR Maximum number of connections from user+IP exceeded\r\n")},
        "busy",
        "from user+IP exceeded",
    ),
    Misbehaviour(
        "fails inside", {"PASS": say(b"-ERR Internal error occurred.\r\n")}, "busy", "Internal error occurred"
    ),
    Misbehaviour("is down as Office 365 is", {"PASS": say(b"-ERR Server Unavailable. 15\r\n")}, "busy", "Server Unav"),
    Misbehaviour("has POP switched off", {"PASS": say(b"-ERR [SYS/PERM] POP is off\r\n")}, "refused", "POP is off"),
    Misbehaviour("wants an app password", {"PASS": say(b"-ERR [AUTH] Web login\r\n")}, "refused", "Web login; paused"),
    # refusals
    Misbehaviour("refuses one mail", {"RETR 2": say(b"-ERR corrupt\r\n")}, None, gets=3),
    Misbehaviour("hands out nothing", {"RETR": say(b"-ERR slow down\r\n")}, "busy", "slow down", 0, 3),
    Misbehaviour("refuses to delete", {"DELE": say(b"-ERR read-only\r\n")}, "protocol", "refuses to delete 3", 3),
    Misbehaviour("did not delete", {"QUIT": cut(b"-ERR some left\r\n")}, "protocol", "did not delete 3 mails", 3),
    # the same one by one, where nothing is sent ahead
    Misbehaviour("drops in a mail, slowly", {"RETR 2": cut(_HALF)}, "unreachable", "mail 2", 2, 1, capabilities=_SLOW),
    Misbehaviour("hangs in a mail, slowly", {"RETR 2": hang(_HALF)}, "timeout", "mail 2", 2, 1, capabilities=_SLOW),
]


@contextmanager
def _full_queue() -> Iterator[int]:
    """The port of a server that accepts no connection; its backlog is full, so connecting times out."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(server.getsockname())
        try:
            yield server.getsockname()[1]
        finally:
            for each in waiting:
                each.close()


async def test_every_misbehaviour_is_named_and_costs_no_mail_of_any_account(
    harness: FetcherHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_for_providers(monkeypatch, 3.0)  # so many at once need more than a second where the machine is busy
    scripts = {row.name: ScriptedPop3(mails("one", "two", "three"), row.capabilities, row.answers) for row in TABLE}
    well = ScriptedPop3({})
    with structlog.testing.capture_logs() as log, _full_queue() as deaf:
        async with AsyncExitStack() as stack:
            for script in (*scripts.values(), well):
                await stack.enter_async_context(script.running())
            healthy = await harness.add("healthy", well.port)
            await until(lambda: polls_well(harness, healthy))
            # given them all at once, and every mail to be deleted as soon as it is fetched
            unheard = await harness.add("accepts nothing", deaf)
            accounts = {
                row.name: await harness.add(
                    row.name,
                    scripts[row.name].port,
                    pop3_tls=row.tls,
                    delete_after_days=row.deletes,
                    delete_history=True,
                )
                for row in TABLE
            }
            # when mails arrive at an account whose provider works, each is fetched in time
            for number in range(1, 4):
                well.mails[f"in time {number}"] = mail(f"in time {number}")
                await until(lambda number=number: has(harness, healthy, number), 10.0)
            # then each of the other accounts shows its failure in words, in a metric and in the log
            await until(lambda: fails(harness, unheard))
            wrong = await asyncio.gather(*(_wait_for(harness, accounts[row.name], row) for row in TABLE))
            assert "\n".join(row for row in wrong if row) == ""
            for row in TABLE:
                if row.kind:
                    assert _count(row.name, row.kind) > 0 and _logged(log, row), row.name
            # and nothing was deleted that is not here
            for row in TABLE:
                here = await harness.subjects(accounts[row.name])
                assert scripts[row.name].mails.keys() | set(here) == {"one", "two", "three"}, row.name
            # when they all behave again, every mail is there, once
            wait_for_providers(monkeypatch, 20.0)
            for script in scripts.values():
                script.answers, script.capabilities = {}, ("PIPELINING", "UIDL", "TOP", "STLS")
            await harness.rows("update external_accounts set pop3_tls = 'none', delete_after_days = null")
            await asyncio.gather(*(harness.poll(account) for account in accounts.values()))  # earlier mail is fetched
            await harness.rows("update uidl_ledger set octets = 1 where state = 'skipped'")
            async with harness.database.transaction() as connection:
                for account in accounts.values():
                    await uidl_ledger.retry_skipped(connection, account)
            ends = await asyncio.gather(*(_end(harness, accounts[row.name]) for row in TABLE))
            assert [
                (row.name, end) for row, end in zip(TABLE, ends, strict=True) if end != (["one", "three", "two"], None)
            ] == []


async def _wait_for(harness: FetcherHarness, account: int, row: Misbehaviour) -> str | None:
    """Return what differs from the table in the end; empty if nothing does."""
    try:
        await until(lambda: _shows(harness, account, row), 60.0)
    except TimeoutError:
        async with harness.database.transaction() as connection:
            polled = (await polls.load_poll_states(connection)).get(account)
        return f"{row.name}: {await harness.states(account)} {polled}"
    return None


async def _end(harness: FetcherHarness, account: int) -> tuple[list[str], str | None]:
    """Return the subjects that arrived and the account's problem, after two more polls."""
    await harness.poll(account)
    polled = await harness.poll(account)
    return sorted(await harness.subjects(account)), find_account_problem(polled)


async def _shows(harness: FetcherHarness, account: int, row: Misbehaviour) -> bool:
    async with harness.database.transaction() as connection:
        polled = (await polls.load_poll_states(connection)).get(account)
    if polled is None or not (polled.last_success_at or polled.last_error):
        return False
    if row.skipped:
        reasons = await harness.rows(
            "select reason from uidl_ledger where state = 'skipped' and external_id = %s", account
        )
        said = len(reasons) == row.skipped == polled.skipped and all(row.words in reason for (reason,) in reasons)
    else:
        said = polled.last_error_kind == row.kind and row.words in (find_account_problem(polled) or "")
    return said and len(await harness.bodies(account)) == row.gets


def _count(account: str, kind: str) -> float:
    counted = REGISTRY.get_sample_value("mailgroup_fetch_errors_total", {"external": account, "kind": kind})
    return counted or 0.0


def _logged(log: list[structlog.typing.EventDict], row: Misbehaviour) -> bool:
    return any(
        line["event"] == "poll failed" and line["external"] == row.name and line["kind"] == row.kind for line in log
    )


# ---------------------------------------------------------------------------------- what shows over several polls


@pytest.mark.parametrize("knows_uidl", [True, False])
async def test_without_uidls_a_new_mail_at_a_known_position_is_fetched(
    harness: FetcherHarness, knows_uidl: bool
) -> None:
    # given a server whose UIDLs only count, or without UIDLs
    script = ScriptedPop3(mails("a", "b", "c"), ("TOP",), name=lambda number, _: str(number), knows_uidl=knows_uidl)
    async with script.running():
        account = await harness.add("e@x.test", script.port)
        await until(lambda: has(harness, account, 3))
        # when one mail is deleted and another arrives, so that the list is the same
        del script.mails["a"]
        script.mails["d, which is longer"] = mail("d")
        await harness.poll(account)
        assert await harness.subjects(account) == ["a", "b", "c", "d"]
        # and when fetched mail is deleted, mail that arrives later is not deleted with it
        await harness.rows("update external_accounts set delete_after_days = 0, delete_history = true")
        await harness.poll(account)
        script.mails["e"] = mail("e")
        await harness.poll(account)
        await harness.poll(account)
        assert await harness.subjects(account) == ["a", "b", "c", "d", "e"]
        assert not script.mails


async def test_from_now_works_where_mails_are_known_by_position_alone(harness: FetcherHarness) -> None:
    script = ScriptedPop3(mails("old", "older", "oldest"), ("TOP",), knows_uidl=False)
    async with script.running():
        account = await harness.add("e@x.test", script.port, history="from_now")
        await until(lambda: polls_well(harness, account))
        del script.mails["older"]
        script.mails["new"] = mail("new", received="Thu, 01 Oct 2099 10:00:00 +0000")
        await harness.poll(account)
        assert await harness.subjects(account) == ["new"]
        await harness.poll(account)
        assert await harness.subjects(account) == ["new"]


async def test_with_repeated_uidls_a_new_mail_at_a_known_position_is_fetched(harness: FetcherHarness) -> None:
    script = ScriptedPop3(mails("a", "b", "c"), name=lambda _, uidl: "other" if uidl == "c" else "same")
    async with script.running():
        account = await harness.add("e@x.test", script.port)
        await until(lambda: has(harness, account, 3))
        del script.mails["a"]
        script.mails["d"] = mail("d")
        await harness.poll(account)
        assert await harness.subjects(account) == ["a", "b", "c", "d"]
        # and when only one has it any more, that one is not fetched again
        del script.mails["d"]
        await harness.poll(account)
        await harness.poll(account)
        assert await harness.subjects(account) == ["a", "b", "c", "d"]


async def test_a_wholesale_renumbering_repeats_nothing_and_misses_nothing_new(harness: FetcherHarness) -> None:
    script = ScriptedPop3(mails("a", "b", "c") | {"twin": mails("a")["a"]})
    async with script.running():
        account = await harness.add("e@x.test", script.port)
        await until(lambda: has(harness, account, 4))
        for turn in range(3):
            script.name = lambda _, uidl, turn=turn: f"{turn}-{uidl}"  # type: ignore[misc]  # bound now
            script.mails[f"new {turn}"] = mail(f"new {turn}")
            await harness.poll(account)
        assert sorted(await harness.subjects(account)) == ["a", "a", "b", "c", "new 0", "new 1", "new 2"]


async def test_history_stays_history_after_a_maildrop_was_empty_and_renumbered(harness: FetcherHarness) -> None:
    old = mails("a", "b", "c")
    script = ScriptedPop3(dict(old))
    async with script.running():
        account = await harness.add("e@x.test", script.port, history="from_now")
        await until(lambda: polls_well(harness, account))
        # when the provider moves the mails: none is listed for some polls, then all are, under new UIDLs
        script.mails = {}
        await harness.poll(account)
        await harness.poll(account)
        new = mail("new", received="Thu, 01 Oct 2099 10:00:00 +0000")
        script.mails = {f"moved-{number}": body for number, body in enumerate([*old.values(), new])}
        await harness.poll(account)
        await harness.poll(account)
        assert await harness.subjects(account) == ["new"]
        assert await harness.states(account) == {"history": 3, "fetched": 1}


async def test_a_mail_that_was_read_but_not_stored_does_not_count_as_fetched(
    harness: FetcherHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a provider that lists nothing again that was read before a QUIT, as Gmail does, and mails too large for us
    script = ScriptedPop3(mails("one", "two") | {"large": LONG[: 2 * LIMIT - 100]}, pops=True)
    async with script.running():
        account = await harness.add("e@x.test", script.port)
        await until(lambda: has(harness, account, 2))
        await harness.poll(account)
        # then that one is still listed there
        assert "large" in script.mails
        assert (await harness.states(account))["skipped"] == 1
        # when the limit grows, it is fetched
        monkeypatch.setattr(
            harness.service, "settings", harness.service.settings.model_copy(update={"max_message_bytes": 4 * LIMIT})
        )
        await harness.poll(account)
        assert len(await harness.bodies(account)) == 3
        assert "large" not in script.mails


async def test_the_login_delay_is_learnt_from_refusals(harness: FetcherHarness) -> None:
    script = ScriptedPop3(mails("one"), answers={"PASS": say(b"-ERR [LOGIN-DELAY] wait\r\n")})
    async with script.running():
        account = await harness.add("e@x.test", script.port)
        for delay in (60, 120, 240):
            await until(lambda: fails(harness, account))
            [[learnt, wait]] = await harness.rows(
                "select login_delay, extract(epoch from next_poll_at - last_error_at)::float8 from polls"
            )
            assert learnt == delay and delay - 5 < wait <= delay + 5
            await harness.rows("update polls set last_error = null, next_poll_at = now()")
        script.answers = {}
        await harness.rows("update polls set next_poll_at = now()")
        await until(lambda: has(harness, account, 1))
        await until(lambda: polls_well(harness, account))
        # then the delay is kept, until the account is changed or checked
        [[wait]] = await harness.rows("select extract(epoch from next_poll_at - last_success_at)::float8 from polls")
        assert wait > 200
        await harness.poll(account)
        assert await harness.rows("select login_delay from polls") == [(None,)]


async def test_a_provider_that_refuses_all_mails_counts_for_no_single_mail(
    harness: FetcherHarness,
) -> None:
    script = ScriptedPop3(mails(*(f"m{n}" for n in range(50))), answers={"RETR": say(b"-ERR throttled\r\n")})
    async with script.running():
        account = await harness.add("e@x.test", script.port)
        for _ in range(4):
            polled = await harness.poll(account)
        assert polled.last_error_kind == "busy" and "throttled" in str(polled.last_error)
        assert not await harness.rows("select 1 from inbound")  # no notice was made of a mail that causes no failure
        script.answers = {}
        await harness.poll(account)
        assert len(await harness.bodies(account)) == 50


async def test_a_skipped_mail_is_a_problem_until_acknowledged_or_fetched(
    harness: FetcherHarness,
) -> None:
    # given mails that cannot be fetched
    script = ScriptedPop3(mails("one", "two", "three"), answers={"RETR 2": say(b"-ERR bad\r\n")})
    async with script.running():
        account = await harness.add("e@x.test", script.port)
        assert (await harness.poll(account)).skipped == 1
        async with harness.database.transaction() as connection:
            [external] = await load_externals(connection)
            [row] = await operations.list_skipped(connection, external)
            assert row["uidl"] == "two" and "bad" in row["reason"] and row["acknowledged_at"] is None
            # when the operator acknowledges it
            done = await operations.acknowledge(connection, external, [row["id"], 999])
            assert (done.done, done.left) == ([row["id"]], [999])
        # then it is no problem while it fails for the same reason, and for another reason it is one again
        assert (await harness.poll(account)).skipped == 0
        await scheduler._measure(harness.service)
        assert scheduler.SKIPPED._value.get() == 0
        script.answers = {"RETR 2": say(b"-ERR worse\r\n")}
        await harness.rows("update uidl_ledger set next_try_at = now()")
        assert (await harness.poll(account)).skipped == 1
        await scheduler._measure(harness.service)
        assert scheduler.SKIPPED._value.get() == 1
        # when an operator retries it, it arrives, after any number of failures
        script.answers = {}
        await harness.rows("update uidl_ledger set tries = 10, next_try_at = null where state = 'skipped'")
        async with harness.database.transaction() as connection:
            assert (await operations.fetch_again(connection, external)).done == [row["id"]]
        await until(lambda: has(harness, account, 3))
        assert (await harness.poll(account)).skipped == 0


async def test_large_mails_of_many_accounts_arrive_one_after_the_other(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given room for two of the largest mails, and ten accounts that get one each, and small ones beside
    held = list[int]()
    reserve = OverflowBudget.reserve

    async def watch(self: OverflowBudget, share: MemoryShare, octets: int) -> None:
        await reserve(self, share, octets)
        held.append(self.in_use)

    monkeypatch.setattr(OverflowBudget, "reserve", watch)
    large = b"Subject: large\r\n\r\n" + (b"x" * 998 + b"\r\n") * 8000
    script = ScriptedPop3(mails("a") | {"large": large, "other": large} | mails("b"))
    async with script.running(), fetching(database_url, max_message_bytes=9_000_000) as harness:
        accounts = [await harness.add(f"e{number}@x.test", script.port) for number in range(10)]
        for account in accounts:
            await until(lambda account=account: has(harness, account, 4), 60)
    assert 9_000_000 < max(held) <= 28_000_000 and len(held) >= 10 * 2 * 6
