"""The fence behind a mail: whatever comes in its place, no mail is returned that may be cut short."""

from __future__ import annotations

import random

import pytest

from shared.errors import Temporary
from shared.provider import pop3_fence, pop3_transfer
from shared.provider.credentials import Credential
from shared.provider.pop3_client import Pop3Client, open_session
from shared.provider.pop3_fence import Fence, noop_command
from shared.provider.pop3_replies import Pop3ListReply
from shared.provider.retrieval import MailRequest
from shared.provider.session_errors import ConnectionLost, OutOfStep, ProtocolError
from tests.scripted_pop3 import Answer, ScriptedPop3, cut, say, stuff

AHEAD = ("PIPELINING", "UIDL", "TOP")
ONE_BY_ONE = ("UIDL", "TOP")
ONE, TWO, THREE = (f"Subject: {name}\r\n\r\nbody\r\n".encode() for name in ("one", "two", "three"))
LIMIT = 2_000_000
WHOLE = {"a": ONE, "b": TWO, "c": THREE}
BAD = {"a": ONE, "bad": b"Subject: bad\r\n\r\nhead\r\n.\r\nrest\r\n", "c": THREE}


def about_each(verb: str, reply: bytes) -> dict[str, Answer]:
    """Answers to this command about each mail."""
    return {f"{verb} {number}": say(reply) for number in (1, 2, 3)}


REFUSED = about_each("UIDL", b"-ERR\r\n")


async def fetch(client: Pop3Client, got: list[bytes]) -> None:
    await client.login(Credential("u", "secret"))
    listing = await client.fetch_list()
    async for mail in client.retrieve([MailRequest(number, 100) for number, _ in listing.mails], LIMIT):
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
        ({}, "UIDL"),
        (about_each("UIDL", b"-ERR no argument, please\r\n"), "LIST"),
        (about_each("UIDL", b"+OK\r\n1 a\r\n2 b\r\n3 c\r\n.\r\n"), "LIST"),
        (about_each("UIDL", b"+OK a\r\n"), "LIST"),
        (REFUSED | about_each("LIST", b"-ERR\r\n"), "STAT"),
        (REFUSED | {"LIST": say(b"-ERR\r\n")}, "STAT"),
        (REFUSED | about_each("LIST", b"+OK\r\n1 1\r\n.\r\n"), "STAT"),
    ],
)
@pytest.mark.parametrize("capabilities", [AHEAD, ONE_BY_ONE], ids=["pipelining", "one by one"])
async def test_the_fence_is_a_command_that_the_server_answers(
    answers: dict[str, Answer], fence: str, capabilities: tuple[str, ...]
) -> None:
    got: list[bytes] = []
    script = ScriptedPop3(dict(WHOLE), capabilities, answers=answers)
    async with script.running(), open_session(script.server(), True) as client:
        await fetch(client, got)
    assert got == [ONE, TWO, THREE]
    behind = script.commands[script.commands.index("RETR 3") + 1 :]
    assert behind and {line.partition(" ")[0] for line in behind} <= {fence, "NOOP"}
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
    script = Unsteady(dict(WHOLE), ONE_BY_ONE, answers=REFUSED | {"LIST": say(b"-ERR\r\n")})
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
    assert verbs(script)[-6:] == ["RETR", "RETR", "UIDL", "RETR", "RETR", "UIDL"]


async def test_a_fence_follows_a_large_mail_at_once() -> None:
    got: list[bytes] = []
    large = b"Subject: large\r\n\r\n" + b"x" * pop3_transfer.BATCH_OCTETS + b"\r\n"
    script = ScriptedPop3({"a": large, "b": ONE}, ONE_BY_ONE)
    async with script.running(), open_session(script.server(), True) as client:
        await fetch(client, got)
    assert verbs(script)[-4:] == ["RETR", "UIDL", "RETR", "UIDL"]


async def test_a_connection_lost_behind_a_mail_returns_no_mail() -> None:
    got: list[bytes] = []
    script = ScriptedPop3(dict(WHOLE), AHEAD, answers={"RETR 3": cut(b"+OK\r\n" + stuff(THREE))})
    async with script.running(), open_session(script.server(), True) as client:
        with pytest.raises(ConnectionLost):
            await fetch(client, got)
        assert got == [ONE, TWO] and client.reading == 3


def verbs(script: ScriptedPop3) -> list[str]:
    return [line.partition(" ")[0] for line in script.commands]


# ------------------------------------------------------------------------------------------------ what proves nothing


class Hiccup(ScriptedPop3):
    """Answers the first command behind a mail with other lines."""

    lines = b"* garbage\r\n"

    def _answer(self, verb: str, argument: str, listed: list[tuple[str, bytes]], deleted: set[str]) -> bytes:
        if verb in ("UIDL", "NOOP") and self.lines and any(line.startswith("RETR") for line in self.commands):
            lines, self.lines = self.lines, b""
            return lines
        return super()._answer(verb, argument, listed, deleted)


@pytest.mark.parametrize("lines", [b"* garbage\r\n", b"-ERR not now\r\n"])
async def test_another_reply_is_no_proof_that_a_mail_fetched_alone_is_cut(lines: bytes) -> None:
    got: list[bytes] = []
    script = Hiccup(dict(WHOLE), AHEAD)
    script.lines = lines
    async with script.running(), open_session(script.server(), True) as client:
        client.fetch_alone()
        await fetch(client, got)
    assert got == [ONE, TWO, THREE]


@pytest.mark.parametrize("lines", [b"* garbage\r\n* and more\r\n", b"-ERR\r\n.\r\n"])
async def test_more_lines_than_replies_end_the_session_and_blame_no_mail(lines: bytes) -> None:
    got: list[bytes] = []
    script = Hiccup(dict(WHOLE), AHEAD)
    script.lines = lines
    async with script.running(), open_session(script.server(), True) as client:
        client.fetch_alone()
        with pytest.raises(ProtocolError) as caught:
            await fetch(client, got)
    assert got == [] and not isinstance(caught.value, OutOfStep)


@pytest.mark.parametrize("capabilities", [AHEAD, ONE_BY_ONE], ids=["pipelining", "one by one"])
async def test_a_command_about_a_mail_that_is_gone_delays_a_proof_and_no_more(
    monkeypatch: pytest.MonkeyPatch, capabilities: tuple[str, ...]
) -> None:
    # given a server that knows no more of a mail, about which some of the fences ask
    got: list[bytes] = []
    script = ScriptedPop3(dict(WHOLE), capabilities)
    async with script.running(), open_session(script.server(), True) as client:
        await client.login(Credential("u", "secret"))
        await client.fetch_list()
        monkeypatch.setattr(pop3_fence, "_CHANCE", random.Random(3))
        async for mail in client.retrieve([MailRequest(number, 100) for number in (1, 2)], LIMIT):
            got.append(bytes(mail.body or b""))
            script.answers = {"UIDL 3": say(b"-ERR gone\r\n"), "RETR 3": say(b"-ERR gone\r\n")}
        for _ in range(20):
            async for mail in client.retrieve([MailRequest(2, 100)], LIMIT):
                got.append(bytes(mail.body or b""))
    assert got == [ONE, TWO] + 20 * [TWO] and "UIDL 3" in script.commands


# ------------------------------------------------------------------------------------------------ forged replies


def forged(count: int, rest: bytes) -> dict[str, bytes]:
    """A maildrop that begins with a mail whose writer knows every number, unique id and reply."""
    return {"u1": b"Subject: bad\r\n\r\nhead\r\n.\r\n" + rest} | {f"u{n}": ONE for n in range(2, count + 1)}


def replies(count: int, fences: int) -> bytes:
    """The replies that come if each fence asks ``fences`` times about its own mail, with other mails."""
    mails = [f"+OK {n} u{n}\r\n".encode() * fences for n in range(1, count + 1)]
    return b"+OK\r\nSubject: forged\r\n\r\nbody\r\n.\r\n".join(mails)


@pytest.mark.parametrize("fences", range(1, 13))
@pytest.mark.parametrize("count", [1, 2, 20])
async def test_forged_replies_deceive_no_fence_of_pipelined_mails(
    monkeypatch: pytest.MonkeyPatch, count: int, fences: int
) -> None:
    monkeypatch.setattr(pop3_fence, "_CHANCE", random.Random(1))
    got: list[bytes] = []
    script = ScriptedPop3(forged(count, replies(count, fences)), AHEAD, stuffs=False)
    async with script.running(), open_session(script.server(), True) as client:
        with pytest.raises(OutOfStep):
            await fetch(client, got)
    assert got == []


class WellTimed(ScriptedPop3):
    """Sends each forged reply in place of the one to the next command, so that nothing ever comes unasked."""

    forged: list[bytes]

    def _answer(self, verb: str, argument: str, listed: list[tuple[str, bytes]], deleted: set[str]) -> bytes:
        reply = super()._answer(verb, argument, listed, deleted)
        if (verb, argument) == ("RETR", "1"):
            head, dot, rest = reply.partition(b"\r\n.\r\n")
            self.forged = [*rest.removesuffix(b".\r\n").splitlines(keepends=True), b".\r\n"]
            return head + dot
        if getattr(self, "forged", []):
            self.forged.append(reply)
            return self.forged.pop(0)
        return reply


@pytest.mark.parametrize("count", [1, 2, 20])
async def test_forged_replies_in_time_deceive_no_fence_of_a_lone_mail(
    monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(pop3_fence, "_CHANCE", random.Random(1))
    got: list[bytes] = []
    script = WellTimed(forged(count, b"+OK 1 u1\r\n" * 12), AHEAD, stuffs=False)
    async with script.running(), open_session(script.server(), True, read_seconds=0.5) as client:
        client.fetch_alone()
        with pytest.raises(Temporary):  # the rest comes so slowly that it proves nothing
            await fetch(client, got)
        assert got == [] and client.reading == 1


@pytest.mark.parametrize("mails", [1, 2, 7, 63, 4095, 100_000])
def test_a_guess_of_the_whole_fence_is_unlikely_for_any_number_of_mails(mails: int) -> None:
    fence = Fence.of_uidls({number: f"u{number}" for number in range(1, mails + 1)})
    assert mails > 1 or fence.length == 1  # nothing is to be chosen
    fence.noop = noop_command(b"+OK")
    assert (mails + 1) ** fence.length >= pop3_fence.GUESSES > (mails + 1) ** (fence.length - 1)
    assert len({tuple(fence.draw(fence.length)) for _ in range(200)}) > 100


def test_a_mail_without_unique_id_is_fenced_by_another_one() -> None:
    [command] = Fence.of_uidls({1: "", 2: "b"}).draw(1)
    assert command.line == b"UIDL 2\r\n"
    assert command.is_answered(b"+OK 2 b") and command.is_answered(b"+ok 2  b  or so")
    wrong = (b"", b"+OK", b"+OK 2", b"+OK 2 B", b"+OK 1 b", b"+OK 2 bb", b"-ERR 2 b", b"2 b")
    assert not any(map(command.is_answered, wrong))


def test_long_and_odd_unique_ids_are_known_again() -> None:
    listed = Pop3ListReply(2, bytearray(b"1 " + b"u" * 3000 + b"\r\n2 \xe9\r\n"), b"").parse()
    commands = Fence.of_uidls(dict(listed.mails)).draw(50)
    lines = {1: b"+OK 1 " + b"u" * 3000, 2: b"+OK 2 \xe9"}
    assert {command.number for command in commands} == {1, 2}
    assert all(command.is_answered(lines[command.number]) for command in commands)


def test_a_refused_mail_is_asked_about_no_more_unless_it_is_alone() -> None:
    fence = Fence.of_uidls({1: "a", 2: "b"})
    fence.forget(1)
    fence.forget(2)
    fence.forget(3)
    assert {command.number for command in fence.draw(20)} == {2}


def test_no_command_of_a_fence_is_a_refused_noop() -> None:
    assert noop_command(b"-ERR what?") is None
    assert noop_command(b"+OK hi there you") == (b"NOOP\r\n", ("hi", "there"), 0)
