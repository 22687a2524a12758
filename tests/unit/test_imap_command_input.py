"""services/imap_out/grammar/command_input.py: literals, streamed mails, and what is left after a refusal."""

from __future__ import annotations

import pytest

from services.imap_out.grammar.command_input import (
    BEFORE_LOGIN,
    CommandInput,
    InputLimits,
    InputStep,
    ReadLiteral,
    ReceiveMail,
    RefuseCommand,
    RunCommand,
)
from services.imap_out.grammar.commands import AppendArguments, LoginArguments, RenameArguments

LIMITS = InputLimits(line_octets=300, literal_octets=100, literals=3, mail_octets=1000, dropped_octets=2000)


def reader() -> CommandInput:
    return CommandInput(LIMITS)


def refusal(step: InputStep) -> tuple[str, str, str, bool]:
    assert isinstance(step, RefuseCommand)
    return step.tag, step.error.kind, str(step.error), step.ends


def test_literals_become_arguments() -> None:
    given = reader()
    assert given.feed_line(b"A001 LOGIN {11}") == ReadLiteral(11, waits=True)
    given.feed_literal(b"FRED FOOBAR")
    assert given.feed_line(b" {7+}") == ReadLiteral(7, waits=False)
    given.feed_literal(b"fat\r\nman")
    step = given.feed_line(b"")
    assert isinstance(step, RunCommand)
    assert step.command.arguments == LoginArguments(b"FRED FOOBAR", b"fat\r\nman")
    assert given.is_empty


def test_a_literal_may_be_empty_and_two_names_may_be_literals() -> None:
    given = reader()
    given.feed_line(b"a RENAME {0}")
    given.feed_literal(b"")
    given.feed_line(b" {1}")
    given.feed_literal(b"b")
    assert given.feed_line(b"") == RunCommand(step_command(given, b'a RENAME "" b'))


def step_command(given: CommandInput, line: bytes):  # type: ignore[no-untyped-def]
    step = CommandInput(given.limits).feed_line(line)
    assert isinstance(step, RunCommand) and isinstance(step.command.arguments, RenameArguments)
    return step.command


@pytest.mark.parametrize("line", [b"A APPEND saved (\\Seen) {326}", b"A APPEND {5}", b"A append  {5+}"])
def test_the_mail_of_append_is_streamed(line: bytes) -> None:
    given = reader()
    step = given.feed_line(line)
    if isinstance(step, ReadLiteral):  # the name of the mailbox
        given.feed_literal(b"saved")
        step = given.feed_line(b" (\\Seen) {326}")
    assert isinstance(step, ReceiveMail) and (step.octets, step.waits, step.literal8) == (326, True, False)
    assert step.command.arguments == AppendArguments("saved", ("\\Seen",), None, 326)
    assert given.feed_line(b"") == RunCommand(step.command)


def test_a_mail_with_utf8_ends_with_a_parenthesis() -> None:
    given = reader()
    step = given.feed_line(b"A APPEND x UTF8 (~{3+}")
    assert isinstance(step, ReceiveMail) and (step.literal8, step.waits) == (True, False)
    assert given.feed_line(b")") == RunCommand(step.command)
    given.feed_line(b"A APPEND x UTF8 (~{3+}")
    assert refusal(given.feed_line(b""))[1] == "BAD"


def test_a_second_mail_is_refused_and_dropped() -> None:
    given = reader()
    given.feed_line(b"A APPEND x {3+}")
    assert given.feed_line(b" {4+}") == ReadLiteral(4, waits=False, dropped=True)
    text = "something follows the mail; APPEND takes one mail (RFC 3501 section 6.3.11)"
    assert refusal(given.feed_line(b""))[:3] == ("A", "BAD", text)
    assert isinstance(given.feed_line(b"B NOOP"), RunCommand)


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (b"A APPEND x {1001%s}", "NO"),
        (b"A APPEND x {0%s}", "NO"),
        (b"A APPEND a&b {5%s}", "NO"),
        (b"A APPEND x y {5%s}", "BAD"),
    ],
)
def test_a_refused_mail_is_not_read_or_dropped(line: bytes, kind: str) -> None:
    given = reader()
    assert refusal(given.feed_line(line % b""))[:2] == ("A", kind)  # the client waits: it sends nothing
    step = given.feed_line(line % b"+")
    assert isinstance(step, ReadLiteral) and step.dropped
    assert refusal(given.feed_line(b""))[:2] == ("A", kind)
    assert isinstance(given.feed_line(b"B NOOP"), RunCommand)


def test_what_is_too_much_to_drop_ends_the_connection() -> None:
    given = reader()
    assert refusal(given.feed_line(b"A APPEND x {2001+}"))[3]
    given.feed_line(b"A LOGIN {1500+}")
    assert refusal(given.feed_line(b" {501+}"))[3]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b"A LOGIN {101}", "a literal is longer than 100 octets"),
        (b"A LOGIN ~{10}", "a binary literal"),
        (b"A LOGIN \0{10}", "a NUL"),
        (b"A " + b"x" * 299, "longer than 300 octets"),
        (b"A FOO \0", "a NUL"),
    ],
)
def test_a_command_beyond_a_limit_is_refused(line: bytes, text: str) -> None:
    tag, kind, found, ends = refusal(reader().feed_line(line))
    assert (tag, kind, ends) == ("A", "BAD", False) and text in found


def test_a_literal_with_a_nul_is_refused() -> None:
    given = reader()
    given.feed_line(b"A SELECT {3}")
    given.feed_literal(b"a\0b")
    assert refusal(given.feed_line(b""))[:2] == ("A", "BAD")


def test_the_number_of_literals_is_limited() -> None:
    given = reader()
    line = b"A SEARCH {1+}"
    for _ in range(3):
        assert given.feed_line(line) == ReadLiteral(1, waits=False)
        given.feed_literal(b"x")
        line = b" {1+}"
    assert given.feed_line(line) == ReadLiteral(1, waits=False, dropped=True)
    assert refusal(given.feed_line(b""))[2] == "the command has more than 3 literals"


def test_a_line_without_a_tag_is_answered_untagged() -> None:
    assert refusal(reader().feed_line(b""))[0] == "*"
    assert refusal(reader().feed_line(b"(\xff"))[0] == "*"


def test_nobody_appends_before_the_login() -> None:
    given = CommandInput(BEFORE_LOGIN)
    assert refusal(given.feed_line(b"A APPEND INBOX {100000000+}"))[3]
