"""A command that is refused."""

from __future__ import annotations

from typing import Literal


class CommandError(ValueError):
    """A command that is refused.

    :ivar kind: BAD: it is no command of IMAP, or in no form of it; NO: it is, but is refused.
    :ivar code: the response code with its arguments, without brackets; '' if there is none.
    """

    def __init__(self, text: str, kind: Literal["BAD", "NO"] = "BAD", code: str = "") -> None:
        """:param text: one sentence that names the argument; it has no octets of the command."""
        super().__init__(text)
        self.kind: Literal["BAD", "NO"] = kind
        self.code = code
