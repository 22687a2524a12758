"""shared/provider/pop3_client.py against correct and against misbehaving servers."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import Permanent
from shared.net.dial import ConnectTimeout, TlsError, Unreachable
from shared.provider.credentials import Credential
from shared.provider.oauth import xoauth2
from shared.provider.pop3_client import Pop3Client, Retrieved, RetrRequest, open_session
from shared.provider.pop3_errors import LoginRefused, Pop3ConnectionLost, ProtocolError, ServerBusy
from shared.provider.pop3_replies import Body, is_temporary, parse_uidl
from tests.polling import until
from tests.scripted_pop3 import Answer, ScriptedPop3, cut, drip, hang, say, stuff

MAIL = b"Subject: one\r\n\r\nbody\r\n"
LIMIT = 1_000_000


async def retrieve(client: Pop3Client, numbers: Sequence[int], limit: int = LIMIT) -> list[Retrieved]:
    return [got async for got in client.retrieve([RetrRequest(number, 100) for number in numbers], limit)]


async def bodies(script: ScriptedPop3, limit: int = LIMIT, read_seconds: float = 2.0) -> list[bytes | None]:
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
    mails = ["UIDL 1", "RETR 1", "RETR 2", "UIDL 2"]
    assert script.commands == ["CAPA", "USER u", "PASS secret", "STAT", "UIDL", *mails, "QUIT"]


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
    assert script.commands[-5:] == ["RETR 2", "LIST 2", "RETR 3", "LIST 3", "RETR 1"]


async def test_the_window_is_bounded_by_octets() -> None:
    script = ScriptedPop3({"a": MAIL, "b": MAIL}, answers={"RETR 1": hang()})
    async with script.running(), open_session(script.server(), True, read_seconds=0.3) as client:
        await client.login(Credential("u", "secret"))
        with pytest.raises(ConnectTimeout):
            async for _ in client.retrieve([RetrRequest(1, 5_000_000), RetrRequest(2, 5_000_000)], LIMIT):
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


async def test_a_mail_that_does_not_end_is_aborted() -> None:
    endless = Answer((b"+OK\r\n", *([b"x" * 65536] * 40)), hang=True)
    with pytest.raises(ProtocolError, match="the reply does not end"):
        await bodies(ScriptedPop3({"a": MAIL}, answers={"RETR": endless}), limit=100_000)


async def test_a_line_of_thirty_megabytes_is_read() -> None:
    [body] = await bodies(ScriptedPop3({"a": b"x" * 30_000_000 + b"\r\n"}), limit=40_000_000)
    assert body == b"x" * 30_000_000 + b"\r\n"


@pytest.mark.parametrize(
    ("answer", "failure", "text"),
    [
        (cut(b"+OK\r\nSubject: x\r\n\r\nhalf"), Pop3ConnectionLost, "RETR of mail 1: the server ended the connection"),
        (cut(b"+OK\r\nSubject: x\r\n\r\nno dot\r\n"), Pop3ConnectionLost, "ended the connection"),
        (cut(), Pop3ConnectionLost, "ended the connection"),
        (hang(b"+OK\r\nSubject"), ConnectTimeout, "no answer within"),
        (say(b"SSH-2.0-OpenSSH_9.2\r\n"), ProtocolError, "the reply is not a POP3 reply"),
        (hang(b"y" * 10_000), ProtocolError, "a reply line of more than"),
    ],
)
async def test_a_connection_lost_within_a_mail_names_that_mail(
    answer: Answer, failure: type[Exception], text: str
) -> None:
    script = ScriptedPop3({"a": MAIL}, answers={"RETR": answer})
    async with script.running(), open_session(script.server(), True, read_seconds=0.4) as client:
        await client.login(Credential("u", "secret"))
        with pytest.raises(failure, match=text) as caught:
            await retrieve(client, [1])
        assert client.reading == 1
    assert f"127.0.0.1:{script.port}" in str(caught.value)
    assert "OpenSSH" not in str(caught.value)


async def test_a_server_that_drips_a_mail_does_not_keep_the_session() -> None:
    # given a server that is never silent for the time limit, and would take 30 s for one small mail
    script = ScriptedPop3({"a": MAIL}, answers={"RETR": drip(b"+OK\r\n" + stuff(bytes(600)), 0.05)})
    async with script.running(), open_session(script.server(), True, read_seconds=0.4) as client:
        await client.login(Credential("u", "secret"))
        began = time.monotonic()
        with pytest.raises(ConnectTimeout, match="RETR of mail 1: the reply is slower than 1024 octets a second"):
            await retrieve(client, [1])
        assert time.monotonic() - began < 20


async def test_the_whole_session_has_a_deadline() -> None:
    dripping = Answer((b"+OK\r\n", *([b"x"] * 1)), hang=True)
    script = ScriptedPop3({"a": MAIL}, answers={"RETR": dripping})
    async with script.running(), open_session(script.server(), True, session_seconds=0.5) as client:
        await client.login(Credential("u", "secret"))
        with pytest.raises(ConnectTimeout, match=r"the session took longer than 0\.5 s"):
            await retrieve(client, [1])


@pytest.mark.parametrize(
    ("reply", "failure", "code"),
    [
        (b"-ERR wrong password\r\n", LoginRefused, None),
        (b"-ERR [AUTH] wrong password\r\n", LoginRefused, "AUTH"),
        (b"-ERR [auth] wrong password\r\n", LoginRefused, "AUTH"),
        (b"-ERR [IN-USE] locked\r\n", ServerBusy, "IN-USE"),
        (b"-ERR [LOGIN-DELAY] too soon\r\n", ServerBusy, "LOGIN-DELAY"),
        (b"-ERR [SYS/TEMP] later\r\n", ServerBusy, "SYS/TEMP"),
    ],
)
async def test_a_refused_login_is_classified(reply: bytes, failure: type[Exception], code: str | None) -> None:
    script = ScriptedPop3(answers={"PASS": say(reply)})
    async with script.running(), open_session(script.server(), True) as client:
        with pytest.raises(failure) as caught:
            await client.login(Credential("u", "top-secret"))
    assert getattr(caught.value, "code", None) == code
    assert "top-secret" not in str(caught.value)


async def test_a_line_break_in_a_password_is_never_sent() -> None:
    script = ScriptedPop3()
    async with script.running(), open_session(script.server(), True) as client:
        with pytest.raises(Permanent, match="line break"):
            await client.login(Credential("u", "x\r\nDELE 1"))
    assert script.commands == ["CAPA"]


async def test_a_greeting_that_refuses_is_busy() -> None:
    script = ScriptedPop3(answers={"greeting": say(b"-ERR maintenance\r\n")})
    async with script.running():
        with pytest.raises(ServerBusy, match="maintenance"):
            async with open_session(script.server(), True):
                pass


async def test_a_server_that_never_greets_is_late() -> None:
    script = ScriptedPop3(answers={"greeting": hang()})
    async with script.running():
        with pytest.raises(ConnectTimeout, match="greeting: no answer"):
            async with open_session(script.server(), True, read_seconds=0.2):
                pass


async def test_a_closed_port_is_unreachable_and_is_named() -> None:
    script = ScriptedPop3()
    async with script.running():
        server = script.server()
    with pytest.raises(Unreachable, match=f"127.0.0.1:{server.port}: connection refused; check host and port"):
        async with open_session(server, True):
            pass


@pytest.mark.parametrize("answers", [{}, {"STLS": say(b"-ERR no\r\n")}])
@pytest.mark.parametrize("capabilities", [("UIDL",), None, ("UIDL", "STLS")])
async def test_starttls_is_never_downgraded(answers: dict[str, Answer], capabilities: tuple[str, ...] | None) -> None:
    script = ScriptedPop3(capabilities=capabilities, answers=answers)
    async with script.running():
        with pytest.raises(TlsError, match="nothing is sent in clear text"):
            async with open_session(script.server("starttls"), True):
                pass
    assert not [line for line in script.commands if line.startswith(("USER", "PASS"))]


async def test_data_injected_before_tls_is_refused() -> None:
    script = ScriptedPop3(capabilities=("STLS",), answers={"STLS": say(b"+OK\r\n+OK injected\r\n")})
    async with script.running():
        with pytest.raises(TlsError, match="between STARTTLS and TLS"):
            async with open_session(script.server("starttls"), True):
                pass


async def test_implicit_tls_on_a_plain_port_says_so() -> None:
    script = ScriptedPop3()
    async with script.running():
        with pytest.raises(TlsError, match=f"127.0.0.1:{script.port}: .*check port and tls"):
            async with open_session(script.server("implicit"), True, connect_seconds=2):
                pass


async def test_a_list_that_stat_contradicts_is_not_complete() -> None:
    script = ScriptedPop3({"a": MAIL}, answers={"STAT": say(b"+OK 5 500\r\n")})
    async with script.running(), open_session(script.server(), True) as client:
        await client.login(Credential("u", "secret"))
        assert not (await client.fetch_list()).complete


async def test_a_server_without_uidl_is_detected() -> None:
    script = ScriptedPop3({"a": MAIL}, answers={"UIDL": say(b"-ERR what\r\n")})
    async with script.running(), open_session(script.server(), True) as client:
        await client.login(Credential("u", "secret"))
        with pytest.raises(ProtocolError, match="UIDL"):
            await client.fetch_list()


async def test_deletions_take_effect_with_quit() -> None:
    script = ScriptedPop3({f"u{n}": MAIL for n in range(250)}, answers={"DELE 3": say(b"-ERR no\r\n")})
    async with script.running(), open_session(script.server(), True) as client:
        await client.login(Credential("u", "secret"))
        assert await client.delete(range(1, 250)) == [3]
        assert await client.quit()
    assert set(script.mails) == {"u2", "u249"}


async def test_login_delay_is_read_from_the_capabilities() -> None:
    script = ScriptedPop3(capabilities=("PIPELINING", "LOGIN-DELAY 900 USER"))
    async with script.running(), open_session(script.server(), True) as client:
        await client.login(Credential("u", "secret"))
        assert client.capabilities.login_delay == 900


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


async def test_cancelling_leaves_no_reader_behind() -> None:
    script = ScriptedPop3({"a": MAIL}, answers={"RETR": hang()})

    async def read() -> None:
        async with script.running(), open_session(script.server(), True) as client:
            await client.login(Credential("u", "secret"))
            await retrieve(client, [1])

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await read()
    await until(lambda: not [task for task in asyncio.all_tasks() if "Pop3Client" in repr(task)], 5.0)


# ------------------------------------------------------------------------------------------------ access tokens

TOKEN = Credential("u@x.example", "tok", token=True)
RESPONSE = xoauth2("u@x.example", "tok").decode()


async def test_an_access_token_is_sent_on_a_line_of_its_own() -> None:
    # given a server of Microsoft's kind
    script = ScriptedPop3({"a": MAIL}, answers={"AUTH": say(b"+ \r\n"), RESPONSE: say(b"+OK welcome\r\n")})
    async with script.running(), open_session(script.server(), True) as client:
        # when
        await client.login(TOKEN)
        # then
        assert (await client.stat())[0] == 1
    assert script.commands[:3] == ["CAPA", "AUTH XOAUTH2", RESPONSE]


async def test_google_gets_the_access_token_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.provider.pop3_client._INITIAL_RESPONSE_HOSTS", ("127.0.0.1",))
    script = ScriptedPop3(answers={f"AUTH XOAUTH2 {RESPONSE}": say(b"+OK\r\n")})
    async with script.running(), open_session(script.server(), True) as client:
        await client.login(TOKEN)
    assert script.commands[1] == f"AUTH XOAUTH2 {RESPONSE}"


@pytest.mark.parametrize(
    ("answers", "failure", "code"),
    [
        ({"AUTH": say(b"+ \r\n"), RESPONSE: say(b"-ERR Authentication failure\r\n")}, LoginRefused, "AUTH"),
        ({"AUTH": say(b"+ \r\n"), RESPONSE: say(b"-ERR [SYS/TEMP] later\r\n")}, ServerBusy, "SYS/TEMP"),
        ({"AUTH": say(b"-ERR unknown command\r\n")}, LoginRefused, "AUTH"),
        ({"AUTH": say(b"SSH-2.0-inner\r\n")}, ProtocolError, None),
        ({"PASS": say(b"+ what?\r\n")}, ProtocolError, None),
    ],
)
async def test_a_refused_token_is_classified(
    answers: dict[str, Answer], failure: type[Exception], code: str | None
) -> None:
    script = ScriptedPop3(answers=answers)
    async with script.running(), open_session(script.server(), True) as client:
        with pytest.raises(failure) as caught:
            await client.login(Credential("u", "x") if "PASS" in answers else TOKEN)
    assert getattr(caught.value, "code", None) == code
    assert "tok" not in str(caught.value) and "inner" not in str(caught.value)


async def test_the_client_acknowledges_the_error_of_a_token_before_the_refusal() -> None:
    # given a server that sends the error as JSON, and refuses after an empty line
    script = ScriptedPop3(answers={"AUTH": say(b"+ \r\n"), RESPONSE: cut(b"+ eyJzdGF0dXMiOiI0MDAifQ==\r\n-ERR no\r\n")})
    async with script.running(), open_session(script.server(), True) as client:
        with pytest.raises(LoginRefused):
            await client.login(TOKEN)


async def test_a_server_that_refuses_the_bare_command_gets_both_at_once() -> None:
    script = ScriptedPop3(answers={"AUTH": say(b"-ERR what?\r\n"), f"AUTH XOAUTH2 {RESPONSE}": say(b"+OK\r\n")})
    async with script.running(), open_session(script.server(), True) as client:
        await client.login(TOKEN)
    assert script.commands[1:3] == ["AUTH XOAUTH2", f"AUTH XOAUTH2 {RESPONSE}"]


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
