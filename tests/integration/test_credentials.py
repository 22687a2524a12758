"""Access tokens of external accounts: fetched when needed, cached while valid, the grant encrypted in a database."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

import pytest
from psycopg import OperationalError
from psycopg.types.json import Jsonb

from services.admin.accounts.errors import AccountsError
from services.admin.accounts.export import external_fields
from services.admin.accounts.file_format import check
from services.admin.cli import authorize
from services.admin.context import AdminContext
from services.sender.connection_pool import ConnectionPool
from shared.auth.passwords import HashingPool
from shared.db.database import Database
from shared.errors import Permanent, Temporary
from shared.model import External, Relay, Server
from shared.provider import credentials, oauth
from shared.provider.credentials import Credential, Credentials, Grant
from shared.provider.oauth import IssuerUnavailable, Unauthorized
from shared.provider.smtp_login import AuthFailed, ServerUnavailable
from shared.provider.vault import Vault, new_key
from shared.settings import Settings
from shared.store import account_changes, polls
from tests.company import KEY, SUPPORT, apply, everyone, external
from tests.fetcher_harness import fails, fetching, has
from tests.polling import until, until_still
from tests.scripted_pop3 import ScriptedPop3, say
from tests.scripted_smtp import ScriptedSmtp
from tests.sender_harness import provider_fixture
from tests.servers import make_read_only, opened
from tests.token_server import TokenServer, account_fields, device_code, token_server, visit

VAULT = Vault(KEY)


@pytest.fixture
def server() -> Iterator[TokenServer]:
    with token_server() as running:
        yield running


async def stored(database: Database) -> External:
    return (await everyone(database))[0][SUPPORT]


@pytest.fixture
async def account(database: Database, server: TokenServer) -> External:
    """Authorized: its grant is stored."""
    await apply(database, {"external_accounts": [account_fields(server)]})
    await grant(database, "again")
    return await stored(database)


async def grant(database: Database, refresh_token: str) -> None:
    """Store what a person has granted, whatever is stored at the same time."""
    replaced = False
    while not replaced:
        found = await stored(database)
        async with database.transaction() as connection:
            old = Grant.open(VAULT, found.password)
            sealed = replace(old, refresh_token=refresh_token, authorized=refresh_token).seal(VAULT)
            replaced = await account_changes.replace_password(connection, found.id, found.password, sealed)


@pytest.fixture
async def ours(database: Database) -> AsyncIterator[Credentials]:
    yield Credentials(database, VAULT, True)


async def test_a_stored_password_is_read_back_unchanged(database: Database, ours: Credentials) -> None:
    await apply(database, {"external_accounts": [external(login="me")]})
    assert await ours.credential_for(await stored(database)) == Credential("me", "secret")


async def test_one_access_token_serves_many_logins_at_once(
    server: TokenServer, account: External, ours: Credentials
) -> None:
    # when
    found = await asyncio.gather(*(ours.credential_for(account) for _ in range(20)))
    # then
    assert set(found) == {Credential(SUPPORT, "access-1", token=True)}
    assert len(server.requests) == 1 and server.requests[0][1]["client_secret"] == "hush"


async def test_a_token_about_to_end_or_refused_is_not_used_again(
    server: TokenServer, account: External, ours: Credentials
) -> None:
    # given
    server.answers = [(200, {"access_token": "short", "expires_in": 30})]
    assert (await ours.credential_for(account)).secret == "short"
    # then
    assert (await ours.credential_for(account)).secret == "access-2"
    ours.discard_token(account)
    assert (await ours.credential_for(account)).secret == "access-3"


async def test_another_refresh_token_replaces_the_stored_one(
    server: TokenServer, account: External, ours: Credentials, database: Database
) -> None:
    # given
    server.answers = [(200, {"access_token": "first", "refresh_token": "newer", "expires_in": 3600})]
    # when
    await ours.credential_for(account)
    # then
    after = await stored(database)
    assert Grant.open(VAULT, after.password) == Grant("newer", "hush", "again")
    assert (await ours.credential_for(after)).secret == "first"
    # nor does another process that got one token before need another one now
    assert (await ours.credential_for(account)).secret == "first"
    assert len(server.requests) == 1


async def test_an_authorization_during_a_renewal_is_not_overwritten(
    server: TokenServer, account: External, ours: Credentials, database: Database
) -> None:
    # given
    server.answers = [(200, {"access_token": "first", "refresh_token": "newer", "expires_in": 3600})]
    loop = asyncio.get_running_loop()
    server.meanwhile = lambda: asyncio.run_coroutine_threadsafe(grant(database, "authorized again"), loop).result()
    # when
    await ours.credential_for(account)
    server.meanwhile = bool
    # then
    after = await stored(database)
    assert Grant.open(VAULT, after.password).refresh_token == "authorized again"
    assert (await ours.credential_for(after)).secret == "access-2"


@pytest.fixture
async def keeper(database_url: str) -> AsyncIterator[Database]:
    """Connections of a test that ends all others."""
    async with opened(database_url) as own:
        yield own


async def test_a_renewed_refresh_token_is_kept_until_the_database_stores_it(
    server: TokenServer,
    account: External,
    ours: Credentials,
    keeper: Database,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # given an issuer that takes each refresh token once, and a database that becomes read-only during the request
    monkeypatch.setattr(credentials, "SAVE_SECONDS", 0.2)
    server.rotating = True
    loop = asyncio.get_running_loop()
    server.meanwhile = lambda: asyncio.run_coroutine_threadsafe(make_read_only(keeper, True), loop).result()
    # when an access token is needed
    assert (await ours.credential_for(account)).secret == "access-1"
    server.meanwhile = bool
    await asyncio.sleep(0.5)
    assert Grant.open(VAULT, (await stored(keeper)).password).refresh_token == "again"
    # then no further request is made while the database stores nothing
    ours.discard_token(account)
    with pytest.raises(Temporary, match="database"):
        await ours.credential_for(account)
    assert len(server.requests) == 1
    # and once it does, the renewed token is stored and good, in another process too
    await make_read_only(keeper, False, database)

    async def is_stored() -> bool:
        with suppress(Temporary):  # the change ended all connections, of which the pool may still have some
            return Grant.open(VAULT, (await stored(keeper)).password).refresh_token == "again-1"
        return False

    await until(is_stored)
    assert (await ours.credential_for(account)).secret == "access-2"
    assert (await Credentials(keeper, VAULT, True).credential_for(account)).secret == "access-3"


@pytest.fixture
def store_again(account: External, server: TokenServer, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Makes storing a renewed refresh token of the authorized account fail, until the returned function is called."""

    async def fails(*arguments: object) -> bool:
        raise OperationalError("the connection is lost")

    server.rotating = True
    monkeypatch.setattr(credentials, "SAVE_SECONDS", 0.05)
    replace_password = account_changes.replace_password
    monkeypatch.setattr(account_changes, "replace_password", fails)
    return lambda: monkeypatch.setattr(account_changes, "replace_password", replace_password)


async def test_a_kept_refresh_token_is_used_while_it_cannot_be_stored(
    account: External, ours: Credentials, database: Database, store_again: Callable[[], None]
) -> None:
    # given a renewed token whose storing fails again and again
    for number in (1, 2, 3):
        assert (await ours.credential_for(account)).secret == f"access-{number}"
        ours.discard_token(account)
    # when storing works again
    store_again()

    # then the newest is stored, with what the operator changed meanwhile
    async def is_stored() -> bool:
        return Grant.open(VAULT, (await stored(database)).password).refresh_token == "again-3"

    await until(is_stored)


async def test_a_renewal_while_an_earlier_token_is_stored_is_not_lost(
    server: TokenServer, account: External, ours: Credentials, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a renewed token that could not be stored at first, and is being stored now
    monkeypatch.setattr(credentials, "SAVE_SECONDS", 0.01)
    server.rotating = True
    replace_password, tries = account_changes.replace_password, 0
    storing, go_on = asyncio.Event(), asyncio.Event()

    async def replace_late(*arguments: Any) -> bool:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise OperationalError("the connection is lost")
        storing.set()
        await go_on.wait()
        return await replace_password(*arguments)

    monkeypatch.setattr(account_changes, "replace_password", replace_late)
    assert (await ours.credential_for(account)).secret == "access-1"
    await storing.wait()

    # when the next one is requested, and answered after the first is stored
    async def holds(token: str) -> bool:
        return Grant.open(VAULT, (await stored(database)).password).refresh_token == token

    loop = asyncio.get_running_loop()
    server.meanwhile = lambda: asyncio.run_coroutine_threadsafe(until(lambda: holds("again-1")), loop).result()
    ours.discard_token(account)
    renewal = asyncio.create_task(ours.credential_for(account))
    await until_still(lambda: len(server.requests))
    go_on.set()
    assert (await renewal).secret == "access-2"
    # then the newest is stored
    await until(lambda: holds("again-2"))


async def test_an_authorization_replaces_a_refresh_token_that_is_not_stored(
    server: TokenServer, account: External, ours: Credentials, database: Database, store_again: Callable[[], None]
) -> None:
    # given a renewed token that cannot be stored
    assert (await ours.credential_for(account)).secret == "access-1"
    # when a person authorizes the account again
    store_again()
    await grant(database, "authorized again")
    server.good = "authorized again"
    # then that is used and stays
    assert (await ours.credential_for(await stored(database))).secret == "access-2"
    await until(lambda: not ours._saving)  # nothing is left to be stored
    assert Grant.open(VAULT, (await stored(database)).password).refresh_token == "again-2"


async def test_processes_renew_an_access_token_one_after_the_other(
    server: TokenServer, account: External, database: Database
) -> None:
    # given an issuer that treats a second use of a refresh token as theft, and three processes
    server.rotating = True
    processes = [Credentials(database, VAULT, True) for _ in range(3)]
    # when they all need a token, again and again, each with the account as it read it
    for _ in range(2):
        found = await stored(database)
        got = await asyncio.gather(*(process.credential_for(found) for process in processes))
        assert len({credential.secret for credential in got}) == 3
        for process in processes:
            process.discard_token(found)
    # then the last refresh token is the stored one
    assert Grant.open(VAULT, (await stored(database)).password).refresh_token == server.good == "again-6"


async def test_while_the_issuer_is_away_a_token_is_used_as_long_as_it_is_good(
    server: TokenServer, account: External, ours: Credentials
) -> None:
    # given a token that is soon to be renewed, and an issuer that is not there
    server.answers = [(200, {"access_token": "short", "expires_in": 60}), (503, {}), "a proxy's page"]
    await ours.credential_for(account)
    # then
    assert (await ours.credential_for(account)).secret == "short"
    assert (await ours.credential_for(account)).secret == "short"
    ours.discard_token(account)
    server.answers = [(502, {})]
    with pytest.raises(IssuerUnavailable):
        await ours.credential_for(account)
    # and a withdrawn grant is reported with the remedy, although the old access token is still valid
    server.answers = [(200, {"access_token": "short", "expires_in": 60}), (400, {"error": "invalid_grant"})]
    await ours.credential_for(account)
    with pytest.raises(Unauthorized, match=f"invalid_grant.*run: mailgroup external authorize {SUPPORT}"):
        await ours.credential_for(account)


async def test_the_end_of_a_token_is_a_metric_and_no_secret_is_shown(
    server: TokenServer, account: External, ours: Credentials
) -> None:
    credential = await ours.credential_for(account)
    ends = credentials.EXPIRY.labels(SUPPORT)._value.get()
    assert time.time() + 3500 < ends < time.time() + 3700
    shown = repr((credential, Grant("a-secret", "another-secret"), ours._tokens))
    assert "secret" not in shown.replace("client_secret", "") and credential.secret not in shown


async def test_an_account_without_authorization_has_a_clear_error(
    database: Database, server: TokenServer, ours: Credentials
) -> None:
    await apply(database, {"external_accounts": [account_fields(server)]})
    with pytest.raises(Unauthorized, match=f"external authorize {SUPPORT}"):
        await ours.credential_for(await stored(database))


async def test_applying_it_again_keeps_the_grant_and_another_client_ends_it(
    database: Database, server: TokenServer, account: External
) -> None:
    # when
    exported = external_fields(account)
    assert await apply(database, {"external_accounts": [exported]}) == []
    # then
    assert Grant.open(VAULT, (await stored(database)).password) == Grant("again", "hush", "again")
    # when
    [line] = await apply(database, {"external_accounts": [account_fields(server, client_id="other")]})
    # then
    assert "oauth" in line and "hush" not in line
    assert Grant.open(VAULT, (await stored(database)).password) == Grant("", "hush")


async def test_a_grant_under_a_lost_key_is_replaced_when_applied_again(
    database: Database, server: TokenServer, account: External
) -> None:
    # given
    sealed = Grant("again", "hush").seal(Vault(new_key()))
    async with database.transaction() as connection:
        await account_changes.replace_password(connection, account.id, account.password, sealed)
    # when
    await apply(database, {"external_accounts": [account_fields(server)]})
    # then
    assert Grant.open(VAULT, (await stored(database)).password) == Grant("", "hush")


async def test_going_back_to_a_password_needs_one(database: Database, account: External) -> None:
    bare = external()
    del bare["password"]
    with pytest.raises(AccountsError, match="password: is missing"):
        await apply(database, {"external_accounts": [bare]})
    await apply(database, {"external_accounts": [external()]})
    assert VAULT.open((await stored(database)).password) == "secret"


@pytest.mark.parametrize(
    ("oauth", "words"),
    [
        (
            {"issuer": "gogle", "client_id": "x"},
            "support@company.com: oauth.issuer: 'gogle' is not one of google, microsoft; did you mean google?",
        ),
        ({"issuer": "google"}, "support@company.com: oauth.client_id: is missing"),
        (
            {"issuer": {"token_url": "x", "scope": "s"}, "client_id": "x"},
            "support@company.com: oauth.issuer.token_url: an endpoint",
        ),
        (
            {"issuer": {"token": "x"}, "client_id": "x"},
            "oauth.issuer.token: there is no such field; did you mean token_url?",
        ),
        (
            {"issuer": "google", "client_id": "x", "client_secret": 7},
            "support@company.com: oauth.client_secret: is not text",
        ),
        ({"issuer": "google", "client_id": "x", "more": 1}, "allowed here are same_as, grant, issuer, client_id"),
    ],
)
def test_a_mistake_in_oauth_is_named(oauth: dict[str, Any], words: str) -> None:
    account = external(oauth=oauth)
    del account["password"]
    with pytest.raises(AccountsError) as caught:
        check({"external_accounts": [account]}, "f")
    assert words in str(caught.value)


# ------------------------------------------------------------------------------------------------ at the provider


provider = provider_fixture("250-scripted\r\n250 AUTH PLAIN XOAUTH2")


async def test_mail_leaves_with_an_access_token(account: External, ours: Credentials, provider: ScriptedSmtp) -> None:
    # when
    client = await ConnectionPool(ours, True).connect(at(account, provider))
    # then
    assert provider.logins == [f"user={SUPPORT}\x01auth=Bearer access-1\x01\x01"]
    await client.quit()


async def test_a_token_that_ended_before_its_time_is_replaced_at_once(
    account: External, ours: Credentials, provider: ScriptedSmtp
) -> None:
    # given
    provider.say("AUTH", "535 5.7.8 token expired")
    # when
    client = await ConnectionPool(ours, True).connect(at(account, provider))
    # then
    assert [login.split()[1] for login in provider.logins] == ["access-1\x01\x01", "access-2\x01\x01"]
    await client.quit()


async def test_tokens_that_are_all_refused_are_wrong_credentials(
    account: External, ours: Credentials, provider: ScriptedSmtp
) -> None:
    provider.always("AUTH", "535 5.7.8 no")
    with pytest.raises(AuthFailed):
        await ConnectionPool(ours, True).connect(at(account, provider))
    assert len(provider.logins) == 2


async def test_a_refresh_token_that_ended_is_wrong_credentials_too(
    server: TokenServer, account: External, ours: Credentials, provider: ScriptedSmtp
) -> None:
    server.answers = [(400, {"error": "invalid_grant"}), (503, {})]
    with pytest.raises(AuthFailed, match="invalid_grant"):
        await ConnectionPool(ours, True).connect(at(account, provider))
    with pytest.raises(ServerUnavailable, match="503"):
        await ConnectionPool(ours, True).connect(at(account, provider))
    assert not provider.logins


async def test_mail_is_fetched_with_a_token_and_a_token_that_ended_is_replaced(
    database_url: str, server: TokenServer
) -> None:
    # given a provider that has ended the first token before its time
    first, second = (oauth.xoauth2(SUPPORT, f"access-{number}").decode() for number in (1, 2))
    answers = {"AUTH": say(b"+ \r\n"), first: say(b"-ERR expired\r\n"), second: say(b"+OK\r\n")}
    script = ScriptedPop3({"a": b"Subject: hello\r\n\r\nbody\r\n"}, answers=answers)
    async with script.running(), fetching(database_url) as harness:
        # when
        grant = Grant("again").seal(harness.vault)
        settings = Jsonb({"name": "", "issuer": asdict(server.issuer), "client_id": "us"})
        account = await harness.add(SUPPORT, script.port, password=grant, oauth=settings)
        await until(lambda: has(harness, account, 1))
    # then
    assert [line for line in script.commands if line in (first, second)] == [first, second]


async def test_polling_an_account_without_authorization_pauses_it_with_a_reason(
    database_url: str, server: TokenServer
) -> None:
    async with ScriptedPop3().running() as script, fetching(database_url) as harness:
        settings = Jsonb({"name": "", "issuer": asdict(server.issuer), "client_id": "us"})
        grant = Grant().seal(harness.vault)
        account = await harness.add(SUPPORT, script.port, password=grant, oauth=settings)
        await until(lambda: fails(harness, account))
        async with harness.database.transaction() as connection:
            polled = (await polls.load_poll_states(connection))[account]
    assert polled.paused_at is not None and f"external authorize {SUPPORT}" in str(polled.last_error)
    assert not script.commands


def at(account: External, provider: ScriptedSmtp) -> External:
    return replace(account, relays=(Relay(Server("127.0.0.1", provider.port, "none")),))


# ------------------------------------------------------------------------------------------------ authorizing


def system(database: Database) -> AdminContext:
    return AdminContext(Settings(secret_key=KEY, allow_private_upstream=True), database, HashingPool())


async def test_a_person_authorizes_with_a_device_code(
    database: Database, server: TokenServer, ours: Credentials
) -> None:
    # given
    await apply(database, {"external_accounts": [account_fields(server)]})
    server.answers = [device_code(), (200, {"access_token": "first", "refresh_token": "again"})]
    said: list[str] = []
    # when
    await authorize.authorize(system(database), await stored(database), "operator", said.append)
    # then
    assert "https://x.example/device" in said[0] and "ABCD" in said[0]
    assert (await ours.credential_for(await stored(database))).token


async def test_a_person_authorizes_in_a_browser(database: Database, server: TokenServer, ours: Credentials) -> None:
    # given
    account = account_fields(server)
    del account["oauth"]["issuer"]["device_url"]
    await apply(database, {"external_accounts": [account]})
    server.answers = [(200, {"access_token": "first", "refresh_token": "again"})]
    browsers = []

    def browse(line: str) -> None:
        url = line.partition("\n")[2]
        if url.startswith(server.url):
            query = dict(part.split("=", 1) for part in url.partition("?")[2].split("&"))
            redirect = query["redirect_uri"].replace("%3A", ":").replace("%2F", "/")
            for state, brought in (("other", "stolen"), (query["state"], "brought")):
                browsers.append(asyncio.ensure_future(visit(f"{redirect}?state={state}&code={brought}")))

    # when
    await authorize.authorize(system(database), await stored(database), "operator", browse)
    await asyncio.gather(*browsers)
    # then
    assert server.requests[0][1]["code"] == "brought"
    assert Grant.open(VAULT, (await stored(database)).password).refresh_token == "again"


async def test_without_a_refresh_token_nothing_is_stored(database: Database, server: TokenServer) -> None:
    # given
    await apply(database, {"external_accounts": [account_fields(server)]})
    server.answers = [device_code(), (200, {"access_token": "first"})]
    before = await stored(database)
    # then
    with pytest.raises(Permanent, match="no refresh token"):
        await authorize.authorize(system(database), before, "operator", lambda line: None)
    assert await stored(database) == before
