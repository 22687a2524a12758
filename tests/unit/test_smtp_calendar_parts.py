"""services/smtp_in/calendar_parts.py: organizers of invitations."""

from __future__ import annotations

import base64
import quopri
import time

import pytest

from services.smtp_in.calendar_parts import SEARCHED_OCTETS, local_organizers

LOCALS = {"alex@local.com", "jim@local.com"}
EVENT = b'BEGIN:VCALENDAR\r\nORGANIZER;CN="Alex: A":mailto:Alex@local.com\r\nATTENDEE:mailto:jim@local.com\r\n'


def mixed(fields: bytes, text: bytes) -> bytes:
    return (
        b"Subject: x\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nORGANIZER:mailto:jim@local.com\r\n"
        b"--b\r\n" + fields + b"\r\n\r\n" + text + b"\r\n--b--\r\n"
    )


@pytest.mark.parametrize(
    "mail",
    [
        b"Content-Type: text/calendar\r\n\r\n" + EVENT,
        mixed(b"Content-Type: text/calendar; method=REQUEST", EVENT),
        mixed(b"content-type:\r\n TEXT/Calendar", EVENT.replace(b"Alex@local", b"Alex@\r\n local")),
        mixed(b"Content-Type: text/calendar\r\nContent-Transfer-Encoding: base64", base64.encodebytes(EVENT)),
        mixed(b"Content-Transfer-Encoding: BASE64\r\nContent-Type: text/calendar", base64.encodebytes(EVENT + b"x")),
        mixed(b"Content-Type: text/calendar\r\nContent-Transfer-Encoding: base64", base64.encodebytes(EVENT)[:-9]),
        mixed(
            b"Content-Transfer-Encoding: quoted-printable\r\nContent-Type: text/calendar", quopri.encodestring(EVENT)
        ),
        mixed(b"Content-Type: text/calendar", EVENT.replace(b"\r\n", b"\n")),
    ],
)
def test_a_local_organizer_of_an_invitation_is_found(mail: bytes) -> None:
    assert local_organizers(mail, LOCALS) == ["alex@local.com"]


@pytest.mark.parametrize(
    "mail",
    [
        mixed(b"Content-Type: text/calendar", EVENT.replace(b"Alex@local.com", b"support@company.com")),
        mixed(b"Content-Type: text/plain", EVENT),
        b"Subject: text/calendar\r\n\r\n" + EVENT,
        mixed(b"Content-Type: text/calendar\r\nContent-Transfer-Encoding: base64", b"=-="),
        b"",
    ],
)
def test_any_other_mail_names_no_local_organizer(mail: bytes) -> None:
    assert local_organizers(mail, LOCALS) == []


@pytest.mark.parametrize("part", [b"Content-Type: text/calendar\r\n", b"\nOrganizer:", b"mailto:", b"\r\n\r\n--", b" "])
def test_the_time_for_an_invitation_is_bounded(part: bytes) -> None:
    many = part * (SEARCHED_OCTETS // len(part))
    for mail in (many, mixed(b"Content-Type: text/calendar", many)[:SEARCHED_OCTETS]):
        started_at = time.process_time()
        local_organizers(mail, LOCALS)
        assert time.process_time() - started_at < 0.5
