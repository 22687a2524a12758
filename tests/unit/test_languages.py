"""shared/languages: the texts that are stored in English, and dates."""

from __future__ import annotations

import datetime

import pytest

from shared.languages import stored_texts
from shared.languages.stored_forms import FORMS
from shared.languages.translation import codes, gettext, in_language, ngettext
from shared.languages.values import format_moment

AT = datetime.datetime(2026, 1, 2, 11, 5, tzinfo=datetime.timezone(datetime.timedelta(hours=1)))


@pytest.mark.parametrize(
    ("stored", "german"),
    [
        (
            "not delivered within five days; the last problem was: 451 try later; really",
            "nicht innerhalb von fünf Tagen zugestellt; das letzte Problem war: 451 try later; really",
        ),
        ("it is larger than the 5 octets that are allowed", "sie ist größer als die erlaubten 5 Byte"),
        ("nothing: they went to everybody", "gar nicht: sie gingen an alle"),
        ("550 5.1.1 no such user", "550 5.1.1 no such user"),
        ("delivered", "zugestellt"),
        ("", ""),
    ],
)
def test_a_stored_text_is_shown_in_the_reader_s_language(stored: str, german: str) -> None:
    assert stored_texts.shown(stored) == stored
    with in_language("de"):
        assert stored_texts.shown(stored) == german


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_each_form_of_a_stored_text_recognises_itself(form: str | tuple[str, str]) -> None:
    for text in (form,) if isinstance(form, str) else form:
        places = {name: "'7'" if name == "quoted" else "7" for name in stored_texts._PLACE.findall(text)}
        with in_language("de"):
            expected = gettext(text, **places) if isinstance(form, str) else ngettext(*form, 7, **places)
            assert stored_texts.shown(text % places) == expected


def test_a_long_text_from_outside_is_shown_as_it_is() -> None:
    text = "not delivered within five days; " * 100
    with in_language("de"):
        assert stored_texts.shown(text) == text


def test_a_date_is_in_the_reader_s_language() -> None:
    assert format_moment(AT) == "2026-01-02 10:05 UTC"
    assert format_moment(AT, AT.tzinfo or datetime.UTC) == "2026-01-02 11:05 +0100"
    with in_language("de"):
        assert format_moment(AT) == "2. Januar 2026, 10:05 UTC"
        assert format_moment(AT, AT.tzinfo or datetime.UTC) == "2. Januar 2026, 11:05 +0100"


def test_a_language_that_there_is_not_is_english() -> None:
    assert codes()[:2] == ("en", "de")
    with in_language("xx"):
        assert stored_texts.shown("delivered") == "delivered"
