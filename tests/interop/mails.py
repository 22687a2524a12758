"""The three mails that every program transfers, and their comparison with the mails that arrived."""

from __future__ import annotations

import base64
import email
import email.policy
import random
from dataclasses import dataclass
from email.message import EmailMessage

ATTACHMENT_OCTETS = 3_750_000
"""Size of the attachment: octets; with base64 a mail of 5 MB."""

KINDS = ("empty", "dots", "large")


@dataclass(frozen=True, slots=True)
class Letter:
    """A mail and its parts."""

    kind: str  # one of KINDS
    token: str  # unique text in the subject
    author: str
    recipients: tuple[str, ...]
    raw: bytes  # the whole mail, with CRLF line ends
    text: str  # of the body, with LF line ends
    attachment: bytes | None = None


def letter(kind: str, token: str, author: str, recipients: tuple[str, ...], to: str = "") -> Letter:
    """Make a mail. :param kind: one of KINDS. :param to: value of the To field; "": the recipients."""
    text, attachment = _CONTENT[kind]
    head = [
        f"From: {author}",
        f"To: {to or ', '.join(recipients)}",
        f"Subject: {kind} {token}",
        f"Message-ID: <{token}@interop.example>",
        "Date: Thu, 26 Nov 2026 10:00:00 +0000",
        "MIME-Version: 1.0",
    ]
    lines = text.splitlines()
    if attachment is None:
        head.append("Content-Type: text/plain; charset=us-ascii")
        body = lines
    else:
        head.append('Content-Type: multipart/mixed; boundary="=_interop"')
        body = ["--=_interop", "Content-Type: text/plain; charset=us-ascii", "", *lines, "--=_interop"]
        body += ["Content-Type: application/octet-stream", "Content-Transfer-Encoding: base64"]
        body += ['Content-Disposition: attachment; filename="large.bin"', ""]
        body += [*base64.encodebytes(attachment).decode().splitlines(), "--=_interop--"]
    raw = "".join(f"{line}\r\n" for line in [*head, "", *body]).encode()
    return Letter(kind, token, author, recipients, raw, text, attachment)


_CONTENT: dict[str, tuple[str, bytes | None]] = {
    "empty": ("", None),
    "dots": (".\n..\n...\n.leading dot\nand the end:\n.\n", None),
    "large": ("With an attachment.\n", random.Random("interop").randbytes(ATTACHMENT_OCTETS)),
}


def difference(sent: bytes, got: bytes) -> str:
    """Describe the first difference between two mails; "" if there is none.

    Line ends may differ, and a server may add fields to the header.
    """
    head, _, body = _lines(sent).partition(b"\n\n")
    got_head, _, got_body = _lines(got).partition(b"\n\n")
    if got_body != body:
        return f"the body differs; it has {len(got_body)} octets, expected {len(body)}"
    left = iter(got_head.split(b"\n"))
    missing = [line for line in head.split(b"\n") if line not in left]  # in this order, other lines may be between
    return f"the header lacks {missing[0]!r}" if missing else ""


def difference_in_content(letter: Letter, got: bytes) -> str:
    """Describe the first difference in text or attachment; "" if there is none. For clients that compose the mail."""
    mail = email.message_from_bytes(got, _class=EmailMessage, policy=email.policy.default)
    text, attachment = "", None
    for part in mail.walk():
        if part.get_filename() is not None:
            attachment = part.get_payload(decode=True)
        elif part.get_content_type() == "text/plain":
            text += part.get_content().replace("\r\n", "\n")
    if text.rstrip("\n") != letter.text.rstrip("\n"):
        return f"the text is {text[:60]!r}, expected {letter.text[:60]!r}"
    if attachment != letter.attachment:
        return "the attachment has other octets"
    return ""


def _lines(mail: bytes) -> bytes:
    return mail.replace(b"\r\n", b"\n")
