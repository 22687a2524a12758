"""``install-service`` and ``upgrade``: mailgroup as a service of this machine's systemd."""

from __future__ import annotations

import datetime
import os
import subprocess
from pathlib import Path
from typing import Annotated

import typer

from services.admin.cli.output import console, report_errors
from shared.errors import Permanent

_DATA = Path("/srv/mailgroup")


def install_service(
    data: Annotated[Path, typer.Option("--data", metavar="DIR", help="Data folder of the service.")] = _DATA,
    lan: Annotated[bool, typer.Option("--lan/--no-lan", help="Serve the LAN, or this machine only.")] = True,
) -> None:
    """Install this checkout as a systemd service with a user of its own. Needs root.

    The program is copied to /opt/mailgroup; the settings are in /etc/mailgroup.env.

    Example: mailgroup install-service --data /srv/mailgroup
    """
    from deploy.machine import installing

    with report_errors():
        _need_root("install-service")
        installing.install(data.absolute(), lan, installing.Machine(), _say)


def upgrade(
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", help="Expected data folder of the service; fail if it is another one."),
    ] = None,
) -> None:
    """Upgrade the installed service to this checkout: back up, install, restart. Needs root.

    No mail is lost: mail in flight is finished by the old version or continued by the new one.

    Example: git pull && ./mailgroup upgrade
    """
    from deploy.machine import installing

    with report_errors():
        _need_root("upgrade")
        machine = installing.Machine()
        installed = installing.installed_data(machine)
        if data is not None and data.absolute() != installed:
            raise Permanent(f"--data: {data}: the installed service has its data in {installed}")
        installing.upgrade(machine, _back_up, _say)


def _need_root(command: str) -> None:
    if os.geteuid() != 0:
        raise Permanent(f"{command}: needs root: it creates a user and a systemd service")


def _back_up(data: Path) -> Path:
    """Make a backup with the running version, in the data folder. Its owner is the owner of the data folder, who
    restores it."""
    folder = data / "backups"
    folder.mkdir(mode=0o700, exist_ok=True)
    file = folder / f"before-upgrade-{datetime.datetime.now(datetime.UTC):%Y%m%d-%H%M%S}.mailgroup"
    command = ["/opt/mailgroup/current/mailgroup", "backup", str(file), "--data", str(data)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Permanent(f"the backup failed, so nothing was changed: {(done.stderr or done.stdout).strip()}")
    owner = data.stat()
    for made in (folder, file):
        os.chown(made, owner.st_uid, owner.st_gid)
    return file


def _say(line: str) -> None:
    console.print(line)
