"""Forms: their values as fields of the accounts file, and the problems of each field."""

from __future__ import annotations

import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup
from starlette.datastructures import FormData

from services.admin.accounts.change_lines import detail_on_page
from services.admin.accounts.edit import ChangedMeanwhile
from services.admin.accounts.errors import AccountProblem
from services.admin.web.times import moment
from shared.languages import stored_texts
from shared.languages.translation import gettext, lookup, marked
from shared.model import External, Local

KEPT_SECONDS = 1800.0
"""Lifetime of a typed password that is not saved yet: seconds; long enough to correct a form."""
_MAX_KEPT, _MAX_KEPT_CHARACTERS = 1000, 16 * 1024 * 1024
"""Limits of what is kept for all users: entries; characters, for a few accounts files of the largest size."""


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

    def pairs(self) -> list[tuple[str, str]]:
        """Return the names and values of all fields but files, as they were sent."""
        items = self._data.multi_items() if isinstance(self._data, FormData) else self._data.items()
        return [(name, value) for name, value in items if isinstance(value, str)]

    def typed(self, empty: Mapping[str, Any]) -> dict[str, Any]:
        """Return the typed values to show them again, without secrets. :param empty: the values of an empty form."""
        return {name: self.flag(name) if isinstance(old, bool) else self.text(name) for name, old in empty.items()}


def typed_address(form: Form, old: External | Local | None) -> dict[str, str]:
    """Return the fields that say which account an entry is. :param old: as it is stored; None: it is new."""
    typed = form.text("address")
    if old is None or not typed or typed == old.address:
        return {"address": typed if old is None else old.address}
    return {"address": typed, "renamed_from": old.address}


def lines_with_former(form: Form, name: str, old: External | Local | None) -> list[str]:
    """Return the further addresses of a form, with the former address of the account if that is to be kept."""
    lines = form.lines(name)
    changed = "renamed_from" in typed_address(form, old)
    if old is None or not changed:
        return lines
    lines = [line for line in lines if line.casefold() != form.text("address").casefold()]  # it is the main one now
    return [*lines, old.address] if form.flag("keep_address") and old.address not in lines else lines


def shown(value: Any) -> Any:
    """Return a value of the accounts file as a field of a form shows it. Pure."""
    return "\n".join(value) if isinstance(value, list) else "" if value is None else value


class FieldErrors(dict[str, str]):
    """The errors of a form, by the name of the field. first: the first field at fault on the page; '': none."""

    first = ""

    @classmethod
    def of(cls, errors: Mapping[str, str]) -> FieldErrors:
        """Return errors in the order of the page."""
        found = cls(errors)
        found.first = next(iter(errors), "")
        return found


def explain(
    problems: Sequence[AccountProblem],
    labels: Mapping[str, str],
    address: str = "",
    further: Mapping[str, str] | None = None,
) -> tuple[list[str], FieldErrors]:
    """Sort the problems of an account to the fields of its form. Pure.

    :param labels: of the fields, in the order of the page. :param address: of the account of the form; problems of
        other accounts belong to no field. :param further: errors of fields without a problem: the check that finds
        them comes after the one that has failed.
    :return: all problems as lines with the fields' labels, and the errors of the fields.
    """
    errors, lines, others = FieldErrors(), list[str](), list[str]()
    for problem in problems:
        name = ".".join(part for part in problem.field if isinstance(part, str))
        label, words = labels.get(name), problem.beside_field
        if problem.address and address and problem.address.casefold() != address.casefold():
            others.append(f"{problem.address}: {f'{label}: ' if label else ''}{words}")
        elif label is None:
            others.append(words)
        else:
            errors[name] = f"{errors[name]}; {words}" if name in errors else words
    for name, words in (further or {}).items():
        errors.setdefault(name, stored_texts.shown(words))
    for name in labels:
        if name in errors:
            errors.first = errors.first or name
            lines.append(f"{labels[name]}: {errors[name]}")
    return lines + others, errors


_FLAGS = {True: marked("ticked"), False: marked("not ticked"), "": marked("empty")}


def tell_changes(
    error: ChangedMeanwhile, labels: Mapping[str, str], typed: Mapping[str, Any], stored: Mapping[str, Any]
) -> tuple[list[str], FieldErrors]:
    """Say who changed what since a form was shown. Pure.

    :return: lines with the labels of the form, and for each field whose stored value is another one, that value.
    """
    lines = [stored_texts.shown(error.lines[0])]
    for entry in error.entries:
        what = detail_on_page(entry.did, entry.detail) or stored_texts.shown(entry.did)
        lines.append(Markup("{}: {} ({})").format(stored_texts.shown(entry.who), what, moment(entry.at)))
    lines.append(gettext("Your values are below. Compare, and save again to replace that state by them."))
    errors = FieldErrors()
    for field in labels:
        if field in stored and field in typed and str(typed[field]) != str(stored[field]):  # numbers are typed as text
            value = stored[field] if isinstance(stored[field], bool) else str(stored[field])
            flag = _FLAGS.get(value)
            errors[field] = gettext("stored now: %(value)s", value=value if flag is None else lookup(flag))
            errors.first = errors.first or field
    return lines, errors


class KeptSecrets:
    """What was typed or uploaded and is not saved yet, each for the session that sent it and for KEPT_SECONDS.

    A user need not type a password again after a test, and no password is sent back to the browser.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[int, str, float]] = OrderedDict()
        self._characters = 0  # of all kept texts

    def store(self, session_id: int, secret: str | None) -> str:
        """Store a secret. :return: the handle that replaces it in the form; '' for no secret."""
        if not secret:
            return ""
        handle = secrets.token_urlsafe(16)
        self._kept[handle] = (session_id, secret, time.monotonic() + KEPT_SECONDS)
        self._characters += len(secret)
        while (
            len(self._kept) > _MAX_KEPT
            or self._characters > _MAX_KEPT_CHARACTERS
            or next(iter(self._kept.values()))[2] < time.monotonic()
        ):
            self._characters -= len(self._kept.popitem(last=False)[1][1])
        return handle

    def take(self, session_id: int, handle: str) -> str | None:
        """Return the secret of a handle as ``load`` does, and forget it."""
        secret = self.load(session_id, handle)
        if secret is not None:
            self._characters -= len(self._kept.pop(handle)[1])
        return secret

    def load(self, session_id: int, handle: str) -> str | None:
        """Return the secret of a handle, if it is still stored and belongs to this session."""
        owner, secret, until = self._kept.get(handle, (0, "", 0.0))
        return secret if owner == session_id and until > time.monotonic() else None
