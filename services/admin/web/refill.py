"""What was typed into a form whose session had ended: through the sign-in page, and into the form again. Pure.

SECURITY. No password is part of it, so none comes back into a page; and the page is requested with GET, so nothing is
changed before the user presses the button again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from html.parser import HTMLParser
from urllib.parse import quote

MAX_OCTETS = 192 * 1024
"""Limit of what is kept: octets as the sign-in page sends them; a form has a few KiB."""
_RELAYS = ("smtp", "smtp2", "smtp3")
SECRETS = frozenset({"password", "oauth.client_secret", "oauth.client_key", "old", "new", "again"}) | {
    f"{relay}.password" for relay in _RELAYS
}
"""The fields of passwords, in all forms."""
_KEPT = frozenset({"kept", "oauth.kept", "oauth.kept_key"}) | {f"{relay}.kept" for relay in _RELAYS}
"""Hidden fields that stand for typed passwords."""
_OF_SESSION = _KEPT | {"confirmed", "seen"}
"""Hidden fields that mean nothing after the session."""
_STATE = _OF_SESSION | {"version", "found"} | {f"{server}.shown_tls" for server in ("pop3", "imap", *_RELAYS)}
"""Hidden fields that do not distinguish one form of a page from another."""


@dataclass(frozen=True, slots=True)
class TypedForm:
    """A form as it was sent. action: the path that it was sent to."""

    action: str
    pairs: Sequence[tuple[str, str]]  # names and values, without passwords
    had_secrets: bool  # passwords were typed, or kept for the session that has ended

    @classmethod
    def of(cls, action: str, sent: Sequence[tuple[str, str]]) -> TypedForm:
        """Return a form without what must not be kept."""
        pairs = [(name, value) for name, value in sent if name not in SECRETS | _OF_SESSION]
        had = any(value for name, value in sent if name in SECRETS or name in _KEPT)
        return cls(action, pairs, had)

    def as_text(self) -> str:
        """Return the form as a text for the sign-in page; '' if it is too long."""
        text = json.dumps([self.action, [list(pair) for pair in self.pairs], self.had_secrets], ensure_ascii=False)
        return text if len(quote(text)) <= MAX_OCTETS else ""

    @classmethod
    def from_text(cls, text: str) -> TypedForm | None:
        """Return the form of a text; None if it is not one."""
        try:
            action, pairs, had_secrets = json.loads(text)
            return cls(str(action), [(str(name), str(value)) for name, value in pairs], bool(had_secrets))
        except (ValueError, TypeError, RecursionError):
            return None


def refill(page: str, typed: TypedForm) -> str:
    """Return a page with the values in its form for this action; unchanged if it has no such form."""
    finder = _FormFinder(typed)
    finder.feed(page)
    finder.close()
    if finder.number is None:
        return page
    writer = _Refiller(typed, finder.number)
    writer.feed(page)
    writer.close()
    return "".join(writer.parts)


class _FormFinder(HTMLParser):
    """Finds the form that was sent: its action and hidden fields fit, and it has the most of the values."""

    def __init__(self, typed: TypedForm) -> None:
        super().__init__(convert_charrefs=True)
        self.number: int | None = None  # of the form in the page
        self._typed = typed
        self._names = {name for name, _ in typed.pairs}
        self._count, self._fits = -1, False
        self._found, self._most = 0, -1  # values that this form can have, and the best one before
        self._select = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Look at a form, or at one of its fields."""
        attributes = dict(attrs)
        name, kind = attributes.get("name") or "", attributes.get("type") or "text"
        has = (name, attributes.get("value") or ("on" if kind == "checkbox" else "")) in self._typed.pairs
        if tag == "form":
            self._count, self._found = self._count + 1, 0
            self._fits = (attributes.get("action") or self._typed.action) == self._typed.action
        elif tag == "select":
            self._select = name
        elif tag == "option":
            self._found += (self._select, attributes.get("value") or "") in self._typed.pairs
        elif tag == "input" and kind in ("hidden", "checkbox", "radio"):
            self._fits &= has or kind != "hidden" or name in _STATE
            self._found += has
        elif tag in ("input", "textarea"):
            self._found += name in self._names

    def handle_endtag(self, tag: str) -> None:
        """Take the form if it fits better than those before."""
        if tag == "form" and self._fits and self._found > self._most:
            self.number, self._most = self._count, self._found


class _Refiller(HTMLParser):
    """Copies a page, and puts the values into the fields of one form."""

    def __init__(self, typed: TypedForm, number: int) -> None:
        super().__init__(convert_charrefs=False)
        self.parts: list[str] = []
        self._typed = typed
        self._left, self._inside = number, False
        self._select: str | None = None
        self._dropping = False  # the text of a text area, which is replaced

    def _value(self, name: str) -> str | None:
        return next((value for given, value in self._typed.pairs if given == name), None)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Copy a tag, with the typed value if it is a field of the form."""
        raw, attributes = self.get_starttag_text() or "", dict(attrs)
        if tag == "form":
            self._inside, self._left = self._left == 0, self._left - 1
        name = attributes.get("name") or ""
        if not self._inside or name in SECRETS | _OF_SESSION:
            self.parts.append(raw)
        elif tag == "input" and attributes.get("type") in ("checkbox", "radio"):
            ticked = (name, attributes.get("value") or "on") in self._typed.pairs
            self.parts.append(_tag(tag, _without(attrs, "checked"), "checked" if ticked else ""))
        elif tag == "input" and attributes.get("type") != "file" and (value := self._value(name)) is not None:
            self.parts.append(_tag(tag, [*_without(attrs, "value"), ("value", value)]))
        elif tag == "select":
            self._select = self._value(name)
            self.parts.append(raw)
        elif tag == "option" and self._select is not None:
            chosen = (attributes.get("value") or "") == self._select
            self.parts.append(_tag(tag, _without(attrs, "selected"), "selected" if chosen else ""))
        elif tag == "textarea" and (value := self._value(name)) is not None:
            self.parts += [raw, "\n", escape(value)]  # a line feed after the tag is no part of the value
            self._dropping = True
        elif tag == "details":
            self.parts.append(_tag(tag, _without(attrs, "open"), "open"))
        else:
            self.parts.append(raw)

    def handle_endtag(self, tag: str) -> None:
        """Copy the end of an element."""
        if tag == "form":
            self._inside = False
        elif tag == "select":
            self._select = None
        elif tag == "textarea":
            self._dropping = False
        self.parts.append(f"</{tag}>")

    def handle_data(self, data: str) -> None:
        """Copy a text."""
        if not self._dropping:
            self.parts.append(data)

    def handle_entityref(self, name: str) -> None:
        """Copy a named reference."""
        self.handle_data(f"&{name};")

    def handle_charref(self, name: str) -> None:
        """Copy a numeric reference."""
        self.handle_data(f"&#{name};")

    def handle_decl(self, decl: str) -> None:
        """Copy the doctype."""
        self.parts.append(f"<!{decl}>")

    def handle_comment(self, data: str) -> None:
        """Copy a comment."""
        self.parts.append(f"<!--{data}-->")


def _without(attrs: Sequence[tuple[str, str | None]], name: str) -> list[tuple[str, str | None]]:
    return [(given, value) for given, value in attrs if given != name]


def _tag(tag: str, attrs: Sequence[tuple[str, str | None]], flag: str = "") -> str:
    """Return a start tag. :param flag: an attribute without a value."""
    written = "".join(f" {name}" if value is None else f' {name}="{escape(value)}"' for name, value in attrs)
    return f"<{tag}{written}{f' {flag}' if flag else ''}>"
