"""The script ./mailgroup of a checkout: help and misuse install nothing, on a machine that has nothing of it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import typer

from services.admin.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
INSTALLERS = ("apt-get", "pip", "python3", "python3.11", "python3.12", "python3.13", "flock")
"""Programs without which nothing can be installed. Here they only leave a mark."""
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]  # the root is a group
CHECKED = ("demo", "up", "restore", "install-service", "upgrade")
"""Commands that install much, so the script checks their options first."""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A checkout without .venv, on a machine without Python, pip and apt-get."""
    root, programs = tmp_path / "checkout", tmp_path / "programs"
    programs.mkdir()
    for name in ("bash", "dirname", "readlink", "sed", "grep", "cat", "sha256sum", "mktemp", "id", "env", "perl"):
        (programs / name).symlink_to(shutil.which(name) or f"/usr/bin/{name}")
    for name in INSTALLERS:
        mark = f'[ "$1" = -c ] || echo "$0 $*" >>{tmp_path}/installed'  # -c asks a Python what it can do
        (programs / name).write_text(f"#!/bin/sh\n{mark}\nexit 1\n")
        (programs / name).chmod(0o755)
    (root / "shared").mkdir(parents=True)
    for name in ("mailgroup", "requirements.lock", "requirements-dev.lock", "shared/__init__.py"):
        shutil.copy(ROOT / name, root / name)
    return root / "mailgroup"


def run(script: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    folder = script.parents[1]
    done = subprocess.run(
        [folder / "programs" / "bash", script, *words],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": str(folder / "programs"), "HOME": str(folder)} | environment,
    )
    installed = folder / "installed"
    assert not installed.exists(), installed.read_text()
    assert not (script.parent / ".venv").exists()
    return done


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if not command.hidden and name != "help"])
def test_help_of_every_command_installs_nothing(script: Path, name: str) -> None:
    for words in ((name, "--help"), (name, "-h"), ("help", name), ("--data", "/x", name, "list", "--help")):
        done = run(script, *words)
        assert (done.returncode, done.stderr) == (0, ""), done
        assert done.stdout.startswith(f"Usage: mailgroup {name}")


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",), ("help",), ("--data", "/x")], ids=" ".join)
def test_help_without_a_command_lists_every_command(script: Path, words: tuple[str, ...]) -> None:
    said = run(script, *words).stdout
    listed = set(re.findall(r"^  ([a-z-]+) ", said, re.M))
    assert listed == {name for name, command in COMMANDS.items() if not command.hidden}
    assert max(map(len, said.splitlines())) <= 80


@pytest.mark.parametrize("words", [("--version",), ("test", "--version"), ("bench", "--version")], ids=" ".join)
def test_the_version_installs_nothing(script: Path, words: tuple[str, ...]) -> None:
    assert re.fullmatch(r"mailgroup [\d.]+\S*\n", run(script, *words).stdout)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("statsu",), "no such command: statsu"),
        (("help", "statsu"), "no such command: statsu"),
        (("apply",), "missing argument FILE; usage: mailgroup apply FILE"),
        (("trace", "--data", "/x"), "missing argument WHAT"),
        (("external",), "missing argument COMMAND"),
        (("up", "--lann"), "no such option: --lann; usage: mailgroup up [--data DIR] [--lan]"),
        (("demo", "--exi"), "no such option: --exi"),
    ],
)
def test_misuse_is_refused_before_anything_is_installed(script: Path, words: tuple[str, ...], said: str) -> None:
    done = run(script, *words)
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr


def test_completion_installs_nothing(script: Path) -> None:
    done = run(script, "completion", "bash")
    assert (done.returncode, "no packages are installed yet" in done.stderr) == (1, True)
    asked = {"_MAILGROUP_COMPLETE": "complete_bash", "COMP_WORDS": "mailgroup ", "COMP_CWORD": "1"}
    assert run(script, **asked).stdout == ""


def test_the_script_knows_the_arguments_and_options_of_the_commands() -> None:
    rows = re.search(r"<<'END'\n(.*?)\nEND", (ROOT / "mailgroup").read_text(), re.S)
    assert rows is not None
    for row in rows[1].splitlines():
        name, arguments, _ = row.split("|")
        parameters = COMMANDS[name].params
        required = [each for each in parameters if each.param_type_name == "argument" and each.required]
        is_group = hasattr(COMMANDS[name], "commands")
        assert len(re.findall(r"(?<!\[)\b[A-Z]+\b", re.sub(r"\[.*?\]", "", arguments))) == len(required) + is_group, row
        if name in CHECKED:
            options = {option for each in parameters if each.param_type_name == "option" for option in each.opts}
            options |= {option for each in parameters for option in each.secondary_opts}
            assert set(re.findall(r"\[(--[a-z-]+)", arguments)) == options - {"--help"}, row


def test_the_page_for_developers_names_the_packages_of_each_command() -> None:
    # given the script's function that finds missing packages, on a machine that has none
    script = (ROOT / "mailgroup").read_text(encoding="utf-8")
    [function] = re.findall(r"^missing\(\) \{.*?^\}", script, re.M | re.S)
    function = re.sub(r"\[ -[xe] [^]]+\]", "false", function)
    nothing = "".join(f"{name}() {{ return 1; }}; " for name in ("elsewhere", "compgen", "command", "perl"))
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z-]+)`.*? \| `([a-z0-9 .-]+)`[^|]*\|$", page.partition("| Debian packages |")[2], re.M)
    # when, then
    assert [command for command, _ in rows] == ["test", "alerts", "bench", "interop", "deploy-check"]
    for command, named in rows:
        words = f"{function}\n{nothing}installed() {{ return 0; }}; missing {command}"
        done = subprocess.run(["bash", "-c", words], capture_output=True, text=True, check=True)
        assert sorted(named.split()) == sorted(done.stdout.split()), command


def test_with_packages_help_is_that_of_the_command() -> None:
    done = subprocess.run(
        [ROOT / "mailgroup", "help", "queue", "list"], capture_output=True, text=True, check=True, env=os.environ
    )
    assert "Example: mailgroup queue list" in done.stdout
