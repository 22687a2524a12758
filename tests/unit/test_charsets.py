"""Charset labels and octets as programs really write them (shared/mime/charsets.py)."""

from __future__ import annotations

import base64
import codecs
import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.mime import charsets, encoded_words
from shared.mime.display_names import normalise
from tests.unit.test_addressed_names import who
from tests.unit.test_routing import E

WHATWG: dict[str, str] = json.loads((Path(__file__).parents[1] / "cases" / "whatwg_labels.json").read_text("utf-8"))
"""The labels of the Encoding Standard, by the name of the encoding."""
ANSWERS = {
    "macintosh": ("mac_roman",),
    "x-mac-cyrillic": ("mac_cyrillic",),
    "windows-1252": (charsets.GUESSED, "cp1252"),
    "windows-874": ("cp874",),
    "gbk": ("gb18030",),
    "big5": ("big5hkscs",),
    "euc-jp": ("euc_jp_ms",),
    "iso-2022-jp": ("iso_2022",),
    "shift_jis": ("cp932",),
    "euc-kr": ("cp949",),
    "iso-8859-8-i": ("iso8859_8",),
    "utf-16le": ("utf_16_le", "utf_16"),
}
"""The codecs for an encoding whose name is no codec of Python, or of a smaller set."""


@pytest.mark.parametrize("name", [name for name in WHATWG if name not in ("replacement", "x-user-defined")])
def test_all_labels_of_the_encoding_standard_are_known(name: str) -> None:
    expected = ANSWERS.get(name) or (codecs.lookup(name).name,)
    for label in WHATWG[name].split():
        codec = charsets.find_codec(label)
        assert codec in expected or codecs.lookup(codec or "").name in expected, label


@pytest.mark.parametrize(
    ("codec", "labels"),
    [
        (
            "iso_2022",
            "ISO-2022-JP iso-2022-jp-ms iso-2022-jp-1 ISO2022JP csISO2022JP cp50220 cp50221 CP50222 x-cp50220",
        ),
        ("iso_2022", "iso-2022-cn ISO-2022-CN-EXT x-cp50227"),
        ("euc_jp_ms", "EUC-JP eucJP-ms eucJP-win cp51932 x-euc-jp ujis eucjp"),
        ("cp932", "shift_jis Shift-JIS sjis x-sjis x-ms-cp932 windows-31j cp932 ms932 MS_Kanji csWindows31J ibm943"),
        ("gb18030", "csGB2312 GB_2312-80 gb2312 GBK x-gbk cp936 windows-936 EUC-CN cn-gb gb18030 chinese"),
        ("big5hkscs", "big5 cn-big5 x-x-big5 Big5-HKSCS csBig5 big5-eten"),
        ("cp949", "ksc_5601 ks_c_5601-1987 ks_c_5601-1989 euc-kr korean cp949 x-windows-949 windows949 uhc"),
        ("cp1251", "windows-1251 windows1251 win-1251 win1251 cp1251 CP-1251 x-cp1251 ms1251 ansi-1251"),
        ("cp1250", "windows-1250 Windows1250 win_1250 cp-1250"),
        ("koi8_r", "koi8-r koi8 KOI8R koi8_r cskoi8r cp20866"),
        ("koi8_u", "koi8-u koi8-ru KOI8U cp21866"),
        (charsets.GUESSED, "iso-8859-1 iso88591 ISO_8859-1:1987 iso8859_1 latin1 us-ascii ANSI_X3.4-1968 8859-1 cp819"),
        (charsets.GUESSED, "default_charset unknown-8bit x-unknown default"),
        ("iso8859_2", "iso88592 iso-8859-2 ISO8859-2 iso_8859-2:1987 latin2 x-iso-8859-2 cp28592"),
        ("iso8859_15", "iso885915 iso-8859-15 latin-9 8859_15 cp28605"),
        ("cp1254", "iso88599 iso-8859-9 latin5 windows-1254"),
        ("cp874", "iso-8859-11 iso885911 tis-620 windows874 dos-874"),
        ("utf_8", "utf-8 UTF8 utf_8 unicode-1-1-utf-8 x-utf-8 cp65001 utf8mb4"),
        ("mac_roman", "macintosh mac x-mac-roman csMacintosh macroman"),
        ("mac_cyrillic", "x-mac-cyrillic x-mac-ukrainian"),
        ("mac_latin2", "x-mac-ce x-mac-centraleurroman mac-centraleurope"),
        ("cp866", "ibm866 cp866 dos-866 866"),
        (None, "x-no-such zlib base64 rot13 hex idna punycode unicode_escape undefined mbcs iso-8859-12 cp99999 ''"),
    ],
)
def test_labels_are_known_in_every_spelling(codec: str | None, labels: str) -> None:
    assert {label: charsets.find_codec(label) for label in labels.split()} == dict.fromkeys(labels.split(), codec)


def word(label: str, octets: bytes) -> str:
    return encoded_words.decode(f"=?{label}?b?{base64.b64encode(octets).decode()}?=")


@pytest.mark.parametrize(
    ("label", "octets", "text"),
    [
        ("iso-2022-jp", b"\x1b$B|b66\x1b(B", "髙橋"),  # IBM's kanji in NEC's rows
        ("iso-2022-jp", b"\x1b$B;3yu\x1b(B", "山﨑"),
        ("cp50220", b"\x1b$B-!-j\x1b(B", "①㈱"),  # NEC's row 13
        ("iso-2022-jp", b"\x1b(I1Z/8=\x1b(B", "ｱﾚｯｸｽ"),
        ("cp50222", b"\x0e1Z/8=\x0f Alex", "ｱﾚｯｸｽ Alex"),
        ("cp50221", b"\xb1\xda\xaf\xb8\xbd", "ｱﾚｯｸｽ"),
        ("iso-2022-jp", b"\x1b$@;3ED\x1b(J", "山田"),
        ("iso-2022-jp", b"\x1b$B;3ED", "山田"),
        ("iso-2022-jp-1", b"\x1b$(D0E\x1b(B", "仚"),
        ("iso-2022-jp-2", b"\x1b$AMuP!Cw\x1b(B", "王小明"),
        ("iso-2022-jp-2004", b"\x1b$(Q.!\x1b(B", "俱"),
        ("iso-2022-cn", b"\x1b$)A\x0eMuP!Cw\x0f", "王小明"),
        ("iso-2022-kr", b"\x1b$)C\x0e1h\x0f", "김"),
        ("euc-jp", b"\xfc\xe2\xb6\xb6", "髙橋"),
        ("eucJP-ms", b"\xbb\xb3\xf9\xf5\xad\xa1", "山﨑①"),
        ("cp51932", b"\x8e\xb1\x8e\xda", "ｱﾚ"),
        ("euc-jp", b"\x8f\xb0\xc5", "仚"),
        ("eucJP-ms", b"\x8f\xf4\xfb", "髙"),  # IBM's kanji behind JIS X 0212
        ("shift_jis", b"\xfb\xfc\x8b\xb4\x87\x40", "髙橋①"),
        ("csGB2312", b"\xcd\xf5\xd0\xa1\xc3\xf7", "王小明"),
        ("x-x-big5", b"\xa4\xfd\xa4\x70\xa9\xfa", "王小明"),
        ("ksc_5601", b"\xb1\xe8", "김"),
        ("win-1251", b"\xc8\xe2\xe0\xed", "Иван"),
        ("koi8", b"\xe9\xd7\xc1\xce", "Иван"),
        ("iso88591", b"Jos\xe9", "José"),
        ("default_charset", "José".encode(), "José"),
        ("x-nothing", b"Alex", "Alex"),
    ],
)
def test_octets_are_read_as_the_programs_mean_them(label: str, octets: bytes, text: str) -> None:
    assert word(label, octets) == text


def test_half_width_katakana_are_the_same_name_as_full_width_ones() -> None:
    assert normalise(word("iso-2022-jp", b"\x1b(I1Z/8=\x1b(B")) == normalise("アレックス")


def test_a_character_may_be_split_between_two_words() -> None:
    assert encoded_words.decode("=?ISO-2022-JP?B?GyRCfA==?= =?ISO-2022-JP?B?YjY2GyhC?=") == "髙橋"


@pytest.mark.parametrize("codec", sorted(set(charsets.LABELS.values())))
def test_every_codec_decodes_any_octets(codec: str) -> None:
    octets = bytes(range(256))
    assert isinstance(charsets.decode(octets + octets[::-1], codec), str)


@given(st.lists(st.sampled_from([b"\x1b$B", b"\x1b(B", b"\x1b(I", b"\x1b$)A", b"\x0e", b"\x0f", b"\x1b", b"|b"])))
def test_no_order_of_escape_sequences_raises(pieces: list[bytes]) -> None:
    for codec in ("iso_2022", "euc_jp_ms"):
        charsets.decode(b"".join(pieces), codec).encode()


@given(st.text("あ漢字カ亜髙①AZaz09", max_size=30))
def test_japanese_text_comes_back_as_it_was_written(text: str) -> None:
    plain = text.replace("髙", "").replace("①", "")
    for label, codec in (("iso-2022-jp", "iso2022_jp"), ("euc-jp", "euc_jp")):
        assert word(label, plain.encode(codec)) == plain
    assert charsets.decode(text.encode("cp932"), "cp932") == text


@pytest.mark.parametrize("unit", [b"\x1b$B|b", b"\x1b$B", b"\x0e\x0f", b"\x8f\xb0\xa5", b"\xa1", b"\xfc\xe2", b"\x1b"])
@pytest.mark.parametrize("codec", ["iso_2022", "euc_jp_ms"])
def test_the_time_of_the_decoders_grows_with_the_length(codec: str, unit: bytes) -> None:
    started = time.thread_time()
    charsets.decode(unit * (256 * 1024 // len(unit)), codec)
    assert time.thread_time() - started < 5


# ---------------------------------------------------------------------------------------------- raw 8-bit names


@pytest.mark.parametrize(
    ("name", "content_type", "people"),
    [
        ("髙橋".encode(), "text/plain; charset=shift_jis", {"髙橋"}),
        ("髙橋".encode("cp932"), "text/plain; charset=Shift_JIS", {"髙橋"}),
        (b'"' + "髙橋".encode("cp932") + b'"', 'text/plain; format=flowed; charset="shift_jis"', {"髙橋"}),
        (b"\xfc\xe2\xb6\xb6", "text/plain;\r\n\tCHARSET=euc-jp", {"髙橋"}),
        (b"\x1b$B|b66\x1b(B", "text/plain; charset=iso-2022-jp", {"髙橋"}),
        (b"\xfc\xe2\xb6\xb6", "text/plain", set()),
        (b"Andr\xe9", "", {"André"}),
        (b"Andr\xe9", "text/plain; charset=utf-8", {"André"}),
        (b"Andr\x8e", "text/plain; charset=macintosh", {"André"}),
        ("André".encode(), "text/plain; charset=windows-1251", {"André"}),
        (b"Andr\xe9", "text/plain; charset=x-no-such", {"André"}),
        (b"\xbf", "text/plain; charset=utf-7", set()),
    ],
)
def test_raw_names_have_the_charset_of_content_type(name: bytes, content_type: str, people: set[str]) -> None:
    header = [b"Content-Type: " + content_type.encode()] if content_type else []
    assert who(b"To: " + name + f" <{E}>".encode(), *header) == (people or who("To: nobody"))


def test_two_raw_names_are_judged_one_by_one() -> None:
    to = b"To: " + "André".encode() + f" <{E}>, ".encode() + "髙橋".encode("cp932") + f" <{E}>".encode()
    assert who(to, "Content-Type: text/plain; charset=shift_jis") == {"André", "髙橋"}


def test_a_charset_makes_no_address_of_other_text() -> None:
    # given text that is an address of ours in UTF-7, beside an octet that makes the value raw
    value = b"+ADw-support+AEA-company.com+AD4- \xff <x@y.example>"
    # then
    assert charsets.to_utf8(value, "utf_7") == value
    assert charsets.to_utf8(value, "utf_16_le") == value
