"""A pseudo-terminal for programs that print in another way on a terminal."""

from __future__ import annotations

import pty

import pytest


def open_terminal() -> tuple[int, int]:
    """Return the descriptors of both ends: ours, and that of the program.

    The test is skipped on a machine without pseudo-terminals, such as a change root without /dev/pts.
    """
    try:
        return pty.openpty()
    except OSError as error:
        pytest.skip(f"this machine has no pseudo-terminals: {error}")
