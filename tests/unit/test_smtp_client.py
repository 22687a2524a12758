"""shared/provider/smtp_client.py: reading replies, with a transport that records what is written."""

from __future__ import annotations

import asyncio
import itertools
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.provider.smtp_client import REPLY_OCTETS, Commands, Reply, SmtpClient, SmtpConnectionLost


class Remembering:
    """A transport. written: all of it."""

    def __init__(self) -> None:
        self.written = b""
        self.protocol: asyncio.Protocol | None = None
        self.closed = False

    def set_protocol(self, protocol: asyncio.Protocol) -> None:
        self.protocol = protocol

    def write(self, data: bytes) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def say(self, *pieces: bytes) -> None:
        """Receive these octets from the server."""
        assert self.protocol is not None
        for piece in pieces:
            self.protocol.data_received(piece)


def connected() -> tuple[Remembering, SmtpClient]:
    transport = Remembering()
    return transport, SmtpClient(cast(asyncio.BaseTransport, transport), "there:25", {})


ANSWERS = b"250 2.1.0 ok\r\n250-2.1.5 first\r\n250-2.1.5 second\r\n250 2.1.5 third\r\n354\r\n"


@given(st.lists(st.integers(0, len(ANSWERS)), max_size=8))
def test_replies_come_in_order_wherever_the_stream_is_cut(cuts: list[int]) -> None:
    async def read() -> list[Reply]:
        transport, client = connected()
        commands = Commands([b"MAIL", b"RCPT", b"DATA"])
        client.send(commands)
        assert transport.written == b"MAIL\r\nRCPT\r\nDATA\r\n"
        edges = [0, *sorted(cuts), len(ANSWERS)]
        transport.say(*(ANSWERS[start:end] for start, end in itertools.pairwise(edges)))
        return [await client.reply(reply) for reply in commands.replies]

    assert asyncio.run(read()) == [Reply(250, "2.1.0 ok"), Reply(250, "2.1.5 first second third"), Reply(354, "")]


@pytest.mark.parametrize(
    "said",
    [b"hello\r\n", b"25\r\n", b"2500 ok\r\n", b"\r\n", b"250-" + b"x" * REPLY_OCTETS, b"250-x\r\n" * REPLY_OCTETS],
)
async def test_a_line_that_is_no_reply_ends_the_connection(said: bytes) -> None:
    transport, client = connected()
    commands = Commands([b"MAIL", b"DATA"])
    client.send(commands)
    transport.say(said)
    assert transport.closed and not client.alive
    for reply in commands.replies:
        with pytest.raises(SmtpConnectionLost, match="not an SMTP reply"):
            await client.reply(reply)


async def test_a_server_that_replies_unasked_gets_no_more_commands() -> None:
    # given a 421 on an idle connection; an extra reply would count as the reply to the next command
    transport, client = connected()
    transport.say(b"421 4.4.2 idle\r\n")
    assert not client.alive
    with pytest.raises(SmtpConnectionLost):
        await client.command(b"MAIL FROM:<a@b>")
    assert transport.written == b""


async def test_a_connection_that_ends_fails_every_waiting_command() -> None:
    transport, client = connected()
    commands = Commands([b"MAIL", b"RCPT"])
    client.send(commands)
    transport.say(b"250 ok\r\n")
    assert transport.protocol is not None
    transport.protocol.connection_lost(None)
    assert await client.reply(commands.replies[0]) == Reply(250, "ok")
    with pytest.raises(SmtpConnectionLost, match="the connection was lost"):
        await client.reply(commands.replies[1])


async def test_a_command_that_would_be_two_is_not_sent() -> None:
    with pytest.raises(SmtpConnectionLost):
        Commands([b"RCPT TO:<a@b>\r\nDATA"])


@pytest.mark.parametrize(
    ("reply", "status"),
    [
        (Reply(550, "5.1.1 no such user"), "5.1.1"),
        (Reply(250, "OK"), "2.0.0"),
        (Reply(451, "4.7.1"), "4.7.1"),
        (Reply(552, "4.3 odd"), "5.0.0"),
        (Reply(550, "5.1.1.1 odd"), "5.0.0"),
    ],
)
def test_a_reply_without_an_enhanced_status_code_gets_one(reply: Reply, status: str) -> None:
    assert reply.status == status
