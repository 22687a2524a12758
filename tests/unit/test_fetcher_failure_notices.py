"""services/fetcher/failure_notices.py: the notice about a mail that could not be fetched."""

from __future__ import annotations

import datetime
import email
import email.policy

import pytest

from services.fetcher.failure_notices import compose_notice, first_received_date

NOW = datetime.datetime(2026, 5, 1, 12, tzinfo=datetime.UTC)
HEADER = (
    b"Received: from a by b;\r\n\tMon, 1 Jan 2024 10:00:00 +0100\r\n"
    b"Received: x; Tue, 2 Jan 2024 10:00:00 +0000\r\n"
    b'From: "Ann" <ann@c.test>\r\nTo: "Alex" <e@x.test>,\r\n "Jim" <e@x.test>\r\ncc: k@x.test\r\n'
    b"Subject: =?utf-8?q?gr=C3=B6=C3=9Fe?=\r\nDate: then\r\nReferences: <1@x>\r\n\r\n"
)


def test_a_notice_goes_to_the_mail_s_recipients_and_describes_it() -> None:
    raw, message_id = compose_notice("e@x.test", HEADER, 5000, "it is too large", NOW)
    notice = email.message_from_bytes(raw, policy=email.policy.default)
    assert b'To: "Alex" <e@x.test>,\r\n "Jim" <e@x.test>\r\ncc: k@x.test\r\n' in raw
    assert notice["References"] == "<1@x>" and notice["From"] == "mailgroup <e@x.test>"
    assert notice["Subject"] == "Mail not fetched: größe" and notice["Auto-Submitted"] == "auto-generated"
    assert notice["Message-ID"] == f"<{message_id}>"
    text = notice.get_content()
    for word in ('From: "Ann" <ann@c.test>', "Subject: größe", "Date: then", "Size: 5000 octets", "it is too large."):
        assert word in text
    assert raw.replace(b"\r\n", b"").count(b"\n") == 0


def test_without_a_header_it_goes_to_everyone_of_the_account() -> None:
    raw, _ = compose_notice("e@x.test", None, None, "it is broken", NOW)
    notice = email.message_from_bytes(raw, policy=email.policy.default)
    assert notice["To"] == "e@x.test" and "header could not be read" in notice.get_content()


def test_a_hostile_header_adds_no_field_and_no_size() -> None:
    header = b"To: a@b\r\nBcc: x\r\nSubject: =?utf-8?q?a=0D=0ABcc:_evil@c?=\r\nCc: " + b"a@b, " * 20_000 + b"\r\n\r\n"
    raw, _ = compose_notice("e@x.test", header, 1, "x", NOW)
    notice = email.message_from_bytes(raw, policy=email.policy.default)
    assert notice["Bcc"] is None and notice["Cc"] is None and notice["To"] == "a@b"
    assert len(raw) < 5000


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (HEADER, "2024-01-01T10:00:00+01:00"),
        (b"Received: x; 1 Jan 2024 10:00:00 -0000\r\n\r\n", "2024-01-01T10:00:00+00:00"),
        (b"Received: no date\r\n\r\n", None),
        (b"Received: x; Mon, 99 Foo 2024\r\n\r\n", None),
        (b"Received: x; 1 Jan 99999999999 10:00:00 +9999999999\r\n\r\n", None),
        (b"Subject: x\r\n\r\n", None),
        (b"", None),
    ],
)
def test_the_topmost_received_says_when_a_mail_arrived(header: bytes, expected: str | None) -> None:
    found = first_received_date(header)
    assert (None if found is None else found.isoformat()) == expected


def test_people_with_several_languages_get_a_text_in_each() -> None:
    reason = "it is larger than the 100 octets that are allowed"
    header = HEADER.replace(b"Date: then", b"Date: Fri, 1 May 2026 10:30:00 +0200")
    raw, _ = compose_notice("e@x.test", header, 5000, reason, NOW, ["de", "en", "de"])
    notice = email.message_from_bytes(raw, policy=email.policy.default)
    assert notice["Content-Language"] == "de, en"
    assert notice["Subject"] == "Mail nicht abgerufen / Mail not fetched: größe"
    german, english = notice.get_content().split("-- -- --")
    for words in (
        "Eine Mail im Postfach von e@x.test konnte nicht abgerufen werden:",
        "sie ist größer als die erlaubten 100 Byte.",
        "Betreff: größe",
        "Datum: 1. Mai 2026, 10:30 +0200",
        "Größe: 5000 Byte",
        "Sie bleibt beim Anbieter",
    ):
        assert words in german
    for words in (f"{reason}.", "Subject: größe", "Date: 2026-05-01 10:30 +0200", "It stays at the provider"):
        assert words in english


def test_people_with_one_language_get_one_text() -> None:
    raw, _ = compose_notice("e@x.test", None, None, "it is broken", NOW, ["de"])
    notice = email.message_from_bytes(raw, policy=email.policy.default)
    assert notice["Content-Language"] == "de" and notice["Subject"] == "Mail nicht abgerufen: (keine Angabe)"
    assert "Auch ihre Kopfzeilen konnten nicht gelesen werden." in notice.get_content()
    assert "stays" not in notice.get_content()
