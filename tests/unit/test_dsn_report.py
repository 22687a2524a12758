"""Notices of failure and delay (services/sender/dsn_report.py, RFC 3464)."""

from __future__ import annotations

import datetime
import email
import email.message
import email.policy
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.sender.dsn_report import Original, RecipientStatus, build_report
from shared.mime.dsn_options import Action

NOW = datetime.datetime(2026, 11, 3, 9, 30, tzinfo=datetime.UTC)
HEADER = (
    b"From: Alex <alex@local.com>\r\nTo: ann@customer.org\r\nSubject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\n"
    b"Message-ID: <m@local>\r\n\r\n"
)
ORIGINAL = Original("alex@local.com", HEADER, NOW - datetime.timedelta(hours=1))
UNKNOWN = RecipientStatus("ann@customer.org", "5.1.1", "550 5.1.1 User unknown", "smtp.company.com")
LATE = RecipientStatus(
    "bob@customer.org", "4.4.7", "not delivered within five days; the last problem was: no such host"
)


def parsed(body: bytes) -> email.message.EmailMessage:
    return email.message_from_bytes(body, policy=email.policy.SMTP)


def test_a_failure_notice_is_a_report_about_each_recipient() -> None:
    # when two recipients have failed
    notice = build_report("failed", ORIGINAL, [UNKNOWN, LATE], NOW)
    mail = parsed(notice.body)
    # then MAILER-DAEMON sends it, it refers to the mail, and no program may answer it
    assert notice.body.startswith(b'From: "Mail Delivery" <mailer-daemon@local.com>\r\nTo: <alex@local.com>\r\n')
    assert mail["Auto-Submitted"] == "auto-replied"
    assert mail["Subject"] == "Mail not delivered: ann@customer.org and 1 more"
    assert (mail["In-Reply-To"], mail["References"]) == ("<m@local>", "<m@local>")
    assert mail["Message-ID"] == f"<{notice.message_id}>"
    # and is a report in three parts
    assert mail.get_content_type() == "multipart/report"
    assert mail.get_param("report-type") == "delivery-status"
    text, status, returned = cast("list[email.message.EmailMessage]", mail.get_payload())
    assert "ann@customer.org" in text.get_content() and "Subject of your mail: Grüße" in text.get_content()
    message, ann, bob = cast("list[email.message.Message]", status.get_payload())
    assert message["Reporting-MTA"] == "dns; local.com"
    assert message["Arrival-Date"] == "Tue, 03 Nov 2026 08:30:00 +0000"
    assert ann.items() == [
        ("Final-Recipient", "rfc822; ann@customer.org"),
        ("Action", "failed"),
        ("Status", "5.1.1"),
        ("Remote-MTA", "dns; smtp.company.com"),
        ("Diagnostic-Code", "smtp; 550 5.1.1 User unknown"),
    ]
    assert (bob["Status"], bob["Remote-MTA"]) == ("4.4.7", None)
    assert bob["Diagnostic-Code"].startswith("x-mailgroup; not delivered within five days")
    # and the original's header is there, byte for byte
    assert returned.get_content_type() == "text/rfc822-headers"
    assert HEADER.rstrip(b"\r\n") in notice.body


def test_a_delay_notice_says_that_nothing_needs_to_be_done() -> None:
    mail = parsed(build_report("delayed", ORIGINAL, [UNKNOWN], NOW).body)
    text, status, _ = cast("list[email.message.EmailMessage]", mail.get_payload())
    assert mail["Subject"] == "Mail delayed: ann@customer.org"
    assert "Nothing needs to be done" in text.get_content()
    assert cast("list[email.message.Message]", status.get_payload())[1]["Action"] == "delayed"


def test_the_text_of_a_notice_is_in_the_author_s_language() -> None:
    # when two recipients of an author who reads German have failed
    body = build_report("failed", ORIGINAL, [UNKNOWN, LATE], NOW, "de").body
    mail = parsed(body)
    text, status, _ = cast("list[email.message.EmailMessage]", mail.get_payload())
    # then subject and text are German, our own reason too, and the provider's reply is unchanged
    assert mail["Subject"] == "Mail nicht zugestellt: ann@customer.org und 1 weitere"
    assert text["Content-Language"] == "de"
    for words in (
        "Ihre Mail konnte den folgenden Empfängern nicht zugestellt werden.",
        "550 5.1.1 User unknown",
        "nicht innerhalb von fünf Tagen zugestellt; das letzte Problem war: no such host",
        "Betreff Ihrer Mail: Grüße",
    ):
        assert words in text.get_content()
    # and what programs read is as always
    bob = cast("list[email.message.Message]", status.get_payload())[2]
    assert bob["Diagnostic-Code"].startswith("x-mailgroup; not delivered within five days")


@pytest.mark.parametrize(
    ("action", "subject"),
    [
        ("delayed", "Mail verzögert: ann@customer.org"),
        ("delivered", "Mail zugestellt: ann@customer.org"),
        ("relayed", "Mail weitergegeben: ann@customer.org"),
    ],
)
def test_each_kind_of_notice_is_translated(action: Action, subject: str) -> None:
    body = build_report(action, ORIGINAL, [UNKNOWN], NOW, "de").body
    assert parsed(body)["Subject"] == subject and body.partition(b"\r\n\r\n")[0].isascii()
    assert max(map(len, body.split(b"\r\n"))) < 998


def test_a_recipient_beyond_ascii_is_named_as_in_rfc_6533() -> None:
    body = build_report("failed", ORIGINAL, [RecipientStatus("jörg@customer.org", "5.6.7", "553 5.6.7 ä")], NOW).body
    assert "Final-Recipient: utf-8; jörg@customer.org\r\n".encode() in body
    assert b"Diagnostic-Code: smtp; 553 5.6.7 ?\r\n" in body


anything = st.text(alphabet=st.sampled_from("a\r\n\0\t: @.ü\u2028\ud800-"), max_size=30)


@given(anything, anything, anything, st.binary(max_size=60))
def test_no_text_from_outside_begins_a_line_or_a_part(address: str, reply: str, author: str, header: bytes) -> None:
    # given any text where there should be addresses and replies
    body = build_report(
        "failed", Original(f"{author}@local.com", header, NOW), [RecipientStatus(address, "5.0.0", reply)], NOW
    ).body
    # then the notice still has three parts, known fields, and CRLF line ends only
    mail = parsed(body)
    assert len(mail.get_payload()) == 3
    assert len(mail.keys()) == len(set(mail.keys())) <= 11
    assert body.count(b"\r\n") == body.count(b"\r") == body.count(b"\n")
