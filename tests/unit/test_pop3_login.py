"""Logins by password: the mechanism that the server offers, and what is never sent."""

from __future__ import annotations

import base64

import pytest

from shared.errors import Permanent
from shared.provider.credentials import Credential
from shared.provider.oauth import xoauth2
from shared.provider.pop3_client import open_session
from shared.provider.pop3_mechanisms import apop_digest, choose_mechanisms, choose_token_mechanism
from shared.provider.pop3_replies import Capabilities, parse_capa
from shared.provider.sasl import cram_md5_response, oauthbearer_response
from shared.provider.session_errors import LoginRefused, ProtocolError, ServerBusy
from tests.scripted_pop3 import Answer, ScriptedPop3, cut, say

TIMESTAMP = b"<1896.697170952@dbc.mtview.ca.us>"
GREETING = {"greeting": say(b"+OK POP3 server ready " + TIMESTAMP + b"\r\n")}
PLAIN = base64.b64encode(b"\0tim\0tanstaaftanstaaf").decode()
CRAM = "dGltIGI5MTNhNjAyYzdlZGE3YTQ5NWI0ZTZlNzMzNGQzODkw"
CHALLENGE = say(b"+ PDE4OTYuNjk3MTcwOTUyQHBvc3RvZmZpY2UucmVzdG9uLm1jaS5uZXQ+\r\n")
APOP = f"APOP tim {apop_digest(TIMESTAMP, 'tanstaaftanstaaf')}"
OK, NO, GO = say(b"+OK\r\n"), say(b"-ERR no\r\n"), say(b"+ \r\n")


def test_the_digests_are_those_of_the_standards() -> None:
    assert apop_digest(TIMESTAMP, "tanstaaf") == "c4c9334bac560ecc979e58001b3e22fb"  # RFC 1939 section 7
    challenge = b"<1896.697170952@postoffice.reston.mci.net>"  # RFC 2195 section 2
    assert cram_md5_response("tim", "tanstaaftanstaaf", challenge) == b"tim b913a602c7eda7a495b4e6e7334d3890"


@pytest.mark.parametrize(
    ("capa", "apop", "encrypted", "mechanisms"),
    [
        (["USER", "SASL PLAIN"], True, True, ["USER", "PLAIN", "APOP"]),
        (["UIDL"], False, True, ["USER"]),
        (["UIDL"], True, False, ["APOP"]),
        (["SASL PLAIN CRAM-MD5"], False, True, ["PLAIN", "CRAM-MD5"]),
        (["SASL plain cram-md5"], False, False, ["CRAM-MD5", "PLAIN"]),
        (["SASL XOAUTH2 GSSAPI"], False, True, ["USER"]),
        (None, True, False, ["USER", "APOP"]),
    ],
)
def test_the_best_mechanism_comes_first(
    capa: list[str] | None, apop: bool, encrypted: bool, mechanisms: list[str]
) -> None:
    capabilities = parse_capa([line.encode() for line in capa]) if capa else Capabilities()
    assert choose_mechanisms(capabilities, TIMESTAMP if apop else None, encrypted) == mechanisms


@pytest.mark.parametrize(
    ("capabilities", "answers", "sent"),
    [
        (("SASL PLAIN",), {"AUTH PLAIN": GO, PLAIN: OK}, ["AUTH PLAIN", PLAIN]),
        (("SASL CRAM-MD5",), {"AUTH CRAM-MD5": CHALLENGE, CRAM: OK}, ["AUTH CRAM-MD5", CRAM]),
        (("SASL CRAM-MD5 PLAIN",), {"AUTH PLAIN": GO, PLAIN: OK, "AUTH": NO}, ["AUTH CRAM-MD5", "AUTH PLAIN", PLAIN]),
        (("UIDL",), {**GREETING, APOP: OK}, [APOP]),
        (None, {**GREETING, "USER": NO, APOP: OK}, ["USER tim", APOP]),
        (("USER", "SASL PLAIN"), {**GREETING}, ["USER tim", "PASS tanstaaftanstaaf"]),
    ],
)
async def test_a_login_takes_what_the_server_offers(
    capabilities: tuple[str, ...] | None, answers: dict[str, Answer], sent: list[str]
) -> None:
    script = ScriptedPop3(capabilities=capabilities, answers=answers, password="tanstaaftanstaaf")
    async with script.running(), open_session(script.server(), True) as client:
        await client.login(Credential("tim", "tanstaaftanstaaf"))
    assert [line for line in script.commands if line != "CAPA"] == sent


@pytest.mark.parametrize(
    ("answers", "failure", "sent"),
    [
        ({"AUTH CRAM-MD5": CHALLENGE, CRAM: NO}, LoginRefused, ["AUTH CRAM-MD5", CRAM]),
        ({"AUTH CRAM-MD5": CHALLENGE, CRAM: say(b"-ERR Internal error occurred.\r\n")}, ServerBusy, None),
        ({"AUTH CRAM-MD5": say(b"-ERR [SYS/TEMP] later\r\n")}, ServerBusy, ["AUTH CRAM-MD5"]),
        ({"AUTH CRAM-MD5": say(b"+ not base64!\r\n")}, ProtocolError, ["AUTH CRAM-MD5"]),
        ({"AUTH": NO}, LoginRefused, ["AUTH CRAM-MD5", "AUTH PLAIN"]),
    ],
)
async def test_a_refused_password_is_tried_by_no_other_mechanism(
    answers: dict[str, Answer], failure: type[Exception], sent: list[str] | None
) -> None:
    script = ScriptedPop3(capabilities=("SASL CRAM-MD5 PLAIN",), answers=answers)
    async with script.running(), open_session(script.server(), True) as client:
        with pytest.raises(failure) as caught:
            await client.login(Credential("tim", "tanstaaftanstaaf"))
    assert "tanstaaf" not in str(caught.value)
    assert sent is None or script.commands[1:] == sent


@pytest.mark.parametrize(
    ("reply", "failure", "code"),
    [
        (b"-ERR wrong password\r\n", LoginRefused, None),
        (b"-ERR [AUTH] wrong password\r\n", LoginRefused, "AUTH"),
        (b"-ERR [auth] wrong password\r\n", LoginRefused, "AUTH"),
        (b"-ERR [IN-USE] locked\r\n", ServerBusy, "IN-USE"),
        (b"-ERR [LOGIN-DELAY] too soon\r\n", ServerBusy, "LOGIN-DELAY"),
        (b"-ERR [SYS/TEMP] later\r\n", ServerBusy, "SYS/TEMP"),
    ],
)
async def test_a_refused_login_is_classified(reply: bytes, failure: type[Exception], code: str | None) -> None:
    script = ScriptedPop3(answers={"PASS": say(reply)})
    async with script.running(), open_session(script.server(), True) as client:
        with pytest.raises(failure) as caught:
            await client.login(Credential("u", "top-secret"))
    assert getattr(caught.value, "code", None) == code
    assert "top-secret" not in str(caught.value)


async def test_a_line_break_in_a_password_is_never_sent() -> None:
    script = ScriptedPop3()
    async with script.running(), open_session(script.server(), True) as client:
        with pytest.raises(Permanent, match="line break"):
            await client.login(Credential("u", "x\r\nDELE 1"))
    assert script.commands == ["CAPA"]


# ------------------------------------------------------------------------------------------------ access tokens

TOKEN = Credential("u@x.example", "tok", token=True)
RESPONSE = xoauth2("u@x.example", "tok").decode()


async def test_an_access_token_is_sent_on_a_line_of_its_own() -> None:
    # given a server of Microsoft's kind
    script = ScriptedPop3(
        {"a": b"Subject: one\r\n\r\nbody\r\n"}, answers={"AUTH": say(b"+ \r\n"), RESPONSE: say(b"+OK welcome\r\n")}
    )
    async with script.running(), open_session(script.server(), True) as client:
        # when
        await client.login(TOKEN)
        # then
        assert (await client.stat())[0] == 1
    assert script.commands[:3] == ["CAPA", "AUTH XOAUTH2", RESPONSE]


async def test_google_gets_the_access_token_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.provider.pop3_login._INITIAL_RESPONSE_HOSTS", ("127.0.0.1",))
    script = ScriptedPop3(answers={f"AUTH XOAUTH2 {RESPONSE}": say(b"+OK\r\n")})
    async with script.running(), open_session(script.server(), True) as client:
        await client.login(TOKEN)
    assert script.commands[1] == f"AUTH XOAUTH2 {RESPONSE}"


@pytest.mark.parametrize(
    ("answers", "failure", "code"),
    [
        ({"AUTH": say(b"+ \r\n"), RESPONSE: say(b"-ERR Authentication failure\r\n")}, LoginRefused, "AUTH"),
        ({"AUTH": say(b"+ \r\n"), RESPONSE: say(b"-ERR [SYS/TEMP] later\r\n")}, ServerBusy, "SYS/TEMP"),
        ({"AUTH": say(b"-ERR unknown command\r\n")}, LoginRefused, "AUTH"),
        ({"AUTH": say(b"SSH-2.0-inner\r\n")}, ProtocolError, None),
        ({"PASS": say(b"+ what?\r\n")}, ProtocolError, None),
    ],
)
async def test_a_refused_token_is_classified(
    answers: dict[str, Answer], failure: type[Exception], code: str | None
) -> None:
    script = ScriptedPop3(answers=answers)
    async with script.running(), open_session(script.server(), True) as client:
        with pytest.raises(failure) as caught:
            await client.login(Credential("u", "x") if "PASS" in answers else TOKEN)
    assert getattr(caught.value, "code", None) == code
    assert "tok" not in str(caught.value) and "inner" not in str(caught.value)


async def test_the_client_acknowledges_the_error_of_a_token_before_the_refusal() -> None:
    # given a server that sends the error as JSON, and refuses after an empty line
    script = ScriptedPop3(answers={"AUTH": say(b"+ \r\n"), RESPONSE: cut(b"+ eyJzdGF0dXMiOiI0MDAifQ==\r\n-ERR no\r\n")})
    async with script.running(), open_session(script.server(), True) as client:
        with pytest.raises(LoginRefused):
            await client.login(TOKEN)


async def test_a_server_that_refuses_the_bare_command_gets_both_at_once() -> None:
    script = ScriptedPop3(answers={"AUTH": say(b"-ERR what?\r\n"), f"AUTH XOAUTH2 {RESPONSE}": say(b"+OK\r\n")})
    async with script.running(), open_session(script.server(), True) as client:
        await client.login(TOKEN)
    assert script.commands[1:3] == ["AUTH XOAUTH2", f"AUTH XOAUTH2 {RESPONSE}"]


@pytest.mark.parametrize(
    ("capa", "mechanism"),
    [
        ("SASL PLAIN XOAUTH2 OAUTHBEARER", "XOAUTH2"),
        ("SASL OAUTHBEARER", "OAUTHBEARER"),
        ("SASL PLAIN", "XOAUTH2"),
        ("UIDL", "XOAUTH2"),
    ],
)
def test_oauthbearer_is_for_servers_that_offer_nothing_else(capa: str, mechanism: str) -> None:
    assert choose_token_mechanism(parse_capa([capa.encode()])) == mechanism


async def test_a_token_is_sent_by_oauthbearer_and_its_error_acknowledged() -> None:
    # given a server that accepts one token, and explains why it refuses another one
    answers = dict[str, Answer]()
    script = ScriptedPop3(capabilities=("SASL OAUTHBEARER",), answers=answers)
    async with script.running():
        good, bad = (
            base64.b64encode(oauthbearer_response("u@x.example", token, "127.0.0.1", script.port)).decode()
            for token in ("tok", "old")
        )
        challenge = say(b"+ eyJzdGF0dXMiOiJpbnZhbGlkX3Rva2VuIn0=\r\n")
        answers |= {"AUTH": GO, good: OK, bad: challenge, "AQ==": say(b"-ERR [AUTH] no\r\n")}
        async with open_session(script.server(), True) as client:
            await client.login(TOKEN)
        assert script.commands[1:3] == ["AUTH OAUTHBEARER", good]
        async with open_session(script.server(), True) as client:
            with pytest.raises(LoginRefused, match="no"):
                await client.login(Credential("u@x.example", "old", token=True))
        assert script.commands[-2:] == [bad, "AQ=="]
