"""The fence behind a mail: whatever comes in its place, no mail is returned that may be cut short."""

from __future__ import annotations

import pytest

from shared.provider import pop3_transfer
from shared.provider.credentials import Credential
from shared.provider.pop3_client import Pop3Client, open_session
from shared.provider.pop3_errors import OutOfStep, Pop3ConnectionLost, ProtocolError
from shared.provider.pop3_fence import Fence
from shared.provider.pop3_replies import ListReply
from shared.provider.pop3_transfer import RetrRequest
from tests.scripted_pop3 import Answer, ScriptedPop3, cut, say, stuff

AHEAD = ("PIPELINING", "UIDL", "TOP")
ONE_BY_ONE = ("UIDL", "TOP")
ONE, TWO, THREE = (f"Subject: {name}\r\n\r\nbody\r\n".encode() for name in ("one", "two", "three"))
LIMIT = 2_000_000
WHOLE = {"a": ONE, "b": TWO, "c": THREE}
BAD = {"a": ONE, "bad": b"Subject: bad\r\n\r\nhead\r\n.\r\nrest\r\n", "c": THREE}


async def fetch(client: Pop3Client, got: list[bytes]) -> None:
    await client.login(Credential("u", "secret"))
    listing = await client.fetch_list()
    async for mail in client.retrieve([RetrRequest(number, 100) for number, _ in listing.mails], LIMIT):
        got.append(mail.refusal.encode() if mail.refusal is not None else bytes(mail.body or b""))


async def test_pipelined_mails_are_whole_up_to_the_one_that_is_not() -> None:
    got: list[bytes] = []
    script = ScriptedPop3(dict(BAD), AHEAD, stuffs=False)
    async with script.running(), open_session(script.server(), True) as client:
        with pytest.raises(OutOfStep, match="UIDL behind mail 2: another reply"):
            await fetch(client, got)
        assert got == [ONE] and client.reading is None  # it may be the pipelining


async def test_without_pipelining_no_mail_of_the_batch_is_returned() -> None:
    got: list[bytes] = []
    script = ScriptedPop3(dict(BAD), ONE_BY_ONE, stuffs=False)
    async with script.running(), open_session(script.server(), True) as client:
        with pytest.raises(OutOfStep):
            await fetch(client, got)
        assert got == [] and client.reading is None


async def test_a_mail_fetched_alone_is_named_with_its_header() -> None:
    got: list[bytes] = []
    script = ScriptedPop3(dict(BAD), AHEAD, stuffs=False)
    async with script.running(), open_session(script.server(), True) as client:
        client.fetch_alone()
        with pytest.raises(OutOfStep) as caught:
            await fetch(client, got)
        assert got == [ONE] and client.reading == 2
        assert caught.value.head == b"Subject: bad\r\n\r\nhead\r\n"


async def test_a_rest_that_equals_the_fence_is_found_by_what_follows_it() -> None:
    # given a mail whose writer knew its unique id
    forged = {"a": b"Subject: bad\r\n\r\nhead\r\n.\r\n+OK 1 a\r\n", "b": TWO}
    got: list[bytes] = []
    script = ScriptedPop3(forged, ONE_BY_ONE, stuffs=False)
    async with script.running(), open_session(script.server(), True) as client:
        client.fetch_alone()
        with pytest.raises(OutOfStep):
            await fetch(client, got)
        assert got == [] and client.reading == 1


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("capabilities", [AHEAD, ONE_BY_ONE], ids=["pipelining", "one by one"])
async def test_a_refused_mail_leaves_the_others_whole(capabilities: tuple[str, ...], number: int) -> None:
    gone = {f"RETR {number}": say(b"-ERR gone\r\n"), f"UIDL {number}": say(b"-ERR gone\r\n")}
    got: list[bytes] = []
    script = ScriptedPop3(dict(WHOLE), capabilities, answers=gone)
    async with script.running(), open_session(script.server(), True) as client:
        await fetch(client, got)
    assert got == [b"gone" if each == number else mail for each, mail in enumerate(WHOLE.values(), 1)]


@pytest.mark.parametrize(
    ("answers", "fence"),
    [
        ({}, "UIDL 3"),
        ({"UIDL 1": say(b"-ERR no argument, please\r\n")}, "LIST 3"),
        ({"UIDL 1": say(b"+OK\r\n1 a\r\n2 b\r\n3 c\r\n.\r\n")}, "LIST 3"),
        ({"UIDL 1": say(b"+OK a\r\n")}, "LIST 3"),
        ({"UIDL 1": say(b"-ERR\r\n"), "LIST 1": say(b"-ERR\r\n")}, "STAT"),
        ({"UIDL 1": say(b"-ERR\r\n"), "LIST": say(b"-ERR\r\n")}, "STAT"),
        ({"UIDL 1": say(b"-ERR\r\n"), "LIST 1": say(b"+OK\r\n1 1\r\n.\r\n")}, "STAT"),
    ],
)
async def test_the_fence_is_a_command_that_the_server_answers(answers: dict[str, Answer], fence: str) -> None:
    got: list[bytes] = []
    script = ScriptedPop3(dict(WHOLE), ONE_BY_ONE, answers=answers)
    async with script.running(), open_session(script.server(), True) as client:
        await fetch(client, got)
    assert got == [ONE, TWO, THREE] and script.commands[-1] == fence
    # and it finds a mail that is cut short
    script = ScriptedPop3(dict(BAD), ONE_BY_ONE, answers=answers, stuffs=False)
    async with script.running(), open_session(script.server(), True) as client:
        with pytest.raises(OutOfStep):
            await fetch(client, got)


class Unsteady(ScriptedPop3):
    """Counts other octets at each STAT."""

    def _answer(self, verb: str, argument: str, listed: list[tuple[str, bytes]], deleted: set[str]) -> bytes:
        if verb == "STAT":
            return f"+OK {len(listed)} {len(self.commands)}\r\n".encode()
        return super()._answer(verb, argument, listed, deleted)


async def test_where_no_command_is_answered_twice_no_mail_is_fetched() -> None:
    script = Unsteady(dict(WHOLE), ONE_BY_ONE, answers={"UIDL 1": say(b"-ERR\r\n"), "LIST": say(b"-ERR\r\n")})
    async with script.running(), open_session(script.server(), True) as client:
        with pytest.raises(ProtocolError, match="other replies each time"):
            await fetch(client, [])
    assert not any(line.startswith("RETR") for line in script.commands)


async def test_one_fence_follows_many_mails_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pop3_transfer, "BATCH_MAILS", 2)
    got: list[bytes] = []
    script = ScriptedPop3({**WHOLE, "d": ONE}, ONE_BY_ONE)
    async with script.running(), open_session(script.server(), True) as client:
        await fetch(client, got)
    assert script.commands[-6:] == ["RETR 1", "RETR 2", "UIDL 2", "RETR 3", "RETR 4", "UIDL 4"]


async def test_a_fence_follows_a_large_mail_at_once() -> None:
    got: list[bytes] = []
    large = b"Subject: large\r\n\r\n" + b"x" * pop3_transfer.BATCH_OCTETS + b"\r\n"
    script = ScriptedPop3({"a": large, "b": ONE}, ONE_BY_ONE)
    async with script.running(), open_session(script.server(), True) as client:
        await fetch(client, got)
    assert script.commands[-4:] == ["RETR 1", "UIDL 1", "RETR 2", "UIDL 2"]


async def test_a_connection_lost_behind_a_mail_returns_no_mail() -> None:
    got: list[bytes] = []
    script = ScriptedPop3(dict(WHOLE), AHEAD, answers={"RETR 3": cut(b"+OK\r\n" + stuff(THREE))})
    async with script.running(), open_session(script.server(), True) as client:
        with pytest.raises(Pop3ConnectionLost):
            await fetch(client, got)
        assert got == [ONE, TWO] and client.reading == 3


def test_a_mail_without_unique_id_is_fenced_by_another_one() -> None:
    fence = Fence.of_uidls({1: "", 2: "b"})
    assert fence.command(1) == b"UIDL 2\r\n"
    assert fence.matches(1, b"2 b") and fence.matches(2, b" 2  b  or so")
    assert not any(fence.matches(2, text) for text in (b"", b"2", b"2 B", b"1 b", b"2 bb"))


def test_long_and_odd_unique_ids_are_known_again() -> None:
    listed = ListReply(2, bytearray(b"1 " + b"u" * 3000 + b"\r\n2 \xe9\r\n"), b"").parse()
    fence = Fence.of_uidls(dict(listed.mails))
    assert fence.matches(1, b"1 " + b"u" * 3000) and fence.matches(2, b"2 \xe9")
