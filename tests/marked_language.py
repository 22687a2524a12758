"""A language (Esperanto) whose texts are the English ones in ⟦ ⟧: what stands outside of them is not translated.

The values of a text stand outside, too: a value may be a text for people itself.
"""

from __future__ import annotations

import re
from pathlib import Path

from babel.messages.catalog import Catalog
from babel.messages.pofile import write_po

from deploy.texts import source_texts

_PLACE = re.compile(r"(%\(\w+\)[sd])")


def marked(text: str) -> str:
    """Return a text of the code with marks around all but the places of its values."""
    return "".join(part if number % 2 or not part else f"⟦{part}⟧" for number, part in enumerate(_PLACE.split(text)))


def write_marked_language(folder: Path) -> None:
    """Write the file of the language, eo.po, for ``translation.use_folder``."""
    catalogue = Catalog(locale="eo")
    for message in source_texts():
        if message.id:
            texts = (message.id,) if isinstance(message.id, str) else tuple(message.id)
            found = tuple(map(marked, texts))
            catalogue.add(message.id, found[0] if isinstance(message.id, str) else found)
    with (folder / "eo.po").open("wb") as file:
        write_po(file, catalogue)


def untranslated(text: str) -> list[str]:
    """Return the words of a text that stand in no translated text."""
    while (shorter := re.sub(r"⟦[^⟦⟧]*⟧", " ", text)) != text:
        text = shorter
    words = [word.strip("(),;…–·") for word in text.split()]
    return [word for word in words if re.search(r"[^\W\d_]{2}", word)]
