"""shared/provider/pop3_transfer.py: mails that are read, pipelined and one by one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pytest

from shared.net.dial import ConnectTimeout
from shared.provider.credentials import Credential
from shared.provider.pop3_client import Pop3Client, open_session
from shared.provider.retrieval import MailRequest, Retrieved
from tests.scripted_pop3 import ScriptedPop3, hang, say

MAIL = b"Subject: one\r\n\r\nbody\r\n"
LIMIT = 1_000_000


async def retrieve(client: Pop3Client, numbers: Sequence[int], limit: int = LIMIT) -> list[Retrieved]:
    return [got async for got in client.retrieve([MailRequest(number, 100) for number in numbers], limit)]


async def bodies(script: ScriptedPop3, limit: int = LIMIT, read_seconds: float = 60.0) -> list[bytes | None]:
    async with script.running(), open_session(script.server(), True, read_seconds=read_seconds) as client:
        await client.login(Credential("u", "secret"))
        listing = await client.fetch_list()
        got = await retrieve(client, [number for number, _ in listing.mails], limit)
        await client.quit()
    return [None if one.body is None else bytes(one.body) for one in got]


async def test_mails_come_in_order_with_dots_unstuffed_and_digests() -> None:
    mails = {f"u{n}": b"Subject: %d\r\n\r\n.\r\n..\r\n.x\r\ny\r\n" % n for n in range(250)}
    script = ScriptedPop3(dict(mails))
    async with script.running(), open_session(script.server(), True) as client:
        await client.login(Credential("u", "secret"))
        listing = await client.fetch_list()
        got = await retrieve(client, range(1, 251))
    assert listing.complete and listing.mails == tuple((n + 1, f"u{n}") for n in range(250))
    assert [bytes(one.body or b"") for one in got] == list(mails.values())
    assert all(one.sha256 == hashlib.sha256(one.body or b"").digest() for one in got)


async def test_without_capa_commands_go_one_by_one_and_mail_arrives_all_the_same() -> None:
    script = ScriptedPop3({"a": MAIL, "b": MAIL}, capabilities=None)
    assert await bodies(script) == [MAIL, MAIL]
    # and one fence, which was tried before the first mail
    mails = ["UIDL n", "RETR 1", "RETR 2", "UIDL n"]
    commands = ["UIDL n" if line in ("UIDL 1", "UIDL 2") else line for line in script.commands]
    assert commands == ["CAPA", "USER u", "PASS secret", "STAT", "UIDL", *mails, "QUIT"]


async def test_retr_is_sent_ahead_where_pipelining_is_announced() -> None:
    script = ScriptedPop3({"a": MAIL, "b": MAIL, "c": MAIL}, answers={"RETR 1": hang()})
    with pytest.raises(ConnectTimeout, match=r"RETR of mail 1: no answer within 0\.2 s"):
        await bodies(script, read_seconds=0.2)
    script.commands.clear()
    async with script.running(), open_session(script.server(), True, read_seconds=0.3) as client:
        await client.login(Credential("u", "secret"))
        with pytest.raises(ConnectTimeout):
            await retrieve(client, [2, 3, 1])
        assert client.reading == 1
    # with a fence behind each, some LIST n and NOOP
    assert [line for line in script.commands if line.startswith("RETR")] == ["RETR 2", "RETR 3", "RETR 1"]
    behind = script.commands[script.commands.index("RETR 2") + 1 : script.commands.index("RETR 3")]
    assert behind and {line.partition(" ")[0] for line in behind} <= {"LIST", "NOOP"}


async def test_the_window_is_bounded_by_octets() -> None:
    script = ScriptedPop3({"a": MAIL, "b": MAIL}, answers={"RETR 1": hang()})
    async with script.running(), open_session(script.server(), True, read_seconds=0.3) as client:
        await client.login(Credential("u", "secret"))
        with pytest.raises(ConnectTimeout):
            async for _ in client.retrieve([MailRequest(1, 5_000_000), MailRequest(2, 5_000_000)], LIMIT):
                pass
    assert "RETR 2" not in script.commands


async def test_a_lone_lf_becomes_crlf_and_nothing_else_changes() -> None:
    sent = b"Subject: x\n\nlone\nlf \rand\r\r\n\ncr\r\n.\r\n"
    assert await bodies(ScriptedPop3({"a": MAIL}, answers={"RETR": say(b"+OK\r\n" + sent)})) == [
        b"Subject: x\r\n\r\nlone\r\nlf \rand\r\r\n\r\ncr\r\n"
    ]


async def test_an_empty_mail_and_one_of_dots_only_are_read() -> None:
    answers = {"RETR 1": say(b"+OK\r\n.\r\n"), "RETR 2": say(b"+OK\r\n..\r\n...\r\n.\r\n")}
    assert await bodies(ScriptedPop3({"a": MAIL, "b": MAIL}, answers=answers)) == [b"", b".\r\n..\r\n"]


async def test_a_refused_retr_is_reported_and_the_other_mails_arrive() -> None:
    script = ScriptedPop3({"a": MAIL, "b": MAIL}, answers={"RETR 1": say(b"-ERR message corrupt\x07\r\n")})
    async with script.running(), open_session(script.server(), True) as client:
        await client.login(Credential("u", "secret"))
        first, second = await retrieve(client, [1, 2])
    assert (first.body, first.refusal) == (None, "message corrupt")
    assert bytes(second.body or b"") == MAIL


async def test_a_mail_over_the_limit_is_skipped_and_the_next_one_is_read() -> None:
    script = ScriptedPop3({"a": b"x" * 3000 + b"\r\n", "b": MAIL})
    async with script.running(), open_session(script.server(), True) as client:
        await client.login(Credential("u", "secret"))
        first, second = await retrieve(client, [1, 2], limit=2000)
    assert (first.body, first.octets) == (None, 3002)
    assert bytes(second.body or b"") == MAIL


async def test_a_line_of_thirty_megabytes_is_read() -> None:
    [body] = await bodies(ScriptedPop3({"a": b"x" * 30_000_000 + b"\r\n"}), limit=40_000_000)
    assert body == b"x" * 30_000_000 + b"\r\n"
