"""Mails whose structure is compared with that of other servers: ordinary ones, and some that are odd."""

from __future__ import annotations

_HEAD = "From: Anna <anna@customer.example>\nTo: support@company.com\nSubject: %s\nMessage-ID: <1@x>\n"
_HEAD += "Date: Thu, 26 Nov 2026 10:00:00 +0000\nMIME-Version: 1.0\n"


def _mail(text: str, subject: str = "x") -> bytes:
    return (_HEAD % subject + text).replace("\n", "\r\n").encode("utf-8", "surrogateescape")


def _raw(text: str) -> bytes:
    return text.replace("\n", "\r\n").encode("utf-8", "surrogateescape")


_ALTERNATIVE = """--in
Content-Type: text/plain; charset=utf-8
Content-Transfer-Encoding: quoted-printable

Gr=C3=BC=C3=9Fe,=20
Anna
--in
Content-Type: text/html; charset="utf-8"
Content-Transfer-Encoding: 7bit

<p>Hello <b>World</b></p>

--in--
"""
_INNER = """From: "Jim" <jim@local.com>
To: anna@customer.example, bob@customer.example
Subject: =?utf-8?q?inner?=
Date: Wed, 25 Nov 2026 10:00:00 +0000
Message-ID: <inner@x>

"""

MAILS: dict[str, bytes] = {
    "plain": _mail("\nHello\nWorld\n"),
    "no line end": _mail("\nHello"),
    "no body": _mail("\n"),
    "header only": _mail(""),
    "latin": _mail('Content-Type: TEXT/Plain; CHARSET="ISO-8859-1"; format=flowed\n\nHello\n'),
    "html alone": _mail(
        "Content-Type: text/html\nContent-Transfer-Encoding: BASE64\nContent-Language: de, en\n\nPHA+\n"
    ),
    "alternative": _mail("Content-Type: multipart/alternative; boundary=in\n\npreamble\n" + _ALTERNATIVE),
    "mixed": _mail(
        'Content-Type: multipart/mixed; boundary="=_out"\n\n--=_out\nContent-Type: multipart/alternative;\n'
        "\tboundary=in\n\n" + _ALTERNATIVE + '\n--=_out\nContent-Type: application/pdf;\n name="a b.pdf"\n'
        'Content-Disposition: attachment;\n filename="a b.pdf"; size=5\nContent-Transfer-Encoding: base64\n'
        "Content-ID: <part@x>\nContent-Description: A file\nContent-MD5: Q2hlY2s=\nContent-Location: http://x/y\n\n"
        "SGVsbG8=\n--=_out--\nepilogue\n"
    ),
    "forwarded": _mail(
        "Content-Type: multipart/mixed; boundary=out\n\n--out\n\nSee below.\n--out\nContent-Type: message/rfc822\n"
        "Content-Disposition: inline\n\n" + _INNER + "inner text\nof two lines\n\n--out--\n"
    ),
    "forwarded with parts": _mail(
        "Content-Type: multipart/mixed; boundary=out\n\n--out\nContent-Type: message/rfc822\n\n"
        + _INNER.replace("\n\n", "\nContent-Type: multipart/alternative; boundary=in\n\n")
        + _ALTERNATIVE
        + "\n--out--\n"
    ),
    "a message alone": _mail("Content-Type: message/rfc822\n\n" + _INNER + "inner text\n"),
    "report": _mail(
        "Content-Type: multipart/report; report-type=delivery-status; boundary=r\n\n--r\n\nfailed\n--r\n"
        "Content-Type: message/delivery-status\n\nReporting-MTA: dns; x\n\nAction: failed\n\n--r\n"
        "Content-Type: text/rfc822-headers\n\nSubject: x\n\n--r--\n"
    ),
    "digest": _mail(
        "Content-Type: multipart/digest; boundary=d\n\n--d\n\n" + _INNER + "one\n--d\n\n" + _INNER + "two\n--d--\n"
    ),
    "signed": _mail(
        'Content-Type: multipart/signed; micalg=pgp-sha256;\n protocol="application/pgp-signature"; boundary=s\n\n--s\n'
        "Content-Type: text/plain\n\nsigned\n--s\nContent-Type: application/pgp-signature; name=signature.asc\n\n"
        "-----BEGIN PGP SIGNATURE-----\nx\n-----END PGP SIGNATURE-----\n\n--s--\n"
    ),
    "RFC 2231": _mail(
        "Content-Type: application/x-stuff; title*0*=us-ascii'en'This%20is%20even%20more%20;\n"
        ' title*1*=%2A%2A%2Afun%2A%2A%2A%20; title*2="isn\'t it!"; name*0=a; name*1=b\n'
        "Content-Disposition: attachment; filename*=utf-8''%e2%82%ac%20rates\n\nx\n"
    ),
    "encoded words": _mail(
        'Content-Type: application/octet-stream; name="=?utf-8?q?a=C3=BC=2Epdf?="\n\nx\n',
        "=?utf-8?b?w5w=?=\n =?utf-8?q?=C3=BC?=",
    ),
    "addresses": _raw(
        'From: "Smith, \\"Al\\" \\\\ex" <alex@x.example>, root\nSender: jim@local.com (Jim (the) Boss)\n'
        "To: Team: Anna Maria <anna@x.example>, bob@x.example;, undisclosed-recipients:;\n"
        "Cc: <@relay.example,@b.example:route@x.example>, <>, J. R. R. <jrr@x.example>\n"
        'Bcc:\nReply-To: =?utf-8?q?J=C3=BCrgen?= <j@x.example>,\n  "a b"@x.example\n'
        "Subject:   two\n  lines\t \nIn-Reply-To: <a@b>\n <c@d>\nMessage-ID: <e@f>\n\nx\n"
    ),
    "no fields": _raw("\nHello\n"),
    "multipart without boundary": _mail("Content-Type: multipart/mixed\n\n--x\n\nx\n--x--\n"),
    "multipart without parts": _mail("Content-Type: multipart/mixed; boundary=x\n\nnothing\n"),
    "multipart without end": _mail("Content-Type: multipart/mixed; boundary=x\n\n--x\n\none\n--x\n\ntwo\n"),
    "same boundary inside": _mail(
        "Content-Type: multipart/mixed; boundary=x\n\n--x\nContent-Type: multipart/alternative; boundary=x\n\n--x\n\n"
        "one\n--x--\n\n--x\n\ntwo\n--x--\n"
    ),
    "boundaries with a common beginning": _mail(
        "Content-Type: multipart/mixed; boundary=b\n\n--b\nContent-Type: multipart/alternative; boundary=b2\n\n--b2\n\n"
        "one\n--b2--\n--b\n\ntwo\n--b--\n"
    ),
    "an inner end is missing": _mail(
        "Content-Type: multipart/mixed; boundary=out\n\n--out\nContent-Type: multipart/alternative; boundary=in\n\n"
        "--in\n\none\n--out\n\ntwo\n--out--\n"
    ),
    "empty parts": _mail(
        "Content-Type: multipart/mixed; boundary=x\n\n--x\n\n--x\nContent-Type: text/html\n\n\n--x--\n"
    ),
    "header ends at the boundary": _mail(
        "Content-Type: multipart/mixed; boundary=x\n\n--x\nContent-Type: text/html\n--x--\n"
    ),
    "malformed type": _mail("Content-Type: text\n\nx\n"),
    "type without a value": _mail("Content-Type:\n\nx\n"),
    "unknown type": _mail('Content-Type: foo/bar; a=b; c ; d="e\nContent-Transfer-Encoding:\n\nx\n'),
    "comments": _mail(
        "Content-Type: text/plain (really); charset=(no) us-ascii (yes)\nContent-Transfer-Encoding: (x) 8bit\n\nx\n"
    ),
    "8-bit": _mail("Subject2: x\n\nGrüße\n", "Grüße aus Köln"),
    "two subjects": _mail(
        "Subject: second\nTo: second@x.example\nContent-Type: text/html\nContent-Type: text/plain\n\nx\n"
    ),
    "quotes": _mail('Content-Type: text/plain; charset=us-ascii; x="a\\"b\\\\c"; y=\'z\'\n\nx\n', 'a "b" \\c'),
    "long subject": _mail("\nx\n", "long " * 300),
}
"""Mails by what is special about them, with CRLF line ends."""
