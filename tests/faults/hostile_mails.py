"""The worst mails that an outsider can write within the size limits, each kind a named generator.

Each mail is addressed to an external account and differs from the others of its kind, so no cache helps. Each kind
attacks one parser: the tests of the parsers count its work, and ``make hostile`` sends all kinds to the running system.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

ACCOUNT = "support@company.com"
AUTHOR = "alex@local.com"
FIELD_OCTETS = 64_000
"""Size of a hostile To or Cc: octets; the router reads 64 KiB of both."""
HEAD_OCTETS = 250_000
"""Size of a hostile header or bounce: octets; the router reads 256 KiB of a mail."""
SUBMISSION_OCTETS = 1_000_000
"""Size of the hostile header of a submission: octets; smtp_in accepts 1 MiB."""
FOLD = "\r\n "
Maker = Callable[[int, str, int], bytes]  # arguments: serial number, address of an account, size in octets


def kinds(to: str = ACCOUNT, octets: int | None = None) -> dict[str, Callable[[int], bytes]]:
    """Return the generators by name; each makes a mail from a serial number.

    :param to: the address of an external account. :param octets: size of the hostile part; None: as much as the parser
        reads.
    """
    made: dict[str, Callable[[int], bytes]] = {}
    for makers, size in (
        (_IN_ADDRESSES, FIELD_OCTETS),
        (_IN_HEADER_OR_BODY, HEAD_OCTETS),
        (_SUBMITTED, SUBMISSION_OCTETS),
    ):
        for name, make in makers.items():
            made[name] = _bound(make, to, octets or size)
    return made


def _bound(make: Maker, to: str, octets: int) -> Callable[[int], bytes]:
    return lambda serial: make(serial, to, octets)


def submission(serial: int, to: str, octets: int, author: str = AUTHOR) -> bytes:
    """Return a submission whose To repeats the author's own address, which the sender replaces each time."""
    return _mail(serial, [f"To: <{to}>,\r\n {_repeat(f'{author},', octets)} x@y"], author=author)


# ---------------------------------------------------------------------------------------------- parts


def _mail(serial: int, fields: list[str], body: str = "Hello\r\n", author: str = "anna@crowd.example") -> bytes:
    lines = [
        f"From: <{author}>",
        f"Message-ID: <hostile-{serial}@crowd.example>",
        f"Subject: hostile {serial}",
        *fields,
        "",
        body,
    ]
    return _octets("\r\n".join(lines))


def _repeat(unit: str, octets: int, between: str = FOLD) -> str:
    """Repeat a text up to this size, on lines of some 70 characters with ``between`` after each."""
    line = unit * max(1, 70 // len(_octets(unit))) + between
    return line * max(1, octets // len(_octets(line)))


def _octets(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _number(make: Callable[[int], str], octets: int) -> str:
    """Join numbered texts with folded commas up to this size."""
    parts: list[str] = []
    size = 0
    while size < octets:
        parts.append(make(len(parts)))
        size += len(parts[-1].encode()) + 4
    return ",\r\n ".join(parts)


def _to(serial: int, to: str, octets: int, make: Callable[[int, int], str], own_first: bool = True) -> bytes:
    others = _number(partial(make, serial), octets)
    return _mail(serial, [f"To: <{to}>,\r\n {others}" if own_first else f"To: {others},\r\n <{to}>"])


# ---------------------------------------------------------------------------------------------- in To and Cc


def _many_addresses(serial: int, to: str, octets: int) -> bytes:
    return _to(serial, to, octets, lambda s, n: f'"Person {s}.{n}" <p{n}.{s}@crowd.example>')


def _short_addresses(serial: int, to: str, octets: int) -> bytes:
    return _mail(serial, [f"To: <{to}>,\r\n {_repeat(f'{serial % 10}@b,', octets)} x@y"])


def _own_address_again(serial: int, to: str, octets: int) -> bytes:
    return _mail(serial, [f"To: {_repeat(f'{to},', octets)} {to}", "X-Serial: " + str(serial)])


def _foreign_a_labels(serial: int, to: str, octets: int) -> bytes:
    """Different domains in A-labels (RFC 5890), each after the account's own local part."""
    local = to.partition("@")[0]

    def address(serial: int, number: int) -> str:
        labels = [
            f"ä{chr(0x430 + number % 32)}{chr(0x4E00 + (serial * 997 + number * 7 + part) % 20_000)}" * 6
            for part in range(4)
        ]
        return f"{local}@" + ".".join("xn--" + label.encode("punycode").decode() for label in labels)

    return _to(serial, to, octets, address)


def _foreign_u_labels(serial: int, to: str, octets: int) -> bytes:
    local = to.partition("@")[0]
    return _to(serial, to, octets, lambda s, n: f"{local}@{chr(0x4E00 + (s * 997 + n) % 20_000) * 60}.example")


def _encoded_words(serial: int, to: str, octets: int) -> bytes:
    sets = ("utf-8", "koi8-r", "iso-2022-jp", "gb2312", "utf-7")
    words = _number(lambda n: f"=?{sets[n % 5]}?b?{'w6k=' * 4}?= =?{sets[n % 3]}?q?={n % 90 + 10}{serial}?=", octets)
    return _mail(serial, [f"To: {words.replace(',', '')} <{to}>"])


def _nested_comments(serial: int, to: str, octets: int) -> bytes:
    half = octets // 2
    opening, closing = "(" * 60 + "\r\n ", ")" * 60 + "\r\n "
    return _mail(serial, [f"To: {opening * (half // 63)}{serial}{closing * (half // 63)} <{to}>"])


def _open_comments(serial: int, to: str, octets: int) -> bytes:
    return _mail(serial, [f"To: {_repeat('((a)', octets)} {serial} <{to}>"])


def _quoted_pairs(serial: int, to: str, octets: int) -> bytes:
    pairs = _repeat(r"\"\\", octets)
    return _mail(serial, [f'To: "{pairs}{serial}" <{to}>'])


def _deep_groups(serial: int, to: str, octets: int) -> bytes:
    return _mail(serial, [f"To: {_repeat('g:', octets)} {serial}: <{to}>;"])


def _separators(serial: int, to: str, octets: int) -> bytes:
    return _mail(serial, [f"To: {serial}{_repeat(',;:', octets)} <{to}>"])


def _angles(serial: int, to: str, octets: int) -> bytes:
    return _mail(serial, [f"To: {serial}{_repeat('<@a,', octets)} <{to}>"])


def _words_with_at(serial: int, to: str, octets: int) -> bytes:
    return _mail(serial, [f"To: {serial} {_repeat('a@ ', octets)} <{to}>"])


def _unknown_names(serial: int, to: str, octets: int) -> bytes:
    """Hundreds of display names before the account's address, none of which is a user name."""
    return _to(serial, to, octets, lambda s, n: f'"Nobody {s}.{n}" <{to}>', own_first=False)


def _names_that_grow(serial: int, to: str, octets: int) -> bytes:
    """Names whose compatibility normal form (NFKC) is eighteen times as long."""
    return _to(serial, to, octets, lambda s, n: f"{chr(0xFDFA) * 200}{s}.{n} <{to}>", own_first=False)


def _combining_marks(serial: int, to: str, octets: int) -> bytes:
    """Names with combining marks, which normalisation has to reorder."""
    marks = chr(0x0327) + chr(0x0301)
    return _to(serial, to, octets, lambda s, n: f"{marks * 150}{s}.{n} <{to}>", own_first=False)


_IN_ADDRESSES: dict[str, Maker] = {
    "many addresses": _many_addresses,
    "short addresses": _short_addresses,
    "the account's address again": _own_address_again,
    "foreign A-labels": _foreign_a_labels,
    "foreign U-labels": _foreign_u_labels,
    "encoded words": _encoded_words,
    "nested comments": _nested_comments,
    "open comments": _open_comments,
    "quoted pairs": _quoted_pairs,
    "deep groups": _deep_groups,
    "separators": _separators,
    "angle brackets": _angles,
    "words with @": _words_with_at,
    "unknown names": _unknown_names,
    "names that grow": _names_that_grow,
    "combining marks": _combining_marks,
}


# ---------------------------------------------------------------------------------------------- in header and body


def _long_references(serial: int, to: str, octets: int) -> bytes:
    ids = _number(lambda n: f"<{n}.{serial}@crowd.example>", octets).replace(",", "")
    return _mail(serial, [f"To: <{to}>", f"References: {ids}", f"In-Reply-To: {ids[:20_000]}x"])


def _many_fields(serial: int, to: str, octets: int) -> bytes:
    return _mail(serial, [f"To: <{to}>", *[f"a:{serial % 10}"] * (octets // 5)])


def _many_to_fields(serial: int, to: str, octets: int) -> bytes:
    return _mail(serial, [*[f"To: <{to}>"] * (octets // (len(to) + 8)), f"X-Serial: {serial}"])


def _many_received_fields(serial: int, to: str, octets: int) -> bytes:
    return _mail(serial, [f"To: <{to}>", *["Received: x"] * 45, *[f"Resent-To: {serial % 10}"] * (octets // 14)])


def _lines_that_are_no_field(serial: int, to: str, octets: int) -> bytes:
    return _mail(serial, [f"To: <{to}>", *[f"no colon {serial % 10}", " folded"] * (octets // 22)])


def _odd_octets(serial: int, to: str, octets: int) -> bytes:
    """A BOM, NUL, lone CR, and octets that are neither UTF-8 nor printable, in every part of the mail."""
    odd = "\0\udcff\udcfe\x7f\x0b\x85\udc80"
    mail = _mail(serial, [f"To: {odd}{_repeat(odd, octets // 3)} <{to}>", f"Subject: {odd * (octets // 40)}"])
    return b"\xef\xbb\xbf" + mail + b"\r\0" * (octets // 8)


def _report(serial: int, to: str, body: str) -> bytes:
    kind = "Content-Type: multipart/report; report-type=delivery-status; boundary=b"
    return _mail(serial, [f"To: <{to}>", kind], body)


def _bounce_of_parts(serial: int, to: str, octets: int) -> bytes:
    return _report(serial, to, _repeat(f"--b\r\nContent-Type: text/plain\r\n\r\n{serial % 10}\r\n", octets, ""))


def _bounce_of_multiparts(serial: int, to: str, octets: int) -> bytes:
    inner = f"--b\r\nContent-Type: multipart/mixed; boundary=c\r\n\r\n--c\r\n\r\n{serial % 10}\r\n"
    return _report(serial, to, _repeat(inner, octets, ""))


def _bounce_of_fields(serial: int, to: str, octets: int) -> bytes:
    start = "--b\r\nContent-Type: message/rfc822\r\n\r\n"
    return _report(serial, to, start + _repeat(f"a:{serial % 10}\r\n", octets, ""))


def _bounce_of_ids(serial: int, to: str, octets: int) -> bytes:
    start = "--b\r\nContent-Type: message/rfc822\r\n\r\n"
    return _report(serial, to, start + "".join(f"Message-ID: <{n}.{serial}@x>\r\n" for n in range(octets // 30)))


def _bounce_in_quoted_printable(serial: int, to: str, octets: int) -> bytes:
    start = "--b\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n"
    return _report(serial, to, start + str(serial) + _repeat("=41", octets, "=\r\n"))


def _bounce_of_quotes(serial: int, to: str, octets: int) -> bytes:
    return _mail(serial, [f"To: <{to}>", "Auto-Submitted: auto-replied"], _repeat("> " * 400 + "\r\n", octets, ""))


_IN_HEADER_OR_BODY: dict[str, Maker] = {
    "long References": _long_references,
    "many fields": _many_fields,
    "many To fields": _many_to_fields,
    "many trace fields": _many_received_fields,
    "lines that are no field": _lines_that_are_no_field,
    "odd octets": _odd_octets,
    "bounce of parts": _bounce_of_parts,
    "bounce of multiparts": _bounce_of_multiparts,
    "bounce of fields": _bounce_of_fields,
    "bounce of Message-IDs": _bounce_of_ids,
    "bounce in quoted-printable": _bounce_in_quoted_printable,
    "bounce of quotes": _bounce_of_quotes,
}

_SUBMITTED: dict[str, Maker] = {"submission with a long header": submission}
