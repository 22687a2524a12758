"""services/smtp_in/sender_policy.py: which sender addresses an author may use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from services.smtp_in import sender_policy
from services.smtp_in.data_reader import DataReader, Values
from services.smtp_in.sender_policy import check_envelope, check_header, redirected_id, valid_message_id
from tests.unit.test_smtp_recipient_policy import ALEX, OFFICE

END = b"Subject: x\r\n\r\n"


def values_of(header: bytes) -> Values:
    """As they are read from a mail."""
    mail = DataReader(1_000_000)
    mail.feed(header + b".\r\n")
    return mail.values


@pytest.mark.parametrize(
    "address", ["alex@local.com", "A.Smith@local.com", "support@company.com", "HELP@company.com", ""]
)
def test_mail_from_may_be_an_own_address_the_external_one_or_empty(address: str) -> None:
    assert check_envelope(OFFICE, ALEX, address) is None


@pytest.mark.parametrize("address", ["jim@local.com", "sales@company.com", "kim@company.com", "ceo@example.com"])
def test_mail_from_with_another_person_s_address_is_refused(address: str) -> None:
    assert str(check_envelope(OFFICE, ALEX, address)).startswith("550 5.7.1")


@pytest.mark.parametrize(
    "header",
    [
        b"From: alex@local.com\r\n",
        b'From: "Alex, S" <A.SMITH@local.com>\r\n',
        b"From : support@company.com\r\n",
        b"FROM:\r\n =?utf-8?q?Alex=0ABcc=3A_x?=\r\n <help@company.com>\r\n",
        b"From: alex@local.com (Alex @ work)\r\n",
        b"From: alex@local.com, support@company.com\r\n",
        b"To: x@example.com\r\n",
        b"",
        b"Sender: assistant@example.com\r\nFrom: alex@local.com\r\n",
        b"Sender: support@company.com\r\n",
        b"From: alex@local.com\r\nX-From: ceo@example.com\r\n",
        b"From: support@company.com <alex@local.com>\r\n",
        b'From: "ceo@example.com" <alex@local.com> (for jim@local.com)\r\n',
    ],
)
def test_a_header_with_an_own_address_is_accepted(header: bytes) -> None:
    assert check_header(OFFICE, ALEX, values_of(header + END)) is None


@pytest.mark.parametrize(
    ("header", "code"),
    [
        (b"From: jim@local.com\r\n", "550 5.7.1"),
        (b"From : ceo@example.com\r\n", "550 5.7.1"),
        (b"From: sales@company.com\r\n", "550 5.7.1"),
        (b'From: "alex@local.com" <ceo@example.com>\r\n', "550 5.7.1"),
        (b"From: alex@local.com, ceo@example.com\r\n", "550 5.7.1"),
        (b"From: <alex@local.com> <ceo@example.com>\r\n", "550 5.7.1"),
        (b"From: alex@local.com\r\nFrom: alex@local.com\r\n", "550 5.7.1"),
        (b"From: alex@local.com\r\nfrom : ceo@example.com\r\n", "550 5.7.1"),
        (b"From: Alex\r\n", "550 5.6.0"),
        (b"From:\r\n", "550 5.6.0"),
        (b"From: undisclosed:;\r\n", "550 5.6.0"),
        (b"From: @@@\r\n", "550 5.6.0"),
        (b'From: <[9;;::"x: alex@local.com\r\n', "550 5.6.0"),  # others would read another mailbox in it
        (b"From: a; alex@local.com\r\n", "550 5.6.0"),
        (b"From: jim@local.com <alex@local.com>\r\n", "550 5.7.1"),  # some programs read the name as address
        (b"From: <alex@local.com> jim@local.com\r\n", "550 5.7.1"),
        (b"From: (<alex@local.com> jim@local.com\r\n", "550 5.7.1"),
        (b"From: alex@local.com\r\nSender: jim@local.com\r\n", "550 5.7.1"),
    ],
)
def test_a_header_with_another_person_s_address_is_refused(header: bytes, code: str) -> None:
    assert str(check_header(OFFICE, ALEX, values_of(header + END))).startswith(code)


@pytest.mark.parametrize(
    ("field", "id_"),
    [
        (b"Message-ID: <1.2@example.com>\r\n", "1.2@example.com"),
        (b"message-id:\r\n <1@b>\r\n", "1@b"),
        (b"Message-ID: <" + b"x" * 500 + b"@b>\r\n", None),
        (b"Message-ID: 1@b\r\n", None),
        (b"Message-ID: <>\r\n", None),
        (b"Message-ID: <1 2@b>\r\n", None),
        (b"Message-ID: <1@b> <2@b>\r\n", None),
        (b"Message-ID: <12>\r\n", None),
        (b"Message-ID: <1@b>\r\nMessage-ID: <2@b>\r\n", None),
        (b"Message-ID: <[>\r\n", None),
        (b"", None),
        (b"Message-ID: <\xe9@b>\r\n", None),
        (b"Message-ID: <1@b@c>\r\n", None),
    ],
)
def test_a_message_id_counts_only_if_it_is_well_formed(field: bytes, id_: str | None) -> None:
    assert valid_message_id(values_of(field + END)) == id_


def test_a_mail_in_a_loop_is_refused() -> None:
    hop = b"Received: from a.example by b.example; Thu, 1 Jan 2026 00:00:00 +0000\r\n"
    assert check_header(OFFICE, ALEX, values_of(50 * hop + END)) is None
    assert str(check_header(OFFICE, ALEX, values_of(51 * hop + END))).startswith("554 5.4.6")


@pytest.mark.parametrize(
    "header",
    [
        b"From: " + b"alex@local.com, " * 60_000,
        b"From: " + b"(" * 1_000_000,
        b"From: alex@local.com\r\n" + b"Sender: a@xn--e1afmkfd.xn--p1ai\r\n" * 9_000,
        b"From: alex@local.com\r\nMessage-ID:" + b" " * 500_000 + b"<1@local.com>" + b" " * 500_000,
    ],
    ids=["mailboxes", "comments", "senders", "message-id"],
)
def test_a_long_header_is_not_parsed(header: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = 0

    def counting(parse: Callable[[bytes], list[Any]]) -> Callable[[bytes], list[Any]]:
        def count(value: bytes) -> list[Any]:
            nonlocal parsed
            parsed += len(value)
            return parse(value)

        return count

    for name in ("mailboxes", "message_ids"):
        monkeypatch.setattr(sender_policy, name, counting(getattr(sender_policy, name)))
    mail = DataReader(2_000_000)
    mail.feed(header + b"\r\n\r\n.\r\n")
    assert mail.ended and mail.refusal is None

    refusal = check_header(OFFICE, ALEX, mail.values)

    assert refusal is None or str(refusal).startswith("550 5.6.0")
    assert refusal is not None or valid_message_id(mail.values) is None
    assert parsed <= 2 * sender_policy.ORIGINATOR_OCTETS


REDIRECT = b"Message-ID: <1@customer.org>\r\nFrom: Ann <ann@customer.org>\r\n"


@pytest.mark.parametrize("resent", [b"alex@local.com", b'"Alex" <A.Smith@local.com>', b"support@company.com"])
def test_a_received_mail_may_be_redirected_by_its_recipient(resent: bytes) -> None:
    header = values_of(b"Resent-From: " + resent + b"\r\n" + REDIRECT + END)
    assert check_header(OFFICE, ALEX, header) is None
    assert redirected_id(OFFICE, ALEX, header) == "1@customer.org"


@pytest.mark.parametrize(
    "header",
    [
        b"Resent-From: jim@local.com\r\n" + REDIRECT,
        b"Resent-From: alex@local.com, jim@local.com\r\n" + REDIRECT,
        b"Resent-From: alex@local.com\r\nResent-From: ann@customer.org\r\n" + REDIRECT,
        b"Resent-From: Alex\r\n" + REDIRECT,
        b"Resent-From: alex@local.com\r\nFrom: ann@customer.org\r\n",
        b"Resent-From: alex@local.com\r\n" + REDIRECT.replace(b"ann@customer.org", b"jim@local.com"),
        b"Resent-From: alex@local.com\r\n" + REDIRECT.replace(b"ann@customer.org", b"gone@local.com"),
        b"Resent-From: alex@local.com\r\n" + REDIRECT.replace(b"ann@customer.org", b"sales@company.com"),
        b"Resent-From: alex@local.com\r\n" + REDIRECT.replace(b"<ann", b"<jim@local.com>, <ann"),
    ],
)
def test_another_redirect_is_refused_with_what_to_do_instead(header: bytes) -> None:
    refusal = check_header(OFFICE, ALEX, values_of(header + END))
    assert str(refusal).startswith("550 5.7.1") and "forward it instead" in str(refusal)


def test_an_own_mail_that_is_sent_again_is_no_redirect_of_another() -> None:
    header = values_of(b"Resent-From: alex@local.com\r\nFrom: alex@local.com\r\nMessage-ID: <1@local.com>\r\n" + END)
    assert check_header(OFFICE, ALEX, header) is None and redirected_id(OFFICE, ALEX, header) is None
    other = values_of(b"Resent-From: jim@local.com\r\nFrom: alex@local.com\r\n" + END)
    assert str(check_header(OFFICE, ALEX, other)).startswith("550 5.7.1 Resent-From")
