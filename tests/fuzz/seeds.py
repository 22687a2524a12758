"""Inputs to begin with: what the parsers' grammars are made of."""

from __future__ import annotations

import json
from pathlib import Path

_CASES = Path(__file__).parent.parent / "cases" / "to_headers.jsonl"

WORDS = [
    b"To: ", b"Cc: ", b"From: ", b"Sender: ", b"Reply-To: ", b"Message-ID: <a@b>", b"In-Reply-To: <a@b>",
    b"References: ", b"Bcc: ", b"Content-Type: multipart/report; boundary=x", b"--x", b"\r\n", b"\r\n\r\n", b"\n",
    b"\r", b"\0", b".\r\n", b"\r\n.\r\n", b"\n.\n", b"\r.\r", b"..", b'"', b"\\", b"(", b")", b"<", b">", b",", b";",
    b":", b"@", b"=?utf-8?q?Alex?=", b"=?utf-8?b?QWxleA==?=", b"=?", b"?=", b"support@company.com", b"alex@local.com",
    b"help@co.example", b"Alex", b"Jim", b"J\xc3\xb6rg", b"\xff", b"\xe2\x80\x8b", b" ", b"\t", b"FROM:", b"TO:",
    b"SIZE=1", b"SMTPUTF8", b"BODY=8BITMIME", b"%", b"!", b"[", b"]", b"+tag",
]  # fmt: skip


def seeds() -> list[bytes]:
    """The To headers of the examples, and some whole mails."""
    cases = [json.loads(line) for line in _CASES.read_text(encoding="utf-8").splitlines()]
    fields = [value.encode() for case in cases for value in (*case["to"], *case["cc"])]
    return [
        *fields,
        *(b"To: " + field + b"\r\nFrom: alex@local.com\r\n\r\nbody\r\n.\r\n" for field in fields),
        b"FROM:<alex@local.com> SIZE=10 BODY=8BITMIME SMTPUTF8",
        b"TO:<support+tag@company.com>",
        b"From: mailer-daemon@x\r\nContent-Type: multipart/report; boundary=x\r\n\r\n--x\r\n"
        b"Content-Type: text/rfc822-headers\r\n\r\nMessage-ID: <a@b>\r\n\r\n--x--\r\n",
    ]
