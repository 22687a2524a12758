"""Seed inputs for the fuzzer, and a dictionary of words from the grammars of the parsers."""

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
    b"SIZE=1", b"SMTPUTF8", b"BODY=8BITMIME", b"%", b"!", b"[", b"]", b"+tag", b"RET=FULL", b"ENVID=a", b"NOTIFY=NEVER",
    b"ORCPT=rfc822;a@b", b"\xef\xbb\xbf", b"=?iso-2022-jp?q?=1B$B|b=1B(B?=", b"=?x-no?q?Alex?=", b"\x1b$B",
    b"Content-Type: text/plain; charset=", b"shift_jis", b"iso-2022-jp", b"euc-jp", b"utf-7", b"Return-Path: <#@[]>",
    b"=?utf-8?q?=3Ca=40b=3E?=", b"From: MAILER-DAEMON@x", b"(support@company.com)", b"\xe2\x80\x99", b"&lt;a@b&gt;",
    b"MAIL ", b"RCPT ", b"DATA\r\n", b"RSET\r\n", b"QUIT\r\n", b"EHLO x\r\n", b"STARTTLS\r\n",
    b"AUTH PLAIN ", b"AUTH LOGIN\r\n", b"AGFsZXhAbG9jYWwuY29tAHNlY3JldA==", b"=\r\n", b"*\r\n", b"USER ",
    b"PASS secret\r\n", b"RETR 1\r\n", b"TOP 2 1\r\n", b"DELE 1\r\n",
    b"LIST", b"UIDL", b"STLS\r\n", b"CAPA\r\n", b"PROXY TCP4 1.2.3.4 ",
    b"* ", b"t5 OK done\r\n", b"t6 OK\r\n", b"t7 NO [UNAVAILABLE] x\r\n", b"t8 OK\r\n", b"t9 OK\r\n", b"* 1 FETCH (",
    b"UID 1 ", b"BODY[] ", b"{5}\r\n", b"~{3}\r\n", b"{0}\r\n", b"NIL", b"FLAGS (\\Seen)", b"* 4 EXISTS\r\n",
    b"a FETCH 1:* ", b"a UID ", b"a SEARCH ", b"a STORE 1 +FLAGS ", b"a APPEND x ", b"a LIST ", b"a SELECT ",
    b"{3+}\r\n", b"~{3+}\r\n", b"{99999+}\r\n", b"{9999999999999999999}\r\n", b"a IDLE\r\n", b"DONE\r\n",
    b"a SELECT INBOX\r\n", b"a APPEND INBOX {3}\r\n", b"a LOGIN {4+}\r\n", b"a UNSELECT\r\n", b"a STATUS INBOX (",
    b"a NOOP\r\n", b"a LOGOUT\r\n", b"a AUTHENTICATE PLAIN\r\n", b"a EXPUNGE\r\n", b"a THREAD REFERENCES UTF-8 ALL\r\n",
    b"BODY.PEEK[HEADER.FIELDS (", b"CHANGEDSINCE ", b"RETURN (", b"OR ", b"NOT ", b"CHARSET utf-8 ", b"&APw-",
    b"Content-Type: multipart/mixed; boundary=x\r\n\r\n", b"--x--\r\n", b"Content-Type: message/rfc822\r\n\r\n",
    b"Content-Transfer-Encoding: base64\r\n", b"Content-Disposition: attachment; filename*0*=", b"Subject: ",
    b"* BYE\r\n", b"+ \r\n", b"* LIST () \"/\" ", b"* SEARCH 1", b"[ALERT]",
]  # fmt: skip


def seeds() -> list[bytes]:
    """Return the To headers of the examples in tests/cases, and some whole mails and sessions."""
    cases = [json.loads(line) for line in _CASES.read_text(encoding="utf-8").splitlines()]
    fields = [value.encode() for case in cases for value in (*case["to"], *case["cc"])]
    return [
        *fields,
        *(b"To: " + field + b"\r\nFrom: alex@local.com\r\n\r\nbody\r\n.\r\n" for field in fields),
        b"FROM:<alex@local.com> SIZE=10 BODY=8BITMIME SMTPUTF8",
        b"TO:<support+tag@company.com>",
        b"\0EHLO x\r\nAUTH PLAIN \xff\r\nAUTH LOGIN \xfe\r\nMAIL FROM:<\xff>\r\nAUTH PLAIN\r\n\xff\r\n",
        b"\0EHLO x\r\nAUTH PLAIN AGFsZXhAbG9jYWwuY29tAHNlY3JldA==\r\nMAIL FROM:<alex@local.com>\r\n"
        b"RCPT TO:<jim@local.com>\r\nDATA\r\nSubject: x\r\n\r\n..\r\n.\r\nQUIT\r\n",
        b"\0USER alex@local.com\r\nPASS secret\r\nLIST\r\nUIDL 2\r\nTOP 2 1\r\nRETR 1\r\nDELE 1\r\nRSET\r\nDELE 2\r\n"
        b"QUIT\r\n",
        b'* 1 FETCH (UID 1 BODY[] {5}\r\na\nb\r\n)\r\nt5 OK\r\n* 7 EXISTS\r\n* 2 FETCH (BODY[] "x" UID 2)\r\nt6 OK\r\n'
        b"t7 NO [UNAVAILABLE] later\r\n* OK [UIDVALIDITY 7]\r\nt8 OK\r\nt9 OK\r\nt10 OK\r\n* BYE\r\nt11 OK\r\n",
        b'* LIST (\\Sent) "/" {4}\r\nSent\r\nt3 OK\r\n* 1 EXISTS\r\n* OK [UIDVALIDITY 7]\r\nt4 OK\r\nt5 OK\r\n'
        b"* SEARCH\r\nt6 OK\r\n* OK [UIDVALIDITY 7]\r\nt7 OK [READ-WRITE]\r\nt8 OK\r\n+ go on\r\nt9 OK\r\n",
        b"0a LOGIN {4+}\r\nalex {6+}\r\nsecret\r\nb SELECT INBOX (QRESYNC (1 2 3:4))\r\n"
        b"c FETCH 1:* (FLAGS BODY[1.MIME]<0.9>)\r\n"
        b'd SEARCH RETURN (ALL) OR (FROM "a" 1:3) NOT SINCE 1-Feb-1994\r\n'
        b"e APPEND x (\\Seen) {3+}\r\nabc\r\nf IDLE\r\n",
        b"8a UID STORE 1,5:* (UNCHANGEDSINCE 7) -FLAGS.SILENT (\\Deleted $x)\r\n"
        b'b LIST (SUBSCRIBED) "" (% *) RETURN (CHILDREN)\r\n'
        b'c UID MOVE $ "Entw\xc3\xbcrfe"\r\nd SORT (REVERSE DATE SUBJECT) utf-8 TEXT {3}\r\nxyz\r\n',
        b"\xffc FETCH 1:2 (FLAGS BODY[] BODY.PEEK[2.HEADER] BINARY[1])\r\nd SEARCH TEXT it\r\ne IDLE\r\nDONE\r\n"
        b"f APPEND INBOX (\\Seen) {3}\r\nabc\r\ng APPEND INBOX {9999+}\r\nabc",
        b'\x70b LIST "" * RETURN (STATUS (MESSAGES))\r\nc SELECT {5}\r\nINBOX (CONDSTORE)\r\nd NOOP {99999+}\r\n\0\r\n',
        b"Subject: Re: [x] y\r\nContent-Type: multipart/mixed; boundary=x\r\n\r\n"
        b"--x\r\nContent-Type: message/rfc822\r\n\r\n"
        b"From: G: Alex <alex@local.com>;\r\n\r\nalex\r\n--x\r\nContent-Type: text/html; charset=utf-8\r\n"
        b"Content-Transfer-Encoding: quoted-printable\r\n\r\n<b>=C3=BC</b>\r\n--x--\r\n",
        b"From: mailer-daemon@x\r\nContent-Type: multipart/report; boundary=x\r\n\r\n--x\r\n"
        b"Content-Type: text/rfc822-headers\r\n\r\nMessage-ID: <a@b>\r\n\r\n--x--\r\n",
    ]
