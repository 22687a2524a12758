"""The sender with a real Postfix: every TLS mode, AUTH, and the connection test."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from deploy.machine.dovecot_postfix import DemoProvider
from shared.errors import Permanent, Temporary
from shared.model import External, Relay
from shared.net.dial import CertificateChanged, TlsError, Unreachable
from shared.provider.credentials import Credential
from shared.provider.smtp_connect import probe_smtp
from shared.provider.smtp_login import AuthFailed, ServerUnavailable
from tests.company import SALES, SUPPORT
from tests.scripted_smtp import HANG, scripted_smtp
from tests.sender_harness import SenderHarness, replies, sending

_names = itertools.count(1)


@pytest.fixture
def customer(provider: DemoProvider) -> str:
    """Create a new mailbox of a customer."""
    address = f"customer{next(_names)}@send.test"
    provider.add_mailbox(address, "secret")
    return address


@pytest.fixture
async def harness(database_url: str, provider: DemoProvider) -> AsyncIterator[SenderHarness]:
    provider.add_mailbox(SUPPORT, "secret")
    provider.add_mailbox(SALES, "secret")
    async with sending(database_url) as running:
        yield running


def server(provider: DemoProvider, tls: str) -> dict[str, Any]:
    return {"tls": tls, "tls_fingerprint": None if tls == "none" else provider.fingerprint}


@pytest.mark.parametrize("tls", ["none", "starttls", "implicit"])
async def test_mail_arrives_in_each_tls_mode(
    harness: SenderHarness, provider: DemoProvider, customer: str, tls: str
) -> None:
    # given an account in this TLS mode
    port = provider.smtps_port if tls == "implicit" else provider.smtp_port
    await harness.accounts({SUPPORT: port}, **server(provider, tls))
    # when Alex writes, with raw UTF-8, dots and a long line
    body = "Grüße\r\n.\r\n..dots\r\n".encode() + b"x" * 5000 + b"\r\n"
    mail = b"From: alex@local.com\r\nTo: " + customer.encode() + b"\r\nSubject: hello\r\n\r\n" + body
    id_ = await harness.submit(customer, mail=mail)
    found = await harness.until(id_, state="done")
    # then it is in the customer's mailbox, from "Alex" <support@company.com>
    assert "250 2.0.0 Ok: queued as" in str(replies(found)[0][1])
    [got] = provider.wait_for_mail(customer)
    assert b'\nFrom: "Alex" <support@company.com>\n' in got
    assert got.startswith(b"Return-Path: <support@company.com>\n")
    assert got.endswith(b"\n\n" + body.replace(b"\r\n", b"\n"))


async def test_an_unknown_recipient_of_a_real_provider_gives_a_notice(
    harness: SenderHarness, provider: DemoProvider, customer: str
) -> None:
    await harness.accounts({SUPPORT: provider.smtp_port})
    found = await harness.until(await harness.submit(customer, "nobody@send.test"), state="done")
    assert [state for state, _ in replies(found)] == ["relayed", "failed"]
    [notice] = await harness.notices("Alex")
    assert b"Final-Recipient: rfc822; nobody@send.test\r\nAction: failed\r\nStatus: 5.1.1\r\n" in notice


async def test_two_hundred_mails_arrive_once_each(
    harness: SenderHarness, provider: DemoProvider, customer: str
) -> None:
    await harness.accounts({SUPPORT: provider.smtp_port}, connections=4)
    ids = [await harness.submit(customer, message_id=f"{n}@many") for n in range(200)]
    for id_ in ids:
        await harness.until(id_, state="done")
    got = provider.wait_for_mail(customer, 200)
    assert sorted(mail.partition(b"Message-ID: <")[2].partition(b"@")[0] for mail in got) == sorted(
        str(n).encode() for n in range(200)
    )


# ---------------------------------------------------------------------------------------------- the Test button


async def account(harness: SenderHarness, port: int, tls: str = "none", fingerprint: str | None = None) -> External:
    await harness.accounts({SUPPORT: port}, tls=tls, tls_fingerprint=fingerprint)
    return harness.externals[SUPPORT]


@pytest.mark.parametrize("tls", ["none", "starttls", "implicit"])
async def test_the_check_of_a_working_account_succeeds_and_sends_nothing(
    harness: SenderHarness, provider: DemoProvider, tls: str
) -> None:
    port = provider.smtps_port if tls == "implicit" else provider.smtp_port
    external = await account(harness, port, tls, None if tls == "none" else provider.fingerprint)
    before = len(provider.mail_of(SUPPORT))
    await probe_smtp(external, Credential(SUPPORT, "secret"), True, 10)
    assert len(provider.mail_of(SUPPORT)) == before


async def test_each_error_is_named_clearly(harness: SenderHarness, provider: DemoProvider) -> None:
    plain = await account(harness, provider.smtp_port)
    with pytest.raises(AuthFailed, match=r"the login was refused \(535 5\.7\.8 .*check login and password"):
        await probe_smtp(plain, Credential(SUPPORT, "wrong"), True, 10)
    with pytest.raises(TlsError, match="the certificate is not trusted"):
        await probe_smtp(_at(plain, provider.smtp_port, "starttls"), Credential(SUPPORT, "secret"), True, 10)
    with pytest.raises(CertificateChanged, match="not the pinned one"):
        await probe_smtp(_at(plain, provider.smtps_port, "implicit", "0" * 64), Credential(SUPPORT, "secret"), True, 10)
    with pytest.raises(TlsError, match="does not speak TLS"):
        await probe_smtp(_at(plain, provider.smtp_port, "implicit"), Credential(SUPPORT, "secret"), True, 10)
    with pytest.raises(Temporary, match=r"no answer|did not answer"):
        await probe_smtp(_at(plain, provider.smtps_port, "none"), Credential(SUPPORT, "secret"), True, 2)
    with pytest.raises(Unreachable, match="check host and port"):
        await probe_smtp(_at(plain, 9, "none"), Credential(SUPPORT, "secret"), True, 10)
    with pytest.raises(Permanent, match="private address"):
        await probe_smtp(plain, Credential(SUPPORT, "secret"), False, 10)
    with pytest.raises(ServerUnavailable):  # a POP3 server: its text is not shown
        await probe_smtp(_at(plain, provider.pop3_port, "none"), Credential(SUPPORT, "secret"), True, 10)


async def test_the_text_of_a_foreign_server_is_not_quoted(harness: SenderHarness) -> None:
    async with scripted_smtp() as foreign:
        external = await account(harness, foreign.port)
        for greeting in ("SSH-2.0-OpenSSH_9.2p1", "554 inner-host.corp says no", "220-inner-host\r\nrubbish"):
            foreign.answers["GREETING"].append(greeting)
            with pytest.raises(Temporary) as caught:
                await probe_smtp(external, Credential(SUPPORT, "secret"), True, 5)
            assert "inner" not in str(caught.value) and "SSH" not in str(caught.value)
        foreign.say("GREETING", HANG)
        with pytest.raises(Temporary, match="did not answer within 1 s"):
            await probe_smtp(external, Credential(SUPPORT, "secret"), True, 1)


async def test_a_server_that_requires_a_login_and_gets_none_is_named(harness: SenderHarness) -> None:
    async with scripted_smtp() as server_:
        external = _without_login(await account(harness, server_.port))
        server_.say("MAIL", "530 5.7.0 authentication required")
        with pytest.raises(AuthFailed, match="set auth to true"):
            await probe_smtp(external, Credential(SUPPORT, ""), True, 5)
        assert not server_.said("AUTH")
        server_.always("EHLO", "250 scripted")
        with pytest.raises(ServerUnavailable, match="takes no login here"):
            await probe_smtp(replace(external, relays=(Relay(external.smtp),)), Credential(SUPPORT, "secret"), True, 5)


def _at(external: External, port: int, tls: Any, fingerprint: str | None = None) -> External:
    server = replace(external.smtp, port=port, tls=tls, tls_fingerprint=fingerprint)
    return replace(external, relays=(Relay(server),))


def _without_login(external: External) -> External:
    return replace(external, relays=(Relay(external.smtp, auth=False),))
