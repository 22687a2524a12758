"""services/imap_out/search/plain_mails.py: no text that a mail has is taken for one that it lacks."""

from __future__ import annotations

import re

import pytest

from services.imap_out.folding import fold_text
from services.imap_out.search.body_search import BodySearch
from services.imap_out.search.mail_texts import header_text
from services.imap_out.search.plain_mails import PlainMails, lacking_texts, split_texts
from services.imap_out.structure.stored import read_structure
from shared.mime import headers
from tests.imap_mails import MAILS

PLAIN = (
    b"From: Ann <ann@x.example>\r\nSubject: the long\r\n subject\r\nContent-Type: text/plain; charset=utf-8\r\n"
    b"Content-Transfer-Encoding: 7bit\r\n\r\nHello World\r\nand all\r\n"
)


def lacking(mail: bytes, *texts: str) -> set[str]:
    return set(lacking_texts(mail, split_texts({fold_text(text): "mail" for text in texts})))


def test_a_plain_mail_lacks_what_is_not_in_its_octets() -> None:
    assert lacking(PLAIN, "hello", "WORLD and", "long subject", "subject: the", "", " ", "ü") == set()
    assert lacking(PLAIN, "hullo", "world nix", "hello", "subjects: x") == {"hullo", "world nix", "subjects: x"}


def test_a_text_is_looked_for_in_its_place() -> None:
    texts = split_texts({"hello": "header", "the long": "header", "ann": "body", "world": "body", "subject": "mail"})
    assert lacking_texts(PLAIN, texts) == {"hello", "ann"}
    assert lacking_texts(PLAIN.replace(b"\r\n", b"\n"), texts) == {"hello", "ann"}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"7bit", b"quoted-printable"),
        (b"Encoding:", b"Encoding :"),
        (b"charset=utf-8", b"charset=utf-7"),
        (b"charset=utf-8", b"charset*=utf-8''us-ascii"),
        (b"text/plain", b"text/html"),
        (b"text/plain", b"text / html"),
        (b"the long", b"=?utf-8?q?the?= long"),
        (b"World", b"W\xc3\xb6rld"),
        (b"World", b"\x1b$B$3$s"),
        (b"the long", b"the\rlong"),
    ],
)
def test_nothing_is_said_of_a_mail_that_has_to_be_decoded(old: bytes, new: bytes) -> None:
    mail = PLAIN.replace(old, new)
    assert mail != PLAIN and lacking(mail, "hullo") == set()


@pytest.mark.parametrize("name", MAILS)
def test_a_full_search_agrees(name: str) -> None:
    mail = MAILS[name]
    words = {word.decode("latin-1") for word in re.findall(rb"[!-~]+", mail)}
    texts = [
        fold_text(word) for word in (*words, *(word[1:-1] for word in words), *map(str.swapcase, words), "nowhere")
    ]
    searching = BodySearch(read_structure((mail,)), texts)
    searching.feed(mail)
    searching.finish()
    header = header_text(mail[: headers.header_end(mail)])
    assert not [text for text in lacking(mail, *texts) if text in header or text in searching.found]
    in_header, in_body = (lacking_texts(mail, split_texts(dict.fromkeys(texts, place))) for place in ("header", "body"))
    assert not [text for text in in_header if text in header]
    assert not [text for text in in_body if text in searching.found]


def test_the_memory_of_plain_mails_is_limited() -> None:
    plain = PlainMails(max_pages=2)
    for blob_id in (0, 7, 8, 32_767, 32_768, 10_000_000):
        assert blob_id not in plain
        plain.add(blob_id, PLAIN)
    assert [blob_id for blob_id in (0, 7, 8, 32_767, 32_768, 10_000_000) if blob_id in plain] == [32_768, 10_000_000]
    assert 32_769 not in plain and 9_999_999 not in plain


@pytest.mark.parametrize("mail", [PLAIN.replace(b"\r\n", b"\n"), PLAIN + b"\n", b"\r\nno header\r\n"])
def test_a_mail_with_other_line_ends_is_read_each_time(mail: bytes) -> None:
    plain = PlainMails()
    plain.add(1, mail)
    assert 1 not in plain
