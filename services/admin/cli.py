"""The command ``mailgroup``: every command and where it is."""

from __future__ import annotations

import typer

from services.admin import account_commands, backup_commands, installing_commands, machine_commands, mail_commands
from services.admin.options import group

app = group(
    "A mail gateway: a team shares one public mailbox, each person keeps a private one.",
    name="mailgroup",
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.command()(machine_commands.demo)
app.command()(machine_commands.up)
app.command()(account_commands.apply)
app.command()(account_commands.export)
app.add_typer(account_commands.external, name="external")
app.add_typer(account_commands.local, name="local")
app.command()(mail_commands.status)
app.command()(mail_commands.trace)
app.command()(mail_commands.route)
app.add_typer(mail_commands.queue, name="queue")
app.add_typer(mail_commands.parked, name="parked")
app.add_typer(mail_commands.held, name="held")
app.command()(mail_commands.undelete)
app.command()(machine_commands.migrate)
app.command("rotate-key")(machine_commands.rotate_key)
app.command()(machine_commands.service)
app.command("install-service")(installing_commands.install_service)
app.command()(installing_commands.upgrade)
app.command()(backup_commands.backup)
app.command()(backup_commands.restore)
app.command("console", hidden=True)(machine_commands.console_process)


@app.command(name="test", context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def test() -> None:
    """In a checkout: set up all that is missing and run every test; further words go to pytest.

    Example: ./mailgroup test tests/unit -q
    """
    raise typer.BadParameter("tests are run by the script ./mailgroup of a checkout")


@app.command(name="bench", context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def bench() -> None:
    """In a checkout: set up all that is missing and measure it beside Dovecot, Postfix, mpop and fetchmail.

    Example: ./mailgroup bench poll relay --pairs 3
    """
    raise typer.BadParameter("the benchmark is run by the script ./mailgroup of a checkout")


@app.command(name="deploy-check", context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def deploy_check() -> None:
    """In a checkout: set up what is missing and check the files of the deployment with public tools.

    Example: ./mailgroup deploy-check
    """
    raise typer.BadParameter("the deployment is checked by the script ./mailgroup of a checkout")


@app.command(name="interop", context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def interop() -> None:
    """In a checkout: set up all that is missing and try mail clients and providers' servers with it, or those named.

    Example: ./mailgroup interop mutt Courier
    """
    raise typer.BadParameter("clients and servers are tried by the script ./mailgroup of a checkout")
