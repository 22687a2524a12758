"""Access tokens at a real Dovecot and Postfix, by XOAUTH2 and by OAUTHBEARER; tokens come from a scripted issuer."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, replace

import pytest
from psycopg.types.json import Jsonb

from deploy.machine.dovecot_postfix import DemoProvider
from services.sender.connection_pool import ConnectionPool
from shared.db.database import Database
from shared.model import Relay, Server, Tls
from shared.provider import imap_client, pop3_client
from shared.provider.credentials import Credential, Credentials, Grant
from shared.provider.maildrop import MaildropSession
from shared.provider.session_errors import LoginRefused
from shared.provider.smtp_login import AuthFailed
from shared.provider.vault import Vault
from shared.store.account_changes import NO_POP3
from tests.company import KEY, apply, everyone
from tests.fetcher_harness import fetching, has, mail
from tests.polling import until
from tests.token_provider import token_provider
from tests.token_server import Registered, TokenServer, account_fields, token_server

_names = itertools.count()


@pytest.fixture(scope="module")
def server() -> Iterator[TokenServer]:
    with token_server() as running:
        running.clients = {"us": Registered("hush")}
        yield running


@pytest.fixture(scope="module", params=["xoauth2", "oauthbearer"])
def provider(server: TokenServer, request: pytest.FixtureRequest) -> Iterator[DemoProvider]:
    """A provider that takes tokens by one mechanism alone."""
    with token_provider(server, request.param) as running:
        yield running


@pytest.fixture
def box(provider: DemoProvider, server: TokenServer) -> str:
    """A fresh mailbox that the tokens are for."""
    server.mailbox = f"box{next(_names)}@tokens.test"
    provider.add_mailbox(server.mailbox, "no password is sent")
    return server.mailbox


def opened(provider: DemoProvider, protocol: str, tls: Tls) -> AbstractAsyncContextManager[MaildropSession]:
    pin = None if tls == "none" else provider.fingerprint
    if protocol == "imap":
        port = provider.imaps_port if tls == "implicit" else provider.imap_port
        return imap_client.open_session(Server("127.0.0.1", port, tls, pin), True)
    port = provider.pop3s_port if tls == "implicit" else provider.pop3_port
    return pop3_client.open_session(Server("127.0.0.1", port, tls, pin), True)


@pytest.mark.parametrize("tls", ["none", "starttls", "implicit"])
@pytest.mark.parametrize("protocol", ["pop3", "imap"])
async def test_a_token_opens_the_mailbox_and_another_is_refused(
    provider: DemoProvider, box: str, protocol: str, tls: Tls
) -> None:
    provider.put(box, mail("one"))
    async with opened(provider, protocol, tls) as client:
        await client.login(Credential(box, "access-0", token=True))
        assert len((await client.fetch_list_reply()).parse().mails) == 1
    for login, token in ((box, "expired"), ("other@tokens.test", "access-0")):
        async with opened(provider, protocol, tls) as client:
            with pytest.raises(LoginRefused) as caught:
                await client.login(Credential(login, token, token=True))
        assert caught.value.code == "AUTH" and token not in str(caught.value)


async def test_mail_is_fetched_with_an_applications_token_until_it_is_revoked(
    provider: DemoProvider, server: TokenServer, box: str, database_url: str
) -> None:
    # given an account whose tokens an application gets without a person
    settings = {"name": "", "issuer": asdict(server.issuer), "client_id": "us", "grant": "client_credentials"}
    imap = {
        **{"pop3_host": NO_POP3.host, "imap_host": "127.0.0.1", "imap_port": provider.imap_port},
        **{"imap_tls": "starttls", "imap_tls_fingerprint": provider.fingerprint, "imap_folders": ["INBOX"]},
    }
    provider.put(box, mail("one"))
    before = len(server.requests)
    async with fetching(database_url) as harness:
        sealed = Grant(client_secret="hush").seal(harness.vault)
        account = await harness.add(box, 995, password=sealed, oauth=Jsonb(settings), **imap)
        await until(lambda: has(harness, account, 1))
        assert len(server.requests) == before + 1
        # when the provider takes the token no longer, then another one is requested at once, and mail goes on
        server.revoked.add(f"access-{before + 1}")
        provider.put(box, mail("two"))
        polled = await harness.poll(account)
        await until(lambda: has(harness, account, 2))
        assert polled.last_error is None and polled.paused_at is None
        assert sorted(await harness.subjects(account)) == ["one", "two"]


async def test_mail_is_sent_with_a_token_and_a_wrong_one_is_wrong_credentials(
    provider: DemoProvider, server: TokenServer, box: str, database: Database
) -> None:
    await apply(
        database, {"external_accounts": [account_fields(server, grant="client_credentials") | {"address": box}]}
    )
    account = (await everyone(database))[0][box]
    relay = Relay(Server("127.0.0.1", provider.smtp_port, "starttls", provider.fingerprint))
    pool = ConnectionPool(Credentials(database, Vault(KEY), True), True)
    client = await pool.connect(replace(account, relays=(relay,)))
    await client.quit()
    # and tokens for another mailbox
    server.mailbox = "other@tokens.test"
    with pytest.raises(AuthFailed):
        await pool.connect(replace(account, relays=(relay,)))
