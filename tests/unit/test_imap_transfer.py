"""shared/provider/imap_transfer.py: mails that are read, ahead and one by one, whatever the server sends with them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from shared.net.dial import ConnectTimeout
from shared.provider import imap_transfer
from shared.provider.credentials import Credential
from shared.provider.imap_client import ImapClient, open_session
from shared.provider.imap_transfer import MALFORMED
from shared.provider.retrieval import STEP_OCTETS, MailRequest, Retrieved
from shared.provider.session_errors import ConnectionLost, OutOfStep, ProtocolError, ReplyTooLong, ServerBusy
from tests.scripted_imap import ScriptedFolder, ScriptedImap
from tests.scripted_pop3 import Answer, cut, drip, hang, say

LIMIT = 1_000_000
US = Credential("u", "secret")


def mail(uid: int) -> bytes:
    return f"Subject: mail {uid}\r\n\r\nbody {uid}\r\n".encode()


def fetched(uid: int, text: bytes, also: bytes = b"") -> bytes:
    """Return a FETCH response."""
    return b"* 1 FETCH (UID %d BODY[] {%d}\r\n%s%s)\r\n" % (uid, len(text), text, also)


def bodies(got: Sequence[Retrieved]) -> list[bytes | None]:
    return [None if one.body is None else bytes(one.body) for one in got]


async def ready(client: ImapClient, alone: bool) -> None:
    await client.login(US)
    await client.fetch_list()
    if alone:
        client.fetch_alone()


async def retrieve(
    client: ImapClient, uids: Sequence[int], got: list[Retrieved], octets: int = 100, limit: int = LIMIT
) -> None:
    async for retrieved in client.retrieve([MailRequest(uid, octets) for uid in uids], limit):
        got.append(retrieved)


@pytest.mark.parametrize("alone", [False, True])
async def test_mails_are_read_in_order(alone: bool) -> None:
    script = ScriptedImap({uid: mail(uid) for uid in range(1, 301)})
    async with script.running(), open_session(script.server(), True) as client:
        await ready(client, alone)
        got: list[Retrieved] = []
        await retrieve(client, range(1, 301), got)
        assert [one.number for one in got] == list(range(1, 301))
        assert all(bytes(one.body or b"") == mail(one.number) and one.octets == len(mail(one.number)) for one in got)
        assert client.reading is None and client.pipelining is not alone
    assert bool(script.pipelined) is not alone
    assert "UID FETCH 1 (UID BODY.PEEK[])" in script.commands


async def test_headers_are_read_alone() -> None:
    script = ScriptedImap({1: mail(1), 2: mail(2)})
    async with script.running(), open_session(script.server(), True) as client:
        await ready(client, False)
        got = [one async for one in client.fetch_headers([1, 2], 1000)]
    assert bodies(got) == [b"Subject: mail 1\r\n\r\n", b"Subject: mail 2\r\n\r\n"]


async def test_sizes_are_asked_for_these_mails_only() -> None:
    script = ScriptedImap({uid: mail(uid) for uid in range(1, 1001)})
    async with script.running(), open_session(script.server(), True) as client:
        await ready(client, False)
        sizes = await client.fetch_sizes(range(1, 1001, 2))
        assert sizes == {uid: len(mail(uid)) for uid in range(1, 1001, 2)}
        script.answers = {
            "UID FETCH": say(b"* 1 FETCH (UID 1)\r\n* 2 FETCH (RFC822.SIZE 5)\r\n* 3 FETCH (\r\n<tag> NO\r\n")
        }
        assert await client.fetch_sizes([1, 2]) == {}


async def test_the_window_is_limited_in_octets() -> None:
    script = ScriptedImap({1: mail(1), 2: mail(2)}, answers={"UID FETCH 1": hang()})
    async with script.running(), open_session(script.server(), True, read_seconds=0.3) as client:
        await ready(client, False)
        with pytest.raises(ConnectTimeout):
            await retrieve(client, [1, 2], [], octets=3_000_000)
        assert client.reading == 1
    assert not [line for line in script.commands if line.startswith("UID FETCH 2")]


async def test_no_mail_is_requested_after_stop() -> None:
    script = ScriptedImap({uid: mail(uid) for uid in range(1, 1001)})
    async with script.running(), open_session(script.server(), True) as client:
        await ready(client, False)
        got: list[Retrieved] = []
        requests = [MailRequest(uid, 100) for uid in range(1, 1001)]
        async for one in client.retrieve(requests, LIMIT, lambda: bool(got)):
            got.append(one)
        assert len(got) == imap_transfer.WINDOW_COMMANDS
        assert await client.quit()


# ------------------------------------------------------------------------------------------------ habits of servers


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize(
    "answer",
    [
        # the items in any order and case, with others between
        b"* 1 FETCH (BODY[] {%d}\r\n%s UID 2)\r\n<tag> OK done\r\n" % (len(mail(2)), mail(2)),
        b"* 1 FETCH (FLAGS (\\Recent) uid 2 body[] {%d+}\r\n%s)\r\n<tag> OK done\r\n" % (len(mail(2)), mail(2)),
        b"* 1 FETCH ( UID 2  BODY[]  {%d}\r\n%s )\r\n<tag> OK done\r\n" % (len(mail(2)), mail(2)),
        b"* 1 FETCH (UID 2 BODY[] ~{%d}\r\n%s)\r\n<tag> OK done\r\n" % (len(mail(2)), mail(2)),
        # news about other mails, before, between and behind
        b"* 7 EXISTS\r\n* 3 EXPUNGE\r\n* 5 FETCH (FLAGS (\\Seen))\r\n%s* 1 RECENT\r\n<tag> OK\r\n"
        % fetched(2, mail(2)),
        b"* 5 FETCH (UID 9 FLAGS (\\Seen))\r\n* OK [ALERT] full\r\n%s<tag> OK\r\n" % fetched(2, mail(2)),
        b"%s* 1 FETCH (UID 2 FLAGS (\\Seen))\r\n\r\n* VANISHED 5:7\r\n<tag> OK\r\n" % fetched(2, mail(2)),
        b"* 4 FETCH (FLAGS (\\Seen)\r\n%s<tag> OK\r\n" % fetched(2, mail(2)),  # malformed, without a text
        # line ends
        fetched(2, mail(2)).replace(b")\r\n", b")\n") + b"<tag> OK\n",
    ],
)
async def test_a_mail_is_read_whatever_comes_with_it(alone: bool, answer: bytes) -> None:
    script = ScriptedImap({uid: mail(uid) for uid in (1, 2, 3)}, answers={"UID FETCH 2": say(answer)})
    async with script.running(), open_session(script.server(), True) as client:
        await ready(client, alone)
        got: list[Retrieved] = []
        await retrieve(client, [1, 2, 3], got)
    assert bodies(got) == [mail(1), mail(2), mail(3)]


async def test_ends_of_commands_may_come_behind_later_texts() -> None:
    # given Dovecot's habit, and a mail between that is gone
    answers = {"UID FETCH 1": say(fetched(1, mail(1))), "UID FETCH 2": say()}
    answers["UID FETCH 3"] = say(fetched(3, mail(3)), b"<tag1> OK\r\n<tag2> OK\r\n<tag3> OK\r\n")
    script = ScriptedImap({uid: mail(uid) for uid in (1, 2, 3)}, answers=answers)
    async with script.running(), open_session(script.server(), True) as client:
        await ready(client, False)
        got: list[Retrieved] = []
        await retrieve(client, [1, 2, 3], got)
    assert bodies(got) == [mail(1), None, mail(3)]


async def test_the_mail_whose_text_comes_is_the_one_being_read() -> None:
    answers = {"UID FETCH 1": say(fetched(1, mail(1))), "UID FETCH 2": cut(b"* 2 FETCH (UID 2 BODY[] {50}\r\nhalf")}
    script = ScriptedImap({uid: mail(uid) for uid in (1, 2, 3)}, answers=answers)
    async with script.running(), open_session(script.server(), True) as client:
        await ready(client, False)
        with pytest.raises(ConnectionLost, match="FETCH of mail 2"):
            await retrieve(client, [1, 2, 3], [])
        assert client.reading == 2


@pytest.mark.parametrize("order", [(2, 1, 3), (1, 1, 2), (1, 3, 2)])
async def test_texts_in_another_order_are_out_of_step(order: Sequence[int]) -> None:
    texts = b"".join(fetched(uid, mail(uid)) for uid in order)
    answers = {
        "UID FETCH 1": say(),
        "UID FETCH 2": say(),
        "UID FETCH 3": say(texts, b"<tag1> OK\r\n<tag2> OK\r\n<tag3> OK\r\n"),
    }
    script = ScriptedImap({uid: mail(uid) for uid in (1, 2, 3)}, answers=answers)
    async with script.running(), open_session(script.server(), True) as client:
        await ready(client, False)
        got: list[Retrieved] = []
        with pytest.raises(OutOfStep):
            await retrieve(client, [1, 2, 3], got)
    assert got == []


async def test_texts_without_the_ends_of_their_commands_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imap_transfer, "HELD_OCTETS", 500_000)
    large = bytes(200_000)
    script = ScriptedImap(dict.fromkeys(range(1, 101), large))
    script.answers = {f"UID FETCH {uid}": say(fetched(uid, large)) for uid in script.mails}
    async with script.running(), open_session(script.server(), True) as client:
        await ready(client, False)
        with pytest.raises(OutOfStep):
            await retrieve(client, range(1, 101), [], octets=10)


async def test_a_quoted_string_and_lone_line_feeds_are_a_mail_too() -> None:
    answers = {
        "UID FETCH 1": say(b'* 1 FETCH (UID 1 BODY[] "quoted \\"text\\"")\r\n<tag> OK\r\n'),
        "UID FETCH 2": say(fetched(2, b"a\nb\r\nc\r"), b"<tag> OK\r\n"),
        "UID FETCH 3": say(fetched(3, b""), b"<tag> OK\r\n"),
    }
    script = ScriptedImap({uid: mail(uid) for uid in (1, 2, 3)}, answers=answers)
    async with script.running(), open_session(script.server(), True) as client:
        await ready(client, False)
        got: list[Retrieved] = []
        await retrieve(client, [1, 2, 3], got, octets=0)
    assert bodies(got) == [b'quoted "text"', b"a\r\nb\r\nc\r", b""]


async def test_a_mail_does_not_depend_on_how_it_is_cut() -> None:
    text = b"a\r\nb\nc\r\r\n" * 50
    pieces = drip(fetched(1, text), 0.0).pieces
    script = ScriptedImap({1: mail(1)}, answers={"UID FETCH": Answer((*pieces, b"<tag> OK\r\n"))})
    async with script.running(), open_session(script.server(), True) as client:
        await ready(client, False)
        got: list[Retrieved] = []
        await retrieve(client, [1], got)
    assert bodies(got)[0] == b"a\r\nb\r\nc\r\r\n" * 50


@pytest.mark.parametrize(
    ("answer", "refusal", "temporary"),
    [
        (b"<tag> NO Server error while fetching messages\r\n", "Server error while fetching messages", True),
        (b"<tag> NO [UNAVAILABLE] later\r\n", "[UNAVAILABLE] later", True),
        (b"<tag> NO [EXPUNGEISSUED] gone\r\n", "[EXPUNGEISSUED] gone", False),
        (b"<tag> BAD Request is throttled.\r\n", "Request is throttled.", True),
        (b"<tag> BAD Command Argument Error. 11\r\n", "Command Argument Error. 11", False),
        (fetched(2, mail(2)) + b"<tag> NO some of it failed\r\n", "some of it failed", False),
        # iCloud's and Exchange's: done, without a text
        (b"<tag> OK done\r\n", "returns no text", False),
        (b"* 13 FETCH (UID 2 FLAGS (\\Seen))\r\n<tag> OK done\r\n", "returns no text", False),
        (b"* 1 FETCH (UID 2 BODY[] NIL)\r\n<tag> OK done\r\n", "returns no text", False),
        (b"* 1 FETCH (UID 2 BODY[HEADER] {1}\r\nx)\r\n<tag> OK done\r\n", "returns no text", False),
        (fetched(2, b"") + b"<tag> OK done\r\n", "an empty text, and announces 100 octets", False),
    ],
)
async def test_a_mail_that_does_not_come_is_a_refusal_of_this_mail(
    answer: bytes, refusal: str, temporary: bool
) -> None:
    script = ScriptedImap({uid: mail(uid) for uid in (1, 2, 3)}, answers={"UID FETCH 2": say(answer)})
    async with script.running(), open_session(script.server(), True) as client:
        await ready(client, False)
        got: list[Retrieved] = []
        await retrieve(client, [1, 2, 3], got)
    assert bodies(got) == [mail(1), None, mail(3)]
    assert refusal in str(got[1].refusal) and got[1].temporary is temporary


async def test_sizes_that_lie_change_nothing() -> None:
    script = ScriptedImap({1: mail(1), 2: mail(2)})
    async with script.running(), open_session(script.server(), True) as client:
        await ready(client, False)
        for octets in (1, 50_000_000):
            got: list[Retrieved] = []
            await retrieve(client, [1, 2], got, octets=octets)
            assert bodies(got) == [mail(1), mail(2)]


# ------------------------------------------------------------------------------------------------ out of step

SHORT = b"* 1 FETCH (UID 2 BODY[] {10}\r\n" + mail(2) + b")\r\n"
IMPOSSIBLE = [
    SHORT,  # the literal is longer than announced
    fetched(2, mail(2))[:-3] + b" x)\r\n",  # no name and value
    fetched(2, mail(2))[:-3] + b"\r\n",  # the list does not end
    fetched(2, mail(2))[:-3] + b"))\r\n",
    fetched(2, mail(2)) + b"junk\r\n",
    fetched(2, mail(2)) + b"+ what\r\n",
    fetched(2, mail(2)) + b"other1 OK done\r\n",
    fetched(2, mail(2)) + fetched(2, b"forged"),
]


@pytest.mark.parametrize("answer", IMPOSSIBLE)
async def test_a_response_that_is_impossible_ends_the_session(answer: bytes) -> None:
    script = ScriptedImap({uid: mail(uid) for uid in (1, 2, 3)}, answers={"UID FETCH 2": say(answer, b"<tag> OK\r\n")})
    async with script.running(), open_session(script.server(), True) as client:
        await ready(client, False)
        got: list[Retrieved] = []
        with pytest.raises(OutOfStep):
            await retrieve(client, [1, 2, 3], got)
        # and no mail is blamed: commands that were sent ahead may be at fault, too
        assert [one.number for one in got] == [1] and client.reading is None


@pytest.mark.parametrize("answer", IMPOSSIBLE)
async def test_a_mail_fetched_alone_is_at_fault_if_its_end_comes(answer: bytes) -> None:
    script = ScriptedImap({uid: mail(uid) for uid in (1, 2, 3)}, answers={"UID FETCH 2": say(answer, b"<tag> OK\r\n")})
    async with script.running(), open_session(script.server(), True) as client:
        await ready(client, True)
        got: list[Retrieved] = []
        with pytest.raises(OutOfStep) as caught:
            await retrieve(client, [1, 2, 3], got)
        assert [one.number for one in got] == [1] and client.reading == 2
        assert caught.value.reason == MALFORMED and caught.value.head.startswith(b"Subject: m")


@pytest.mark.parametrize("end", [hang(SHORT), cut(SHORT), say(SHORT, b"elsewhere OK\r\n")])
async def test_without_the_end_of_the_command_nothing_is_proven(monkeypatch: pytest.MonkeyPatch, end: Answer) -> None:
    monkeypatch.setattr(imap_transfer, "PROOF_SECONDS", 0.2)
    script = ScriptedImap({2: mail(2)}, answers={"UID FETCH 2": end})
    async with script.running(), open_session(script.server(), True) as client:
        await ready(client, True)
        with pytest.raises(ProtocolError) as caught:
            await retrieve(client, [2], [])
        assert not isinstance(caught.value, OutOfStep) and client.reading == 2


@pytest.mark.parametrize("uid", [b"UID 3", b"FLAGS ()"])
async def test_another_mail_in_its_place_is_not_stored(uid: bytes) -> None:
    answer = b"* 1 FETCH (%s BODY[] {%d}\r\n%s)\r\n" % (uid, len(mail(3)), mail(3))
    script = ScriptedImap({uid: mail(uid) for uid in (1, 2, 3)}, answers={"UID FETCH 2": say(answer, b"<tag> OK\r\n")})
    async with script.running():
        async with open_session(script.server(), True) as client:
            await ready(client, False)
            with pytest.raises(OutOfStep):
                await retrieve(client, [1, 2, 3], [])
        async with open_session(script.server(), True) as client:
            await ready(client, True)
            got: list[Retrieved] = []
            await retrieve(client, [1, 2, 3], got)
    assert bodies(got) == [mail(1), None, mail(3)]
    assert "another mail" in str(got[1].refusal)


async def test_a_mail_cannot_forge_the_responses_behind_it() -> None:
    # given a server that announces too few octets, and a mail that has responses for the next ones there
    rest = b")\r\n" + fetched(3, b"forged") + b"a1 OK done\r\n"
    answer = b"* 1 FETCH (UID 2 BODY[] {10}\r\n0123456789" + rest + b")\r\n"
    script = ScriptedImap({uid: mail(uid) for uid in (2, 3)}, answers={"UID FETCH 2": say(answer, b"<tag> OK\r\n")})
    async with script.running(), open_session(script.server(), True) as client:
        await ready(client, False)
        got: list[Retrieved] = []
        with pytest.raises(OutOfStep):
            await retrieve(client, [2, 3], got)
    assert got == []


# ------------------------------------------------------------------------------------------------ limits


async def test_a_mail_that_is_too_large_keeps_its_beginning_only() -> None:
    large = b"Subject: large\r\n\r\n" + b"x" * 300_000
    script = ScriptedImap({1: large, 2: mail(2)})
    async with script.running(), open_session(script.server(), True) as client:
        await ready(client, False)
        got: list[Retrieved] = []
        await retrieve(client, [1, 2], got, limit=200_000)
    assert got[0].body is None and got[0].octets == len(large) and got[0].head.startswith(b"Subject: large")
    assert bodies(got)[1] == mail(2)


async def test_a_mail_far_beyond_the_limit_is_not_read() -> None:
    script = ScriptedImap(
        {1: mail(1)}, answers={"UID FETCH": say(b"* 1 FETCH (UID 1 BODY[] {99999999999}\r\nSubject: x")}
    )
    async with script.running(), open_session(script.server(), True) as client:
        await ready(client, False)
        with pytest.raises(ReplyTooLong) as caught:
            await retrieve(client, [1], [])
        assert caught.value.octets == 99_999_999_999 and client.reading == 1


async def test_a_large_mail_reserves_memory_while_it_grows() -> None:
    script = ScriptedImap({1: b"x" * (5 * STEP_OCTETS + 10)})
    reserved: list[int] = []

    async def reserve(octets: int) -> None:
        reserved.append(octets)
        await asyncio.sleep(0)

    async with script.running(), open_session(script.server(), True) as client:
        await ready(client, False)
        async for one in client.retrieve([MailRequest(1, 100)], 10 * STEP_OCTETS, reserve_memory=reserve):
            assert one.octets == 5 * STEP_OCTETS + 10
    assert reserved == [STEP_OCTETS] * 5


@pytest.mark.parametrize(
    ("answer", "failure"),
    [
        (cut(b"* 1 FETCH (UID 2 BODY[] {100}\r\nSubject: half"), ConnectionLost),
        (cut(fetched(2, mail(2))), ConnectionLost),
        (hang(b"* 1 FETCH (UID 2 BODY[] {100}\r\nSubject: half"), ConnectTimeout),
        (drip(b"* 1 FETCH (UID 2 BODY[] {5000}\r\n" + bytes(5000), 0.05), ConnectTimeout),
        (say(b"* BYE [UNAVAILABLE] shutting down\r\n"), ServerBusy),
    ],
)
async def test_a_mail_that_does_not_end_is_not_stored(answer: Answer, failure: type[Exception]) -> None:
    script = ScriptedImap({uid: mail(uid) for uid in (1, 2)}, answers={"UID FETCH 2": answer})
    async with script.running(), open_session(script.server(), True, read_seconds=0.4) as client:
        await ready(client, False)
        got: list[Retrieved] = []
        with pytest.raises(failure, match="FETCH of mail 2"):
            await retrieve(client, [1, 2], got)
        assert [one.number for one in got] == [1] and client.reading == 2


async def test_a_folder_renumbered_between_two_reads_ends_the_session() -> None:
    script = ScriptedImap({3: mail(3)}, others={"Other": ScriptedFolder({1: mail(1)}, 50)})
    async with script.running(), open_session(script.server(), True, folders=("INBOX", "Other")) as client:
        await ready(client, False)
        script.inbox.uidvalidity += 1
        with pytest.raises(ProtocolError, match="renumbered meanwhile"):
            await retrieve(client, [3], [])
