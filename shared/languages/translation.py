"""The language that applies, and the texts in it."""

from __future__ import annotations

import gettext as catalogues
import io
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
SOURCE: Final = "en"
"""The language of the texts in the code."""

_folder = HERE
_applies: ContextVar[str] = ContextVar("language", default=SOURCE)


def gettext(text: str, /, **values: object) -> str:
    """Return a text in the language that applies.

    :param text: English, with a place for each value: ``%(name)s``; a per cent sign is written ``%%``.
    """
    return lookup(text) % values


def ngettext(one: str, several: str, count: int, /, **values: object) -> str:
    """Return the text for this number in the language that applies. :param one, several: as ``gettext``; the place
    ``%(num)s`` needs no value of its own.
    """
    return lookup_plural(one, several, count) % ({"num": count} | values)


def lookup(text: str) -> str:
    """Return a text in the language that applies, with the places for its values."""
    return _catalogue(_applies.get()).gettext(text) if text else ""  # of "" a catalogue has its header


def lookup_plural(one: str, several: str, count: int) -> str:
    """Return the text for this number in the language that applies, with the places for its values."""
    return _catalogue(_applies.get()).ngettext(one, several, count)


def marked(text: str) -> str:
    """Return the text itself: it is translated where it is shown, by ``gettext`` of a variable."""
    return text


def marked_plural(one: str, several: str) -> tuple[str, str]:
    """Return both texts themselves, as ``marked``; they are translated by ``ngettext`` of variables."""
    return one, several


def language() -> str:
    """Return the code of the language that applies."""
    return _applies.get()


@contextmanager
def in_language(code: str) -> Iterator[None]:
    """Let a language apply within the block. :param code: of ``codes()``; any other means English."""
    before = _applies.set(code if code in codes() else SOURCE)
    try:
        yield
    finally:
        _applies.reset(before)


@cache
def codes() -> tuple[str, ...]:
    """Return the codes of the languages, English first."""
    return (SOURCE, *sorted(file.stem for file in _folder.glob("*.po")))


def check_code(code: str) -> str:
    """Return the code of a language that there is. :raises ValueError: there is none; it names the codes."""
    if code not in codes():
        raise ValueError(f"is not one of {', '.join(codes())}")
    return code


@cache
def languages() -> dict[str, str]:
    """Return the languages: code to its name in itself, English first."""
    from babel import Locale  # late: of the services, only those that write to people need it

    return {code: (Locale.parse(code, sep="-").get_display_name(code) or code).capitalize() for code in codes()}


def use_folder(folder: Path) -> None:
    """Read the languages from another folder. Tests have a language of their own there."""
    global _folder
    _folder = folder
    for each in (codes, languages, _catalogue):
        each.cache_clear()


def choose(accepted: str) -> str:
    """Return the language for a browser: of its preferences, the first that there is, or else English.

    :param accepted: the header Accept-Language (RFC 9110 section 12.5.4); its shortest form ``de`` matches ``de-AT``.
    """
    wanted: list[tuple[float, str]] = []
    for each in accepted[:500].split(","):
        code, _, parameters = each.strip().partition(";")
        try:
            weight = float(parameters.strip().removeprefix("q=") or 1)
        except ValueError:
            continue
        wanted.append((weight, code.strip().lower()))
    known = {code.lower(): code for code in languages()}
    for weight, code in sorted(wanted, key=lambda each: -each[0]):
        found = known.get(code) or known.get(code.partition("-")[0])
        if found and weight > 0:
            return found
    return SOURCE


@cache
def _catalogue(code: str) -> catalogues.NullTranslations:
    """Return the texts of a language. Reading the file takes a tenth of a second, once."""
    if code == SOURCE:
        return catalogues.NullTranslations()
    from babel.messages.mofile import write_mo
    from babel.messages.pofile import read_po

    with (_folder / f"{code}.po").open("rb") as file:
        texts = read_po(file, locale=code.replace("-", "_"))
    compiled = io.BytesIO()
    write_mo(compiled, texts)
    compiled.seek(0)
    return catalogues.GNUTranslations(compiled)
