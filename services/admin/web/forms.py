"""What a form sent, as the fields of the accounts file; and what is wrong with it, at the field."""

from __future__ import annotations

import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.datastructures import FormData

KEPT_SECONDS = 1800.0
_KEPT = 1000
_PROBLEM = re.compile(r"^(?:external|local) account: ([\w.]+)(?:\[\d+\])?(?: \([^()]*\))?: (.*)$", re.DOTALL)


class Form:
    """A form that was sent."""

    def __init__(self, data: FormData | Mapping[str, Any]) -> None:
        self._data = data

    def text(self, name: str) -> str:
        """A line of text; '' if there is none."""
        value = self._data.get(name, "")
        return value.strip() if isinstance(value, str) else ""

    def secret(self, name: str) -> str:
        """A password, as typed."""
        value = self._data.get(name, "")
        return value if isinstance(value, str) else ""

    def flag(self, name: str) -> bool:
        """Whether a box is ticked."""
        return self.text(name) == "on"

    def number(self, name: str) -> int | str | None:
        """A whole number; what is none stays as typed, so that it is refused by name. None: nothing was typed."""
        value = self.text(name)
        if not value:
            return None
        return int(value) if re.fullmatch(r"-?\d{1,18}", value, re.ASCII) else value

    def lines(self, name: str) -> list[str]:
        """The lines of a larger field that are not empty."""
        return [line.strip() for line in self.text(name).splitlines() if line.strip()]

    def ids(self, name: str = "id") -> list[int]:
        """The numbers of what was ticked."""
        values = self._data.getlist(name) if isinstance(self._data, FormData) else []
        return [int(v) for v in values if isinstance(v, str) and re.fullmatch(r"\d{1,18}", v, re.ASCII)]

    def typed(self, empty: Mapping[str, Any]) -> dict[str, Any]:
        """What was typed, to be shown again; not for secrets. :param empty: what an empty form shows in each field."""
        return {name: self.flag(name) if isinstance(old, bool) else self.text(name) for name, old in empty.items()}


def shown(value: Any) -> Any:
    """A value of the accounts file as a field of a form shows it. Pure."""
    return "\n".join(value) if isinstance(value, list) else "" if value is None else value


def explain(lines: Sequence[str], labels: Mapping[str, str]) -> tuple[list[str], set[str]]:
    """Problems with the fields' labels instead of their names, and which fields they are about. Pure."""
    shown, fields = [], set()
    for line in lines:
        found = _PROBLEM.match(line)
        if found is None:
            shown.append(line)
            continue
        name, what = found.groups()
        fields.add(name)
        shown.append(f"{labels.get(name, name)}: {what}")
    return shown, fields


class KeptSecrets:
    """Passwords that were typed into a form that is not saved yet, for the session that typed them, for a while.

    So nobody has to type a password again after a test, and none is sent back to the browser.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[int, str, float]] = OrderedDict()

    def store(self, session_id: int, secret: str | None) -> str:
        """:return: what stands for it in the form; '' for none."""
        if not secret:
            return ""
        handle = secrets.token_urlsafe(16)
        self._kept[handle] = (session_id, secret, time.monotonic() + KEPT_SECONDS)
        while len(self._kept) > _KEPT or next(iter(self._kept.values()))[2] < time.monotonic():
            self._kept.popitem(last=False)
        return handle

    def load(self, session_id: int, handle: str) -> str | None:
        """The secret that this stands for, if it is still kept."""
        owner, secret, until = self._kept.get(handle, (0, "", 0.0))
        return secret if owner == session_id and until > time.monotonic() else None
