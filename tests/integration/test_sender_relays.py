"""Several relays of one account, and their limits: the real sender with scripted SMTP servers."""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import pytest

from services.admin.mail import operations, trace
from services.admin.monitoring import problems
from services.admin.monitoring.problem_kinds import Problem
from services.sender import delivery, outcomes
from shared.errors import Permanent, Temporary
from shared.provider import smtp_connect
from shared.provider.vault import Vault, new_key
from shared.store import account_changes, accounts, relay_usage
from tests import company
from tests.company import SUPPORT
from tests.polling import until
from tests.scripted_smtp import CLOSE, HANG, SWALLOW, ScriptedSmtp, scripted_smtp
from tests.sender_harness import SenderHarness, replies, sending

ANN, BOB, EVE = "ann@customer.org", "bob@customer.org", "eve@customer.org"
Pair = tuple[ScriptedSmtp, ScriptedSmtp]


@pytest.fixture
async def servers() -> AsyncIterator[Pair]:
    """Two providers' SMTP servers."""
    async with scripted_smtp() as one, scripted_smtp() as two:
        yield one, two


@pytest.fixture
async def harness(database_url: str, servers: Pair) -> AsyncIterator[SenderHarness]:
    async with sending(database_url) as running:
        await configure(running, *servers)
        yield running


async def configure(harness: SenderHarness, one: ScriptedSmtp, two: ScriptedSmtp | None, **fields: Any) -> None:
    """Make the company, whose account has these relays. :param fields: further ones of the first relay."""
    relays = [{"host": "127.0.0.1", "port": one.port, "tls": "none", "connections": 2} | fields]
    if two is not None:
        relays.append({"host": "localhost", "port": two.port, "tls": "none", "connections": 2})
    await company.apply(
        harness.database,
        {
            "external_accounts": [company.external(SUPPORT, smtp=relays)],
            "local_accounts": [company.local("Alex"), company.local("Jim")],
        },
    )
    harness.externals, harness.people = await company.everyone(harness.database)


async def is_well(harness: SenderHarness, position: int = 0) -> bool:
    return not await harness.rows(
        "select 1 from relays where position = %s and (failures > 0 or paused_at is not null or full_until > now())",
        position,
    )


async def in_trouble(harness: SenderHarness, position: int = 0) -> bool:
    return not await is_well(harness, position)


async def why(harness: SenderHarness) -> str | None:
    """Return why the mail waits, as the queue's page says it."""
    async with harness.database.transaction() as connection:
        [mail] = await operations.list_queue(connection)
    return mail["why"]  # type: ignore[no-any-return]


async def problems_of(harness: SenderHarness) -> list[Problem]:
    async with harness.database.transaction() as connection:
        return problems.find_problems(await problems.load_facts(connection))


FAILURES: dict[str, tuple[dict[str, str], dict[str, Any], str]] = {
    # what the first relay does, its fields, and the kind of the failure
    "hangs up": ({"GREETING": CLOSE}, {}, "server"),
    "is silent": ({"GREETING": HANG}, {}, "timeout"),
    "no TLS": ({}, {"tls": "implicit"}, "tls"),
    "greets with 421": ({"GREETING": "421 4.3.2 closing"}, {}, "server"),
    "greets with 554": ({"GREETING": "554 no service"}, {}, "server"),
    "refuses EHLO": ({"EHLO": "421 4.3.2 closing"}, {}, "server"),
    "login later": ({"AUTH": "454 4.7.0 temporary authentication failure"}, {}, "server"),
    "login wrong": ({"AUTH": "535 5.7.8 wrong"}, {}, "credentials"),
    "421 to MAIL": ({"MAIL": "421 4.3.2 closing"}, {}, "server"),
    "421 to RCPT": ({"RCPT": "421 4.3.2 closing"}, {}, "server"),
    "421 to DATA": ({"DATA": "421 4.3.2 closing"}, {}, "server"),
    "Gmail is full": ({"END": "550 5.4.5 Daily user sending limit exceeded"}, {}, "throttled"),
    "Microsoft is full": ({"END": "550 5.1.90 you've reached your daily limit"}, {}, "throttled"),
    "cPanel is full": (
        {"RCPT": "550 Domain a.b has exceeded the max emails per hour (50/50) allowed"},
        {},
        "throttled",
    ),
    "Amazon is busy": ({"MAIL": "454 Throttling failure: Maximum sending rate exceeded."}, {}, "throttled"),
    "Rspamd is busy": ({"RCPT": "451 4.7.1 Ratelimit 'out' exceeded"}, {}, "throttled"),
    "not this sender": ({"END": "554 5.2.252 SendAsDenied"}, {}, "sender"),
}


@pytest.mark.parametrize("failure", FAILURES)
async def test_mail_goes_by_the_second_relay_while_the_first_fails(
    harness: SenderHarness, servers: Pair, failure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a first relay that fails
    one, two = servers
    script, fields, kind = FAILURES[failure]
    if HANG in script.values():
        monkeypatch.setattr(smtp_connect, "connect", partial(smtp_connect.connect, seconds=5.0))
    for verb, reply in script.items():
        one.always(verb, reply)
    await configure(harness, one, two, **fields)
    # when a mail is sent, then it leaves by the second one, once, and no try was counted
    id_ = await harness.submit(ANN)
    sent = await harness.until(id_, state="done")
    assert [state for state, _ in replies(sent)] == ["relayed"]
    assert (len(one.taken), len(two.taken), sent.tries) == (0, 1, 0)
    [[found]] = await harness.rows("select last_error_kind from relays where position = 0")
    assert found == kind
    [[reply]] = await harness.rows("select reply from maillog where submission_id = %s and event = 'relayed'", id_)
    assert reply == "250 2.0.0 queued (by localhost)"
    # when the first one works again, then new mail goes there
    for verb in script:
        one.always(verb, None)
    await configure(harness, one, two)
    await harness.make_due()
    await until(lambda: is_well(harness))
    await harness.until(await harness.submit(BOB), state="done")
    assert [mail.recipients for mail in one.taken] == [[BOB]]


async def test_a_wrong_login_pauses_its_relay_alone(harness: SenderHarness, servers: Pair) -> None:
    one, two = servers
    one.always("AUTH", "535 5.7.8 wrong")
    for to in (ANN, BOB):
        await harness.until(await harness.submit(to), state="done")
    assert len(two.taken) == 2
    assert await harness.rows("select position from relays where paused_at is not null") == [(0,)]
    assert len(one.said("AUTH")) == 1  # the next try is an hour later, and without mail


async def test_a_refused_recipient_or_content_goes_to_no_other_relay(harness: SenderHarness, servers: Pair) -> None:
    one, two = servers
    one.by_recipient[ANN] = "550 5.1.1 no such user"
    refused = await harness.until(await harness.submit(ANN), state="done")
    one.say("END", "554 5.6.0 no such content")
    spam = await harness.until(await harness.submit(BOB), state="done")
    assert [state for found in (refused, spam) for state, _ in replies(found)] == ["failed", "failed"]
    # and a temporary refusal of the mail alone waits for this relay
    one.say("RCPT", "450 4.2.1 The user you are trying to contact is receiving mail too quickly")
    later = await harness.until(await harness.submit(EVE), state="queued", tries=1)
    assert [state for state, _ in replies(later)] == ["waiting"]
    assert two.lines == []


async def test_a_mail_that_a_relay_may_have_taken_goes_to_no_other(harness: SenderHarness, servers: Pair) -> None:
    # given a first relay that takes a mail without a reply, and then fails
    one, two = servers
    one.say("END", SWALLOW)
    one.say("GREETING", "220 ready", *["421 4.3.2 closing"] * 3)
    id_ = await harness.submit(ANN)
    await until(lambda: in_trouble(harness))
    # when other mail leaves by the second one, then this one waits for the first
    await harness.until(await harness.submit(BOB), state="done")
    waiting = await harness.listed(id_)
    assert (waiting.state, waiting.uncertain) == ("queued", True)
    assert [mail.recipients for mail in two.taken] == [[BOB]]
    # when the first one works again, it gets the mail once more
    one.answers.clear()
    await harness.make_due()
    await harness.until(id_, state="done")
    assert [mail.recipients for mail in one.taken] == [[ANN], [ANN]]
    assert [mail.recipients for mail in two.taken] == [[BOB]]


async def test_the_mail_of_a_dead_sender_waits_for_the_relay_that_has_it(
    database_url: str, servers: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a sender that dies when the first relay has taken a mail, before it writes that down
    one, two = servers
    monkeypatch.setattr(delivery, "RECORD_SECONDS", 0.0)
    settle = outcomes.record_results

    async def dies(connection: Any, batch: Sequence[Any], *rest: Any) -> Any:
        if batch:
            raise Temporary("dead")
        return await settle(connection, batch, *rest)

    async with sending(database_url) as harness:
        await configure(harness, one, two)
        monkeypatch.setattr(outcomes, "record_results", dies)
        id_ = await harness.submit(ANN)
        await until(lambda: _taken(one))
        await harness.until(id_, state="sent_unanswered")
    monkeypatch.setattr(outcomes, "record_results", settle)
    # when the next sender starts while that relay is away, then other mail leaves by the second one
    one.always("GREETING", "421 4.3.2 closing")
    async with sending(database_url) as harness:
        await configure(harness, one, two)
        await harness.until(await harness.submit(BOB), state="done")
        await harness.until(id_, state="queued", uncertain=True)
        assert [mail.recipients for mail in two.taken] == [[BOB]]
        # and when the first one is back, it gets the mail once more
        one.always("GREETING", None)
        await harness.make_due()
        await harness.until(id_, state="done")
    assert [mail.recipients for mail in one.taken] == [[ANN], [ANN]]
    assert [mail.recipients for mail in two.taken] == [[BOB]]


async def _taken(server: ScriptedSmtp) -> bool:
    return bool(server.taken)


async def test_a_mail_waits_if_no_relay_works_and_says_why(harness: SenderHarness, servers: Pair) -> None:
    for server in servers:
        server.always("GREETING", "554 no service")
    id_ = await harness.submit(ANN)
    await until(lambda: in_trouble(harness, 0))
    await until(lambda: in_trouble(harness, 1))
    await harness.until(id_, state="queued")
    text = str(await why(harness))
    assert text.startswith("relaying: 127.0.0.1:") and "; relaying: localhost:" in text
    assert (await harness.listed(id_)).tries == 0


# ---------------------------------------------------------------------------------------------- own logins


async def test_a_relay_has_a_login_of_its_own(harness: SenderHarness, servers: Pair) -> None:
    one, two = servers
    await configure(harness, one, two, login="ours@relay.example", password="another secret")
    await harness.until(await harness.submit(ANN), state="done")
    assert one.logins == ["ours@relay.example another secret"]
    # when its password is changed, the next mail needs a new login
    await configure(harness, one, two, login="ours@relay.example", password="a third secret")
    await harness.until(await harness.submit(ANN), state="done")
    assert one.logins[1:] == ["ours@relay.example a third secret"]
    # when it fails, then the second one gets the account's login
    one.always("GREETING", "554 no service")
    await harness.relaying.connections.close_idle(0.0)
    await harness.until(await harness.submit(ANN), state="done")
    assert two.logins == [f"{SUPPORT} secret"]


# ---------------------------------------------------------------------------------------------- limits


async def age_use(harness: SenderHarness, seconds: int) -> None:
    """Let what was sent be so much older."""
    await harness.rows("update relay_usage set began_at = began_at - make_interval(secs => %s)", seconds)
    await harness.rows("update relays set full_until = null")


async def test_a_limit_of_recipients_a_day_is_kept_and_shown(harness: SenderHarness, servers: Pair) -> None:
    # given a relay with a limit
    one, _ = servers
    await configure(harness, one, None, recipients_per_day=3)
    await harness.until(await harness.submit(ANN, BOB), state="done")
    # when a mail has more recipients than there is room for, then those of the limit get it, and the others wait
    id_ = await harness.submit(ANN, BOB)
    await until(lambda: in_trouble(harness))
    waiting = await harness.until(id_, state="queued")
    assert [state for state, _ in replies(waiting)] == ["relayed", "waiting"]
    assert (waiting.tries, [mail.recipients for mail in one.taken]) == (0, [[ANN, BOB], [ANN]])
    [[until_]] = await harness.rows("select to_char(full_until at time zone 'utc', 'HH24:MI') from relays")
    assert await why(harness) == (f"relaying: 127.0.0.1: limit of 3 recipients a day reached, next at {until_} UTC")
    # and, if it lasts, an alarm
    [alarm] = [problem for problem in await problems_of(harness) if problem.kind == "full"]
    assert (alarm.subject, alarm.text) == (
        SUPPORT,
        f"{SUPPORT}: mail waits to be relayed: 127.0.0.1: limit of 3 recipients a day reached, next at {until_} UTC",
    )
    # and so does the mail's trace
    async with harness.database.transaction() as connection:
        [traced] = await trace.trace(connection, str(id_))
    assert traced["why"] == await why(harness)
    # when a day has passed, they get it
    await age_use(harness, 86_400 + 300)
    await harness.until(id_, state="done")
    assert one.taken[2].recipients == [BOB]
    assert one.said("RCPT") == [f"RCPT TO:<{to}>" for to in (ANN, BOB, ANN, BOB)]


async def test_a_limit_of_mails_a_minute_is_kept(harness: SenderHarness, servers: Pair) -> None:
    one, _ = servers
    await configure(harness, one, None, mails_per_minute=2)
    ids = [await harness.submit(ANN) for _ in range(3)]
    await until(lambda: in_trouble(harness))
    assert len(one.taken) == 2
    assert "limit of 2 mails a minute reached" in str(await why(harness))
    await age_use(harness, 61)
    for id_ in ids:
        await harness.until(id_, state="done")
    assert len(one.taken) == 3


async def test_mail_over_a_limit_goes_by_the_next_relay(harness: SenderHarness, servers: Pair) -> None:
    one, two = servers
    await configure(harness, one, two, recipients_per_day=1)
    for to in (ANN, BOB, EVE):
        await harness.until(await harness.submit(to), state="done")
    assert ([mail.recipients for mail in one.taken], [mail.recipients for mail in two.taken]) == (
        [[ANN]],
        [[BOB], [EVE]],
    )
    # and nobody is alarmed, because no mail waits
    assert not [problem for problem in await problems_of(harness) if problem.kind == "full"]
    # what was refused, and what went by another relay, counts nothing
    assert await harness.rows("select sum(recipients) from relay_usage where seconds = 300") == [(1,)]


async def test_a_mail_without_a_reply_counts_in_the_limit(harness: SenderHarness, servers: Pair) -> None:
    one, two = servers
    await configure(harness, one, two, recipients_per_day=1)
    one.say("END", SWALLOW)
    id_ = await harness.submit(ANN)
    await until(lambda: in_trouble(harness))
    waiting = await harness.listed(id_)
    assert (waiting.uncertain, len(one.taken), len(two.taken)) == (True, 1, 0)


async def test_two_senders_keep_one_limit_together(database_url: str, servers: Pair) -> None:
    # given two senders, a relay with a limit, and mail that becomes due for both at once
    one, _ = servers
    async with AsyncExitStack() as stack:
        first, second = [await stack.enter_async_context(sending(database_url)) for _ in range(2)]
        await configure(first, one, None, recipients_per_day=7, connections=8)
        second.externals, second.people = first.externals, first.people
        await first.rows("update relays set next_try_at = now() + interval '1 hour'")
        for _ in range(20):
            await first.submit(ANN)
        # when they send, then the relay gets as much as it may have
        await first.make_due()
        await until(lambda: in_trouble(first))
        await until(lambda: first.rows("select 1 where not exists (select from submissions where state = 'claimed')"))
        assert len(one.taken) == len(one.said("RCPT")) == 7
        # and the same a day later
        await age_use(first, 86_400 + 300)
        await first.make_due()
        await until(lambda: first.rows("select 1 from submissions having count(*) filter (where state = 'done') = 14"))
        await until(lambda: in_trouble(first))
        assert len(one.taken) == len(one.said("RCPT")) == 14


async def test_use_that_no_limit_counts_any_more_is_purged(harness: SenderHarness, servers: Pair) -> None:
    one, _ = servers
    await configure(harness, one, None, recipients_per_day=9)
    await harness.until(await harness.submit(ANN), state="done")
    for age, left in ((86_400, [(300,)]), (2 * 86_400, [])):
        await age_use(harness, age)
        async with harness.database.transaction() as connection:
            await relay_usage.purge_usage(connection)
        assert await harness.rows("select seconds from relay_usage") == left


async def test_an_own_password_is_sealed_with_a_new_key_and_erased(harness: SenderHarness, servers: Pair) -> None:
    one, two = servers
    await configure(harness, one, two, login="ours", password="another secret")
    new = Vault(new_key())
    both = Vault(f"{new_key()} {company.KEY}")
    async with harness.database.transaction() as connection:
        assert await operations.rotate_key(connection, both) == (1, [])
        [account] = await accounts.load_externals(connection)
        assert account.relay.password is not None and both.open(account.relay.password) == "another secret"
        with pytest.raises(Permanent):
            new.open(account.relay.password)
        # and it is erased with the account's, some time after the account is removed
        await account_changes.remove_account(connection, "external", account.id)
        later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)
        assert await account_changes.erase_secrets(connection, later) == 1
    assert await harness.rows("select position, password from relays order by position") == [(0, b""), (1, None)]
