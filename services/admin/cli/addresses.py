"""What ``up`` and ``demo`` print when all is ready: the console, the settings for mail clients, then the rest."""

from __future__ import annotations

from deploy.machine.instance import Instance
from services.admin.accounts import client_autoconfig
from services.admin.cli.output import console, print_table
from shared.settings import Settings

_ENCRYPTION = {"implicit": "SSL/TLS", "starttls": "STARTTLS", "none": "none"}


def print_console(running: Instance, password: str | None) -> None:
    """Print the address of the console and how to sign in. :param password: None: it was shown at an earlier start."""
    console.print(f"Console: {running.urls()['console']}", style="bold")
    if password is not None:
        console.print(f"Sign in as admin with the password {password}")
    else:
        where = running.settings.data / "admin.password"
        console.print(f"Sign in as admin with the password of the first start, which is in {where}")


def print_client_settings(settings: Settings) -> None:
    """Print the settings that people type into their mail clients."""
    servers = client_autoconfig.servers(settings)
    print_table(
        "Settings for mail clients; the user name is the address, for all servers",
        ("Server", "Host", "Port", "Encryption"),
        [
            (server.name, server.host, endpoint.port, _ENCRYPTION[endpoint.tls])
            for server in servers.all
            for endpoint in server.endpoints + server.in_clear
        ],
    )


def print_metrics(running: Instance) -> None:
    """Print the addresses of the metrics."""
    urls = [(name, url) for name, url in running.urls().items() if name.startswith("metrics_")]
    print_table("Metrics", ("Service", "Address"), [(name.removeprefix("metrics_"), url) for name, url in urls])
