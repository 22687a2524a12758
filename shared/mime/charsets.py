"""Decodes text by the charset labels that mail really has (RFC 2045, RFC 2047, WHATWG Encoding Standard). Never raises.

Programs write labels in many spellings, and mean the larger set that their system has under this name: ``iso-8859-1``
is windows-1252, ``gb2312`` is GB 18030, ``ISO-2022-JP`` and ``EUC-JP`` have the rows of NEC and IBM (髙, 﨑, ①, ㈱) and
half-width katakana. The labels are Python's, those of the Encoding Standard (https://encoding.spec.whatwg.org/#names-
and-labels), and Windows' numbers of code pages; letters and digits of a label count, and no other character.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from encodings.aliases import aliases
from functools import lru_cache

GUESSED = ""
"""Codec of labels that say nothing: UTF-8 if the octets are UTF-8, else windows-1252 (``read_text``)."""
_NO_TEXT = frozenset(  # codecs that decode no charset, or have side effects
    ("base64_codec", "bz2_codec", "hex_codec", "quopri_codec", "rot_13", "uu_codec", "zlib_codec", "mbcs", "tactis")
)
_LARGER = {  # a codec, and the one that senders mean
    **dict.fromkeys(("ascii", "latin_1"), GUESSED),
    **dict.fromkeys(("gb2312", "gbk"), "gb18030"),
    **dict.fromkeys(("iso2022_jp", *(f"iso2022_jp_{kind}" for kind in ("1", "2", "3", "2004", "ext"))), "iso_2022"),
    "euc_jp": "euc_jp_ms",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "big5": "big5hkscs",
    "iso8859_9": "cp1254",
    "iso8859_11": "cp874",
    "tis_620": "cp874",
}
_MORE = {  # labels that Python does not know, by codec; without punctuation, and without a leading "x" or "cs"
    GUESSED: "unknown unknown8bit default defaultcharset none iso646us ansix31101983 8bit binary",
    "utf_8": "unicode11utf8 unicode20utf8 utf8mb4 utf8mac",
    "utf_16_le": "unicode iso10646ucs2 ucs2 unicodefeff",
    "utf_16_be": "unicodefffe",
    "gb18030": "gb gb231280 cngb zhcn gbkeuc macchinesesimp macsimpchinese",
    "iso_2022": "iso2022 iso2022jpms iso2022cn iso2022cnext iso2022jpesc",
    "euc_jp_ms": "eucjpms eucjpwin eucjpopen eucpkdfmtjapanese",
    "cp932": "mskanji windows31j sjiswin sjisopen cp943c macjapanese",
    "cp949": "ksc5601 ksc56011987 ksc56011989 ksc56011992 isoir149 mackorean",
    "big5hkscs": "cnbig5 big5eten big5uao zhtw macchinesetrad mactradchinese",
    "cp874": "iso885911",
    "iso8859_8": "logical visual iso88598 iso88598i iso88598e",
    "iso8859_7": "suneugreek",
    "iso8859_10": "isolatin6",
    "iso8859_15": "isolatin9",
    "koi8_r": "koi8 koi",
    "koi8_u": "koi8u koi8ru",
    "mac_roman": "mac",
    "mac_cyrillic": "macukrainian",
    "mac_latin2": "macce maccentraleurope maccentraleurroman",
    "mac_iceland": "macicelandic",
    "mac_croatian": "maccroatian",
    "mac_romanian": "macromanian",
    "mac_arabic": "macarabic",
    "mac_farsi": "macfarsi",
}
_PAGES = {  # Windows' and IBM's numbers of code pages that are no codec "cp…" of Python
    20127: GUESSED, 65000: "utf_7", 65001: "utf_8", 1200: "utf_16_le", 1201: "utf_16_be",
    936: "gb18030", 1381: "gb18030", 1386: "gb18030", 20936: "gb18030", 51936: "gb18030", 54936: "gb18030",
    52936: "hz", 50227: "iso_2022", 50220: "iso_2022", 50221: "iso_2022", 50222: "iso_2022",
    943: "cp932", 31: "cp932", 954: "euc_jp_ms", 20932: "euc_jp_ms", 33722: "euc_jp_ms", 51932: "euc_jp_ms",
    970: "cp949", 1363: "cp949", 20949: "cp949", 51949: "cp949", 50225: "iso2022_kr", 1361: "johab",
    951: "big5hkscs", 874: "cp874", 819: GUESSED, 38598: "iso8859_8", 20866: "koi8_r", 878: "koi8_r", 21866: "koi8_u",
    1168: "koi8_u", 10000: "mac_roman", 10006: "mac_greek", 10007: "mac_cyrillic", 10010: "mac_romanian",
    10017: "mac_cyrillic", 10029: "mac_latin2", 10079: "mac_iceland", 10081: "mac_turkish", 10082: "mac_croatian",
}  # fmt: skip
_PUNCTUATION = re.compile("[^a-z0-9]")
_PAGE = re.compile(r"(?:windows|win|w|cp|ms|ibm|dos|ansi|oem|codepage|ccsid){1,2}0*(\d{2,5})")
_ISO_8859 = re.compile(r"(?:iso)?8859(\d{1,2})(?:\d{4})?[ei]?")
_PREFIX = re.compile("x+|cs")


def _python_codecs() -> dict[str, str]:
    codecs = {*aliases.values(), "koi8_u", "koi8_t", "cp720", "cp737", "cp856", "cp874", "cp1006", "cp1125"} - _NO_TEXT
    labels = {label: codec for label, codec in aliases.items() if codec in codecs} | {codec: codec for codec in codecs}
    return {_PUNCTUATION.sub("", label): _LARGER.get(codec, codec) for label, codec in labels.items()}


LABELS = _python_codecs() | {label: codec for codec, labels in _MORE.items() for label in labels.split()}
"""Codec by label, without punctuation; ``find_codec`` knows further spellings."""
_CODECS = frozenset(LABELS.values())


def find_codec(label: str) -> str | None:
    """Return the codec for ``decode`` that a charset label means; None for an unknown label. Imports nothing."""
    name = _PUNCTUATION.sub("", label.lower())
    for _ in range(2):
        if (codec := LABELS.get(name)) is not None:
            return codec
        if page := _PAGE.fullmatch(name):
            return _code_page(int(page[1]))
        if part := _ISO_8859.fullmatch(name):
            codec = _LARGER.get(f"iso8859_{part[1]}", f"iso8859_{part[1]}")
            return GUESSED if part[1] == "1" else codec if codec in _CODECS else None
        name = _PREFIX.sub("", name, count=1)
    return None


def _code_page(number: int) -> str | None:
    if 28591 <= number <= 28606:
        return find_codec(f"8859{number - 28590}")
    codec = _PAGES.get(number, f"cp{number}")
    return codec if codec in _CODECS else None


def decode(octets: bytes, codec: str) -> str:
    """Decode octets by a codec of ``find_codec``; what it cannot decode becomes U+FFFD."""
    reader = _READERS.get(codec)
    return reader(octets) if reader else octets.decode(codec, "replace")


def read_text(raw: bytes) -> str:
    """Decode header octets: UTF-8 (RFC 6532), else cp1252 as Western software uses it. No surrogates."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("cp1252", "replace")


_SEPARATOR = re.compile(rb"([,;<>\r\n]+)")  # no octet of a character in any charset that contains ASCII


def to_utf8(value: bytes, codec: str) -> bytes:
    """Convert the raw 8-bit text of an address field to UTF-8 by the charset of its mail.

    Each piece between separators is judged alone: UTF-8 stays as it is. A codec that changes ASCII is not used, except
    ISO-2022 for a value with its escapes: otherwise a charset could make an address of other text.
    """
    if codec == "iso_2022":
        return decode(value, codec).encode("utf-8", "replace") if b"\x1b" in value else value
    if value.isascii() or codec in (GUESSED, "utf_8") or not _contains_ascii(codec):
        return value
    return b"".join(
        piece if _is_utf8(piece) else decode(piece, codec).encode("utf-8", "replace")
        for piece in _SEPARATOR.split(value)
    )


@lru_cache
def _contains_ascii(codec: str) -> bool:
    ascii_octets = bytes(range(128))
    return decode(ascii_octets, codec) == ascii_octets.decode()


def _is_utf8(octets: bytes) -> bool:
    try:
        octets.decode()
    except UnicodeDecodeError:
        return False
    return True


# ---------------------------------------------------------------------------------------------- Japanese and ISO 2022


def _jis_x_0208(octets: bytes) -> str:
    """Decode pairs of 7-bit octets, with the rows of NEC and IBM: the same cells in Windows' Shift_JIS have them."""
    shifted = bytearray()
    for lead, trail in zip(octets[::2], octets[1::2], strict=False):
        if not (0x21 <= lead <= 0x7E and 0x21 <= trail <= 0x7E):
            shifted += b"\xff"  # cp932 has no character here
            continue
        row = (lead - 0x21) // 2
        shifted.append(row + (0x81 if row < 31 else 0xC1))
        shifted.append(trail + (0x7E if lead % 2 == 0 else 0x1F if trail < 0x60 else 0x20))
    return shifted.decode("cp932", "replace") + "\ufffd" * (len(octets) % 2)


def _ibm_rows() -> str:
    """Return the characters of eucJP-ms from row 83, cell 83 on: IBM's ones that JIS X 0212 has not.

    They are in the order of Windows' code page 932, as in the table of GNU libc (EUC-JP-MS).
    """
    pairs = (bytes((lead, trail)) for lead in range(0xFA, 0xFD) for trail in range(0x40, 0xFD))
    every = "".join(pair.decode("cp932", "ignore") for pair in pairs if pair[1] != 0x7F)
    return "".join(_missing_in_euc_jp(every)).replace("\uffe2\uffe4", "").replace("\u2121", "\u2116\u2121")


def _missing_in_euc_jp(text: str) -> Iterator[str]:
    for character in text:
        try:
            character.encode("euc_jp")
        except UnicodeEncodeError:
            yield character


_IBM_ROWS = _ibm_rows()
_FIRST_IBM_CELL = (0x73 - 0x21) * 94 + 0x73 - 0x21


def _jis_x_0212(octets: bytes) -> str:
    """Decode pairs of 7-bit octets, with IBM's characters in the rows 83 and 84 of eucJP-ms."""
    text = []
    for lead, trail in zip(octets[::2], octets[1::2], strict=False):
        place = (lead - 0x21) * 94 + trail - 0x21 - _FIRST_IBM_CELL
        if 0 <= place < len(_IBM_ROWS):
            text.append(_IBM_ROWS[place])
        else:
            text.append(bytes((0x8F, lead | 0x80, trail | 0x80)).decode("euc_jp", "replace"))
    return "".join(text)


_EUC = re.compile(rb"((?:[\xa1-\xfe]{2})+)|((?:\x8e[\xa1-\xdf])+)|((?:\x8f[\xa1-\xfe]{2})+)|[\x00-\x7f]+|.", re.DOTALL)
_TO_7_BIT = bytes(octet & 0x7F for octet in range(256))
_TO_8_BIT = bytes(octet | 0x80 for octet in range(256))


def _euc_jp(octets: bytes) -> str:
    """Decode EUC-JP as Windows (cp51932) and eucJP-ms have it."""
    text = []
    for piece in _EUC.finditer(octets):
        if piece[1]:
            text.append(_jis_x_0208(piece[1].translate(_TO_7_BIT)))
        elif piece[2]:
            text.append(piece[2][1::2].decode("cp932"))
        elif piece[3]:
            text.append(_jis_x_0212(piece[3].translate(_TO_7_BIT, b"\x8f")))
        else:
            text.append(piece[0].decode("ascii", "replace"))
    return "".join(text)


def _with_high_bit(codec: str) -> Callable[[bytes], str]:
    return lambda octets: octets.translate(_TO_8_BIT).decode(codec, "replace")


def _jis_x_0213(sequence: bytes) -> Callable[[bytes], str]:
    return lambda octets: (b"\x1b" + sequence + octets).decode("iso2022_jp_2004", "replace")


def _single_octets(octets: bytes) -> str:
    return octets.decode(
        "cp932", "replace"
    )  # ASCII, and katakana with the eighth bit set as Windows (cp50220) reads it


def _undecodable(octets: bytes) -> str:
    return "\ufffd" * len(octets)


_ESCAPE = re.compile(rb"\x1b(?:\$[()*+]?[0-~]|[(&][0-~])|[\x0e\x0f]")
_SETS: dict[bytes, Callable[[bytes], str]] = {  # by escape sequence, without ESC
    **dict.fromkeys((b"(B", b"(J", b"(H"), _single_octets),
    b"(I": _with_high_bit("cp932"),  # half-width katakana
    **dict.fromkeys((b"$@", b"$B", b"$(@", b"$(B"), _jis_x_0208),
    b"$(D": _jis_x_0212,
    **{sequence: _jis_x_0213(sequence) for sequence in (b"$(O", b"$(P", b"$(Q")},
    **dict.fromkeys((b"$A", b"$)A", b"$(A"), _with_high_bit("gb18030")),
    **dict.fromkeys((b"$(C", b"$)C"), _with_high_bit("cp949")),
}


def _iso_2022(octets: bytes) -> str:
    """Decode ISO-2022-JP and its relatives with the sets of Windows (cp50220 to cp50222), and ISO-2022-CN with GB 2312.

    A set of a sequence with ``)`` is in use between SO and SI; katakana if there is none.
    """
    if b"\x1b." in octets:  # single shifts of ISO-2022-JP-2
        return octets.decode("iso2022_jp_2", "replace")
    text = []
    plain, shifted = _SETS[b"(B"], _SETS[b"(I"]
    is_shifted, position = False, 0
    for escape in _ESCAPE.finditer(octets):
        text.append((shifted if is_shifted else plain)(octets[position : escape.start()]))
        position = escape.end()
        sequence = escape[0][1:]
        if not sequence:
            is_shifted = escape[0] == b"\x0e"
        elif sequence[:2] == b"$)":
            shifted = _SETS.get(sequence, _undecodable)
        elif sequence[:1] != b"&":  # announces an edition of the next set
            plain = _SETS.get(sequence, _undecodable)
    text.append((shifted if is_shifted else plain)(octets[position:]))
    return "".join(text)


_READERS: dict[str, Callable[[bytes], str]] = {GUESSED: read_text, "iso_2022": _iso_2022, "euc_jp_ms": _euc_jp}
