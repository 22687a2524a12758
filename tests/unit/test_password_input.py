"""Passwords at a terminal and from a pipe."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.terminal import open_terminal

READ = (sys.executable, "-c", "from services.admin.cli.password_input import read_password; print(read_password('x'))")
SECRET = b"a secret"


def read_until(terminal: int, words: bytes) -> bytes:
    seen = b""
    while words not in seen:
        seen += os.read(terminal, 1000)
    return seen


def test_a_password_is_asked_for_twice_at_a_terminal_and_not_shown() -> None:
    ours, theirs = open_terminal()
    with subprocess.Popen(READ, stdin=theirs, stdout=subprocess.PIPE, stderr=theirs, start_new_session=True) as process:
        os.close(theirs)
        shown = b""
        for prompt in (b"New password of x: ", b"Repeat for confirmation: "):
            shown += read_until(ours, prompt)
            os.write(ours, SECRET + b"\n")
        assert process.stdout is not None and process.stdout.read() == SECRET + b"\n"
    os.close(ours)
    assert SECRET not in shown


def test_a_password_from_a_pipe_is_its_first_line() -> None:
    done = subprocess.run(READ, input=SECRET + b"\r\nmore\n", capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (SECRET + b"\n", b"")
