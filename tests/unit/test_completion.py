"""Completion in a shell: a real bash calls the function that the script defines, as a press of Tab does."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.admin.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
TAB = """
source "$1"
[[ $(complete -p mailgroup) =~ -F\\ ([a-z_]+) ]]
COMP_WORDS=("${@:2}") COMP_CWORD=$(($# - 2))
"${BASH_REMATCH[1]}" "$2" "${!#}" "${@: -2:1}"
printf '%s\\n' "${COMPREPLY[@]}"
"""
"""$1: the script; then the words of the line, the first one as it was typed, the last one to be completed."""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """The command, in a folder with a space in its name."""
    file = tmp_path / "a folder" / "mailgroup"
    file.parent.mkdir()
    file.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -P -m services.admin "$@"\n', encoding="utf-8")
    file.chmod(0o755)
    return file


def tab(program: Path, *words: str) -> list[str]:
    """What bash offers for the last word."""
    script = program.with_name("completion.bash")
    script.write_text(CliRunner().invoke(app, ["completion", "bash"]).stdout, encoding="utf-8")
    done = subprocess.run(
        ["bash", "-c", TAB, "bash", script, *words],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "HOME": str(program.parent)},
        cwd=program.parent,
    )
    return done.stdout.split()


def test_bash_completes_commands_from_any_place(program: Path) -> None:
    everything = tab(program, "./mailgroup", "")
    assert {"up", "apply", "status", "queue", "external"} <= set(everything) and "console" not in everything
    assert tab(program, str(program).replace(" ", "\\ "), "qu") == ["queue"]
    assert tab(program, "~/mailgroup", "queue", "") == ["list", "retry", "cancel"]


def test_bash_completes_options_and_leaves_file_names_to_the_shell(program: Path) -> None:
    assert "--json" in tab(program, "./mailgroup", "--data", "/srv/mailgroup", "queue", "list", "--")
    assert tab(program, "./mailgroup", "apply", "acc") == []


@pytest.mark.parametrize(
    ("shell", "registers"),
    [
        ("bash", "complete -o default -F _mailgroup_completion mailgroup"),
        ("zsh", "compdef _mailgroup_completion mailgroup"),
        ("fish", "complete --command mailgroup"),
    ],
)
def test_every_shell_has_a_script_and_the_login_shell_is_the_default(shell: str, registers: str) -> None:
    named = CliRunner().invoke(app, ["completion", shell]).stdout
    assert registers in named
    assert CliRunner(env={"SHELL": f"/usr/bin/{shell}"}).invoke(app, ["completion"]).stdout == named


def test_another_login_shell_gets_the_script_of_bash() -> None:
    named = CliRunner().invoke(app, ["completion", "bash"]).stdout
    assert CliRunner(env={"SHELL": "/bin/dash"}).invoke(app, ["completion"]).stdout == named


@pytest.mark.parametrize("words", ["mailgroup demo", "mailgroup "])
def test_a_press_of_tab_installs_nothing(tmp_path: Path, words: str) -> None:
    shutil.copy(ROOT / "mailgroup", tmp_path)
    shutil.copy(ROOT / "requirements.lock", tmp_path)
    asked = {"_MAILGROUP_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": "1"}
    done = subprocess.run([tmp_path / "mailgroup"], capture_output=True, text=True, check=True, env=os.environ | asked)
    assert (done.stdout, done.stderr) == ("", "")
    assert not (tmp_path / ".venv").exists()
