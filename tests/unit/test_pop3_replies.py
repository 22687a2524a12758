"""Dot-stuffing, TOP and the other answers, as pure functions."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from services.pop3_out import replies

# Octets with many line ends, halves of line ends, and dots.
MAILS = st.lists(st.sampled_from([b"\r\n", b"\r", b"\n", b".", b"..", b"x", b"Subject: y"]), max_size=40).map(b"".join)
CUTS = st.lists(st.integers(0, 60), max_size=8)


def pieces(body: bytes, cuts: list[int]) -> list[bytes]:
    """``body`` in pieces that end at these places; some may be empty."""
    places = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    return [body[start:end] for start, end in pairwise(places)]


def stuffed(parts: list[bytes]) -> bytes:
    """On the wire, with its end."""
    stuffing = replies.StuffedReply()
    return b"".join(stuffing.put(part) for part in parts) + stuffing.end()


def received(wire: bytes) -> bytes:
    """Read a reply as RFC 1939 section 3 says: up to the line of one dot, with the stuffed dots removed."""
    lines = []
    for line in wire.split(b"\r\n"):
        if line == b".":
            break
        lines.append(line.removeprefix(b"."))
    else:
        raise AssertionError("the answer does not end")
    return b"".join(line + b"\r\n" for line in lines)


@given(
    st.lists(st.binary(max_size=12).map(lambda line: line.replace(b"\r", b"").replace(b"\n", b"")), max_size=12).map(
        lambda lines: b"".join(line + b"\r\n" for line in lines)
    ),
    CUTS,
)
@example(b".\r\n..\r\n\r\n.", [1, 2, 3, 4])
def test_a_client_gets_every_byte_wherever_the_pieces_end(body: bytes, cuts: list[int]) -> None:
    whole_lines = body if body.endswith(b"\r\n") or not body else body + b"\r\n"
    assert received(stuffed(pieces(body, cuts))) == whole_lines


@given(MAILS, CUTS)
@example(b"a\r\n.b", [3])
@example(b"a\r\n", [2])
def test_the_pieces_make_no_difference(body: bytes, cuts: list[int]) -> None:
    assert stuffed(pieces(body, cuts)) == stuffed([body])


@given(MAILS)
def test_a_client_that_ends_lines_at_a_lone_lf_finds_no_end_within_a_mail(body: bytes) -> None:
    wire = stuffed([body])
    lines = [line.removesuffix(b"\r") for line in wire.removesuffix(b"\n").split(b"\n")]
    assert lines.index(b".") == len(lines) - 1
    assert wire.endswith(b"\r\n.\r\n") or wire == b".\r\n"


def test_an_empty_mail_is_a_reply_without_lines() -> None:
    assert replies.retr_reply(b"") == b"+OK 0 octets\r\n.\r\n"


def test_octets_are_counted_before_stuffing() -> None:
    assert replies.retr_reply(b".\r\n") == b"+OK 3 octets\r\n..\r\n.\r\n"


def test_a_mail_whose_last_line_has_no_end_gets_one() -> None:
    assert replies.retr_reply(b"a") == b"+OK 1 octets\r\na\r\n.\r\n"


def top_of(parts: list[bytes], lines: int) -> bytes:
    top = replies.TopCutter(lines)
    out = b""
    for part in parts:
        out += top.cut(part)
        if top.done:
            break
    return out


@given(MAILS, CUTS, st.integers(0, 6))
@example(b"\r\nbody\r\n", [1], 0)
@example(b"A: b\r\n\r\nx\r\ny\r\n", [6, 7], 1)
@example(b"A: b\n\nx\ny\n", [5], 1)
def test_top_returns_header_blank_line_and_the_requested_lines(body: bytes, cuts: list[int], count: int) -> None:
    # given the lines of the mail, each with its end
    lines = [line + b"\n" for line in body.split(b"\n")]
    lines[-1] = lines[-1].removesuffix(b"\n")
    blank = next((at for at, line in enumerate(lines) if line in {b"\n", b"\r\n"}), len(lines))
    # then
    assert top_of(pieces(body, cuts), count) == b"".join(lines[: blank + 1 + count])


def test_top_is_done_once_it_has_all_its_lines() -> None:
    top = replies.TopCutter(1)
    assert top.cut(b"A: b\r\n\r\nfirst\r\nsecond\r\nthi") == b"A: b\r\n\r\nfirst\r\n"
    assert top.done


def test_capabilities_name_no_login_where_none_is_allowed() -> None:
    lines = replies.capabilities(passwords=False, stls=True, delay=0).split(b"\r\n")
    assert b"USER" not in lines
    assert not any(line.startswith(b"SASL") for line in lines)
    assert b"STLS" in lines
