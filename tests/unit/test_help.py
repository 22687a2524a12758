"""The help of every command: it fits a terminal of 80 columns, cuts no sentence, and imports little."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import typer
from pydantic import BaseModel
from typer.testing import CliRunner

from services.admin.accounts.file_format import ExternalFields, LocalFields
from services.admin.cli.account_fields import EXTERNAL_FIELDS, LOCAL_FIELDS
from services.admin.cli.app import app, run

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {
    "aiosmtplib",
    "alembic",
    "argon2",
    "asyncio",
    "cryptography",
    "fastapi",
    "jwt",
    "pika",
    "prometheus_client",
    "psycopg",
    "pydantic",
    "pydantic_settings",
    "rich",
    "ruamel",
    "services.admin.mail.operations",
    "services.admin.web.server",
    "shared.settings",
    "structlog",
    "supervisor",
    "uvicorn",
}
"""Modules that take long to import. Help needs none of them."""
UNUSED_BY_STATUS = {
    "aiosmtplib",
    "alembic",
    "fastapi",
    "jwt",
    "ruamel",
    "services.admin.accounts.file_format",
    "services.admin.mail.operations",
    "services.admin.mail.trace",
    "services.admin.web.server",
    "shared.provider.pop3_client",
    "shared.provider.smtp_client",
    "supervisor",
    "uvicorn",
}


def commands() -> Iterator[tuple[str, ...]]:
    """The words of every command, group and the program itself."""
    root = typer.main.get_command(app)
    yield ()
    for name, command in root.commands.items():  # type: ignore[attr-defined]  # the root is a group
        yield (name,)
        yield from ((name, each) for each in getattr(command, "commands", {}))


@pytest.mark.parametrize("words", list(commands()), ids=" ".join)
def test_help_fits_eighty_columns_and_cuts_no_sentence(words: tuple[str, ...]) -> None:
    said = CliRunner(env={"COLUMNS": "80"}).invoke(app, [*words, "--help"]).stdout
    assert max(map(len, said.splitlines())) <= 80, said
    assert not re.search(r"\w\.\.\.(\n|$)", re.sub(r"[A-Z=\]]\.\.\.", "", said)), said
    if listed := said.partition("\nCommands:\n")[2]:
        for entry in re.split(r"\n  (?=\S)", "\n" + listed.rstrip())[1:]:
            assert entry.endswith("."), entry


def imported(code: str) -> set[str]:
    """The modules that a Python has executed after this code; not those that wait for their first use."""
    code += """
import importlib.util, sys
lazy = importlib.util._LazyModule
print(*(name for name, module in sys.modules.items() if type(module) is not lazy), sep="\\n", file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": str(ROOT)}
    )
    return set(done.stderr.split())


def test_help_of_no_command_imports_a_heavy_module() -> None:
    code = "from services.admin.cli.app import app\n"
    code += "\n".join(f"app({[*words, '--help']}, standalone_mode=False)" for words in commands())
    assert imported(code) & HEAVY == set()


def test_completion_imports_no_heavy_module() -> None:
    code = "from services.admin.cli.app import app\napp(['completion', 'bash'], standalone_mode=False)"
    assert imported(code) & HEAVY == set()


def test_status_imports_only_what_it_asks() -> None:
    code = "import services.admin.cli.app, services.admin.context, services.admin.monitoring.status"
    assert imported(code) & UNUSED_BY_STATUS == set()


def test_a_command_in_a_pipe_does_without_rich(tmp_path: Path) -> None:
    code = f"""
from services.admin.cli import app, output
try:
    app.run(["status", "--data", {str(tmp_path)!r}])
except SystemExit as end:
    assert end.code == 1  # no system runs there
output.print_table("Facts", ("Name",), [["value"]])
"""
    loaded = imported(code)
    assert "structlog" in loaded and "shared.settings" in loaded
    assert loaded & {"rich.console", "rich.pretty", "rich.table", "rich.traceback"} == set()


@pytest.mark.parametrize("words", list(commands()), ids=" ".join)
def test_a_command_is_the_same_whether_all_are_built_or_only_this_one(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    shown = []
    for start in (run, lambda given: app(given, prog_name="mailgroup")):
        with pytest.raises(SystemExit) as end:
            start([*words, "--help"])
        assert end.value.code == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data", "status", "help", "queue", "list"], "Usage: mailgroup queue list "),
        (["--data=x", "queue"], "Usage: mailgroup queue "),
        (["help"], "\n  undelete "),
        ([], "\n  undelete "),
        (["statsu"], "Did you mean 'status'?"),
    ],
    ids=str,
)
def test_the_value_of_data_is_no_command_and_a_wrong_one_gets_advice(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(words)
    assert said in "".join(capsys.readouterr())


@pytest.mark.parametrize(("model", "named"), [(ExternalFields, EXTERNAL_FIELDS), (LocalFields, LOCAL_FIELDS)])
def test_help_names_every_field_of_an_account(model: type[BaseModel], named: tuple[str, ...]) -> None:
    assert set(named) == {*field_names(model)} - {"renamed_from"}


def field_names(model: type[BaseModel]) -> Iterator[str]:
    """The names of all fields; those of a field that is a model stand behind its name and a dot."""
    for name, field in model.model_fields.items():
        first = next(iter(get_args(field.annotation)), field.annotation)
        kind = getattr(first, "__origin__", first)  # without Annotated
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from (f"{name}.{inner}" for inner in field_names(kind))
        else:
            yield name
