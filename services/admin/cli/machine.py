"""The commands that run the system: ``up``, ``demo``, ``migrate``, ``rotate-key``, ``service``."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from services.admin.cli.lazy import lazy_imports
from services.admin.cli.options import Data, Json
from services.admin.cli.output import console, fail, report_errors, run
from shared.errors import Permanent, SettingsError

with lazy_imports():
    from deploy.machine import instance, lan_settings
    from services.admin import context
    from services.admin.cli import addresses
    from services.admin.cli import demo as demo_play
    from services.admin.mail import operations
    from services.admin.web import server
    from shared import settings as all_settings
    from shared.db.migrations import migrate as migrations
    from shared.net import server_tls
    from shared.provider import vault


def up(
    data: Data = None,
    lan: Annotated[
        bool,
        typer.Option(
            "--lan", help="Serve the LAN, on the ports that mail clients expect (143, 993, 110, 995, 25, 587, 465)."
        ),
    ] = False,
) -> None:
    """Run all services on this machine, in the foreground, until Ctrl-C.

    PostgreSQL and RabbitMQ run privately in the data folder unless MAILGROUP_DATABASE_URL and MAILGROUP_BROKER_URL
    are set.

    Example: mailgroup up --data /srv/mail
    """
    with report_errors():
        settings = all_settings.load(data=data)
        if lan:
            settings = lan_settings.for_the_lan(settings)
        if lan or settings.mail_host is not None:
            server_tls.drop_outdated_self_signed(settings)
        try:
            # with a malformed key the services would crash in a loop
            vault.Vault(settings.secret_key or vault.new_key())
        except ValueError as error:
            raise SettingsError(str(error)) from error
        raise typer.Exit(instance.up(settings, _show_addresses))


def _show_addresses(running: instance.Instance) -> None:
    """Print what a person needs next first: the console, then the settings for mail clients."""
    # A password that a setting gives is not printed; one that this start made is shown once.
    addresses.print_console(running, running.admin_password)
    console.print("Add accounts there or with 'mailgroup apply FILE'. Ctrl-C stops everything.\n")
    addresses.print_client_settings(running.settings)
    console.print(f"Data folder: {running.settings.data}")
    addresses.print_metrics(running)


def demo(
    exit_: Annotated[bool, typer.Option("--exit", help="Exit after the example.")] = False,
    imap: Annotated[bool, typer.Option("--imap", help="Fetch mail from the provider by IMAP, not POP3.")] = False,
    data: Data = None,
    json: Json = False,
) -> None:
    """Play the example of the manual's section 4.3 with real mail servers, and print who received what, and why.

    Then keep the system up, with settings for a mail client, until Ctrl-C.

    Example: mailgroup demo --exit
    """
    with report_errors():
        raise typer.Exit(demo_play.play(data, stay=not exit_, json=json, imap=imap))


def migrate(
    wait: Annotated[float, typer.Option(help="How long to wait for the database server: seconds.", min=0)] = 60.0,
    data: Data = None,
) -> None:
    """Upgrade the database to the schema of this version. Running it again, or twice at once, is safe.

    A database that a newer version has upgraded stays as it is, if this version works with it.

    Example: mailgroup migrate
    """
    from asyncio import to_thread

    async def work() -> None:
        settings = await context.await_start(data)
        if settings.database_url is None:
            raise Permanent("MAILGROUP_DATABASE_URL: not set, and no running system found")
        applied = await to_thread(migrations.migrate, settings.database_url, wait)
        done = f"applied: {', '.join(applied)}" if applied else "nothing to do"
        console.print(f"this version works with the schema of the database; {done}")

    run(work)


def rotate_key(data: Data = None) -> None:
    """Encrypt every provider password with the first key of MAILGROUP_SECRET_KEY (new key first, old keys behind it).

    Reply tags get another key, too; tags in mail that was sent stay valid.

    Example: MAILGROUP_SECRET_KEY=NEW,OLD mailgroup rotate-key
    """

    async def work() -> None:
        async with context.open_context(data) as system, system.database.transaction() as connection:
            sealed, lost = await operations.rotate_key(connection, system.vault)
        console.print(f"{sealed} passwords are sealed under the first key")
        if lost:
            raise Permanent(f"opened by none of the keys, so set them again: the passwords of {', '.join(lost)}")

    run(work)


def service(
    name: Annotated[
        str,
        typer.Argument(help="fetcher, router, mailbox, pop3_out, imap_out, smtp_in, sender or admin.", metavar="NAME"),
    ],
    data: Data = None,
) -> None:
    """Run one service in this process (for containers).

    Example: mailgroup service router
    """
    if name not in all_settings.SERVICES:
        fail(f"service {name!r}: there is none of this name; there are {', '.join(all_settings.SERVICES)}", 2)
    with report_errors():
        os.environ["MAILGROUP_DATA"] = str(all_settings.load(data=data).data)
    words = ["console"] if name == "admin" else []
    os.execv(sys.executable, [sys.executable, "-m", f"services.{name}", *words])


def console_process(data: Data = None) -> None:
    """Serve the console in this process, as 'service admin' does.

    Example: mailgroup console
    """
    if data is not None:
        os.environ["MAILGROUP_DATA"] = str(data)
    server.main()
