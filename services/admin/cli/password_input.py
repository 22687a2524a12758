"""Passwords that are typed, or given by a pipe."""

from __future__ import annotations

import sys

import typer


def read_password(whose: str) -> str:
    """Return the password that is typed twice at a terminal, unseen, or the first line of standard input."""
    if sys.stdin.isatty():
        return str(typer.prompt(f"New password of {whose}", hide_input=True, confirmation_prompt=True, err=True))
    return sys.stdin.readline().rstrip("\r\n")
