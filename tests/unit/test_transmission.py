"""The steps of one mail on one connection (services/sender/transmission.py), on a transport that only remembers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import cast

import pytest

from services.sender.smtp_transaction import OutgoingMessage, SmtpEnvelope
from services.sender.transmission import Transmission, TransmissionState
from shared.provider.smtp_client import OutcomeUnknown, SmtpClient, SmtpConnectionLost
from shared.store.relay_queue import QueuedRecipient
from tests.unit.test_smtp_client import Remembering

ENVELOPE = b"MAIL FROM:<support@company.com>\r\nRCPT TO:<ann@customer.org>\r\nDATA\r\n"
ACCEPTED = b"250 ok\r\n250 ok\r\n354 go on\r\n"


def message(to: str = "ann@customer.org") -> OutgoingMessage:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"Subject: x\r\n\r\n.body\r\n"

    return OutgoingMessage("support@company.com", (QueuedRecipient(0, to, None),), 21, False, False, False, pieces)


def connected() -> tuple[Remembering, SmtpClient]:
    transport = Remembering()
    return transport, SmtpClient(cast(asyncio.BaseTransport, transport), "there:25", {"pipelining": ""})


async def announced() -> tuple[Remembering, SmtpClient, Transmission]:
    transport, client = connected()
    transmission = Transmission(client, message())
    announcing = asyncio.create_task(transmission.announce())
    await asyncio.sleep(0)
    transport.say(ACCEPTED)
    assert await announcing
    return transport, client, transmission


async def test_each_step_takes_the_mail_one_state_further() -> None:
    transport, client, transmission = await announced()
    states = [transmission.state]
    assert transport.written == ENVELOPE
    with transmission:
        assert await transmission.send_content()
        states.append(transmission.state)
        transmission.confirm_mark()
        states.append(transmission.state)
        assert transport.written == ENVELOPE  # the last octets leave together with the final dot, behind the mark
        assert transmission.send_final_dot(None)
        states.append(transmission.state)
        assert transport.written == ENVELOPE + b"Subject: x\r\n\r\n..body\r\n.\r\n"
        transport.say(b"250 2.0.0 queued\r\n")
        await transmission.read_answer()
        states.append(transmission.state)
    assert states == list(TransmissionState)[1:]
    assert [outcome.state for outcome in transmission.result().outcomes] == ["relayed"]
    assert client.alive


async def test_no_final_dot_is_sent_without_a_committed_mark() -> None:
    transport, client, transmission = await announced()
    with pytest.raises(RuntimeError, match="mark"), transmission:
        await transmission.send_content()
        transmission.send_final_dot(None)
    assert b"\r\n.\r\n" not in transport.written and not client.alive


async def test_a_mail_that_loses_its_mark_leaves_no_half_mail_on_the_connection() -> None:
    transport, client, transmission = await announced()
    with pytest.raises(ZeroDivisionError), transmission:
        await transmission.send_content()
        raise ZeroDivisionError
    assert b"\r\n.\r\n" not in transport.written and not client.alive


async def test_a_refusal_during_the_mark_prevents_the_final_dot() -> None:
    transport, client, transmission = await announced()
    with transmission:
        await transmission.send_content()
        transport.say(b"552 5.3.4 too large\r\n")
        transmission.confirm_mark()
        assert not transmission.send_final_dot(None)
    assert [outcome.state for outcome in transmission.result().outcomes] == ["failed"]
    assert b"\r\n.\r\n" not in transport.written and not client.alive


async def test_a_connection_that_ends_during_the_mark_leaves_the_mail_unsent() -> None:
    transport, _, transmission = await announced()
    assert transport.protocol is not None
    with pytest.raises(SmtpConnectionLost) as caught, transmission:
        await transmission.send_content()
        transport.protocol.connection_lost(None)
        transmission.confirm_mark()
        transmission.send_final_dot(None)
    result = transmission.interrupted(str(caught.value))
    assert (result.unanswered, result.interrupted) == (False, True)


async def test_a_connection_that_ends_behind_the_final_dot_proves_nothing() -> None:
    transport, _, transmission = await announced()
    assert transport.protocol is not None
    with pytest.raises(OutcomeUnknown) as caught, transmission:
        await transmission.send_content()
        transmission.confirm_mark()
        transmission.send_final_dot(None)
        transport.protocol.connection_lost(None)
        await transmission.read_answer()
    assert transmission.interrupted(str(caught.value)).unanswered


async def test_the_next_envelope_leaves_with_the_final_dot_and_is_not_sent_twice() -> None:
    transport, client, transmission = await announced()
    following = SmtpEnvelope(client, message("bob@customer.org"))
    next_lines = ENVELOPE.replace(b"ann@", b"bob@")
    with transmission:
        await transmission.send_content()
        transmission.confirm_mark()
        transmission.send_final_dot(following)
        assert transport.written.endswith(b".body\r\n.\r\n" + next_lines)
        # a refusal of the first mail ends nothing of the second one (no RSET)
        transport.say(b"554 5.7.1 spam\r\n")
        await transmission.read_answer()
    sent = transport.written
    with Transmission(client, message("bob@customer.org"), following) as second:
        transport.say(ACCEPTED)
        assert await second.announce()
        assert transport.written == sent
        await second.send_content()
        second.confirm_mark()
        second.send_final_dot(None)
        transport.say(b"250 ok\r\n")
        await second.read_answer()
    assert [outcome.state for outcome in second.result().outcomes] == ["relayed"]


async def test_an_address_that_would_be_two_commands_fails_with_its_mail_alone() -> None:
    _, client = connected()
    with (
        pytest.raises(SmtpConnectionLost) as caught,
        Transmission(client, message("a\rb@customer.org")) as transmission,
    ):
        await transmission.announce()
    assert [outcome.state for outcome in transmission.interrupted(str(caught.value)).outcomes] == ["waiting"]
