"""services/admin/cli/output.py: tables on a terminal and in a pipe."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.terminal import open_terminal

ROOT = Path(__file__).resolve().parents[2]
CODE = """
from services.admin.cli.output import print_table
address = "a-rather-long-name-of-a-person@a-rather-long-domain.example"
print_table("Accounts", [f"Column {n}" for n in range({columns})], [[address] * {columns}, ["x"] * {columns}])
"""


def printed(columns: int, width: int | None) -> str:
    """What a table prints on a terminal of this width; None: in a pipe."""
    command = [sys.executable, "-c", CODE.replace("{columns}", str(columns))]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm", "NO_COLOR": "1"}
    if width is None:
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    ours, theirs = open_terminal()
    process = subprocess.Popen(command, stdout=theirs, env=environment | {"COLUMNS": str(width)})
    os.close(theirs)
    said = b""
    try:
        while chunk := os.read(ours, 4096):
            said += chunk
    except OSError:  # the terminal of a process that has ended
        pass
    os.close(ours)
    assert process.wait() == 0
    return re.sub(r"\x1b\[[\d;]*m", "", said.decode())


@pytest.mark.parametrize("columns", [2, 4, 8])
@pytest.mark.parametrize("width", [80, 120])
def test_a_table_fits_the_terminal_or_is_printed_a_value_a_line(columns: int, width: int) -> None:
    lines = [line.rstrip() for line in printed(columns, width).splitlines()]
    assert max(map(len, lines)) <= width
    assert ("  Column 7: x" in lines) == (columns == 8)


def test_no_table_is_folded_in_a_pipe() -> None:
    lines = printed(8, None).splitlines()
    assert len(lines) == 5 and lines[3].count("a-rather-long-name-of-a-person@a-rather-long-domain.example") == 8
