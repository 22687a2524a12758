"""The error of accounts that break a rule."""

from __future__ import annotations


class AccountsError(ValueError):
    """The accounts break a rule. Each line names the field, the value and what is allowed."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines
