"""Forms: their values as fields of the accounts file, and the problems of each field."""

from __future__ import annotations

import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.datastructures import FormData

KEPT_SECONDS = 1800.0
"""Lifetime of a typed password that is not saved yet: seconds; long enough to correct a form."""
_MAX_KEPT = 1000
_PROBLEM = re.compile(
    r"^(?:external|local) account(?: [^\s:]+)?: ([\w.]+)(?:\[\d+\])?(?: \([^()]*\))?: (.*)$", re.DOTALL
)


class Form:
    """A submitted form."""

    def __init__(self, data: FormData | Mapping[str, Any]) -> None:
        self._data = data

    def text(self, name: str) -> str:
        """Return a line of text without surrounding white space; '' if it is missing."""
        value = self._data.get(name, "")
        return value.strip() if isinstance(value, str) else ""

    def secret(self, name: str) -> str:
        """Return a password as typed."""
        value = self._data.get(name, "")
        return value if isinstance(value, str) else ""

    def flag(self, name: str) -> bool:
        """Return whether a check box is ticked."""
        return self.text(name) == "on"

    def number(self, name: str) -> int | str | None:
        """Return a whole number; None if the field is empty. Other text is returned as typed: the check refuses it."""
        value = self.text(name)
        if not value:
            return None
        return int(value) if re.fullmatch(r"-?\d{1,18}", value, re.ASCII) else value

    def lines(self, name: str) -> list[str]:
        """Return the lines of a text area that are not empty."""
        return [line.strip() for line in self.text(name).splitlines() if line.strip()]

    def ids(self, name: str = "id") -> list[int]:
        """Return the ids of the ticked rows."""
        values = self._data.getlist(name) if isinstance(self._data, FormData) else []
        return [int(v) for v in values if isinstance(v, str) and re.fullmatch(r"\d{1,18}", v, re.ASCII)]

    def typed(self, empty: Mapping[str, Any]) -> dict[str, Any]:
        """Return the typed values to show them again, without secrets. :param empty: the values of an empty form."""
        return {name: self.flag(name) if isinstance(old, bool) else self.text(name) for name, old in empty.items()}


def shown(value: Any) -> Any:
    """Return a value of the accounts file as a field of a form shows it. Pure."""
    return "\n".join(value) if isinstance(value, list) else "" if value is None else value


def explain(lines: Sequence[str], labels: Mapping[str, str]) -> tuple[list[str], set[str]]:
    """Replace the names of fields in problems by their labels. Pure. :return: the problems, the names of the fields."""
    messages, fields = [], set()
    for line in lines:
        match = _PROBLEM.match(line)
        if match is None:
            messages.append(line)
            continue
        name, problem = match.groups()
        fields.add(name)
        messages.append(f"{labels.get(name, name)}: {problem}")
    return messages, fields


class KeptSecrets:
    """Passwords typed into a form that is not saved yet, each for the session that sent it and for KEPT_SECONDS.

    A user need not type a password again after a test, and no password is sent back to the browser.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[int, str, float]] = OrderedDict()

    def store(self, session_id: int, secret: str | None) -> str:
        """Store a secret. :return: the handle that replaces it in the form; '' for no secret."""
        if not secret:
            return ""
        handle = secrets.token_urlsafe(16)
        self._kept[handle] = (session_id, secret, time.monotonic() + KEPT_SECONDS)
        while len(self._kept) > _MAX_KEPT or next(iter(self._kept.values()))[2] < time.monotonic():
            self._kept.popitem(last=False)
        return handle

    def load(self, session_id: int, handle: str) -> str | None:
        """Return the secret of a handle, if it is still stored and belongs to this session."""
        owner, secret, until = self._kept.get(handle, (0, "", 0.0))
        return secret if owner == session_id and until > time.monotonic() else None
