"""Generates the mails of the measurements, and Maildirs with them."""

from __future__ import annotations

import os
import pwd
import random
import shutil
from pathlib import Path

ADDRESS = "support@company.com"
"""Recipient address of the mails, with the display name Alex."""

_LINE_OCTETS = 76
_LETTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_TABLE = bytes(_LETTERS[octet & 63] for octet in range(256))
_MOST_RANDOM_LINES = 512


def mail(
    octets: int,
    number: int = 0,
    to: str = f'"Alex" <{ADDRESS}>',
    author: str = "Sender Name <sender@example.net>",
    message_id: str | None = None,
) -> bytes:
    """Return a mail of exactly ``octets``, with CRLF line ends; equal for equal numbers. No line begins with a dot.

    :param octets: at least 700. :param message_id: without angle brackets; None: a unique one.
    """
    chance = random.Random(number)
    message_id = message_id or f"{number}.{chance.getrandbits(32):08x}@example.net"
    header = "\r\n".join(
        (
            "Received: from mx.example.net (mx.example.net [192.0.2.1]) by mail.example.com; "
            "Thu, 02 Oct 2014 10:00:00 +0000",
            f"From: {author}",
            f"To: {to}",
            f"Subject: benchmark message {number}",
            f"Message-ID: <{message_id}>",
            "Date: Thu, 02 Oct 2014 10:00:00 +0000",
            "MIME-Version: 1.0",
            "Content-Type: text/plain; charset=us-ascii",
            "",
            "",
        )
    ).encode()
    full, rest = divmod(octets - len(header), _LINE_OCTETS + 2)
    if rest < 3 and full:
        full, rest = full - 1, rest + _LINE_OCTETS + 2
    lines = [chance.randbytes(_LINE_OCTETS).translate(_TABLE) + b"\r\n" for _ in range(min(full, _MOST_RANDOM_LINES))]
    return header + b"".join(lines[i % len(lines)] for i in range(full)) + b"x" * (rest - 2) + b"\r\n"


def fill_maildir(maildir: Path, count: int, octets: int) -> None:
    """Write a Maildir with mails 0 to ``count - 1`` as a delivery agent does: LF line ends, sizes in the names."""
    owner = pwd.getpwnam("mail")
    shutil.rmtree(maildir, ignore_errors=True)
    for folder in ("", "cur", "new", "tmp"):
        (maildir / folder).mkdir(parents=True, exist_ok=True)
        os.chown(maildir / folder, owner.pw_uid, owner.pw_gid)
    os.chown(maildir.parent, owner.pw_uid, owner.pw_gid)
    for number in range(count):
        body = mail(octets, number).replace(b"\r\n", b"\n")
        file = maildir / "cur" / f"14122{number:08d}.M{number}P1.host,S={len(body)},W={octets}:2,S"
        file.write_bytes(body)
        os.chown(file, owner.pw_uid, owner.pw_gid)
