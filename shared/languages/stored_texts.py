"""Texts with values that are stored in English, and are shown in the language of their reader.

A row of the database has the whole English text, for commands, for programs, and for readers of any language. A text is
recognised by its form (``stored_forms.py``); its values are put into the translation of the form. A text of no known
form, such as the reply of a provider, is shown as it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

from shared.languages.stored_forms import ANY, FORMS, TEXTS
from shared.languages.translation import SOURCE, gettext, language, lookup, ngettext
from shared.languages.values import format_count

MAX_CHARACTERS = 600
"""Longest text that is compared with the forms: characters; outsiders write parts of it."""
_DEPTH = 6
"""How often the value of a form is looked up as a text itself."""
_PLACE = re.compile(r"%\((\w+)\)s")
_VALUES = dict.fromkeys(TEXTS | ANY, ".+?") | {
    "num": "[0-9][0-9,]*",
    "quoted": """(?:'[^']*'|"[^"]*")""",
}
_Form = str | tuple[str, str]


def shown(text: str, depth: int = _DEPTH) -> str:
    """Return a stored text in the language that applies."""
    if language() == SOURCE or not text or len(text) > MAX_CHARACTERS:
        return text
    if (whole := lookup(text)) != text:
        return whole
    for form, pattern in _patterns():
        found = pattern.fullmatch(text)
        if found is not None:
            values = {
                name: shown(value, depth - 1) if depth and name in TEXTS else value
                for name, value in found.groupdict().items()
            }
            if isinstance(form, str):
                return gettext(form, **values)
            one, several = form
            count = int(values.pop("num").replace(",", ""))
            return ngettext(one, several, count, **values, num=format_count(count))
    return text


@cache
def _patterns() -> list[tuple[_Form, re.Pattern[str]]]:
    return [
        (form, re.compile(_regular(each), re.DOTALL))
        for form in FORMS
        for each in ((form,) if isinstance(form, str) else form)
    ]


def _regular(form: str) -> str:
    """Return the regular expression of a form: a number, one word, a quoted name, or any text for each place."""
    parts: Sequence[str] = _PLACE.split(form)
    found = ""
    for number, part in enumerate(parts):
        if number % 2:
            found += f"(?P<{part}>{_VALUES.get(part, r'[^ ]+')})"
        else:
            found += re.escape(part.replace("%%", "%"))
    return found
