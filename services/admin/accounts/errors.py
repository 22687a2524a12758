"""The error of accounts that break a rule: its problems, as fields for a form and as lines for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from shared.languages.stored_texts import shown

Kind = Literal["external", "local"]


@dataclass(frozen=True, slots=True)
class AccountProblem:
    """A rule that a field or an account breaks. ``str`` is the line for people."""

    words: str  # what is wrong and what is allowed; "is not ..." continues the value: 'abc' is not a number from ...
    kind: Kind | None = None  # of the account; None: of the whole file
    index: int | None = None  # of the account's entry in the accounts file
    address: str = ""  # of the account
    field: tuple[str | int, ...] = ()  # names and positions in the account's entry: ("pop3", "port"), ("aliases", 0)
    value: str = ""  # the given value, as shown; "" for none, for a secret, and for a list or mapping
    on_page: str = ""  # what a page says beside the field, where it is not ``said``: without names of fields
    of_name: bool = False  # the name of the field is wrong, not the value
    where: str = ""  # name of the file, with line and column

    @property
    def path(self) -> tuple[str | int, ...]:
        """Names and positions in the accounts file, from its top."""
        entry = () if self.kind is None or self.index is None else (f"{self.kind}_accounts", self.index)
        return (*entry, *self.field)

    @property
    def field_name(self) -> str:
        """The field as it is written for people and on the command line: pop3.port, aliases[0]."""
        return show_path(self.field)

    @property
    def said(self) -> str:
        """What is wrong, after the value; without the account and the field. In the language that applies."""
        link = "" if not self.value else " " if self.words.startswith("is ") else ": "
        return f"{self.value}{link}{shown(self.words)}"

    @property
    def beside_field(self) -> str:
        """What a page says beside the field, whose label names it."""
        return shown(self.on_page) or self.said

    def __str__(self) -> str:
        account = ""
        if self.kind is not None:
            account = shown(f"{self.kind} account {self.address}") if self.address else self._entry()
        place = ": ".join(part for part in (shown(self.where), account, self.field_name) if part)
        return f"{place}: {self.said}" if place else self.said

    def _entry(self) -> str:
        return f"{self.kind} account" if self.index is None else show_path((f"{self.kind}_accounts", self.index))


class AccountsError(ValueError):
    """The accounts break rules. Each problem names the field, the value and what is allowed."""

    def __init__(self, problems: Sequence[AccountProblem | str]) -> None:
        """:param problems: all that were found; a text is a problem of no single field."""
        self.problems = [AccountProblem(each) if isinstance(each, str) else each for each in problems]
        super().__init__("\n".join(self.lines))

    @property
    def lines(self) -> list[str]:
        """The problems for people, a line each."""
        return [str(problem) for problem in self.problems]

    @property
    def words(self) -> str:
        """What is wrong, for pages: without names of fields."""
        return "; ".join(problem.beside_field for problem in self.problems)


def show_path(path: Sequence[str | int]) -> str:
    """Return a path for people: pop3.port, aliases[0]. Pure."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
