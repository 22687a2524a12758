"""services/sender/report_recipients.py: local addresses in read receipts and other reports."""

from __future__ import annotations

import base64

import pytest

from services.sender.report_recipients import RECIPIENTS, replaced_recipients, reported_recipients
from shared.mime.headers import header_end

PEOPLE = {"alex@local.com": ("Alex", "support@company.com"), "jim@local.com": ("Jim", "sales@company.com")}
HEADER = b"Content-Type: multipart/report; boundary=b; report-type=disposition-notification\r\n\r\n"
TEXT = b"--b\r\nContent-Type: text/plain\r\n\r\nFinal-Recipient: rfc822; alex@local.com was written here\r\n"
RECEIPT = (
    b"--b\r\nContent-Type: message/disposition-notification\r\n\r\nReporting-UA: pc.local.com; alex@local.com\r\n"
    b"Original-Recipient: rfc822;support@company.com\r\nFinal-Recipient: rfc822; Alex@Local.com\r\n"
    b"Original-Message-ID: <1@customer.org>\r\nDisposition: manual-action/MDN-sent-manually; displayed\r\n"
)
END = b"--b--\r\n"


def left(mail: bytes) -> bytes:
    end = header_end(mail)
    return mail[:end] + replaced_recipients(mail, end, reported_recipients(mail, end), PEOPLE)


def test_a_read_receipt_names_the_external_address_and_is_else_unchanged() -> None:
    mail = HEADER + TEXT + RECEIPT + END
    assert left(mail) == mail.replace(b"rfc822; Alex@Local.com", b"rfc822; support@company.com")


@pytest.mark.parametrize(
    ("old", "new", "address"),
    [
        (b"Alex@Local.com", b"jim@local.com", b"sales@company.com"),
        (b"Alex@Local.com", b"<alex@local.com>", b"<support@company.com>"),
        (b"rfc822; Alex@Local.com", b"rfc822;\r\n alex@local.com", b"support@company.com"),
        (b"rfc822; Alex@Local.com", b"utf-8; alex@local.com", b"support@company.com"),
        (b"rfc822; Alex@Local.com", b"alex@local.com", b"support@company.com"),
        (b"rfc822;support@company.com\r\nFinal", b"rfc822;jim@local.com\r\nFinal", b"sales@company.com"),
        (b"message/disposition", b"message/global-disposition", b"support@company.com"),
        (b"disposition-notification\r\n\r\nRep", b"delivery-status; a=b\r\nX: y\r\n\r\nRep", b"support@company.com"),
        (b"\r\n", b"\n", b"support@company.com"),
    ],
)
def test_every_form_of_a_report_is_read(old: bytes, new: bytes, address: bytes) -> None:
    mail = HEADER + TEXT + RECEIPT.replace(old, new) + END
    fields = left(mail).rpartition(b"Reporting-UA")[2]
    assert address in fields and fields.lower().count(b"@local.com") == 1  # in Reporting-UA


@pytest.mark.parametrize(
    "mail",
    [
        HEADER.replace(b"/report", b"/signed") + RECEIPT + END,
        HEADER + b"--b\r\nContent-Type: multipart/signed; boundary=c\r\n\r\n" + RECEIPT + END,
        HEADER + b"--b\r\nContent-Type: application/pkcs7-mime\r\n\r\n" + RECEIPT + END,
        HEADER + b"--b\r\n\r\n-----BEGIN PGP SIGNED MESSAGE-----\r\n" + RECEIPT + END,
        HEADER.replace(b"/report", b"/mixed") + RECEIPT + END,
        HEADER + TEXT + RECEIPT.replace(b"message/disp", b"text/disp") + END,
        HEADER + RECEIPT.replace(b"Alex@Local.com", b"ann@customer.org") + END,
        HEADER
        + b"--b\r\nContent-Transfer-Encoding: base64\r\nContent-Type: message/disposition-notification\r\n\r\n"
        + base64.encodebytes(b"Final-Recipient: rfc822; alex@local.com")
        + END,
        HEADER + b"--b\r\nContent-Type: message/disposition-notification",
        HEADER,
        b"",
    ],
)
def test_every_other_mail_leaves_as_it_is(mail: bytes) -> None:
    assert left(mail) == mail


def test_a_report_of_many_recipients_is_bounded() -> None:
    mail = HEADER + RECEIPT + b"Final-Recipient: rfc822; jim@local.com\r\n" * 1000 + END
    assert len(reported_recipients(mail, header_end(mail))) == RECIPIENTS


@pytest.mark.parametrize(
    "part", [b"Content-Type: message/delivery-status\n\n", b"\nFinal-Recipient:", b"\n--b", b"\n ", b";"]
)
def test_no_report_takes_long(part: bytes) -> None:
    mail = HEADER + RECEIPT + part * (300_000 // len(part))
    assert len(reported_recipients(mail, header_end(mail))) <= RECIPIENTS
