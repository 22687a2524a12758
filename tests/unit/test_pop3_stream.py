"""shared/provider/pop3_stream.py: limits of time and size, whatever the server does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest

from shared.net.dial import ConnectTimeout, TlsError, Unreachable
from shared.provider.credentials import Credential
from shared.provider.pop3_client import Pop3Client, open_session
from shared.provider.retrieval import MailRequest, Retrieved
from shared.provider.session_errors import ConnectionLost, ProtocolError, ReplyTooLong
from tests.polling import until
from tests.scripted_pop3 import Answer, ScriptedPop3, cut, drip, hang, say, stuff

MAIL = b"Subject: one\r\n\r\nbody\r\n"
LIMIT = 1_000_000


async def retrieve(client: Pop3Client, numbers: Sequence[int], limit: int = LIMIT) -> list[Retrieved]:
    return [got async for got in client.retrieve([MailRequest(number, 100) for number in numbers], limit)]


async def test_a_mail_that_does_not_end_is_aborted() -> None:
    endless = Answer((b"+OK\r\n", *([b"x" * 65536] * 40)), hang=True)
    script = ScriptedPop3({"a": MAIL}, answers={"RETR": endless})
    async with script.running(), open_session(script.server(), True, read_seconds=2.0) as client:
        await client.login(Credential("u", "secret"))
        with pytest.raises(ReplyTooLong, match="the reply does not end"):
            await retrieve(client, [1], 100_000)


@pytest.mark.parametrize(
    ("answer", "failure", "text"),
    [
        (cut(b"+OK\r\nSubject: x\r\n\r\nhalf"), ConnectionLost, "RETR of mail 1: the server ended the connection"),
        (cut(b"+OK\r\nSubject: x\r\n\r\nno dot\r\n"), ConnectionLost, "ended the connection"),
        (cut(), ConnectionLost, "ended the connection"),
        (hang(b"+OK\r\nSubject"), ConnectTimeout, "no answer within"),
        (say(b"SSH-2.0-OpenSSH_9.2\r\n"), ProtocolError, "the reply is not a POP3 reply"),
        (hang(b"y" * 10_000), ProtocolError, "a reply line of more than"),
    ],
)
async def test_a_connection_lost_within_a_mail_names_that_mail(
    answer: Answer, failure: type[Exception], text: str
) -> None:
    script = ScriptedPop3({"a": MAIL}, answers={"RETR": answer})
    async with script.running(), open_session(script.server(), True, read_seconds=0.4) as client:
        await client.login(Credential("u", "secret"))
        with pytest.raises(failure, match=text) as caught:
            await retrieve(client, [1])
        assert client.reading == 1
    assert f"127.0.0.1:{script.port}" in str(caught.value)
    assert "OpenSSH" not in str(caught.value)


async def test_a_server_that_drips_a_mail_does_not_keep_the_session() -> None:
    # given a server that is never silent for the time limit, and would take 30 s for one small mail
    script = ScriptedPop3({"a": MAIL}, answers={"RETR": drip(b"+OK\r\n" + stuff(bytes(600)), 0.05)})
    async with script.running(), open_session(script.server(), True, read_seconds=0.4) as client:
        await client.login(Credential("u", "secret"))
        began = time.monotonic()
        with pytest.raises(ConnectTimeout, match="RETR of mail 1: the reply is slower than 1024 octets a second"):
            await retrieve(client, [1])
        assert time.monotonic() - began < 20


async def test_the_whole_session_has_a_deadline() -> None:
    dripping = Answer((b"+OK\r\n", *([b"x"] * 1)), hang=True)
    script = ScriptedPop3({"a": MAIL}, answers={"RETR": dripping})
    async with script.running(), open_session(script.server(), True, session_seconds=0.5) as client:
        await client.login(Credential("u", "secret"))
        with pytest.raises(ConnectTimeout, match=r"the session took longer than 0\.5 s"):
            await retrieve(client, [1])


async def test_a_server_that_never_greets_is_late() -> None:
    script = ScriptedPop3(answers={"greeting": hang()})
    async with script.running():
        with pytest.raises(ConnectTimeout, match="greeting: no answer"):
            async with open_session(script.server(), True, read_seconds=0.2):
                pass


async def test_a_closed_port_is_unreachable_and_is_named() -> None:
    script = ScriptedPop3()
    async with script.running():
        server = script.server()
    with pytest.raises(Unreachable, match=f"127.0.0.1:{server.port}: connection refused; check host and port"):
        async with open_session(server, True):
            pass


async def test_implicit_tls_on_a_plain_port_says_so() -> None:
    script = ScriptedPop3()
    async with script.running():
        with pytest.raises(TlsError, match=f"127.0.0.1:{script.port}: .*check port and tls"):
            async with open_session(script.server("implicit"), True, connect_seconds=2):
                pass


async def test_cancelling_leaves_no_reader_behind() -> None:
    script = ScriptedPop3({"a": MAIL}, answers={"RETR": hang()})

    async def read() -> None:
        async with script.running(), open_session(script.server(), True) as client:
            await client.login(Credential("u", "secret"))
            await retrieve(client, [1])

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await read()
    await until(lambda: not [task for task in asyncio.all_tasks() if "Pop3Stream" in repr(task)], 5.0)
