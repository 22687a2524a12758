"""The three mails that everybody moves, and how what arrived is compared with what was sent."""

from __future__ import annotations

import base64
import email
import email.policy
import random
from dataclasses import dataclass
from email.message import EmailMessage

ATTACHMENT_OCTETS = 3_750_000
"""In base64 that makes a mail of 5 MB."""

KINDS = ("empty", "dots", "large")


@dataclass(frozen=True, slots=True)
class Letter:
    """A mail and what it consists of. raw: with CRLF line ends. token: in the subject, of this letter alone.

    text: of the body, with LF line ends. attachment: the octets of the one attachment, if it has one.
    """

    kind: str
    token: str
    author: str
    recipients: tuple[str, ...]
    raw: bytes
    text: str
    attachment: bytes | None = None


def letter(kind: str, token: str, author: str, recipients: tuple[str, ...], to: str = "") -> Letter:
    """:param kind: one of KINDS. :param to: the To field, if it is not the recipients."""
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
    """What was changed on the way, in words; empty if nothing was.

    Line ends are those of the place where a mail lies. A server may add fields to the header.
    """
    head, _, body = _lines(sent).partition(b"\n\n")
    got_head, _, got_body = _lines(got).partition(b"\n\n")
    if got_body != body:
        return f"the body has {len(got_body)} octets instead of {len(body)}, or others"
    left = iter(got_head.split(b"\n"))
    missing = [line for line in head.split(b"\n") if line not in left]  # in this order, with others between
    return f"the header lacks {missing[0]!r}" if missing else ""


def difference_in_content(letter: Letter, got: bytes) -> str:
    """For clients that write a mail themselves: what became of its text and its attachment; empty if all is well."""
    mail = email.message_from_bytes(got, _class=EmailMessage, policy=email.policy.default)
    text, attachment = "", None
    for part in mail.walk():
        if part.get_filename() is not None:
            attachment = part.get_payload(decode=True)
        elif part.get_content_type() == "text/plain":
            text += part.get_content().replace("\r\n", "\n")
    if text.rstrip("\n") != letter.text.rstrip("\n"):
        return f"the text is {text[:60]!r} instead of {letter.text[:60]!r}"
    if attachment != letter.attachment:
        return "the attachment has other octets"
    return ""


def _lines(mail: bytes) -> bytes:
    return mail.replace(b"\r\n", b"\n")
