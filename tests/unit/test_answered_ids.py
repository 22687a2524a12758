"""Ids of mails that an answer or a notice names, in the forms that programs really write."""

from __future__ import annotations

import email.policy
from email.message import EmailMessage

import pytest

from shared import routing
from shared.db.database import storable
from shared.mime.headers import message_ids
from tests.unit.test_routing import ALEX, EVERYONE, SENT, E, decide, external, mail, outcome, people, sent

LONG = "alex-" + "0123456789abcdef." * 5 + "x_y=z@mail.company.com"
KNOWN = SENT | sent(LONG, ALEX)


@pytest.mark.parametrize(
    "value",
    [
        "=?utf-8?q?=3Calex-1=40company=2Ecom=3E?=",
        "=?us-ascii?Q?<alex-1@company.com>?=",
        "=?utf-8?b?PGFsZXgtMUBjb21wYW55LmNvbT4=?=",
        "=?utf-8?q?=3Calex-1?= =?utf-8?q?=40company=2Ecom=3E?=",
        "=?utf-8?q?=3Calex-1?=\r\n =?utf-8?q?=40company=2Ecom=3E?=",
        "=?utf-8?q?=3Calex-1?=\r\n\t=?utf-8?b?QGNvbXBhbnkuY29tPg==?=",
        "=?utf-8?q?alex-1=40company=2Ecom?=",
        "<=?utf-8?q?alex-1=40company=2Ecom?=>",
        "<=?utf-8?q?alex-1?=@company.com>",
        "<alex-1@=?utf-8?q?company=2Ecom?=>",
        "=?x-no-such?q?=3Calex-1=40company=2Ecom=3E?=",
        "Your mail =?utf-8?q?=3Calex-1=40company=2Ecom=3E?=",
        "alex-1@company.com",
        "<alex-1@\r\n company.com>",
    ],
)
@pytest.mark.parametrize("field", ["In-Reply-To", "References"])
def test_an_id_in_encoded_words_names_the_mail(field: str, value: str) -> None:
    assert outcome(decide(mail(f"To: {E}", f"{field}: {value}"), external(), people(), KNOWN)) == (3, {ALEX})


@pytest.mark.parametrize(
    "policy", [email.policy.default, email.policy.SMTP, email.policy.SMTP.clone(max_line_length=40)]
)
@pytest.mark.parametrize("field", ["In-Reply-To", "References"])
def test_an_answer_that_pythons_library_wrote_reaches_the_author(field: str, policy: email.policy.EmailPolicy) -> None:
    # given an id that is too long for a line of the library
    answer = EmailMessage(policy=policy)
    answer["To"] = E
    answer[field] = f"<{LONG}>"
    answer.set_content("Hello")
    written = answer.as_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    assert LONG.encode() not in written
    # then
    assert outcome(decide(written, external(), people(), KNOWN)) == (3, {ALEX})


def test_several_ids_in_encoded_words_are_read_in_order() -> None:
    assert message_ids(b"=?utf-8?q?=3Ca=40b=3E?= =?utf-8?q?=3Cc=40d=3E?= <e@f> =?utf-8?q?=3Cg=40h=3E?=") == [
        "a@b",
        "c@d",
        "e@f",
        "g@h",
    ]


@pytest.mark.parametrize("value", ["=?utf-8?q?=3Calex-1=40company=2Ecom?=@x>", "=?utf-8?q?alex-1?= company.com"])
def test_a_broken_encoded_id_names_no_mail(value: str) -> None:
    assert outcome(decide(mail(f"To: {E}", f"In-Reply-To: {value}"), external(), people(), KNOWN)) == (5, EVERYONE)


@pytest.mark.parametrize(
    "line",
    [
        "Message-ID: =?utf-8?q?=3Calex-1=40company=2Ecom=3E?=",
        "> Message-ID: =?utf-8?q?=3Calex-1?=",
        "Message-Id:\r\n =?utf-8?q?=3Calex-1?=",
    ],
)
def test_an_encoded_id_in_a_bounce_names_the_mail(line: str) -> None:
    rest = "" if "40company" in line else "\r\n =?utf-8?q?=40company=2Ecom=3E?="
    bounce = mail(f"To: {E}", "Return-Path: <>", "", "This is a copy:", line + rest)
    assert outcome(decide(bounce, external(), people(), KNOWN)) == (4, {ALEX})


# ---------------------------------------------------------------------------------------------- bounces in plain text

QMAIL = "Hi. This is the qmail-send program.\r\n--- Below this line is a copy of the message.\r\n\r\n"


@pytest.mark.parametrize(
    "lines",
    [
        ["Return-Path: <>"],
        ["Return-Path:"],
        ["Return-Path: <MAILER-DAEMON>"],
        ["Return-Path: MAILER-DAEMON"],
        ["Return-Path: <Mailer-Daemon@mx.example>"],
        ["Return-Path: <#@[]>"],
        ["From: MAILER-DAEMON@mx.example"],
        ["From: Mail Delivery Subsystem <mailer-daemon@mx.example>"],
        ["From: Mail Delivery System <noreply@mx.example>"],
        ["From: MAILER-DAEMON (Mail Delivery System)"],
        ['From: "Postmaster" <postmaster@mx.example>'],
        ["From: MDaemon@mx.example", "Return-Path: <bounces@mx.example>"],
        ["From: Microsoft Exchange <MicrosoftExchange329e71ec88ae4615bbc36ab6ce41109e@customer.example>"],
    ],
)
@pytest.mark.parametrize(
    "quoted",
    [
        "Message-ID: <alex-1@company.com>",
        "> Message-Id: <alex-1@company.com>",
        "Your message <alex-1@company.com> to <gone@x.example> was not delivered.",
        "| id=<alex-1@company.com>",
    ],
)
def test_a_bounce_that_quotes_an_id_reaches_the_author(lines: list[str], quoted: str) -> None:
    bounce = mail(f"To: {E}", *lines, "Subject: failure notice", body=QMAIL + quoted)
    assert outcome(decide(bounce, external(), people(), KNOWN)) == (4, {ALEX})


def test_an_id_in_the_text_of_a_bounce_is_one_that_postgresql_can_look_up() -> None:
    lines = [f"To: {E}".encode(), b"Return-Path: <>", b"", b"failed: <a\0b@c.d> <\xff@c.d> <\xed\xa0\x80@c.d>"]
    asked = routing.referenced_ids(routing.read_facts(b"\r\n".join(lines), external()))
    assert "ab@c.d" in asked and len(asked) == 3
    assert all(storable(message_id) == message_id for message_id in asked)


def test_a_bounce_in_html_reaches_the_author() -> None:
    lines = [f"To: {E}", "From: postmaster@mx.example", "Content-Type: text/html"]
    bounce = mail(*lines, body="<p>Undeliverable: &lt;alex-1@company.com&gt;</p>")
    assert outcome(decide(bounce, external(), people(), KNOWN)) == (4, {ALEX})


@pytest.mark.parametrize(
    ("lines", "body"),
    [
        # no id of ours
        (["Return-Path: <MAILER-DAEMON>"], QMAIL + "Message-ID: <unknown@company.com>"),
        (["Return-Path: <#@[]>"], "for <gone@x.example>"),
        # no bounce: a customer who quotes a header
        (["Return-Path: <anna@x.example>", "From: anna@x.example"], "Message-ID: <alex-1@company.com>"),
        (["From: Mailer Daemonsson <m@x.example>"], "Message-ID: <alex-1@company.com>"),
        (["From: postmasters@x.example"], "Message-ID: <alex-1@company.com>"),
        (["From: anna@postmaster.example"], "Message-ID: <alex-1@company.com>"),
    ],
)
def test_other_mail_that_quotes_an_id_is_for_everybody(lines: list[str], body: str) -> None:
    assert outcome(decide(mail(f"To: {E}", *lines, body=body), external(), people(), KNOWN)) == (5, EVERYONE)


# ---------------------------------------------------------------------------------------------- a byte order mark

BOM = "\ufeff"


@pytest.mark.parametrize(
    ("lines", "rule"),
    [
        ([f"{BOM}To: Alex <{E}>"], 1),
        ([f"{BOM}To : Alex <{E}>", "Subject: x"], 1),
        ([f"{BOM}Cc: Alex <{E}>"], 2),
        ([f"{BOM}In-Reply-To: <alex-1@company.com>", f"To: {E}"], 3),
        ([f"{BOM}Return-Path: <>", f"To: {E}", "", "Message-ID: <alex-1@company.com>"], 4),
        ([f"{BOM}From x@y.example Mon Nov 30 10:00:00 2026", f"To: Alex <{E}>"], 1),
        ([f"{BOM}X-First: y", f"To: Alex <{E}>"], 1),
    ],
)
def test_a_byte_order_mark_hides_no_field(lines: list[str], rule: int) -> None:
    assert outcome(decide(mail(*lines), external(), people(), KNOWN)) == (rule, {ALEX})
