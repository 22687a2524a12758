"""The login at a provider that refuses some mechanisms: the real sender with a scripted provider (RFC 4954)."""

from __future__ import annotations

import base64
import hashlib
import hmac
import socket
import ssl
from pathlib import Path

import pytest

from shared.net import server_tls
from shared.settings import load
from tests.company import SUPPORT
from tests.polling import until
from tests.scripted_smtp import ScriptedSmtp, scripted_smtp
from tests.sender_harness import SenderHarness, replies, sending

ANN = "ann@customer.org"
CHALLENGE = b"<1896.697170952@postoffice.example>"


def encoded(text: str | bytes) -> str:
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


PLAIN = f"AUTH PLAIN {encoded(f'{chr(0)}{SUPPORT}{chr(0)}secret')}"
USER, SECRET = encoded(SUPPORT), encoded("secret")
DIGEST = encoded(f"{SUPPORT} {hmac.new(b'secret', CHALLENGE, 'md5').hexdigest()}")
ASKS = f"334 {encoded(CHALLENGE)}"
OK = "235 2.7.0 welcome"
TOO_WEAK = "534 5.7.9 Authentication mechanism is too weak"
WRONG = "535 5.7.8 Authentication credentials invalid"
NEXT = (
    TOO_WEAK,
    "501 5.5.2 no",
    "502 5.5.1 not implemented",
    "504 5.5.4 unknown",
    "538 5.7.11 encrypt",
    "553 no",
    "500 ?",
)


def prepare(provider: ScriptedSmtp, mechanisms: str, script: dict[str, list[str]]) -> None:
    provider.always("EHLO", f"250-scripted\r\n250 AUTH {mechanisms}")
    for verb, answers in script.items():
        *first, provider.standing[verb] = answers
        provider.say(verb, *first)


async def try_to_send(harness: SenderHarness) -> str:
    """Submit a mail, and return what became of it: ``sent``, or why the account waits."""
    id_ = await harness.submit(ANN)

    async def state() -> str:
        if (await harness.listed(id_)).state == "done":
            return "sent"
        rows = await harness.rows("select last_error_kind from relays where failures > 0 or paused_at is not null")
        return str(rows[0][0]) if rows else ""

    found = ""

    async def is_known() -> bool:
        nonlocal found
        found = await state()
        return bool(found)

    await until(is_known)
    assert replies(await harness.listed(id_))[0][0] in ("relayed", "waiting")  # nothing bounces
    return found


CASES: dict[str, tuple[str, dict[str, list[str]], str, list[str], list[str]]] = {
    # the mechanisms that are offered, best first
    "best": ("LOGIN PLAIN CRAM-MD5", {"AUTH CRAM-MD5": [ASKS], "RESPONSE": [OK]}, "sent", ["AUTH CRAM-MD5"], [DIGEST]),
    "plain": ("LOGIN PLAIN", {"AUTH PLAIN": [OK]}, "sent", [PLAIN], []),
    "login": (
        "LOGIN",
        {"AUTH LOGIN": ["334 VXNlcm5hbWU6"], "RESPONSE": ["334 UGFzc3dvcmQ6", OK]},
        "sent",
        ["AUTH LOGIN"],
        [USER, SECRET],
    ),
    # a server that ignores the initial response of PLAIN
    "plain again": ("PLAIN", {"AUTH PLAIN": ["334 "], "RESPONSE": [OK]}, "sent", [PLAIN], [PLAIN.split()[2]]),
    # a challenge that is none, and a server that asks for more than there is: cancelled
    "no challenge": (
        "CRAM-MD5 PLAIN",
        {"AUTH CRAM-MD5": ["334 ?"], "RESPONSE": ["501 cancelled"], "AUTH PLAIN": [OK]},
        "sent",
        ["AUTH CRAM-MD5", PLAIN],
        ["*"],
    ),
    "too many questions": (
        "LOGIN PLAIN",
        {"AUTH PLAIN": ["334 "], "RESPONSE": ["334 ", "535 cancelled", "334 ", OK], "AUTH LOGIN": ["334 "]},
        "sent",
        [PLAIN, "AUTH LOGIN"],
        [PLAIN.split()[2], "*", USER, SECRET],
    ),
    # a refusal within the exchange leads to the next mechanism, too
    "login refuses the name": (
        "LOGIN CRAM-MD5",
        {"AUTH CRAM-MD5": [ASKS], "RESPONSE": ["553 no", "334 ", OK], "AUTH LOGIN": ["334 "]},
        "sent",
        ["AUTH CRAM-MD5", "AUTH LOGIN"],
        [DIGEST, USER, SECRET],
    ),
    # wrong credentials end the login
    "wrong": ("PLAIN LOGIN", {"AUTH PLAIN": [WRONG]}, "credentials", [PLAIN], []),
    "wrong by login": (
        "LOGIN",
        {"AUTH LOGIN": ["334 "], "RESPONSE": ["334 ", WRONG]},
        "credentials",
        ["AUTH LOGIN"],
        [USER, SECRET],
    ),
    # without TLS no password follows a CRAM-MD5 that was refused
    "wrong in clear": (
        "CRAM-MD5 PLAIN LOGIN",
        {"AUTH CRAM-MD5": [ASKS], "RESPONSE": [WRONG]},
        "credentials",
        ["AUTH CRAM-MD5"],
        [DIGEST],
    ),
    "all refused": (
        "PLAIN LOGIN",
        {"AUTH PLAIN": [TOO_WEAK], "AUTH LOGIN": ["504 5.5.4 no"]},
        "credentials",
        [PLAIN, "AUTH LOGIN"],
        [],
    ),
    "none known": ("GSSAPI NTLM", {}, "server", [], []),
    # a temporary refusal ends the try
    "later": ("PLAIN LOGIN", {"AUTH PLAIN": ["454 4.7.0 later"]}, "server", [PLAIN], []),
    "later in the exchange": (
        "CRAM-MD5 PLAIN",
        {"AUTH CRAM-MD5": [ASKS], "RESPONSE": ["454 4.7.0 later"]},
        "server",
        ["AUTH CRAM-MD5"],
        [DIGEST],
    ),
} | {
    f"{first} {reply[:3]}": (
        "PLAIN CRAM-MD5 LOGIN",
        {f"AUTH {first}": [reply], "AUTH CRAM-MD5": [reply], "RESPONSE": ["334 ", OK], "AUTH LOGIN": ["334 "]}
        | {"AUTH PLAIN": [reply if first == "PLAIN" else OK]},
        "sent",
        ["AUTH CRAM-MD5", PLAIN, *(["AUTH LOGIN"] if first == "PLAIN" else [])],
        [USER, SECRET] if first == "PLAIN" else [],
    )
    for first in ("CRAM-MD5", "PLAIN")
    for reply in NEXT
}


@pytest.mark.parametrize("case", CASES)
async def test_the_login_takes_the_mechanism_that_the_server_accepts(database_url: str, case: str) -> None:
    mechanisms, script, outcome, commands, responses = CASES[case]
    async with scripted_smtp() as provider, sending(database_url) as harness:
        prepare(provider, mechanisms, script)
        await harness.accounts({SUPPORT: provider.port})
        assert await try_to_send(harness) == outcome
        assert (provider.said("AUTH"), provider.responses) == (commands, responses)
        assert len(provider.taken) == (outcome == "sent")


@pytest.mark.parametrize(("reply", "outcome"), [(OK, "sent"), (WRONG, "credentials")])
async def test_a_refused_cram_md5_leads_to_plain_once_under_tls(
    database_url: str, tmp_path: Path, reply: str, outcome: str
) -> None:
    # given a server with TLS that has no password in clear for CRAM-MD5
    settings = load(data=tmp_path)
    certificate = server_tls.self_signed_file(settings).read_text()
    fingerprint = hashlib.sha256(
        ssl.PEM_cert_to_DER_cert(certificate[certificate.index("-----BEGIN CERT") :])
    ).hexdigest()
    context = server_tls.server_context(settings)
    async with scripted_smtp(context=context) as provider, sending(database_url) as harness:
        prepare(provider, "CRAM-MD5 PLAIN LOGIN", {"AUTH CRAM-MD5": [ASKS], "RESPONSE": [WRONG], "AUTH PLAIN": [reply]})
        await harness.accounts({SUPPORT: provider.port}, tls="implicit", tls_fingerprint=fingerprint)
        # when
        assert await try_to_send(harness) == outcome
        # then LOGIN was not tried after a second 535
        assert provider.said("AUTH") == ["AUTH CRAM-MD5", PLAIN]


@pytest.mark.parametrize(
    ("setting", "host_name", "said"),
    [
        ("mail.company.com", "host.other.example", "EHLO mail.company.com"),
        ("[192.0.2.1]", "host", "EHLO [192.0.2.1]"),
        (None, "host.other.example", "EHLO host.other.example"),
        (None, "host.other.example.", "EHLO host.other.example"),
        (None, "host", "EHLO [127.0.0.1]"),
        (None, "localhost.localdomain", "EHLO [127.0.0.1]"),
        (None, "bad_name.example", "EHLO [127.0.0.1]"),
        (None, "10.0.0.1", "EHLO [127.0.0.1]"),
    ],
)
async def test_ehlo_names_the_setting_or_the_host_or_its_address(
    database_url: str, monkeypatch: pytest.MonkeyPatch, setting: str | None, host_name: str, said: str
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: host_name)
    async with scripted_smtp() as provider, sending(database_url, setting) as harness:
        await harness.accounts({SUPPORT: provider.port})
        assert await try_to_send(harness) == "sent"
        assert provider.said("EHLO") == [said]
