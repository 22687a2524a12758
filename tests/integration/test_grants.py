"""Access tokens without a person, of another account, and renewed ahead of time: a database, a scripted issuer."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, replace
from typing import Any

import pytest
from psycopg.types.json import Jsonb

from services.admin.accounts.apply import external_of
from services.admin.accounts.connection_check import check_connection
from services.admin.accounts.errors import AccountsError
from services.admin.accounts.file_format import check
from services.admin.context import AdminContext
from services.sender.connection_pool import ConnectionPool
from shared.auth.passwords import HashingPool
from shared.db.database import Database
from shared.errors import Temporary
from shared.model import External, Relay, Server
from shared.provider.credentials import Credential, Credentials, Grant
from shared.provider.oauth import Unauthorized, xoauth2
from shared.provider.sasl import oauthbearer_response
from shared.provider.smtp_login import AuthFailed
from shared.provider.vault import Vault
from shared.settings import Settings
from shared.store import account_changes, polls
from tests.company import KEY, SALES, SUPPORT, apply, everyone, external
from tests.fetcher_harness import fails, fetching, has
from tests.polling import until
from tests.scripted_pop3 import ScriptedPop3, say
from tests.scripted_smtp import ScriptedSmtp
from tests.sender_harness import provider_fixture, sending
from tests.token_server import Registered, TokenServer, account_fields, client_key, token_server

VAULT = Vault(KEY)
BOTH = {"grant": "client_credentials"}


@pytest.fixture
def server() -> Iterator[TokenServer]:
    with token_server() as running:
        yield running


@pytest.fixture
async def ours(database: Database) -> AsyncIterator[Credentials]:
    yield Credentials(database, VAULT, True)


def sharing(address: str = SALES, of: str = SUPPORT, **fields: Any) -> dict[str, Any]:
    """An account that uses the tokens of another one."""
    entry = external(address, oauth={"same_as": of}, **fields)
    del entry["password"]
    return entry


async def stored(database: Database, address: str = SUPPORT) -> External:
    return (await everyone(database))[0][address]


# ------------------------------------------------------------------------------------------------ no person


async def test_an_application_logs_in_to_the_mailbox_by_its_own_token(
    database: Database, server: TokenServer, ours: Credentials
) -> None:
    server.clients = {"us": Registered("hush")}
    await apply(database, {"external_accounts": [account_fields(server, grant="client_credentials")]})
    account = await stored(database)
    found = await asyncio.gather(*(ours.credential_for(account) for _ in range(5)))
    assert set(found) == {Credential(SUPPORT, "access-1", token=True)}
    # and the token is renewed in the same way, also in another process
    ours.discard_token(account)
    assert (await ours.credential_for(account)).secret == "access-2"
    assert (await Credentials(database, VAULT, True).credential_for(account)).secret == "access-3"


async def test_a_service_account_asks_for_the_mailbox_of_the_login(
    database: Database, server: TokenServer, ours: Credentials
) -> None:
    key = client_key()
    server.clients = {"robot@project.example": Registered(key=key, logins=("box@company.com",))}
    given = {"grant": "jwt_bearer", "client_id": "robot@project.example", "client_secret": None}
    entry = account_fields(server, **given, client_key=key.as_google_json("robot@project.example"))
    await apply(database, {"external_accounts": [entry | {"login": "recent:box@company.com"}]})
    credential = await ours.credential_for(await stored(database))
    assert credential == Credential("recent:box@company.com", "access-1", token=True)


async def test_a_refused_application_is_told_what_to_do_and_asks_no_person(
    database: Database, server: TokenServer, ours: Credentials
) -> None:
    server.clients = {"us": Registered("another")}
    await apply(database, {"external_accounts": [account_fields(server, grant="client_credentials")]})
    with pytest.raises(Unauthorized) as caught:
        await ours.credential_for(await stored(database))
    assert "invalid_client" in str(caught.value) and f"mailgroup external set {SUPPORT}" in str(caught.value)
    assert "external authorize" not in str(caught.value)


async def test_code_of_an_earlier_version_takes_the_account_for_unauthorized(
    database: Database, server: TokenServer
) -> None:
    # given the columns as that code reads them
    await apply(database, {"external_accounts": [account_fields(server, **BOTH), sharing()]})
    async with database.transaction() as connection:
        cursor = await connection.execute("select oauth, password from external_accounts order by address")
        rows = await cursor.fetchall()
    # then it finds what it needs, and no refresh token
    for oauth, password in rows:
        assert {"name", "issuer", "client_id"} <= oauth.keys()
        assert {"token_url", "scope"} <= oauth["issuer"].keys() <= {*asdict(server.issuer)}
        assert Grant.open(VAULT, bytes(password)).refresh_token == ""
    # and what that code wrote is read by this one
    before = {"name": "", "issuer": asdict(server.issuer), "client_id": "us"}
    async with database.transaction() as connection:
        await connection.execute("update external_accounts set oauth = %s where address = %s", (Jsonb(before), SUPPORT))
    oauth = (await stored(database)).oauth
    assert oauth is not None and oauth.needs_consent and oauth.tenant is oauth.same_as is None


async def test_a_test_of_an_account_uses_the_fields_that_are_not_saved_yet(
    database: Database, server: TokenServer
) -> None:
    # given an account with a password, and one whose application has another secret by now
    await apply(database, {"external_accounts": [external(), account_fields(server, **BOTH) | {"address": SALES}]})
    server.clients = {"us": Registered("new-secret")}
    system = AdminContext(Settings(secret_key=KEY, allow_private_upstream=True), database, HashingPool())
    for address in (SUPPORT, SALES, "new@company.com"):
        for secret, problem in (("new-secret", "POP3: connect"), ("wrong", "access token")):
            entry = account_fields(server, **BOTH, client_secret=secret) | {"address": address}
            [fields] = check({"external_accounts": [entry]}).external_accounts
            old = (await everyone(database))[0].get(address)
            # when
            steps = await check_connection(system, external_of(fields, old, VAULT, old.id if old else 0))
            # then the right one fails only at the server, which is not there
            assert next(step.name for step in steps if not step.ok) == problem
    assert Grant.open(VAULT, (await stored(database, SALES)).password) == Grant(client_secret="hush")


# ------------------------------------------------------------------------------------------------ another account's


async def test_one_token_is_fetched_for_all_accounts_that_share_it(
    database: Database, server: TokenServer, ours: Credentials
) -> None:
    server.clients = {"us": Registered("hush")}
    await apply(database, {"external_accounts": [account_fields(server, **BOTH), sharing()]})
    accounts = [await stored(database, address) for address in (SUPPORT, SALES)]
    # when both log in at once, again and again
    found = await asyncio.gather(*(ours.credential_for(account) for account in accounts * 10))
    # then each with its own name
    assert set(found) == {Credential(address, "access-1", token=True) for address in (SUPPORT, SALES)}
    assert len(server.requests) == 1
    # and a token that the provider refuses to many is replaced once
    for account in accounts * 5:
        refused = Credential(account.login, "access-1", token=True)
        ours.discard_token(account, refused)
        assert (await ours.credential_for(account)).secret == "access-2"
    assert len(server.requests) == 2


async def test_a_token_is_sent_to_no_server_but_those_of_its_own_account(
    database: Database, server: TokenServer, ours: Credentials
) -> None:
    await apply(database, {"external_accounts": [account_fields(server, **BOTH), sharing()]})
    elsewhere = replace(await stored(database, SALES), relays=(Relay(Server("192.0.2.1", 465, "implicit")),))
    with pytest.raises(Unauthorized, match=f"{SALES}: has other servers than {SUPPORT}"):
        await ours.credential_for(elsewhere)
    assert not server.requests


async def test_an_account_whose_tokens_have_gone_is_told_which(
    database: Database, server: TokenServer, ours: Credentials
) -> None:
    await apply(database, {"external_accounts": [account_fields(server, **BOTH), sharing()]})
    async with database.transaction() as connection:
        await connection.execute("update external_accounts set oauth = null where address = %s", (SUPPORT,))
    with pytest.raises(Unauthorized, match=f"{SUPPORT}: has no access tokens; set oauth.same_as of {SALES}"):
        await ours.credential_for(await stored(database, SALES))


def sending_by(of: str, host: str = "127.0.0.1", port: int = 1) -> dict[str, Any]:
    """An account with a password, whose SMTP server gets the access tokens of another account."""
    smtp = {"host": host, "port": port, "tls": "none", "login": "box@company.com", "oauth": {"same_as": of}}
    return external(SALES, smtp=smtp)


async def test_a_relay_uses_the_tokens_of_another_account(
    database: Database, server: TokenServer, ours: Credentials
) -> None:
    server.clients = {"us": Registered("hush")}
    await apply(database, {"external_accounts": [account_fields(server, **BOTH), sending_by(SUPPORT.upper())]})
    account = await stored(database, SALES)
    # when mail is sent and fetched, then each login has its own secret
    relaying = await ours.credential_for_relay(account)
    assert relaying == Credential("box@company.com", "access-1", token=True)
    assert await ours.credential_for(account) == Credential(SALES, "secret")
    assert (await ours.credential_for(await stored(database))).secret == "access-1"
    # and a token that this server refuses is replaced for all
    ours.discard_token(account, relaying)
    assert (await ours.credential_for_relay(account)).secret == "access-2"
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("of", "host", "words"),
    [
        (SUPPORT, "192.0.2.1", "has other servers (127.0.0.1); access tokens are sent to no other ones"),
        (SALES, "127.0.0.1", "has no access tokens; name an account with oauth"),
        ("nobody@company.com", "127.0.0.1", "there is no such external account"),
    ],
)
async def test_a_relay_gets_no_tokens_that_are_not_for_its_server(
    database: Database, server: TokenServer, of: str, host: str, words: str
) -> None:
    with pytest.raises(AccountsError) as caught:
        await apply(database, {"external_accounts": [account_fields(server, **BOTH), sending_by(of, host)]})
    assert f"smtp.oauth.same_as: {of!r}: {words}" in str(caught.value)


async def test_an_account_keeps_its_tokens_while_a_relay_uses_them(database: Database, server: TokenServer) -> None:
    await apply(database, {"external_accounts": [account_fields(server, **BOTH), sending_by(SUPPORT)]})
    with pytest.raises(AccountsError, match=f"{SALES} uses the access tokens of this account; change that first"):
        await apply(database, {"external_accounts": [external()]})


# ------------------------------------------------------------------------------------------------ ahead of time


def ends_in(ours: Credentials, account: External, seconds: float, ahead: float = 600.0) -> None:
    """Let the cached token of an account end in so many seconds."""
    expires = time.monotonic() + seconds
    token = replace(ours._tokens[account.id], expires=expires, renew_at=expires - ahead)
    ours._tokens[account.id] = token


async def authorized(database: Database, server: TokenServer) -> External:
    await apply(database, {"external_accounts": [account_fields(server)]})
    account = await stored(database)
    async with database.transaction() as connection:
        sealed = Grant("again", "hush", "once").seal(VAULT)
        await account_changes.replace_password(connection, account.id, account.password, sealed)
    return await stored(database)


async def test_a_token_is_renewed_before_a_login_would_have_to_wait(
    database: Database, server: TokenServer, ours: Credentials
) -> None:
    account = await authorized(database, server)
    assert (await ours.credential_for(account)).secret == "access-1"
    # given nothing to do yet: between ten and five minutes before its end
    lifetime = 3600 - (ours._tokens[account.id].renew_at - time.monotonic())
    assert 300 - 60 < lifetime < 600 + 60
    await ours.renew_ahead()
    assert len(server.requests) == 1
    # when it ends soon
    ends_in(ours, account, 400)
    await ours.renew_ahead()
    await ours.renew_ahead()
    # then it was renewed once, and no login asks the issuer
    assert len(server.requests) == 2
    assert (await ours.credential_for(account)).secret == "access-2"
    assert len(server.requests) == 2


async def test_a_short_lived_token_is_renewed_after_half_of_its_time(
    database: Database, server: TokenServer, ours: Credentials
) -> None:
    account = await authorized(database, server)
    server.answers = [(200, {"access_token": "short", "expires_in": 240})]
    await ours.credential_for(account)
    await ours.renew_ahead()
    assert len(server.requests) == 1
    assert 100 < ours._tokens[account.id].renew_at - time.monotonic() <= 120


async def test_a_dead_issuer_delays_no_login_while_the_token_is_good(
    database: Database, server: TokenServer, ours: Credentials
) -> None:
    account = await authorized(database, server)
    await ours.credential_for(account)
    # given a token that ends in less than the margin, and an issuer that fails
    ends_in(ours, account, 100)
    server.answers = [(503, {})] * 9
    await ours.renew_ahead()
    # then nobody asks it again for a minute
    assert (await ours.credential_for(account)).secret == "access-1"
    await ours.renew_ahead()
    assert len(server.requests) == 2
    # unless the token cannot be used any more
    ends_in(ours, account, 2)
    with pytest.raises(Temporary, match="503"):
        await ours.credential_for(account)
    assert len(server.requests) == 3


async def test_a_refused_renewal_is_shown_by_the_login_that_needs_it(
    database: Database, server: TokenServer, ours: Credentials
) -> None:
    account = await authorized(database, server)
    await ours.credential_for(account)
    ends_in(ours, account, 500)
    server.answers = [(400, {"error": "invalid_grant"})] * 2
    await ours.renew_ahead()
    await ours.renew_ahead()
    assert len(server.requests) == 2 and (await ours.credential_for(account)).secret == "access-1"
    ends_in(ours, account, 100)
    with pytest.raises(Unauthorized, match=f"invalid_grant.*external authorize {SUPPORT}"):
        await ours.credential_for(account)


async def test_no_token_is_renewed_for_an_account_that_is_disabled(
    database: Database, server: TokenServer, ours: Credentials
) -> None:
    account = await authorized(database, server)
    await ours.credential_for(account)
    ends_in(ours, account, 500)
    await apply(database, {"external_accounts": [account_fields(server) | {"enabled": False}]})
    await ours.renew_ahead()
    assert len(server.requests) == 1 and not ours._tokens


async def test_a_slow_issuer_delays_only_its_own_accounts(
    database: Database, server: TokenServer, ours: Credentials
) -> None:
    with token_server() as other:
        entries = [account_fields(server, **BOTH), account_fields(other, **BOTH) | {"address": SALES}]
        await apply(database, {"external_accounts": entries})
        accounts = [await stored(database, address) for address in (SUPPORT, SALES)]
        for account in accounts:
            await ours.credential_for(account)
            ends_in(ours, account, 500)
        # given an issuer that answers only when the other one has
        go_on, loop = asyncio.Event(), asyncio.get_running_loop()
        server.meanwhile = lambda: asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result()
        # when
        renewing = asyncio.create_task(ours.renew_ahead())
        await until(lambda: len(other.requests) == 2)
        await until(lambda: ours._tokens[accounts[1].id].access == "access-2")
        # then no login waits for it, of these accounts either
        assert (await ours.credential_for(accounts[0])).secret == "access-1"
        go_on.set()
        await renewing
    assert ours._tokens[accounts[0].id].access == "access-2"


async def test_the_fetcher_renews_tokens_in_the_background(
    database_url: str, server: TokenServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given tokens that are to be renewed as soon as they are there
    monkeypatch.setattr("services.fetcher.scheduler.RENEWAL_SECONDS", 0.05)
    server.answers = [(200, {"access_token": f"short-{number}", "expires_in": 0.2}) for number in range(3)]
    settings = Jsonb({"name": "", "issuer": asdict(server.issuer), "client_id": "us", "grant": "client_credentials"})
    answers = {"AUTH": say(b"+ \r\n")} | {
        xoauth2(SUPPORT, token).decode(): say(b"+OK\r\n") for token in ("short-0", "short-1", "short-2", "access-4")
    }
    async with ScriptedPop3(answers=answers).running() as script, fetching(database_url) as harness:
        sealed = Grant(client_secret="hush").seal(harness.vault)
        await harness.add(SUPPORT, script.port, password=sealed, oauth=settings)
        # then
        await until(lambda: len(server.requests) >= 4)


async def test_the_sender_renews_tokens_in_the_background(
    database_url: str, server: TokenServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.sender.background.RENEWAL_SECONDS", 0.05)
    async with sending(database_url) as harness:
        await apply(harness.database, {"external_accounts": [account_fields(server, **BOTH)]})
        account, own = await stored(harness.database), harness.relaying.credentials
        assert (await own.credential_for(account)).secret == "access-1"
        # when it ends soon, and nobody sends a mail
        ends_in(own, account, 500)
        # then
        await until(lambda: own._tokens[account.id].access == "access-2")


# ------------------------------------------------------------------------------------------------ at the provider


provider = provider_fixture("250-scripted\r\n250 AUTH PLAIN OAUTHBEARER")


def at(account: External, provider: ScriptedSmtp) -> External:
    return replace(account, relays=(Relay(Server("127.0.0.1", provider.port, "none")),))


async def test_mail_is_fetched_by_an_application_and_a_shared_token(database_url: str, server: TokenServer) -> None:
    mails = {"a": b"Subject: hello\r\n\r\nbody\r\n"}
    server.clients = {"us": Registered("hush")}
    proofs = {address: xoauth2(address, "access-1").decode() for address in (SUPPORT, SALES)}
    answers = {"AUTH": say(b"+ \r\n")} | {proof: say(b"+OK\r\n") for proof in proofs.values()}
    settings = {"name": "", "issuer": asdict(server.issuer), "client_id": "us", "grant": "client_credentials"}
    nothing = {"name": "", "issuer": {"token_url": "", "scope": ""}, "client_id": "", "same_as": SUPPORT.upper()}
    script = ScriptedPop3(mails, answers=answers)
    async with script.running(), fetching(database_url) as harness:
        sealed = Grant(client_secret="hush").seal(harness.vault)
        support = await harness.add(SUPPORT, script.port, password=sealed, oauth=Jsonb(settings))
        await until(lambda: has(harness, support, 1))
        empty = Grant().seal(harness.vault)
        sales = await harness.add(SALES, script.port, password=empty, oauth=Jsonb(nothing))
        await until(lambda: has(harness, sales, 1))
    assert set(proofs.values()) <= set(script.commands) and len(server.requests) == 1


async def test_a_refused_application_pauses_the_account_with_a_reason(database_url: str, server: TokenServer) -> None:
    server.clients = {"us": Registered("another")}
    settings = {"name": "", "issuer": asdict(server.issuer), "client_id": "us", "grant": "client_credentials"}
    async with ScriptedPop3().running() as script, fetching(database_url) as harness:
        sealed = Grant(client_secret="hush").seal(harness.vault)
        account = await harness.add(SUPPORT, script.port, password=sealed, oauth=Jsonb(settings))
        await until(lambda: fails(harness, account))
        async with harness.database.transaction() as connection:
            polled = (await polls.load_poll_states(connection))[account]
    assert polled.paused_at is not None and "invalid_client" in str(polled.last_error)
    assert "authorize" not in str(polled.last_error).replace("has to authorize it", "") and not script.commands


async def test_a_server_that_offers_only_oauthbearer_gets_that(
    database: Database, server: TokenServer, ours: Credentials, provider: ScriptedSmtp
) -> None:
    await apply(database, {"external_accounts": [account_fields(server, **BOTH)]})
    account = at(await stored(database), provider)
    # given a provider that explains why it refuses the first token (RFC 7628 section 3.2.2)
    provider.say("AUTH", "334 eyJzdGF0dXMiOiJpbnZhbGlkX3Rva2VuIn0=")
    provider.say("RESPONSE", "535 5.7.8 expired")
    # when
    client = await ConnectionPool(ours, True).connect(account)
    await client.quit()
    # then the next token is sent in the same form
    sent = [line for line in provider.lines if line.startswith("AUTH")]
    for line, token in zip(sent, ("access-1", "access-2"), strict=True):
        proof = base64.b64encode(oauthbearer_response(SUPPORT, token, "127.0.0.1", provider.port)).decode()
        assert line == f"AUTH OAUTHBEARER {proof}"
    assert provider.responses == ["AQ=="]


async def test_tokens_refused_by_oauthbearer_are_wrong_credentials(
    database: Database, server: TokenServer, ours: Credentials, provider: ScriptedSmtp
) -> None:
    await apply(database, {"external_accounts": [account_fields(server, **BOTH)]})
    provider.always("AUTH", "334 e30=")
    provider.always("RESPONSE", "535 5.7.8 no")
    with pytest.raises(AuthFailed):
        await ConnectionPool(ours, True).connect(at(await stored(database), provider))
    assert provider.responses == ["AQ==", "AQ=="]


async def test_xoauth2_is_preferred_where_both_are_offered(
    database: Database, server: TokenServer, ours: Credentials, provider: ScriptedSmtp
) -> None:
    provider.always("EHLO", "250-scripted\r\n250 AUTH OAUTHBEARER XOAUTH2")
    await apply(database, {"external_accounts": [account_fields(server, **BOTH)]})
    client = await ConnectionPool(ours, True).connect(at(await stored(database), provider))
    await client.quit()
    assert [line.split()[1] for line in provider.lines if line.startswith("AUTH")] == ["XOAUTH2"]


async def test_a_relay_is_sent_to_and_tested_by_the_tokens_of_another_account(
    database: Database, server: TokenServer, ours: Credentials, provider: ScriptedSmtp
) -> None:
    server.clients = {"us": Registered("hush")}
    await apply(
        database, {"external_accounts": [account_fields(server, **BOTH), sending_by(SUPPORT, port=provider.port)]}
    )
    account = await stored(database, SALES)
    client = await ConnectionPool(ours, True).connect(account)
    await client.quit()
    system = AdminContext(Settings(secret_key=KEY, allow_private_upstream=True), database, HashingPool())
    steps = [step for step in await check_connection(system, account) if step.name.startswith("SMTP")]
    assert steps and all(step.ok for step in steps), steps
    sent = [line for line in provider.lines if line.startswith("AUTH")]
    for line, token in zip(sent, ("access-1", "access-2"), strict=True):
        proof = base64.b64encode(oauthbearer_response("box@company.com", token, "127.0.0.1", provider.port)).decode()
        assert line == f"AUTH OAUTHBEARER {proof}"
    # and an application that is refused is named
    server.clients = {"us": Registered("another")}
    [failed] = [step for step in await check_connection(system, account) if step.name.startswith("SMTP")]
    assert (failed.name, failed.ok) == ("SMTP: access token", False) and "invalid_client" in failed.text
