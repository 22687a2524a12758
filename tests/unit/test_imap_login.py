"""Logins by IMAP: the mechanism that the server offers, and what is never sent."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from shared.errors import Permanent
from shared.net.dial import TlsError
from shared.provider.credentials import Credential
from shared.provider.imap_client import open_session
from shared.provider.oauth import xoauth2
from shared.provider.sasl import oauthbearer_response
from shared.provider.session_errors import LoginRefused, ProtocolError, ServerBusy
from tests.scripted_imap import CAPABILITIES, ScriptedImap
from tests.scripted_pop3 import Answer, cut, say

PLAIN = base64.b64encode(b"\0tim\0tanstaaftanstaaf").decode()
CRAM = "dGltIGI5MTNhNjAyYzdlZGE3YTQ5NWI0ZTZlNzMzNGQzODkw"  # RFC 2195 section 2
CHALLENGE = b"+ PDE4OTYuNjk3MTcwOTUyQHBvc3RvZmZpY2UucmVzdG9uLm1jaS5uZXQ+\r\n"
OK, NO, BAD, GO = (say(piece) for piece in (b"<tag> OK\r\n", b"<tag> NO x\r\n", b"<tag> BAD x\r\n", b"+ \r\n"))
TIM = Credential("tim", "tanstaaftanstaaf")


def logins(script: ScriptedImap) -> list[str]:
    """Return the commands of the login, up to those that follow it."""
    later = ("CAPABILITY", "ID ", "ENABLE")
    return [line for line in script.commands if not line.startswith(later)]


async def log_in(script: ScriptedImap, credential: Credential, **options: Any) -> None:
    async with script.running(), open_session(script.server(), True, **options) as client:
        await client.login(credential)


@pytest.mark.parametrize(
    ("capabilities", "sent"),
    [
        (("AUTH=PLAIN", "SASL-IR"), [f"AUTHENTICATE PLAIN {PLAIN}"]),
        (("AUTH=PLAIN",), ["AUTHENTICATE PLAIN", PLAIN]),
        (("IMAP4rev1",), ['LOGIN "tim" "tanstaaftanstaaf"']),
        (None, ['LOGIN "tim" "tanstaaftanstaaf"']),
    ],
)
async def test_a_login_takes_what_the_server_offers(capabilities: tuple[str, ...] | None, sent: list[str]) -> None:
    script = ScriptedImap(capabilities=capabilities, password=TIM.secret)
    await log_in(script, TIM)
    assert logins(script) == sent


@pytest.mark.parametrize(
    ("capabilities", "answers", "sent"),
    [
        # refused before the password was sent, or not understood: the next one
        ("AUTH=CRAM-MD5 AUTH=PLAIN SASL-IR", {"AUTHENTICATE CRAM-MD5": NO}, ["CRAM-MD5", f"PLAIN {PLAIN}"]),
        ("AUTH=PLAIN SASL-IR", {f"AUTHENTICATE PLAIN {PLAIN}": BAD}, [f"PLAIN {PLAIN}", "LOGIN"]),
        ("AUTH=PLAIN", {"AUTHENTICATE PLAIN": NO}, ["PLAIN", "LOGIN"]),
    ],
)
async def test_a_mechanism_that_judged_no_password_leads_to_the_next(
    capabilities: str, answers: dict[str, Answer], sent: list[str]
) -> None:
    script = ScriptedImap(capabilities=tuple(capabilities.split()), answers=answers, password=TIM.secret)
    await log_in(script, TIM)
    shown = [line.removeprefix("AUTHENTICATE ") for line in logins(script)]
    assert [line.split('"')[0].strip() for line in shown] == sent


@pytest.mark.parametrize(
    ("capabilities", "answers", "failure", "sent"),
    [
        ("AUTH=PLAIN SASL-IR", {f"AUTHENTICATE PLAIN {PLAIN}": NO}, LoginRefused, 1),
        ("", {"LOGIN": NO}, LoginRefused, 1),
        ("AUTH=CRAM-MD5 AUTH=PLAIN", {"AUTHENTICATE CRAM-MD5": say(b"<tag> NO [UNAVAILABLE] x\r\n")}, ServerBusy, 1),
        ("AUTH=CRAM-MD5", {"AUTHENTICATE CRAM-MD5": say(b"+ no base64!\r\n")}, ProtocolError, 1),
        ("AUTH=PLAIN", {"AUTHENTICATE PLAIN": cut(b"* BYE [UNAVAILABLE] later\r\n")}, ServerBusy, 1),
    ],
)
async def test_a_refused_password_is_tried_by_no_other_mechanism(
    capabilities: str, answers: dict[str, Answer], failure: type[Exception], sent: int
) -> None:
    script = ScriptedImap(capabilities=tuple(capabilities.split()) or ("IMAP4rev1",), answers=answers)
    with pytest.raises(failure) as caught:
        await log_in(script, TIM)
    assert "tanstaaf" not in str(caught.value) and PLAIN not in str(caught.value)
    assert len(logins(script)) == sent


@pytest.mark.parametrize(
    ("reply", "failure", "code"),
    [
        (b"NO wrong password", LoginRefused, None),
        (b"NO LOGIN failed.", LoginRefused, None),
        (b"NO [AUTHENTICATIONFAILED] wrong", LoginRefused, "AUTH"),
        (b"NO [authorizationfailed] wrong", LoginRefused, "AUTH"),
        (b"NO [EXPIRED] change it", LoginRefused, "AUTH"),
        (b"NO [CONTACTADMIN] ask", LoginRefused, "CONTACTADMIN"),
        (b"NO [ALERT] Please log in via your web browser", LoginRefused, "ALERT"),
        (b"NO [UNAVAILABLE] later", ServerBusy, "UNAVAILABLE"),
        (b"NO [INUSE] locked", ServerBusy, "INUSE"),
        (b"NO [LIMIT] LOGIN Rate limit hit", ServerBusy, "LIMIT"),
        (b"NO [THROTTLED] slow down", ServerBusy, "THROTTLED"),
        (b"NO [ALERT] Too many simultaneous connections. (Failure)", ServerBusy, "ALERT"),
        (b"NO Server Unavailable. 15", ServerBusy, None),
        (b"NO [PRIVACYREQUIRED] TLS first", TlsError, None),
        (b"BAD User is authenticated but not connected.", ServerBusy, None),
    ],
)
async def test_a_refused_login_is_classified(reply: bytes, failure: type[Exception], code: str | None) -> None:
    script = ScriptedImap(capabilities=("IMAP4rev1",), answers={"LOGIN": say(b"<tag> " + reply + b"\r\n")})
    with pytest.raises(failure) as caught:
        await log_in(script, Credential("u", "top-secret"))
    assert getattr(caught.value, "code", None) == code
    assert "top-secret" not in str(caught.value)


async def test_an_alert_is_shown_with_the_refusal() -> None:
    reply = b"* NO [ALERT] Open webmail first\r\n<tag> NO [AUTHENTICATIONFAILED] no\r\n"
    script = ScriptedImap(capabilities=("IMAP4rev1",), answers={"LOGIN": say(reply)})
    with pytest.raises(LoginRefused, match=r"\[AUTHENTICATIONFAILED\] no \(\[ALERT\] Open webmail first\)"):
        await log_in(script, TIM)


@pytest.mark.parametrize("capabilities", [("LITERAL+",), ("LITERAL-",), ("IMAP4rev1",)])
@pytest.mark.parametrize("secret", ['a"b\\c d', "pässwörd", "", "{5}", "p" * 5000])
async def test_any_name_and_password_reach_the_server(capabilities: tuple[str, ...], secret: str) -> None:
    script = ScriptedImap(capabilities=capabilities, password=secret.replace("\\", "\\\\").replace('"', '\\"'))
    await log_in(script, Credential("jörg", secret))


@pytest.mark.parametrize("text", ["x\r\nA1 LOGOUT", "x\0y"])
async def test_a_line_break_in_a_password_is_never_sent(text: str) -> None:
    script = ScriptedImap()
    with pytest.raises(Permanent, match="line break"):
        await log_in(script, Credential("u", text))
    assert script.commands == ["CAPABILITY"]


async def test_a_server_that_allows_no_login_gets_no_password() -> None:
    script = ScriptedImap(capabilities=("IMAP4rev1", "LOGINDISABLED"))
    with pytest.raises(TlsError, match=r"LOGINDISABLED.*starttls \(port 143\) or implicit"):
        await log_in(script, TIM)
    assert script.commands == ["CAPABILITY"]


# ------------------------------------------------------------------------------------------------ access tokens

TOKEN = Credential("u@x.example", "tok", token=True)
XOAUTH2 = xoauth2("u@x.example", "tok").decode()


def bearer(port: int) -> str:
    return base64.b64encode(oauthbearer_response("u@x.example", "tok", "127.0.0.1", port)).decode()


def test_the_bearer_response_is_that_of_the_standard() -> None:
    response = oauthbearer_response(
        "user@example.com", "vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg==", "server.example.com", 143
    )
    assert response == (  # RFC 7628 section 4.1
        b"n,a=user@example.com,\1host=server.example.com\1port=143\1"
        b"auth=Bearer vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg==\1\1"
    )


@pytest.mark.parametrize("with_command", [True, False])
async def test_an_access_token_is_sent_by_the_mechanism_offered(with_command: bool) -> None:
    also = ("SASL-IR",) if with_command else ()
    for mechanism in ("XOAUTH2", "OAUTHBEARER"):
        script = ScriptedImap(capabilities=(f"AUTH={mechanism}", *also), password="tok")
        await log_in(script, TOKEN)
        response = XOAUTH2 if mechanism == "XOAUTH2" else bearer(script.port)
        expected = [f"AUTHENTICATE {mechanism} {response}"] if with_command else [f"AUTHENTICATE {mechanism}", response]
        assert logins(script) == expected


@pytest.mark.parametrize(("mechanism", "acknowledged"), [("XOAUTH2", ""), ("OAUTHBEARER", "AQ==")])
async def test_a_refused_token_is_acknowledged_and_is_wrong(mechanism: str, acknowledged: str) -> None:
    # given a server that explains the refusal in a challenge (RFC 7628 section 3.2.3)
    script = ScriptedImap(capabilities=(f"AUTH={mechanism}", "SASL-IR"))
    script.answers = {
        f"AUTHENTICATE {mechanism}": say(b"+ " + base64.b64encode(b'{"status":"400"}') + b"\r\n"),
        "": say(b"<before> NO AUTHENTICATE failed.\r\n"),
    }
    with pytest.raises(LoginRefused) as caught:
        await log_in(script, TOKEN)
    assert caught.value.code == "AUTH" and "tok" not in str(caught.value)
    assert script.commands[-1] == acknowledged


async def test_a_challenge_is_answered_without_the_password() -> None:
    script = ScriptedImap(capabilities=("AUTH=CRAM-MD5",))
    script.answers = {"AUTHENTICATE CRAM-MD5": say(CHALLENGE), "": say(b"<before> OK in\r\n")}
    await log_in(script, TIM)
    assert CRAM in script.commands


async def test_a_mechanism_that_is_unknown_after_all_leads_to_the_other() -> None:
    script = ScriptedImap(capabilities=("AUTH=XOAUTH2", "AUTH=OAUTHBEARER"), password="tok")
    script.answers = {"AUTHENTICATE OAUTHBEARER": BAD}
    await log_in(script, TOKEN)
    assert logins(script) == ["AUTHENTICATE OAUTHBEARER", "AUTHENTICATE XOAUTH2", XOAUTH2]


# ------------------------------------------------------------------------------------------------ after the login


async def test_capabilities_that_change_with_the_login_are_known() -> None:
    for answer in (
        b"<tag> OK [CAPABILITY IMAP4rev1 IDLE] in\r\n",
        b"* CAPABILITY IMAP4rev1 IDLE\r\n<tag> OK in\r\n",
    ):
        script = ScriptedImap(capabilities=("IMAP4rev1",), answers={"LOGIN": say(answer)})
        async with script.running(), open_session(script.server(), True) as client:
            assert not client.idles
            await client.login(TIM)
            assert client.idles
        assert script.commands.count("CAPABILITY") == 1


async def test_capabilities_are_asked_for_again_after_the_login() -> None:
    script = ScriptedImap(capabilities=("IMAP4rev1",))
    async with script.running(), open_session(script.server(), True) as client:
        script.capabilities = ("IMAP4rev1", "IDLE")
        await client.login(Credential("u", "secret"))
        assert client.idles
    # and a server that has none any more keeps those that it had
    script = ScriptedImap(capabilities=("IMAP4rev1", "IDLE"))
    async with script.running(), open_session(script.server(), True) as client:
        script.capabilities = None
        await client.login(Credential("u", "secret"))
        assert client.idles


async def test_the_client_introduces_itself_where_that_is_known() -> None:
    script = ScriptedImap(capabilities=("IMAP4rev1", "ID"), answers={"ID": NO})
    await log_in(script, Credential("u", "secret"))
    assert script.commands[-1].startswith('ID ("name" "mailgroup" "version" "')
    script = ScriptedImap(capabilities=("IMAP4rev1",))
    await log_in(script, Credential("u", "secret"))
    assert not [line for line in script.commands if line.startswith("ID")]


async def test_utf8_is_switched_on_where_it_is_known() -> None:
    script = ScriptedImap(capabilities=(*CAPABILITIES, "ENABLE", "UTF8=ACCEPT"))
    await log_in(script, Credential("u", "secret"))
    assert script.commands[-1] == "ENABLE UTF8=ACCEPT"
