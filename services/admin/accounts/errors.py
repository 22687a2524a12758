"""The error of accounts that are not acceptable."""

from __future__ import annotations


class AccountsError(ValueError):
    """The accounts are not acceptable. Each line names the field, the value and what is allowed."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines
