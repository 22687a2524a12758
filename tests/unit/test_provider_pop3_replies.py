"""shared/provider/pop3_replies.py: replies of providers, malformed and cut anywhere."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.provider.pop3_replies import Body, is_temporary, parse_uidl
from tests.scripted_pop3 import stuff

LIMIT = 1_000_000


@pytest.mark.parametrize(
    ("lines", "mails", "well_formed"),
    [
        ([b"1 a", b"2 b"], ((1, "a"), (2, "b")), True),
        ([b"1 a", b"1 b"], ((1, "a"),), False),
        ([b"0 a", b"x b", b"3", b"", b"4 d"], ((3, ""), (4, "d")), False),
        ([b"1 a b c"], ((1, "a"),), True),
    ],
)
def test_unique_ids_are_read_tolerantly(
    lines: list[bytes], mails: tuple[tuple[int, str], ...], well_formed: bool
) -> None:
    assert parse_uidl(lines) == (mails, well_formed)


def test_unusual_unique_ids_stay_distinct_and_storable() -> None:
    (_, first), (_, second), (_, third) = parse_uidl([b"1 \x00a", b"2 \x00b", b"3 " + b"x" * 5000])[0]
    assert len({first, second, third}) == 3
    assert all(uid.isascii() and uid.isprintable() and len(uid) < 256 for uid in (first, second, third))


@given(
    st.lists(st.sampled_from([b".", b"..", b"\r\n", b"\n", b"\r", b"x", b"\r\n."]), max_size=30),
    st.lists(st.integers(1, 7), min_size=1, max_size=10),
)
def test_however_the_pieces_are_cut_the_mail_is_the_same(words: list[bytes], cuts: list[int]) -> None:
    mail = b"".join(words) + b"\r\n"
    wire = b"\r\n" + stuff(mail) + b"+OK next"
    whole = Body(LIMIT)
    ended, at = whole.feed(wire, 0)
    assert ended and wire[at:] == b"+OK next"

    pieces = Body(LIMIT)
    data, position, turn, ended = b"", 0, 0, False
    while not ended:
        size = cuts[turn % len(cuts)]
        turn += 1
        data, wire = data[position:] + wire[:size], wire[size:]
        ended, position = pieces.feed(data, 0)
    assert data[position:] + wire == b"+OK next"
    expected = mail.replace(b"\r\n", b"\0").replace(b"\n", b"\0").replace(b"\0", b"\r\n")
    assert pieces.kept == whole.kept == expected
    assert pieces.sha256 == hashlib.sha256(expected).digest()


@pytest.mark.parametrize(
    ("reply", "for_now"),
    [
        ("[SYS/TEMP] Server error - Please try again later.", True),
        ("[IN-USE] /var/mail/.u.pop lock busy!  Is another session active? (11)", True),
        ("/var/mail/.u.pop lock busy!  Is another session active? (11)", True),
        ("maildrop already locked", True),
        ("Exceeded the login limit for a 15 minute period. Reduce the frequency of requests.", True),
        ("Server Unavailable. 15", True),
        ("too many connections from your address", True),
        ("Maximum number of connections from user+IP exceeded (mail_max_userip_connections=10)", True),
        ("[UNAVAILABLE] Maximum number of connections from user+IP exceeded", True),
        ("Maximum number of connections reached for this account", True),
        ("Too many simultaneous connections. (Failure)", True),
        ("Too many concurrent sessions for user alex", True),
        ("Maximum connections from your IP address is exceeded, try again later !", True),
        ("Maximum active clients reached, please try again later.", True),
        ("Maximum connection limit reached for ::ffff:192.0.2.1", True),
        ("Connection limit exceeded for account alex", True),
        ("Account exceeded command or bandwidth limits.", True),
        ("Internal error occurred. Refer to server log for more information. [2026-10-01 10:00:00]", True),
        ("Internal error occurred. [node-7]", True),
        ("Internal login failure. Refer to server log for more information.", True),
        ("internal server error", True),
        ("Temporary authentication failure. [mx1:2026-10-01 10:00:00]", True),
        ("Temporary problem, please try again later", True),
        ("Temporary error authenticating user", True),
        ("Server error - Please try again later.", True),
        ("System error, cannot open temporary file for user alex", True),
        ("User is authenticated but not connected.", True),
        ("Authentication server unavailable", True),
        ("Unable to contact the authentication daemon", True),
        ("[AUTH] Server error - Please try again later.", False),
        ("[SYS/PERM] internal error, account disabled", False),
        ("Invalid user name or password. Too many invalid logon attempts.", False),
        ("Logon failure: unknown user name or bad password. Too many connections", False),
        ("Login fail. Account is abnormal, password is incorrect, login frequency limited, or system is busy", False),
        ("Authentication failed.", False),
        ("Invalid login", False),
        ("Maximum number of failed logins exceeded", False),
        ("Too many failed login attempts from your connection", False),
        ("[AUTH] Try again with an application-specific password", False),
        ("[SYS/PERM] Your account is not enabled for POP access", False),
        ("Logon failure: unknown user name or bad password.", False),
        ("Too many bad auth attempts", False),
        ("your account is locked", False),
        ("no", False),
    ],
)
def test_a_temporary_refusal_is_known_by_its_code_or_by_provider_s_words(reply: str, for_now: bool) -> None:
    assert is_temporary(reply) == for_now
