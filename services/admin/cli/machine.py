"""The commands that run the system: ``up``, ``demo``, ``migrate``, ``rotate-key``, ``service``."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from services.admin.cli.lazy import lazy_imports
from services.admin.cli.options import Data, Json
from services.admin.cli.output import console, fail, print_table, report_errors, run
from shared.errors import Permanent, SettingsError

with lazy_imports():
    from deploy.machine import instance, lan_settings
    from services.admin import context
    from services.admin.accounts import client_autoconfig
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
        typer.Option("--lan", help="Serve the LAN, on the ports that mail clients expect (110, 25, 587, 995, 465)."),
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
    """Print the addresses, and on the first start the password of the console."""
    print_table(
        f"mailgroup runs with the data folder {running.settings.data}", ("What", "Where"), running.urls().items()
    )
    if not all_settings.is_loopback(running.settings.bind):
        _show_client_settings(running.settings)
    if running.admin_password is not None:
        console.print(
            f"Sign in to the console as admin; the password, shown this once: {running.admin_password}", markup=False
        )
    console.print("Add accounts in the console or with 'mailgroup apply FILE'. Ctrl-C stops everything.", markup=False)


def _show_client_settings(settings: all_settings.Settings) -> None:
    """Print the settings that users on the LAN type into their mail clients."""
    servers = client_autoconfig.servers(settings)
    words = {"implicit": "SSL/TLS", "starttls": "STARTTLS", "none": "none"}
    print_table(
        "Settings for mail clients; the user name is the address, for both servers",
        ("Server", "Host", "Port", "Encryption"),
        [
            (name, servers.host, endpoint.port, words[endpoint.tls])
            for name, endpoints in (
                ("Incoming (POP3)", servers.incoming + servers.incoming_in_clear),
                ("Outgoing (SMTP)", servers.outgoing + servers.outgoing_in_clear),
            )
            for endpoint in endpoints
        ],
    )


def demo(
    exit_: Annotated[bool, typer.Option("--exit", help="Exit after the example.")] = False,
    data: Data = None,
    json: Json = False,
) -> None:
    """Play the example of the manual's section 4.3 with real mail servers, and print who received what, and why.

    Then keep the system up, with settings for a mail client, until Ctrl-C.

    Example: mailgroup demo --exit
    """
    with report_errors():
        raise typer.Exit(demo_play.play(data, stay=not exit_, json=json))


def migrate(data: Data = None) -> None:
    """Upgrade the database to the schema of this version. Running it again, or twice at once, is safe.

    Example: mailgroup migrate
    """
    from asyncio import to_thread

    async def work() -> None:
        settings = await context.await_start(data)
        if settings.database_url is None:
            raise Permanent("MAILGROUP_DATABASE_URL: not set, and no running system found")
        await to_thread(migrations.migrate, settings.database_url)
        console.print("the database has the schema of this version", markup=False)

    run(work)


def rotate_key(data: Data = None) -> None:
    """Encrypt every provider password with the first key of MAILGROUP_SECRET_KEY (new key first, old keys behind it).

    Example: MAILGROUP_SECRET_KEY=NEW,OLD mailgroup rotate-key
    """

    async def work() -> None:
        async with context.open_context(data) as system, system.database.transaction() as connection:
            sealed, lost = await operations.rotate_key(connection, system.vault)
        console.print(f"{sealed} passwords are sealed under the first key", markup=False)
        if lost:
            raise Permanent(f"opened by none of the keys, so set them again: the passwords of {', '.join(lost)}")

    run(work)


def service(
    name: Annotated[
        str, typer.Argument(help="fetcher, router, mailbox, pop3_out, smtp_in, sender or admin.", metavar="NAME")
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
