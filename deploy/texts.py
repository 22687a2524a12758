"""The texts for people: ``python -m deploy.texts write`` brings each language's file up to date, ``check`` compares.

A text that is new has no translation yet; one that changed keeps the former translation as a comment of the file, never
as its text. A text that is gone is removed.
"""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

from babel.messages.catalog import Catalog
from babel.messages.extract import extract_from_dir
from babel.messages.pofile import read_po, write_po

ROOT = Path(__file__).resolve().parents[1]
LANGUAGES = ROOT / "shared" / "languages"
_METHODS = [("services/**.py", "python"), ("shared/**.py", "python"), ("services/**.html", "jinja2")]
_KEYWORDS = {"_": None, "gettext": None, "marked": None, "ngettext": (1, 2), "marked_plural": (1, 2)}
_PLACE = re.compile(r"%(?:\((\w+)\))?[sd%]")
_MARKUP = re.compile(r"<[^>]*>|[<>&\"]")
"""Markup of a text, and what would be taken for markup on a page."""


def source_texts() -> Catalog:
    """Return all texts of the code, in order."""
    found = Catalog()
    places = extract_from_dir(
        ROOT,
        _METHODS,
        {"services/**.html": {"trimmed": "true", "newstyle_gettext": "true", "silent": "false"}},
        _KEYWORDS,
        directory_filter=lambda folder: not Path(folder).name.startswith("."),
    )
    for _, _, text, _, _ in places:
        found.add(text)
    return found


def updated(code: str, source: Catalog) -> tuple[str, list[str]]:
    """Return what the file of a language is to be, and what is wrong with its translations."""
    with (LANGUAGES / f"{code}.po").open("rb") as file:
        translated = read_po(file, locale=code.replace("-", "_"))
    translated.update(source, no_fuzzy_matching=True)
    translated.obsolete.clear()
    out = io.BytesIO()
    write_po(out, translated, omit_header=False, no_location=True, sort_output=True, width=116)
    text = re.sub(
        r'^"(?:Report-|POT-Creation-|PO-Revision-|Generated-|Project-|Language-Team|Last-)[^:]*: .*\n',
        "",
        out.getvalue().decode(),
        flags=re.M,
    )
    messages = [message for message in translated if message.id]
    return text, [problem for each in messages for problem in _problems(code, _all(each.id), _all(each.string))]


def _all(text: object) -> tuple[str, ...]:
    return (text,) if isinstance(text, str) else tuple(text) if isinstance(text, list | tuple) else ()


def _problems(code: str, sources: tuple[str, ...], translations: tuple[str, ...]) -> list[str]:
    if not translations or not all(translations):
        return [f"{code}: no translation: {sources[0]}"]
    allowed = {place for text in sources for place in _PLACE.findall(text)}
    needed = allowed if len(sources) == 1 else set()  # a plural form may leave out the number
    markup = sorted(_MARKUP.findall(sources[0]))
    return [
        f"{code}: other values or other markup than in English: {each}"
        for each in translations
        if not needed <= set(_PLACE.findall(each)) <= allowed or sorted(_MARKUP.findall(each)) != markup
    ]


def main(task: str) -> int:
    """Do the task; return the exit status."""
    source = source_texts()
    wrong: list[str] = []
    for file in sorted(LANGUAGES.glob("*.po")):
        text, problems = updated(file.stem, source)
        wrong += problems
        if task == "write":
            file.write_text(text, encoding="utf-8")
        elif file.read_text(encoding="utf-8") != text:
            wrong.append(f"{file.name} does not fit the texts of the code; update it with: make texts")
    print("\n".join(wrong))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if sys.argv[1:] in (["write"], ["check"]) else sys.exit("usage: write | check")))
