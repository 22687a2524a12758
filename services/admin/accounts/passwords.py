"""New passwords of local accounts: which are weak, and random ones. Pure."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from services.admin.accounts.errors import AccountProblem, AccountsError

if TYPE_CHECKING:
    from services.admin.accounts.file_format import AccountsFile

MIN_CHARACTERS = 10
"""Shortest password that console, REST API, ``local add`` and ``local set`` accept: characters; the mail ports have no
second factor (NIST SP 800-63B asks for 8 with one)."""
TOO_SHORT = f"at least {MIN_CHARACTERS} characters are needed"
_GENERATED = 16
"""Length of a random password: characters; with 56 letters each, 93 bits."""
_LETTERS = "abcdefghijkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789"
"""Letters and digits that nobody confuses (no l, I, o, O, 0, 1)."""


def is_weak(password: str) -> bool:
    """Return whether a password has too few characters."""
    return len(password) < MIN_CHARACTERS


def generate_password() -> str:
    """Return a random password."""
    return "".join(secrets.choice(_LETTERS) for _ in range(_GENERATED))


def require_strong(requested: AccountsFile) -> None:
    """:raises AccountsError: the new password of a local account is weak."""
    problems = [
        AccountProblem(TOO_SHORT, "local", address=person.address, field=("password",))
        for person in requested.local_accounts
        if person.password is not None and is_weak(person.password)
    ]
    if problems:
        raise AccountsError(problems)


def describe_weak(count: int) -> str:
    """Say how many local accounts have a weak password."""
    have = "1 local account has a password" if count == 1 else f"{count} local accounts have passwords"
    return f"{have} of fewer than {MIN_CHARACTERS} characters"
