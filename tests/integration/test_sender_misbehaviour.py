"""Misbehaving providers: the sender loses and repeats no mail, and reports each one that is stuck."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial

import pytest

from services.admin.monitoring.status import find_account_problem
from services.sender import account_status, retry_policy, transmission
from shared.model import External
from shared.provider import smtp_client, smtp_connect
from shared.store import accounts, relays
from shared.store.relays import RelayStatus
from tests import company
from tests.company import SUPPORT
from tests.polling import until
from tests.scripted_smtp import CLOSE, HANG, PIPELINING, ScriptedSmtp, scripted_smtp
from tests.sender_harness import MAIL, SenderHarness, provider_fixture, sending

ANN = "ann@customer.org"
_connect = smtp_connect.connect


provider = provider_fixture()


@pytest.fixture
async def harness(
    database_url: str, provider: ScriptedSmtp, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[SenderHarness]:
    be_impatient(monkeypatch, 1.0)
    async with sending(database_url) as running:
        await running.accounts({SUPPORT: provider.port})
        yield running


def be_impatient(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Set the timeouts for a provider's replies to seconds instead of minutes."""
    monkeypatch.setattr(smtp_connect, "connect", partial(_connect, seconds=seconds))
    monkeypatch.setattr(smtp_client.SmtpClient.reply, "__defaults__", (seconds,))
    monkeypatch.setattr(smtp_client.SmtpClient.command, "__defaults__", (seconds,))
    monkeypatch.setattr(transmission, "DATA_SECONDS", seconds)
    for name in ("DATA_SECONDS", "BLOCK_SECONDS", "ANSWER_SECONDS"):
        monkeypatch.setattr(smtp_client, name, seconds)


async def account(harness: SenderHarness) -> External:
    async with harness.database.transaction() as connection:
        [found] = await accounts.load_externals(connection, [harness.externals[SUPPORT].id])
    return found


@dataclass(frozen=True)
class Row:
    """verb, reply: what the provider does, always. words: of what is said about the mail or the account.

    kind: of the account's failure, None if it is the mail's.
    """

    verb: str
    reply: str
    words: str
    kind: str | None = None


TABLE = [
    Row("GREETING", HANG, "did not answer within", "timeout"),
    Row("GREETING", CLOSE, "the connection ended before the login", "server"),
    Row("GREETING", "SSH-2.0-x", "the reply is not an SMTP reply", "server"),
    Row("GREETING", "421 4.7.0 too many connections", "the server answered 421", "server"),
    Row("GREETING", "554 5.7.1 go away", "the server answered 554", "server"),
    Row("EHLO", HANG, "did not answer within", "timeout"),
    Row("EHLO", CLOSE, "ended before the login", "server"),
    Row("AUTH", HANG, "did not answer within", "timeout"),
    Row("AUTH", CLOSE, "ended before the login", "server"),
    Row("AUTH", "454 4.7.0 Too many login attempts", "the login does not work now (454 4.7.0", "server"),
    Row("AUTH", "432 4.3.2 Concurrent connections limit exceeded", "does not work now (432 4.3.2", "server"),
    Row("AUTH", "535 5.7.139 SmtpClientAuthentication is disabled", "refused (535 5.7.139 Smtp", "credentials"),
    Row("AUTH", "535 5.7.3 Authentication unsuccessful", "check login and password", "credentials"),
    Row("MAIL", HANG, "no answer"),
    Row("MAIL", CLOSE, "the connection was lost"),
    Row("MAIL", "421 4.7.0 Try again later, closing connection", "the server ended the connection: 421 4.7.0"),
    Row("MAIL", "530 5.7.57 Client not authenticated", "the server wants a login (530 5.7.57", "credentials"),
    Row("MAIL", "451 4.7.500 Server busy", "slows us down (451 4.7.500", "throttled"),
    Row("RCPT", HANG, "no answer"),
    Row("RCPT", CLOSE, "the connection was lost"),
    Row("RCPT", "421 4.3.2 shutting down", "the server ended the connection: 421"),
    Row("RCPT", "450 4.2.1 receiving mail too quickly", "450 4.2.1"),
    Row("DATA", HANG, "no answer"),
    Row("DATA", CLOSE, "the connection was lost"),
    Row("DATA", "noise", "not an SMTP reply"),
    Row("END", "421 4.7.28 unusual rate", "421 4.7.28"),
    Row("END", "432 4.3.2 STOREDRV.ClientSubmit; sender thread limit exceeded", "slows us down (432", "throttled"),
    Row("END", "550 5.4.5 Daily user sending limit exceeded", "limit for sending is reached (550 5.4.5", "throttled"),
    Row("END", "554 5.2.0 STOREDRV.Submission.Exception:SubmissionQuotaExceededException", "limit", "throttled"),
    Row("END", "554 5.2.252 SendAsDenied; a not allowed to send as b", "send as the account's address", "sender"),
]


@pytest.mark.parametrize("pipelining", [False, True])
async def test_every_misbehaviour_is_named_and_the_mail_leaves_when_it_ends(
    harness: SenderHarness, monkeypatch: pytest.MonkeyPatch, pipelining: bool
) -> None:
    be_impatient(monkeypatch, 3.0)  # so many at once need more than a second where the machine is busy
    rows = [row for row in TABLE if not (pipelining and row.verb == "EHLO")]
    async with AsyncExitStack() as stack:
        # given an account for each row with that misbehaviour, and one whose provider works
        providers = [await stack.enter_async_context(scripted_smtp()) for _ in rows]
        well = await stack.enter_async_context(scripted_smtp())
        for row, provider in zip(rows, providers, strict=True):
            provider.always("EHLO", PIPELINING if pipelining else None)
            provider.always(row.verb, row.reply)
        await _share_out(harness, [*providers, well])
        # when a mail leaves through each
        ids = [await harness.submit(ANN, author=f"Person {number}") for number in range(len(rows))]
        working = await harness.submit(ANN, author=f"Person {len(rows)}")
        # then the one of the working provider leaves at once
        await harness.until(working, state="done")
        assert len(well.taken) == 1
        # and the failure is shown: at the account, with a metric, or at the mail
        wrong = await asyncio.gather(
            *(_silent(harness, number, id_, row) for number, (id_, row) in enumerate(zip(ids, rows, strict=True)))
        )
        assert [row for row in wrong if row] == []
        for number, (id_, row) in enumerate(zip(ids, rows, strict=True)):
            assert (await harness.listed(id_)).state in ("queued", "claimed"), row
            assert not await harness.notices(f"Person {number}"), row
        # when all behave again every mail leaves, once
        for row, provider in zip(rows, providers, strict=True):
            provider.always(row.verb, PIPELINING if pipelining and row.verb == "EHLO" else None)
        await harness.make_due()
        for number, (id_, row, provider) in enumerate(zip(ids, rows, providers, strict=True)):
            await harness.until(id_, state="done")
            assert len(provider.taken) == 1, row
            await until(lambda number=number: _untroubled(harness, number))


async def _share_out(harness: SenderHarness, providers: list[ScriptedSmtp]) -> None:
    """Create an account at each provider, and a person who shares it."""
    server = {"host": "127.0.0.1", "tls": "none", "auth": True, "connections": 2}
    numbered = list(enumerate(providers))
    await company.apply(
        harness.database,
        {
            "external_accounts": [
                company.external(_address(number), smtp=server | {"port": provider.port})
                for number, provider in numbered
            ],
            "local_accounts": [
                company.local(f"Person {number}", _address(number), address=f"person{number}@local.com")
                for number, _ in numbered
            ],
        },
    )
    harness.externals, harness.people = await company.everyone(harness.database)


def _address(number: int) -> str:
    return f"account{number}@company.com"


async def _silent(harness: SenderHarness, number: int, id_: int, row: Row) -> str | None:
    """Return the row if the failure is not shown as the row says."""
    said = partial(_says, harness, number, row) if row.kind else partial(_waits, harness, id_, row.words)
    try:
        await until(said, 30.0)
    except TimeoutError:
        return f"{row}: {await _relay(harness, _address(number))} {await harness.listed(id_)}"
    return None


async def _says(harness: SenderHarness, number: int, row: Row) -> bool:
    state = await _relay(harness, _address(number))
    metric = account_status.ERRORS.labels(_address(number), "127.0.0.1", row.kind)._value.get()
    return state.last_error_kind == row.kind and row.words in (find_account_problem(state) or "") and metric > 0


async def _waits(harness: SenderHarness, id_: int, words: str) -> bool:
    found = await harness.listed(id_)
    events = await harness.rows("select reply from maillog where submission_id = %s", id_)
    said = [recipient.reply for recipient in found.recipients] + [reply for (reply,) in events]
    return any(words in (reply or "") for reply in said)


async def _untroubled(harness: SenderHarness, number: int) -> bool:
    return find_account_problem(await _relay(harness, _address(number))) is None


async def _relay(harness: SenderHarness, address: str) -> RelayStatus:
    async with harness.database.transaction() as connection:
        [relay] = (await relays.load_status(connection))[harness.externals[address].id]
    return relay


async def test_a_rejected_account_bounces_nothing_and_is_paused(harness: SenderHarness, provider: ScriptedSmtp) -> None:
    # given
    provider.always("END", "554 5.2.252 SendAsDenied; x not allowed to send as y")
    ids = [await harness.submit(ANN) for _ in range(3)]
    await harness.until(ids[0], tries=1)

    # then, once the last lane has ended
    async def paused() -> bool:
        found = await harness.rows(
            "select extract(epoch from next_try_at - now())::float8 from relays where paused_at is not null"
        )
        # a lane that has not ended would pause the account again after it is resumed
        running = any(relay.queue.lane_count for relay, _ in harness.relaying._relays.values())
        return bool(found) and retry_policy.LOGIN_PAUSE - 60 < found[0][0] <= retry_policy.LOGIN_PAUSE and not running

    await until(paused)
    # when the account is corrected, everything leaves
    provider.always("END", None)
    async with harness.database.transaction() as connection:
        await relays.unpause(connection, harness.externals[SUPPORT].id)
    await harness.rows("update submissions set next_try_at = now()")
    for id_ in ids:
        await harness.until(id_, state="done")
    assert len(provider.taken) == 3 and not await harness.notices("Alex")


@pytest.mark.parametrize(
    ("announced", "verb", "reply", "learnt"),
    [
        ("250-x\r\n250 SIZE 5000", "END", "250 ok", 5000),
        ("250-x\r\n250 SIZE 0", "END", "250 ok", None),
        ("250-x\r\n250 SIZE", "END", "250 ok", None),
        ("250-x\r\n250 SIZE many", "END", "250 ok", None),
        ("250-x\r\n250-8BITMIME\r\n250 HELP", "END", "552 5.3.4 too big", -1),
        ("250-x\r\n250-8BITMIME\r\n250 HELP", "END", "552-5.2.3 exceeded Google's message size limits", -1),
        ("250-x\r\n250 SIZE 999999", "MAIL", "552 message too large", -1),
        ("250-x\r\n250 HELP", "END", "552 5.2.2 mailbox full", None),
        ("250-x\r\n250 HELP", "RCPT", "552 5.2.3 too large for this one", None),
    ],
)
async def test_the_size_limit_of_the_provider_is_stored(
    harness: SenderHarness, provider: ScriptedSmtp, announced: str, verb: str, reply: str, learnt: int | None
) -> None:
    # given
    provider.always("EHLO", announced.replace("\r\n250 ", "\r\n250-AUTH PLAIN\r\n250 "))
    provider.always(verb, reply.replace("552-", "552 "))
    # when
    id_ = await harness.submit(ANN, mail=MAIL + b"x" * 3000 + b"\r\n")
    await harness.until(id_, state="done")

    # then
    async def known() -> bool:
        most = (await account(harness)).max_octets
        return most == learnt if learnt != -1 else most is not None and 3000 < most < 3400

    await until(known, 5.0)
    # and the configured number stays
    assert await account(harness) == harness.externals[SUPPORT]


async def test_the_prefix_of_gmails_recent_mode_is_not_used_for_smtp(
    harness: SenderHarness, provider: ScriptedSmtp
) -> None:
    await harness.rows("update external_accounts set login = 'recent:support@company.com'")
    id_ = await harness.submit(ANN)
    await harness.until(id_, state="done")
    assert {login.split()[0] for login in provider.logins} == {"support@company.com"}


async def test_a_provider_that_disconnects_after_each_mail_gets_all_once(
    harness: SenderHarness, provider: ScriptedSmtp
) -> None:
    provider.hangs_up = True
    ids = [await harness.submit(ANN) for _ in range(5)]
    for id_ in ids:
        await harness.until(id_, state="done", uncertain=False)
    assert len(provider.taken) == 5 and find_account_problem(await _relay(harness, SUPPORT)) is None
