"""The parts of tests/imap_oracle: a comparison that sees nothing would prove nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from tests.fuzz.imap_sessions import ImapDoor, make_connection
from tests.imap_clients import ImapClient
from tests.imap_oracle.answers import parse_values, read_answer
from tests.imap_oracle.client_view import BrokenPromise, ClientView
from tests.imap_oracle.differences import ALLOWED, AVOIDED, weakened
from tests.imap_oracle.duel import Duel
from tests.imap_oracle.shrink import shrink
from tests.imap_oracle.sides import Side
from tests.imap_oracle.streams import Step, make_stream

SEEDS = 8


def test_a_seed_gives_one_stream() -> None:
    assert make_stream(7, 80) == make_stream(7, 80)
    assert make_stream(7, 80) != make_stream(8, 80)
    assert {step.kind for seed in range(20) for step in make_stream(seed, 80)} == {
        *("append", "check", "command", "done", "idle", "reconnect")
    }


def test_strings_are_the_same_in_each_form() -> None:
    assert parse_values(b'(a "b" {1}\r\nc NIL "NIL" ())') == [[b"a", b"b", b"c", None, b"NIL", []]]
    assert parse_values(b'BODY[HEADER.FIELDS (SUBJECT "X Y")]<0> ~{2}\r\n\0\0') == [
        b'BODY[HEADER.FIELDS (SUBJECT "X Y")]<0>',
        b"\0\0",
    ]
    with pytest.raises(ValueError):
        parse_values(b"(a")


def test_data_is_what_was_asked_for_and_flags_of_others_are_updates() -> None:
    untagged = [b"* 2 FETCH (FLAGS (\\Seen \\Recent))", b"* 1 FETCH (UID 5 RFC822.SIZE 7)", b"* 3 EXISTS"]
    answer = read_answer(b"FETCH 1 (UID RFC822.SIZE)", untagged, b"OK fetched")
    assert answer.data == {"FETCH": {1: {b"UID": b"5", b"RFC822.SIZE": b"7"}}}
    assert [update.kind for update in answer.updates] == ["FETCH", "FETCH", "EXISTS"]
    answer = read_answer(b"STORE 2 FLAGS (\\Seen)", untagged[:1], b"OK [MODIFIED 1,3:4] stored")
    assert answer.data == {"FETCH": {2: {b"FLAGS": [b"\\seen"]}}}
    assert (answer.code, answer.values) == ("MODIFIED", [1, 3, 4])
    answer = read_answer(b"UID MOVE 1 X", [b"* OK [COPYUID 9 1:2 7,9] moved"], b"OK done")
    assert answer.values == ([1, 2], [7, 9])
    answer = read_answer(b'LIST "" *', [b'* LIST (\\NonExistent \\Sent) "/" inbox', b"* SEARCH 3 1"], b"OK done")
    assert answer.data == {"LIST": [([b"\\noselect"], b"/", b"INBOX")], "SEARCH": [1, 3]}
    assert read_answer(b"NOOP", [b"* BYE gone"], b"").kind == "BYE"


def told(view: ClientView, command: bytes, *untagged: bytes) -> None:
    view.take(command, read_answer(command, untagged, b"OK done"))


def test_a_client_notices_what_contradicts_its_view() -> None:
    view = ClientView()
    told(view, b"SELECT INBOX", b"* 3 EXISTS", b"* 1 FETCH (UID 4 FLAGS ())", b"* 3 FETCH (UID 9)")
    told(view, b"NOOP", b"* 2 EXPUNGE", b"* 3 EXISTS")
    view.expect({1: {b"FLAGS": []}, 2: {b"FLAGS": [b"\\seen"]}, 3: {b"FLAGS": []}})
    told(view, b"NOOP", b"* VANISHED 9")
    assert view.mails is not None and [mail.uid for mail in view.mails] == [4, None]
    for command, wrong in (
        (b"FETCH 1 FLAGS", b"* 1 EXPUNGE"),
        (b"NOOP", b"* 3 EXPUNGE"),
        (b"NOOP", b"* 1 EXISTS"),
        (b"NOOP", b"* 3 FETCH (FLAGS ())"),
        (b"NOOP", b"* 1 FETCH (UID 5)"),
        (b"NOOP", b"* 2 FETCH (UID 3)"),
    ):
        with pytest.raises(BrokenPromise):
            told(view, command, wrong)
    with pytest.raises(BrokenPromise):
        view.expect({1: {b"FLAGS": [b"\\seen"]}, 2: {b"FLAGS": []}})
    with pytest.raises(BrokenPromise):
        view.expect({1: {b"FLAGS": []}})


async def test_a_stream_that_fails_is_shortened() -> None:
    steps = [Step(0, "command", b"%d" % number) for number in range(40)]
    runs = 0

    async def fails(shorter: Sequence[Step]) -> bool:
        nonlocal runs
        runs += 1
        return {steps[3], steps[17], steps[39]} <= set(shorter)

    assert await shrink(steps, fails) == [steps[3], steps[17], steps[39]]
    assert runs < 100
    runs = 0
    await shrink(steps, fails, most_runs=3)
    assert runs == 3


async def test_a_server_differs_from_itself_in_nothing() -> None:
    door = ImapDoor()
    listening = await asyncio.get_running_loop().create_server(lambda: make_connection(door), "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    clients = []

    async def log_in() -> ImapClient:
        client = ImapClient(*await asyncio.open_connection("127.0.0.1", port))
        clients.append(client)
        client.greeting = await client.response()
        await client.ok(b'LOGIN alex@local.com "secret"')
        return client

    for seed in range(SEEDS):
        one, other = Side("one", log_in), Side("other", log_in)
        assert await Duel(one, other).run(make_stream(seed, 80)) is None
        await one.close()
        await other.close()
    # a server whose client has another folder than it thinks is found out
    one, other = Side("one", log_in), Side("other", log_in)
    await other.run(Step(0, "command", b"SELECT Archive"))
    found = await Duel(one, other).run([Step(0, "command", b"STATUS INBOX (UIDNEXT)"), Step(0, "check")])
    assert found is not None and found.step.kind == "check"
    listening.close()
    for client in clients:
        await client.close()


def test_each_allowed_difference_names_its_rfc() -> None:
    assert all(allowed.verdict.startswith("RFC ") for allowed in ALLOWED)
    assert all(verdict.startswith("RFC ") for _, verdict in AVOIDED)
    same = read_answer(b"UID SEARCH ALL", [b"* SEARCH 1"], b"OK done")
    assert weakened(b"UID SEARCH ALL", same) == same
