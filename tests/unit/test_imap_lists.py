"""services/imap_out/mailbox_lists.py: patterns, and what LIST and LSUB return."""

from __future__ import annotations

import fnmatch
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.imap_out.grammar.command_parser import parse_command
from services.imap_out.grammar.commands import ListArguments
from services.imap_out.mailbox_lists import ListableMailbox, MailboxPattern, list_mailboxes, list_subscribed
from services.imap_out.responses.data import mailbox_list

MAILBOXES = [
    ListableMailbox("INBOX"),
    ListableMailbox("Sent", special_use=("\\Sent",)),
    ListableMailbox("a/b/c", subscribed=True),
    ListableMailbox("a/d"),
    ListableMailbox("gone/x", exists=False, subscribed=True),
]


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("*", "a/b", True),
        ("%", "a/b", False),
        ("%", "a", True),
        ("%/%", "a/b", True),
        ("a%", "ab", True),
        ("a*c", "a/b/c", True),
        ("a%c", "a/b/c", False),
        ("*%*", "a/b", True),
        ("", "", True),
        ("inbox", "INBOX", True),
        ("iNb*", "INBOX", True),
        ("inbox/%", "INBOX/x", False),
        ("a", "A", False),
        ("Entw%", "Entwürfe", True),
    ],
)
def test_a_pattern_matches_whole_names(pattern: str, name: str, matches: bool) -> None:
    assert MailboxPattern(pattern).matches(name) == matches


@given(st.text("ab*", max_size=8), st.text("ab/", max_size=12))
def test_a_star_is_that_of_the_shell(pattern: str, name: str) -> None:
    assert MailboxPattern(pattern).matches(name) == fnmatch.fnmatchcase(name, pattern)


@given(st.text("ab%/", max_size=6), st.lists(st.text("ab", max_size=3), max_size=3))
def test_a_percent_sign_stays_within_a_level(pattern: str, levels: list[str]) -> None:
    name = "/".join(levels)
    wanted = pattern.split("/")
    same = len(wanted) == len(name.split("/"))
    each = zip(name.split("/"), wanted, strict=False)
    expected = same and all(fnmatch.fnmatchcase(level, part.replace("%", "*")) for level, part in each)
    assert MailboxPattern(pattern).matches(name) == expected


def test_many_wildcards_cost_no_more_than_others() -> None:
    started = time.process_time()
    assert not MailboxPattern("*a" * 400 + "b").matches("a" * 1_000)
    assert not MailboxPattern("%a" * 400 + "b").matches("a" * 1_000)
    assert time.process_time() - started < 1


def listed(line: str) -> list[str]:
    arguments = parse_command(f"t {line}".encode()).arguments
    assert isinstance(arguments, ListArguments)
    select = list_subscribed if line.startswith("LSUB") else list_mailboxes
    return [
        mailbox_list(one.attributes, one.name, child_info=one.child_info).decode()[7:-2]
        for one in select(arguments, MAILBOXES)
    ]


@pytest.mark.parametrize(
    ("line", "responses"),
    [
        (
            'LIST "" %',
            ['(\\HasNoChildren) "/" INBOX', '(\\HasNoChildren \\Sent) "/" Sent', '(\\Noselect \\HasChildren) "/" a'],
        ),
        ('LIST "" a/%', ['(\\Noselect \\HasChildren) "/" a/b', '(\\HasNoChildren) "/" a/d']),
        ("LIST a/ %", ['(\\Noselect \\HasChildren) "/" a/b', '(\\HasNoChildren) "/" a/d']),
        ('LIST "" inbox', ['(\\HasNoChildren) "/" INBOX']),
        ('LIST "" (a/d Sent)', ['(\\HasNoChildren \\Sent) "/" Sent', '(\\HasNoChildren) "/" a/d']),
        (
            'LIST (SUBSCRIBED) "" *',
            ['(\\Subscribed \\HasNoChildren) "/" a/b/c', '(\\NonExistent \\Subscribed \\HasNoChildren) "/" gone/x'],
        ),
        (
            'LIST (SUBSCRIBED RECURSIVEMATCH) "" %',
            [
                '(\\NonExistent \\HasChildren) "/" a ("CHILDINFO" ("SUBSCRIBED"))',
                '(\\NonExistent \\HasNoChildren) "/" gone ("CHILDINFO" ("SUBSCRIBED"))',
            ],
        ),
        ('LIST (SPECIAL-USE) "" *', ['(\\HasNoChildren \\Sent) "/" Sent']),
        (
            'LIST "" *b* RETURN (SUBSCRIBED)',
            [
                '(\\HasNoChildren) "/" INBOX',
                '(\\NonExistent \\HasChildren) "/" a/b',
                '(\\Subscribed \\HasNoChildren) "/" a/b/c',
            ],
        ),
        ('LSUB "" *', ['() "/" a/b/c', '(\\Noselect) "/" gone/x']),
        ('LSUB "" %', ['(\\Noselect) "/" a', '(\\Noselect) "/" gone']),
        ('LSUB "" a/%', ['(\\Noselect) "/" a/b']),
    ],
)
def test_list_returns_what_dovecot_returns(line: str, responses: list[str]) -> None:
    assert listed(line) == responses
