"""docs/standards.md names files, settings and limits as they are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from services.imap_out import append, listener
from services.imap_out import connection as imap
from services.imap_out import login as imap_login
from services.imap_out import session as imap_session
from services.imap_out.grammar.command_input import BEFORE_LOGIN, InputLimits
from services.pop3_out import connection as pop3
from services.pop3_out import readahead
from services.pop3_out import session as pop3_session
from services.sender import header_fields
from services.smtp_in import command_loop, data_reader, login, receive_memory, sender_policy
from services.smtp_in import connection as smtp
from services.smtp_in import listener as smtp_listener
from shared.auth import passwords, throttle
from shared.net import listening, proxy_protocol
from shared.routing import facts
from shared.runtime import served_connection, served_listener
from shared.settings import Settings
from shared.store import blobs

ROOT = Path(__file__).resolve().parent.parent.parent
TEXT = (ROOT / "docs" / "standards.md").read_text(encoding="utf-8")
MIB = 1024 * 1024


def test_every_row_says_how_far_and_where() -> None:
    rows = re.findall(r"^\| ((?:RFC|PROXY)[^|]*) \| ([^|]*) \| ([^|]*) \| ([^|]*) \|$", TEXT, re.M)
    assert len(rows) >= 25
    for standard, how_far, _, where in rows:
        assert how_far in ("yes", "partial", "no"), standard
        assert how_far == "no" or "`" in where, standard


def test_every_file_that_it_names_is_there() -> None:
    folder = ""
    for row in TEXT.splitlines():
        cells = row.split(" | ")
        for name in re.findall(r"`([\w/*]+\.py)`", cells[-1]):
            folder = name.rpartition("/")[0] or folder
            path = name if "/" in name else f"{folder}/{name}"
            assert list(ROOT.glob(path)), f"{path}: {row}"


def test_every_setting_that_it_names_is_one_with_that_default() -> None:
    for name, default in re.findall(r"`MAILGROUP_(\w+)`(?: (\d+)(?: MiB)?)?", TEXT):
        field = Settings.model_fields[name.lower()]
        if default:
            assert field.default in (int(default), int(default) * MIB)


@pytest.mark.parametrize(
    ("row", "pop3_value", "imap_value", "smtp_value"),
    [
        (
            "connections, total",
            f"{served_listener.MAX_CONNECTIONS:,}",
            f"{served_listener.MAX_CONNECTIONS:,}",
            f"{smtp_listener.MAX_CONNECTIONS:,}",
        ),
        (
            "a PROXY header, where one is required",
            f"{proxy_protocol.HEADER_SECONDS:g} s; {listening.MAX_PENDING_HEADERS} connections may wait for one",
            "the same",
            "the same",
        ),
        (
            "a client that reads a reply",
            f"on average {served_connection.LEAST_OCTETS_A_SECOND:,} octets a second, "
            f"with pauses of at most {pop3.IDLE_SECONDS / 60:g} minutes",
            f"on average {served_connection.LEAST_OCTETS_A_SECOND:,} octets a second, "
            f"with pauses of at most {imap.PAUSE_SECONDS / 60:g} minutes",
            f"{command_loop.UNSENT_OCTETS // 1024} KiB may stay unread, for {login.IDLE_SECONDS / 60:g} minutes",
        ),
        (
            "the last reply",
            f"{served_connection.CLOSING_SECONDS:g} s",
            f"{served_connection.CLOSING_SECONDS:g} s",
            f"{command_loop.CLOSING_SECONDS:g} s",
        ),
        (
            "time until the login",
            f"{pop3.LOGIN_SECONDS:g} s",
            f"{imap.LOGIN_SECONDS:g} s",
            f"{login.LOGIN_SECONDS:g} s",
        ),
        (
            "time between two complete commands",
            f"{pop3.IDLE_SECONDS / 60:g} minutes",
            f"{imap.IDLE_SECONDS / 60:g} minutes",
            f"{login.IDLE_SECONDS / 60:g} minutes",
        ),
        (
            "a TLS handshake",
            f"{served_connection.TLS_SECONDS:g} s",
            f"{served_connection.TLS_SECONDS:g} s",
            f"{login.TLS_SECONDS:g} s",
        ),
        (
            "a mail in DATA or APPEND",
            "",
            f"on average {served_connection.LEAST_OCTETS_A_SECOND:,} octets a second, "
            f"with pauses of at most {append.PAUSE_SECONDS / 60:g} minutes",
            f"{smtp.DATA_SECONDS / 3600:g} hour; on average {smtp.LEAST_OCTETS_A_SECOND:,} octets a second, "
            f"with pauses of at most {smtp.PAUSE_SECONDS / 60:g} minutes",
        ),
        (
            "a session",
            f"{pop3.SESSION_SECONDS / 3600:g} hours",
            f"{imap.SESSION_SECONDS / 3600:g} hours",
            f"{login.SESSION_SECONDS / 3600:g} hours",
        ),
        (
            "a line of a command",
            f"{pop3_session.COMMAND_OCTETS} octets, {pop3_session.AUTH_OCTETS:,} of AUTH",
            f"{InputLimits().line_octets:,} octets, and as many in literals; {BEFORE_LOGIN.line_octets:,} and "
            f"{BEFORE_LOGIN.literal_octets:,} before the login, {imap_login.RESPONSE_OCTETS:,} of AUTHENTICATE",
            f"{command_loop.COMMAND_OCTETS:,} octets, {command_loop.AUTH_OCTETS:,} of AUTH",
        ),
        (
            "input that waits while a password is checked",
            f"{served_connection.LOGIN_INPUT_OCTETS // 1024} KiB",
            f"{served_connection.LOGIN_INPUT_OCTETS // 1024} KiB",
            f"{login.LOGIN_INPUT_OCTETS // 1024} KiB",
        ),
        (
            "commands of a session",
            f"{pop3_session.MAX_BAD_COMMANDS} with an error; {pop3_session.MAX_COMMANDS_BEFORE_LOGIN} before the login",
            f"{imap_session.MAX_BAD_COMMANDS} with an error, one after the other; "
            f"{imap_session.MAX_COMMANDS_BEFORE_LOGIN} before the login",
            f"{command_loop.COMMAND_LIMITS['MAIL']:,} of MAIL, DATA, RSET, NOOP; "
            f"{command_loop.COMMAND_LIMITS['RCPT']:,} of RCPT; "
            f"{command_loop.OTHER_COMMAND_LIMIT} of any other; {command_loop.MAX_BAD_COMMANDS} unknown commands",
        ),
        (
            "refused logins of a connection",
            f"{pop3_session.MAX_REFUSED_LOGINS}",
            f"{imap_login.MAX_REFUSED_LOGINS}",
            f"{login.MAX_REFUSED_LOGINS}",
        ),
        (
            "failed logins per account and per address",
            f"token bucket: {throttle.BURST}, of which {throttle.RESERVED_TOKENS} is reserved for known addresses; "
            f"1 more every {throttle.SECONDS_A_TOKEN:g} s",
            "the same, counted separately",
            "the same, counted separately",
        ),
        (
            "passwords that are checked at the same time",
            f"{passwords.THREADS}, with {passwords._HASHER.memory_cost // 1024} MiB each",
            "the same, counted separately",
            "the same, counted separately",
        ),
        ("recipients", "", "", f"{smtp.MAX_RECIPIENTS:,}, then 452"),
        ("its header", "", "", f"{data_reader.HEADER_OCTETS // MIB} MiB, {data_reader.MAX_FIELDS:,} fields"),
        ("its From, Sender and Resent-From", "", "", f"{sender_policy.ORIGINATOR_OCTETS:,} octets together"),
        ("its lines", "", "", f"{data_reader.LINE_OCTETS // MIB} MiB each"),
        (
            "memory for incoming mails",
            "",
            f"{(blobs.HEAD_OCTETS + blobs.CHUNK_OCTETS) / MIB:g} MiB for each mail that arrives",
            f"{receive_memory.LIMIT_OCTETS // MIB} MiB for all clients, of it "
            f"{receive_memory.ACCOUNT_OCTETS // MIB} MiB "
            "and one more mail for an account; counted as octets arrive; "
            f"further mails wait for {smtp.MEMORY_WAIT_SECONDS:g} s, then 452",
        ),
        (
            "memory for outgoing mails",
            f"{readahead.PROCESS_OCTETS // MIB} MiB, of it {readahead.ACCOUNT_OCTETS // MIB} MiB for an account, "
            f"and {served_connection.OUTPUT_OCTETS // 1024} KiB per client",
            f"{listener.PROCESS_OCTETS // MIB} MiB, of it {listener.ACCOUNT_OCTETS // MIB} MiB for an account, "
            f"and {served_connection.OUTPUT_OCTETS // 1024} KiB per client",
            "",
        ),
    ],
)
def test_a_limit_is_what_the_code_says(row: str, pop3_value: str, imap_value: str, smtp_value: str) -> None:
    cells = [re.sub(" +", " ", cell) for cell in (row, pop3_value, imap_value, smtp_value)]
    line = next(line for line in TEXT.splitlines() if line.startswith(f"| {row} |"))
    assert [cell.strip() for cell in line.strip("|").split("|")] == cells


def test_the_limits_of_routing_are_what_the_code_says() -> None:
    text = " ".join(TEXT.split())
    assert (
        f"{facts.HEAD_OCTETS // 1024} KiB of it; To and Cc of {facts.ADDRESS_OCTETS // 1024} KiB together, "
        f"with {facts.FIELD_MAILBOXES:,} addresses each and {facts.MAIL_MAILBOXES:,} together; {facts.NAMES} different "
        f"names beside the shared address in each of them; the newest {facts.NEWEST_REFERENCES} ids of References, "
        f"and {facts.IDS} of each other field"
    ) in text


def test_what_becomes_of_each_header_field_is_what_the_code_says() -> None:
    # given the table, with a row for each treatment
    section = TEXT.partition("## Header fields of outgoing mail")[2].partition("\n## ")[0]
    rows = [row.strip("| ").rpartition(" | ") for row in section.splitlines() if row.startswith("| ")][2:]
    treatments = ("mailboxes", "text", "trace", "key", "removed")
    listed = {
        name.lower(): treatment
        for (_, _, names), treatment in zip(rows, treatments, strict=True)
        for name in re.findall(r"`([\w-]+)`", names)
    }
    # then it is the code's
    assert listed == header_fields.FIELDS
    # and the rule for other names is, too
    [ends] = re.findall(r"name ends in (.+?) \(except", " ".join(section.split()))
    ends = re.findall(r"-\w+", ends)
    assert all(header_fields.treatment_of(f"x-my{end.lower()}") == "text" for end in ends)
    assert len(ends) == 11 and header_fields.treatment_of("in-reply-to") is None
