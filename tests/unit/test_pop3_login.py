"""Logins by password: the mechanism that the server offers, and what is never sent."""

from __future__ import annotations

import base64

import pytest

from shared.provider.credentials import Credential
from shared.provider.pop3_client import open_session
from shared.provider.pop3_errors import LoginRefused, ProtocolError, ServerBusy
from shared.provider.pop3_mechanisms import apop_digest, choose_mechanisms, cram_md5_response
from shared.provider.pop3_replies import Capabilities, parse_capa
from tests.scripted_pop3 import Answer, ScriptedPop3, say

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
