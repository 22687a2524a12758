"""The examples in the help of the commands: each is accepted as written; those that only need a system are run."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from services.admin.accounts.export import as_yaml
from services.admin.cli.app import app
from tests.system import PASSWORD, System

NOT_RUN = (
    *("demo", "up", "install-service", "upgrade", "service", "restore", "rotate-key", "external authorize", "help"),
    *("external history", "logs"),
)
"""They start or install something, need a provider's page, a key or log files, or wait for a poll. Their tests are
elsewhere."""
IN_A_CHECKOUT = ("test", "bench", "deploy-check", "alerts", "interop")
NO_SUCH_MAIL = (
    *("queue cancel", "parked show", "parked requeue", "parked discard", "undelete", "give", "resend", "raw"),
    *("users sign-out", "tokens revoke"),
)
"""Their example names a mail, a session or a token that does not exist here."""
REFUSED = (
    *("external add", "local add", "external remove", "external skipped", "external probe-tag", "external check"),
    *("trace", "status"),
)
"""The account is there already, is shared or disabled, the mail does not exist, or the account was not polled yet."""
ORDER = ("apply", "external add", "local add")
"""These come first; the accounts that a command removes are removed last."""


def examples() -> Iterator[tuple[str, list[str]]]:
    """Each command's name, and the words of its example after ``mailgroup``."""

    def walk(command: Any, name: str) -> Iterator[tuple[str, list[str]]]:
        for each, below in getattr(command, "commands", {}).items():
            yield from walk(below, f"{name} {each}".strip())
        if name and not hasattr(command, "commands") and not command.hidden:
            text = " ".join(command.help.partition("Example: ")[2].split())
            assert text, name
            words = shlex.split(text.replace("source <(", "").rstrip(")"))
            start = next(at for at, word in enumerate(words) if word.endswith("mailgroup"))
            end = words.index(">") if ">" in words else None  # the shell writes the output to a file
            yield name, words[start + 1 : end]

    yield from walk(typer.main.get_command(app), "")


def words_after(name: str, words: list[str]) -> list[str]:
    """The words of an example without those of the command."""
    assert words[: len(name.split())] == name.split(), (name, words)
    return words[len(name.split()) :]


@pytest.mark.parametrize(("name", "words"), list(examples()), ids=lambda value: value if isinstance(value, str) else "")
def test_every_example_is_accepted_as_it_is_written(name: str, words: list[str]) -> None:
    command: Any = typer.main.get_command(app)
    for each in name.split():
        command = command.commands[each]
    command.make_context(name, words_after(name, words))  # raises an error for words that are not accepted


def test_examples_do_what_they_say(system: System, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # given the files that examples name, and an empty system
    system.empty()
    company = system.company()
    (tmp_path / "accounts.yaml").write_text(as_yaml(company), encoding="utf-8")
    (tmp_path / "mail.eml").write_text("From: anna@customer.example\nTo: support@company.com\n\nHello\n")
    monkeypatch.chdir(tmp_path)

    def rank(example: tuple[str, list[str]]) -> int:
        name, _ = example
        return ORDER.index(name) if name in ORDER else 100 + name.endswith(" remove") + 2 * name.endswith(" restore")

    left = [each for each in examples() if each[0] not in NOT_RUN + IN_A_CHECKOUT]
    failed = []
    for name, words in sorted(left, key=rank):
        words = [word.replace("/backup/", f"{tmp_path}/") for word in words]
        # the passwords at the provider and of the console's administrator stay as they are
        kept = {"external": PASSWORD, "users": system.settings.admin_password}.get(name.split()[0])
        typed = kept or "a long new password"
        done = system.run(*words, stdin=f"{typed}\n")
        # then none is misuse, but that an account is there already or is shared, and a mail is not there
        refused = name in (*NO_SUCH_MAIL, *REFUSED)
        if done.exit_code not in ((0, 1) if refused else (0,)):
            failed.append((name, done.output))
    assert failed == []
