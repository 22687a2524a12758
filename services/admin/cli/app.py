"""The command ``mailgroup`` with its subcommands."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Annotated

import typer
from typer.main import get_command_name
from typer.models import CommandInfo

from services.admin.cli import (
    account_actions,
    accounts,
    accounts_file,
    answers,
    backup,
    completion,
    existing_mail,
    install,
    logs,
    machine,
    mail,
    providers,
    retirement,
    single_mails,
    users,
)
from services.admin.cli.options import Data, group
from shared import __version__


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"mailgroup {__version__}")
        raise typer.Exit


def _start(
    data: Data = None,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Accept the options before the subcommand."""


app = group(
    "A mail gateway: a team shares one public mailbox, each person keeps a private one.",
    _start,
    name="mailgroup",
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.command()(machine.demo)
app.command()(machine.up)
app.command()(accounts_file.apply)
app.command()(accounts_file.export)
accounts.external.command("start")(existing_mail.start)
accounts.external.command("test")(providers.check)
accounts.external.command("check")(providers.check_now)
accounts.external.command("authorize")(providers.authorize)
accounts.external.command("probe-tag")(providers.probe_tag)
accounts.external.command("skipped")(providers.skipped)
accounts.external.command("answers")(account_actions.found_authors)
accounts.external.command("history")(account_actions.history)
accounts.local.command("retire")(retirement.retire)
accounts.local.command("removed")(account_actions.removed)
accounts.local.command("hand-over")(account_actions.hand_over)
accounts.local.command("logins")(account_actions.logins)
accounts.local.command("sign-out")(account_actions.sign_out)
app.add_typer(accounts.external, name="external")
app.add_typer(accounts.local, name="local")
app.command()(mail.status)
app.command()(mail.trace)
app.command()(logs.logs)
app.command()(mail.route)
app.command()(single_mails.find)
app.command()(single_mails.give)
app.command()(single_mails.resend)
app.command()(single_mails.raw)
app.command()(answers.answers)
app.add_typer(answers.names, name="names")
app.add_typer(mail.queue, name="queue")
app.add_typer(mail.parked, name="parked")
app.add_typer(mail.held, name="held")
app.command()(mail.undelete)
app.add_typer(users.users, name="users")
app.add_typer(users.tokens, name="tokens")
app.command("audit")(users.show_audit)
app.command()(machine.migrate)
app.command("rotate-key")(machine.rotate_key)
app.command()(machine.service)
app.command("install-service")(install.install_service)
app.command()(install.upgrade)
app.command()(backup.backup)
app.command()(backup.restore)
app.command()(completion.completion)
app.command("console", hidden=True)(machine.console_process)

_OF_ALL = ("help", "completion")
"""Commands that show all commands."""


def run(words: Sequence[str]) -> None:
    """Run the command that these words name. Only this one is built: building all takes longer than most of them run.

    Without a known name all are built, for the list of commands or a similar name.
    """
    name = _name_of_command(words)
    commands = [each for each in app.registered_commands if _name_of(each) == name]
    groups = [each for each in app.registered_groups if each.name == name]
    named = copy(app)
    if name not in _OF_ALL and (commands or groups):
        named.registered_commands, named.registered_groups = commands, groups
    named(list(words), prog_name="mailgroup")


def _name_of_command(words: Sequence[str]) -> str:
    """Return the first word that is neither an option nor the value of --data."""
    before = ""
    for word in words:
        if not word.startswith("-") and before != "--data":
            return word
        before = word
    return ""


def _name_of(command: CommandInfo) -> str:
    return command.name or get_command_name(command.callback.__name__ if command.callback else "")


@app.command(name="help")
def help_(
    words: Annotated[
        list[str] | None, typer.Argument(help="A command and its subcommand.", metavar="[COMMAND...]")
    ] = None,
    data: Data = None,
) -> None:
    """Show the help of a command, as --help does.

    Example: mailgroup help queue list
    """
    typer.main.get_command(app).main([*(words or []), "--help"], prog_name="mailgroup")


@app.command(name="test", context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def test() -> None:
    """Run every test, in a checkout, and install what is missing; further arguments go to pytest.

    With --setup, only install.

    Example: ./mailgroup test tests/unit -q
    """
    raise typer.BadParameter("tests are run by the script ./mailgroup of a checkout")


@app.command(name="bench", context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def bench() -> None:
    """Run the benchmark against Dovecot, Postfix, mpop and fetchmail, in a checkout, and install what is missing.

    Example: ./mailgroup bench poll relay --pairs 3
    """
    raise typer.BadParameter("the benchmark is run by the script ./mailgroup of a checkout")


@app.command(name="deploy-check", context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def deploy_check() -> None:
    """Check the deployment files with public tools, in a checkout, and install what is missing.

    Example: ./mailgroup deploy-check
    """
    raise typer.BadParameter("the deployment is checked by the script ./mailgroup of a checkout")


@app.command(name="alerts", context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def alerts() -> None:
    """Provoke every alert on a running system, in a checkout, and install what is missing. It needs root.

    Example: ./mailgroup alerts
    """
    raise typer.BadParameter("alerts are provoked by the script ./mailgroup of a checkout")


@app.command(name="interop", context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def interop() -> None:
    """Test mail clients and provider servers (all, or the named ones), in a checkout, and install what is missing.

    Example: ./mailgroup interop mutt Courier
    """
    raise typer.BadParameter("clients and servers are tried by the script ./mailgroup of a checkout")
