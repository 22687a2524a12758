"""shared/mime/dot_stuffing.py: doubled dots and line ends on the wire, for POP3 and SMTP."""

from __future__ import annotations

import itertools
import re

from hypothesis import given
from hypothesis import strategies as st

from shared.mime.dot_stuffing import CrlfDotStuffer, DotStuffer, has_dot_line

mails = st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b".", b"..", b"a", b"\0", b"\xe4"]), max_size=40).map(b"".join)


def stuffed(stuffer: DotStuffer, mail: bytes, cuts: list[int]) -> bytes:
    edges = [0, *sorted(cut % (len(mail) + 1) for cut in cuts), len(mail)]
    pieces = [stuffer.feed(mail[start:end]) for start, end in itertools.pairwise(edges)]
    return b"".join(pieces) + stuffer.finish()


def sent(mail: bytes, cuts: list[int]) -> bytes:
    """By SMTP."""
    return stuffed(CrlfDotStuffer(), mail, cuts)


def shown(mail: bytes, cuts: list[int]) -> bytes:
    """By POP3."""
    return stuffed(DotStuffer(), mail, cuts)


def received(wire: bytes) -> bytes:
    """Return the mail as a server reads it that knows only CRLF (RFC 5321 4.5.2)."""
    lines = wire.split(b"\r\n")
    return b"\r\n".join(line[1:] if line.startswith(b".") else line for line in lines)


def as_lines(mail: bytes) -> bytes:
    lines = re.sub(rb"\r\n|\r|\n", b"\r\n", mail)
    return lines if not lines or lines.endswith(b"\r\n") else lines + b"\r\n"


@given(mails, st.lists(st.integers(0, 1000), max_size=6))
def test_a_server_gets_the_mail_with_crlf_line_ends_however_it_is_cut(mail: bytes, cuts: list[int]) -> None:
    assert received(sent(mail, cuts)) == as_lines(mail)


@given(mails, st.lists(st.integers(0, 1000), max_size=6))
def test_no_lone_cr_or_lf_and_no_end_of_mail_leaves(mail: bytes, cuts: list[int]) -> None:
    wire = b"\r\n" + sent(mail, cuts)  # behind the DATA command's line
    assert not re.search(rb"\r(?!\n)|(?<!\r)\n", wire)
    assert b"\r\n.\r\n" not in wire


@given(mails)
def test_the_cuts_between_chunks_change_nothing(mail: bytes) -> None:
    assert sent(mail, list(range(len(mail)))) == sent(mail, [])


def test_a_mail_without_a_last_line_end_gets_one() -> None:
    assert sent(b"a", []) == b"a\r\n"
    assert sent(b"a\r", []) == b"a\r\n"
    assert sent(b"", []) == b""


@given(mails, st.lists(st.integers(0, 1000), max_size=6))
def test_a_pop3_client_gets_every_octet_however_the_mail_is_cut(mail: bytes, cuts: list[int]) -> None:
    lines = re.split(rb"(?<=\n)", shown(mail, cuts))
    undone = b"".join(line[1:] if line.startswith(b".") else line for line in lines)
    assert undone == mail + (b"" if not mail or mail.endswith(b"\r\n") else b"\r\n")


@given(mails, st.lists(st.integers(0, 1000), max_size=6))
def test_a_client_that_ends_lines_at_a_lone_lf_finds_no_line_of_one_dot(mail: bytes, cuts: list[int]) -> None:
    assert b"." not in [line.removesuffix(b"\r") for line in shown(mail, cuts).split(b"\n")]


@given(mails.map(lambda mail: mail * 30))
def test_a_line_with_a_dot_is_found_among_any_number_of_other_dots(mail: bytes) -> None:
    assert has_dot_line(mail) == (b"\n." in mail)
    assert has_dot_line(b"x." * 5000 + mail) == (b"\n." in mail)
