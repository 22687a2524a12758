"""shared/provider/imap_idle.py: news while the session waits, and the ways in which a server ends the wait."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from shared.net.dial import ConnectTimeout
from shared.provider import imap_idle
from shared.provider.credentials import Credential
from shared.provider.imap_client import ImapClient, open_session
from shared.provider.session_errors import ConnectionLost, ProtocolError, ServerBusy
from tests.polling import until
from tests.scripted_imap import ScriptedFolder, ScriptedImap
from tests.scripted_pop3 import Answer, cut, hang, say

ONE = b"Subject: one\r\n\r\nbody\r\n"


async def ready(client: ImapClient) -> None:
    await client.login(Credential("u", "secret"))
    await client.fetch_list()


async def waiting(script: ScriptedImap) -> None:
    await until(lambda: bool(script.idlers))


def session(script: ScriptedImap, **options: Any) -> Any:
    return open_session(script.server(), True, session_seconds=math.inf, **options)


async def test_a_mail_that_arrives_is_news_at_once() -> None:
    script = ScriptedImap({3: ONE})
    async with script.running(), session(script) as client:
        await ready(client)
        for uid in (4, 5):
            news = asyncio.create_task(client.wait_for_news(60))
            await waiting(script)
            script.arrive(uid, ONE)
            assert await news
            assert len((await client.fetch_list()).mails) == uid - 2
    assert script.commands.count("IDLE") == script.commands.count("DONE") == 2


async def test_silence_and_other_changes_are_no_news() -> None:
    script = ScriptedImap({3: ONE, 4: ONE})
    async with script.running(), session(script) as client:
        await ready(client)
        news = asyncio.create_task(client.wait_for_news(0.3))
        await waiting(script)
        for line in (b"* OK still here\r\n", b"* 1 EXPUNGE\r\n", b"* 1 FETCH (FLAGS (\\Seen))\r\n", b"* 1 EXISTS\r\n"):
            script.idlers[0].write(line)
        assert not await news
        assert not await client.wait_for_news(0)
    assert script.commands.count("IDLE") == 1


async def test_idle_is_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imap_idle, "RENEW_SECONDS", 0.05)
    script = ScriptedImap({3: ONE})
    async with script.running(), session(script) as client:
        await ready(client)
        news = asyncio.create_task(client.wait_for_news(60))
        await until(lambda: script.commands.count("IDLE") >= 4)
        await waiting(script)
        script.arrive(4, ONE)
        assert await news
    assert imap_idle.RENEW_SECONDS < 29 * 60


async def test_a_mail_that_arrived_before_the_wait_is_news() -> None:
    script = ScriptedImap({3: ONE}, others={"Other": ScriptedFolder({1: ONE}, 50)})
    async with script.running(), session(script, folders=("INBOX", "Other")) as client:
        await ready(client)  # the other folder is open now
        script.mails[4] = ONE
        assert await client.wait_for_news(0)
        assert not await client.wait_for_news(0)


async def test_a_mail_that_is_in_the_list_is_no_news() -> None:
    script = ScriptedImap({3: ONE}, answers={"UID FETCH": say(b"* 2 EXISTS\r\n<tag> OK done\r\n")})
    async with script.running(), session(script) as client:
        await ready(client)
        script.mails[4] = ONE
        await client.fetch_sizes([3])  # the server tells it here
        assert len((await client.fetch_list()).mails) == 2
        assert not await client.wait_for_news(0)


async def test_without_a_list_the_wait_begins_with_the_folder() -> None:
    script = ScriptedImap({3: ONE})
    async with script.running(), session(script) as client:
        await client.login(Credential("u", "secret"))
        assert not await client.wait_for_news(0)
        news = asyncio.create_task(client.wait_for_news(60))
        await waiting(script)
        script.arrive(4, ONE)
        assert await news


async def test_what_comes_with_the_end_of_idle_counts() -> None:
    # given a server that reports the mail only after DONE, and late
    late = Answer((b"* OK still here\r\n", b"* 2 EXISTS\r\n", b"<before> OK done\r\n"), pause=0.1)
    script = ScriptedImap({3: ONE}, answers={"IDLE": say(b"+ idling\r\n"), "": late})
    async with script.running(), session(script) as client:
        await ready(client)
        assert await client.wait_for_news(0.1)


@pytest.mark.parametrize(
    ("answer", "failure", "words"),
    [
        (cut(b"+ idling\r\n* BYE idle for too long\r\n"), ServerBusy, "the server ends the session: idle for too long"),
        (cut(b"+ idling\r\n* BYE Session invalidated - AccessTokenExpired\r\n"), ServerBusy, "AccessTokenExpired"),
        (cut(b"+ idling\r\n"), ConnectionLost, "IDLE: the server ended the connection"),
        (cut(), ConnectionLost, "ended the connection"),
        (say(b"<tag> NO not now\r\n"), ProtocolError, "IDLE: refused: not now"),
        (say(b"<tag> BAD [UNAVAILABLE] later\r\n"), ServerBusy, "refused for now"),
        (say(b"+ idling\r\n<tag> OK enough\r\n"), ProtocolError, "the server does not stay in it: enough"),
        (hang(b"+ idling\r\n"), ConnectTimeout, "IDLE: no answer within 0.3 s"),  # DONE gets no answer: half-open
        (hang(), ConnectTimeout, "IDLE: no answer"),
    ],
)
async def test_the_end_of_the_session_is_told(answer: Answer, failure: type[Exception], words: str) -> None:
    script = ScriptedImap({3: ONE}, answers={"IDLE": answer})
    async with script.running(), session(script, read_seconds=0.3) as client:
        await ready(client)
        with pytest.raises(failure, match=words):
            await client.wait_for_news(0.2)


async def test_a_flood_while_waiting_ends_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imap_idle, "MAX_UNTAGGED", 1000)
    script = ScriptedImap({3: ONE}, answers={"IDLE": say(b"+ idling\r\n" + b"* OK still here\r\n" * 2000)})
    async with script.running(), session(script) as client:
        await ready(client)
        with pytest.raises(ProtocolError, match="does not stay in it"):
            await client.wait_for_news(60)


async def test_a_server_without_idle_says_so() -> None:
    script = ScriptedImap({3: ONE}, capabilities=("IMAP4rev1",))
    async with script.running(), session(script) as client:
        await ready(client)
        assert not client.idles
        with pytest.raises(ProtocolError, match="the server has no IDLE"):
            await client.wait_for_news(60)


async def test_cancelling_a_wait_leaves_nothing_behind() -> None:
    script = ScriptedImap({3: ONE})
    async with script.running(), session(script) as client:
        await ready(client)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await client.wait_for_news(60)
    await until(lambda: not [task for task in asyncio.all_tasks() if "ImapStream" in repr(task)])
