"""services/admin/cli/progress.py: a bar on a terminal, lines in a pipe."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from services.admin.cli.progress import LINE_SECONDS, Lines, describe
from tests.terminal import open_terminal

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
from services.admin.cli.progress import show_progress
with show_progress("Passwords") as report:
    for number in range(1, 4):
        report(number, 3)
"""


@pytest.mark.parametrize(
    ("done", "total", "unit", "text"),
    [
        (312, 1000, "passwords", "312 of 1000 passwords"),
        (312, 0, "mails", "312 mails"),
        (3 << 19, 8 << 20, "octets", "1.5 MB of 8.0 MB"),
        (0, 0, "octets", "0 bytes"),
    ],
)
def test_progress_is_told_with_the_total_if_it_is_known(done: int, total: int, unit: str, text: str) -> None:
    assert describe(done, total, unit) == text


def test_a_pipe_gets_a_line_every_few_seconds_and_none_before() -> None:
    now, said = [0.0], list[str]()
    lines = Lines("Passwords", "", lambda: now[0], said.append)
    for second in range(1, 14):
        now[0] = float(second)
        lines.report(second, 20)
    assert said == ["Passwords: 5 of 20", "Passwords: 10 of 20"]
    assert LINE_SECONDS == 5.0


def test_a_short_work_prints_nothing_into_a_pipe() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_a_terminal_shows_a_bar_on_standard_error() -> None:
    master, slave = open_terminal()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    child = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=slave
    )
    os.close(slave)
    shown = b""
    while True:
        try:
            part = os.read(master, 4096)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        shown += part
    out, _ = child.communicate(timeout=60)
    os.close(master)
    assert (child.returncode, out) == (0, b"")
    assert b"Passwords" in shown and b"3 of 3" in shown
