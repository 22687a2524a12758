"""shared/provider/oauth.py, against a stand-in of a provider's endpoints."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterator
from dataclasses import replace
from urllib.parse import parse_qs, urlsplit

import pytest

from services.admin.accounts.oauth_flow import code_of
from shared.errors import Permanent, Temporary
from shared.model import Issuer
from shared.net import http_client
from shared.net.dial import Unreachable
from shared.provider import oauth
from shared.provider.oauth import ISSUERS, Client, DeviceCode, IssuerUnavailable, Tokens, Unauthorized, known_issuer
from tests.token_server import Registered, TokenServer, client_key, device_code, token_server


@pytest.fixture
def server() -> Iterator[TokenServer]:
    with token_server() as running:
        yield running


def test_the_initial_response_is_as_google_and_microsoft_document_it() -> None:
    assert b64decode(oauth.xoauth2("a@b", "tok")) == b"user=a@b\x01auth=Bearer tok\x01\x01"


async def test_a_refresh_token_gives_an_access_token(server: TokenServer) -> None:
    # when
    tokens = await oauth.refresh(Client(server.issuer, "id", "hush"), "again", True)
    # then
    assert tokens == Tokens("access-1", 3600, None)
    assert server.requests == [
        (
            "/token",
            {
                "grant_type": "refresh_token",
                "refresh_token": "again",
                "scope": "mail",
                "client_id": "id",
                "client_secret": "hush",
            },
        )
    ]


@pytest.mark.parametrize(
    ("answer", "failure", "words"),
    [
        ((400, {"error": "invalid_grant"}), Unauthorized, "invalid_grant"),
        ((401, {"error": "invalid_client", "error_description": "\x1b[31mred"}), Unauthorized, "invalid_client"),
        ((503, {}), IssuerUnavailable, "503"),
        ((429, {"error": "slow_down"}), IssuerUnavailable, "slow_down"),
        ("<html>a proxy's page</html>", IssuerUnavailable, "200"),
        ((200, {"access_token": ""}), IssuerUnavailable, "200"),
        ((403, {}), IssuerUnavailable, "403"),
        ((400, {"error": "temporarily_unavailable"}), IssuerUnavailable, "temporarily_unavailable"),
        ((400, {"error": "consent_missing"}), Unauthorized, "consent_missing"),
        ((400, {"error": "\x1b[31m" + "x" * 5000}), Unauthorized, "400"),
        ((400, {"error": "wrong secret: hush-red"}), Unauthorized, "400"),
    ],
)
async def test_a_refusal_is_reported_with_the_issuer_s_code(
    server: TokenServer, answer: tuple[int, dict[str, str]] | str, failure: type[Temporary], words: str
) -> None:
    # given
    server.answers = [answer]
    # when
    with pytest.raises(Temporary) as caught:
        await oauth.refresh(Client(server.issuer, "id"), "again", True)
    # then
    assert type(caught.value) is failure and words in str(caught.value)
    assert "red" not in str(caught.value) and len(str(caught.value)) < 200


async def test_an_unreachable_issuer_is_retried_later(server: TokenServer) -> None:
    # given
    server.stop()
    # then
    with pytest.raises(Unreachable):
        await oauth.refresh(Client(server.issuer, "id"), "again", True)


async def test_a_private_address_needs_the_operators_permission(server: TokenServer) -> None:
    with pytest.raises(Permanent, match="private address"):
        await oauth.refresh(Client(server.issuer, "id"), "again", False)
    assert not server.requests


@pytest.mark.parametrize(
    "url", ["ftp://a.example/hush", "https://", "hush", "https://a.example:hush/", "https://a.b/hush \n"]
)
async def test_an_endpoint_is_an_https_url_and_no_error_shows_it(url: str) -> None:
    with pytest.raises(Permanent, match="https") as caught:
        await oauth.refresh(Client(Issuer(url, "mail"), "id"), "again", True)
    assert "hush" not in str(caught.value)


def test_a_text_shows_the_host_of_a_url_alone() -> None:
    url = "https://user:hush@hooks.example:8443/hush/T0?key=hush#hush"
    assert http_client.place_of(url) == "https://hooks.example"
    assert http_client.place_of("hush") == "(no URL)"


async def asked(server: TokenServer, **fields: object) -> tuple[Client, DeviceCode]:
    """A device code of this server."""
    client = Client(server.issuer, "id")
    server.answers = [device_code(**fields)]
    return client, await oauth.begin_device(client, True)


async def test_the_token_endpoint_is_polled_until_a_person_consents(server: TokenServer) -> None:
    # given
    client, code = await asked(server, device_code="dev", interval=3)
    server.answers = [
        (400, {"error": "authorization_pending"}),
        (400, {"error": "slow_down"}),
        (200, {"access_token": "first", "refresh_token": "again", "expires_in": "60"}),
    ]
    # when
    still = await oauth.ask_device(client, code, True)
    slower = await oauth.ask_device(client, code, True)
    tokens = await oauth.ask_device(client, code, True)
    # then
    assert (code.url, code.user_code, code.interval) == ("https://x.example/device", "ABCD", 3)
    assert still == code and slower == replace(code, interval=8)
    assert tokens == Tokens("first", 60, "again")
    assert [fields["device_code"] for _, fields in server.requests[1:]] == ["dev"] * 3


async def test_a_refused_device_code_ends_the_polling(server: TokenServer) -> None:
    # given
    client, code = await asked(server)
    server.answers = [(400, {"error": "access_denied"}), (400, {"error": "expired_token"}), (503, {})]
    # then
    with pytest.raises(Unauthorized, match="access_denied: the person, or the provider, said no"):
        await oauth.ask_device(client, code, True)
    with pytest.raises(Unauthorized, match="expired_token: the code was not used in time"):
        await oauth.ask_device(client, code, True)
    with pytest.raises(IssuerUnavailable):
        await oauth.ask_device(client, code, True)


@pytest.mark.parametrize(
    "fields",
    [
        {"verification_uri": "javascript:alert(1)"},
        {"verification_uri": "https://x.example/\x1b[31m"},
        {"verification_uri": None},
        {"user_code": "\x1b]0;title\x07"},
        {"user_code": "A" * 500},
    ],
)
async def test_a_code_or_page_that_cannot_be_shown_is_refused(server: TokenServer, fields: dict[str, object]) -> None:
    with pytest.raises(Permanent, match="no code was given"):
        await asked(server, **fields)


async def test_a_device_code_is_polled_for_an_hour_at_most(server: TokenServer) -> None:
    _, code = await asked(server, expires_in=10**6)
    assert code.expires == 3600


async def test_a_code_from_the_browser_is_exchanged_for_tokens(server: TokenServer) -> None:
    # given
    client = Client(server.issuer, "id", "hush")
    request = oauth.begin_code(client, "support@company.com", "http://127.0.0.1:1234/")
    query = parse_qs(urlsplit(request.url).query)
    server.answers = [(200, {"access_token": "first", "refresh_token": "again"})]
    # when
    code = code_of(request, f"/?state={query['state'][0]}&code=brought")
    tokens = await oauth.finish_code(client, request, code, True)
    # then
    assert query["code_challenge_method"] == ["S256"] and query["login_hint"] == ["support@company.com"]
    assert tokens.refresh == "again"
    _, fields = server.requests[0]
    assert (fields["code"], fields["code_verifier"]) == ("brought", request.verifier)


def test_microsoft_gives_access_to_the_protocol_that_is_used() -> None:
    assert known_issuer("microsoft", "pop3") == ISSUERS["microsoft"]
    scope = known_issuer("microsoft", "imap").scope
    assert "IMAP.AccessAsUser.All" in scope and "POP." not in scope and "SMTP.Send" in scope
    assert known_issuer("google", "imap") == known_issuer("google", "pop3")


@pytest.mark.parametrize(("url", "failure"), [("/?code=x", Permanent), ("/?state=other&code=x", Permanent)])
def test_an_answer_to_another_request_is_refused(url: str, failure: type[Exception]) -> None:
    request = oauth.begin_code(Client(ISSUERS["google"], "id"), "a@b", "http://127.0.0.1:1/")
    with pytest.raises(failure):
        code_of(request, url)


def test_a_person_may_refuse_consent() -> None:
    request = oauth.begin_code(Client(ISSUERS["google"], "id"), "a@b", "http://127.0.0.1:1/")
    with pytest.raises(Unauthorized, match="access_denied"):
        code_of(request, f"/?state={request.state}&error=access_denied")


# ------------------------------------------------------------------------------------------------ without a person


async def test_an_application_gets_a_token_by_its_secret(server: TokenServer) -> None:
    server.clients = {"us": Registered("hush")}
    client = Client(server.issuer, "us", "hush", grant="client_credentials")
    assert await oauth.request_for_application(client, True) == Tokens("access-1", 3600, None)
    fields = {"grant_type": "client_credentials", "scope": "mail", "client_id": "us", "client_secret": "hush"}
    assert server.requests == [("/token", fields)]


@pytest.mark.parametrize("certified", [False, True])
async def test_a_client_with_a_key_signs_a_new_assertion_each_time(server: TokenServer, certified: bool) -> None:
    key = client_key(certified=certified)
    server.clients = {"us": Registered(key=key)}
    client = Client(server.issuer, "us", key=key.pem, grant="client_credentials")
    for number in (1, 2):
        assert (await oauth.request_for_application(client, True)).access == f"access-{number}"
    # and so it does for a refresh token
    assert (await oauth.refresh(replace(client, grant="authorization"), "again", True)).access == "access-3"
    assert "PRIVATE" not in repr(client) and "client_secret" not in str(server.requests)


async def test_a_service_account_gets_a_token_for_a_mailbox(server: TokenServer) -> None:
    key = client_key()
    server.clients = {"robot": Registered(key=key, logins=("support@company.com",))}
    client = Client(server.issuer, "robot", key=key.pem, grant="jwt_bearer")
    assert (await oauth.request_for_login(client, "support@company.com", True)).access == "access-1"
    assert server.requests[0][1].keys() == {"grant_type", "assertion"}


@pytest.mark.parametrize(
    ("known", "client", "words"),
    [
        ({}, {"secret": "hush"}, "invalid_client: the provider does not know this client id, or the client's secret"),
        ({"us": Registered("other")}, {"secret": "hush"}, "invalid_client"),
        ({"us": Registered(key=client_key("other"))}, {"key": client_key().pem}, "invalid_client"),
        ({"us": Registered("hush", allowed=False)}, {"secret": "hush"}, "unauthorized_client: an administrator"),
    ],
    ids=range(4),
)
async def test_an_application_that_is_refused_is_told_what_to_correct(
    server: TokenServer, known: dict[str, Registered], client: dict[str, str], words: str
) -> None:
    server.clients = known or {"another": Registered()}
    with pytest.raises(Unauthorized, match=words):
        await oauth.request_for_application(Client(server.issuer, "us", **client, grant="client_credentials"), True)


@pytest.mark.parametrize(
    ("known", "words"),
    [
        (Registered(key=client_key("other")), "invalid_grant: the provider does not accept the signed request"),
        (Registered(key=client_key(), logins=("sales@company.com",)), "unauthorized_client: an administrator"),
    ],
    ids=["key", "login"],
)
async def test_a_service_account_that_is_refused_is_told_why(
    server: TokenServer, known: Registered, words: str
) -> None:
    server.clients = {"robot": known}
    client = Client(server.issuer, "robot", key=client_key().pem, grant="jwt_bearer")
    with pytest.raises(Unauthorized, match=words):
        await oauth.request_for_login(client, "support@company.com", True)


def test_microsoft_s_endpoints_and_scope_follow_tenant_and_grant() -> None:
    common = known_issuer("microsoft", "imap")
    assert known_issuer("microsoft", "imap", tenant="common") == common
    ours = known_issuer("microsoft", "pop3", "client_credentials", "company.onmicrosoft.com")
    url = "https://login.microsoftonline.com/company.onmicrosoft.com/oauth2/v2.0/"
    assert (ours.token_url, ours.scope) == (f"{url}token", "https://outlook.office365.com/.default")
    assert (ours.device_url, ours.authorize_url) == (f"{url}devicecode", f"{url}authorize")
    assert known_issuer("microsoft", "imap", tenant="company.onmicrosoft.com").scope == common.scope
    assert known_issuer("google", "imap", "jwt_bearer") == ISSUERS["google"]
