"""What goes over the wire in the DATA stage (shared/provider/smtp_client.py): line ends and dots."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.provider.smtp_client import DotStuffer, Reply

mails = st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b".", b"..", b"a", b"\0", b"\xe4"]), max_size=40).map(b"".join)


def sent(mail: bytes, cuts: list[int]) -> bytes:
    wire = DotStuffer()
    edges = [0, *sorted(cut % (len(mail) + 1) for cut in cuts), len(mail)]
    pieces = [wire.feed(mail[start:end]) for start, end in itertools.pairwise(edges)]
    return b"".join(pieces) + wire.finish()


def received(wire: bytes) -> bytes:
    """What a server that knows only CRLF takes from it (RFC 5321 4.5.2)."""
    lines = wire.split(b"\r\n")
    return b"\r\n".join(line[1:] if line.startswith(b".") else line for line in lines)


def as_lines(mail: bytes) -> bytes:
    lines = re.sub(rb"\r\n|\r|\n", b"\r\n", mail)
    return lines if not lines or lines.endswith(b"\r\n") else lines + b"\r\n"


@given(mails, st.lists(st.integers(0, 1000), max_size=6))
def test_what_a_server_takes_is_the_mail_with_crlf_line_ends_however_it_is_cut(mail: bytes, cuts: list[int]) -> None:
    assert received(sent(mail, cuts)) == as_lines(mail)


@given(mails, st.lists(st.integers(0, 1000), max_size=6))
def test_no_lone_cr_or_lf_and_no_end_of_mail_leaves(mail: bytes, cuts: list[int]) -> None:
    wire = b"\r\n" + sent(mail, cuts)  # behind the DATA command's line
    assert not re.search(rb"\r(?!\n)|(?<!\r)\n", wire)
    assert b"\r\n.\r\n" not in wire


@given(mails)
def test_where_it_is_cut_changes_nothing(mail: bytes) -> None:
    assert sent(mail, list(range(len(mail)))) == sent(mail, [])


def test_a_mail_without_a_last_line_end_gets_one() -> None:
    assert sent(b"a", []) == b"a\r\n"
    assert sent(b"a\r", []) == b"a\r\n"
    assert sent(b"", []) == b""


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
