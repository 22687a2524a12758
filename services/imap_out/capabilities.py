"""What CAPABILITY announces (RFC 3501 section 6.1.1), and what ENABLE enables (RFC 5161). Pure."""

from __future__ import annotations

from collections.abc import Iterable

_ALWAYS = ("IMAP4rev1", "IMAP4rev2", "LITERAL+", "SASL-IR", "ID", "ENABLE")
_AFTER_LOGIN = (
    *("IDLE", "NAMESPACE", "UNSELECT", "UIDPLUS", "MOVE", "CHILDREN", "SPECIAL-USE"),
    *("LIST-EXTENDED", "LIST-STATUS", "STATUS=SIZE", "CONDSTORE", "QRESYNC", "UTF8=ACCEPT", "BINARY"),
    *("ESEARCH", "SEARCHRES", "WITHIN", "SORT", "THREAD=REFERENCES", "THREAD=ORDEREDSUBJECT"),
    *("QUOTA", "QUOTA=RES-MAILBOX"),
)
IMPLIED: dict[str, frozenset[str]] = {
    "IMAP4rev2": frozenset({"IMAP4rev2"}),
    "CONDSTORE": frozenset({"CONDSTORE"}),
    "QRESYNC": frozenset({"QRESYNC", "CONDSTORE"}),  # RFC 7162 section 3.2.3
    "UTF8=ACCEPT": frozenset({"UTF8=ACCEPT"}),
}
"""What ENABLE of a capability enables."""


def can_be_enabled(words: Iterable[str]) -> list[str]:
    """Return those of these words that name capabilities of ``IMPLIED``, as they are written there."""
    names = {name.upper(): name for name in IMPLIED}
    return [names[word.upper()] for word in words if word.upper() in names]


def capabilities(*, tls: bool, logged_in: bool, passwords: bool) -> tuple[str, ...]:
    """Return the capabilities of a session. :param passwords: LOGIN and AUTHENTICATE are accepted now."""
    if logged_in:
        return (*_ALWAYS, *_AFTER_LOGIN)
    login = ("AUTH=PLAIN",) if passwords else ("LOGINDISABLED",)
    return (*_ALWAYS, *(() if tls else ("STARTTLS",)), *login)


def capability_code(names: Iterable[str]) -> str:
    """Format the response code CAPABILITY."""
    return " ".join(("CAPABILITY", *names))
