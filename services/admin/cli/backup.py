"""``backup`` and ``restore``, from the command line."""

from __future__ import annotations

import datetime
import shlex
import signal
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.admin.cli.lazy import lazy_imports
from services.admin.cli.options import Data, Json
from services.admin.cli.output import MISUSE, console, fail, print_json, report_errors, run
from services.admin.cli.progress import show_progress

with lazy_imports():
    from deploy.machine import backups
    from services.admin import context
    from services.admin.maintenance import daily_backups
    from services.admin.maintenance import restore as maintenance
    from services.admin.monitoring import status
    from shared import settings as all_settings
    from shared.runtime import health

if TYPE_CHECKING:
    from deploy.machine.backups import Progress

File = Annotated[Path, typer.Argument(help="File of the backup.", metavar="FILE")]


def backup(
    file: File,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")] = False,
    daily: Annotated[
        bool, typer.Option("--daily", help="FILE is a folder: write a backup into it each day, until stopped.")
    ] = False,
    keep: Annotated[int, typer.Option("--keep", min=1, help="With --daily: number of backups that are kept.")] = 7,
    metrics_port: Annotated[
        int | None,
        typer.Option("--metrics-port", min=1, max=65535, help="With --daily: port of /metrics, for Prometheus."),
    ] = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """Write the database and the key into FILE, readable by its owner only. The system keeps running.

    A file that exists is replaced with --force only, and only by a complete backup. With --daily the next backup waits
    until the newest one in the folder is a day old, and the oldest ones are deleted; the metrics have the time of the
    newest one, and whether the latest try failed.

    Example: mailgroup backup /backup/mailgroup-monday
    """
    if backups.is_in_checkout(file):
        fail(f"{file}: is inside the checkout; a backup contains the key, so name a place outside of it", MISUSE)

    async def write_one(target: Path) -> None:
        _report(target, *await _write(target, data, lambda done, total: None))

    if daily:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # an unfinished file is deleted on the way out
        with report_errors(), _serving_metrics(metrics_port, data):
            run(lambda: daily_backups.back_up(file, keep, write_one, say=console.print, complain=_complain))
        return
    if file.exists() and not force:
        fail(f"{file}: exists already; name another file, or replace it with --force", MISUSE)

    async def work() -> None:
        with show_progress("Backup", "octets", shown=not json) as progress:
            octets, at, has_key = await _write(file, data, progress)
        if json:
            print_json({"file": str(file), "octets": octets, "made_at": at, "key": has_key})
            return
        _report(file, octets, at, has_key)

    run(work)


def _serving_metrics(port: int | None, data: Path | None) -> AbstractContextManager[None]:
    """Serve the metrics of this process on the address of the services' metrics, if a port is named."""
    return nullcontext() if port is None else health.serve_metrics(all_settings.load(data=data).metrics_host, port)


async def _write(file: Path, data: Path | None, progress: Progress) -> tuple[int, str, bool]:
    """Write a backup. :return: its octets, its time, and whether it has the key."""
    async with context.open_context(data) as system:
        url, key = system.settings.database_url, system.settings.secret_key
    assert url is not None
    at = status.iso(datetime.datetime.now(datetime.UTC)) or ""
    return backups.write(file, url, key, at, progress), at, key is not None


def _report(file: Path, octets: int, at: str, has_key: bool) -> None:
    console.print(f"{file}: {octets} octets, all mail and accounts as of {at}")
    if not has_key:
        console.print("The backup has no key: MAILGROUP_SECRET_KEY is not set here. Back up the key yourself.")


def _complain(text: str) -> None:
    print(f"mailgroup: {text}", file=sys.stderr, flush=True)


def restore(
    file: Annotated[Path | None, typer.Argument(help="File of the backup.", metavar="[FILE]")] = None,
    loaded: Annotated[
        bool,
        typer.Option(
            "--loaded", help="Complete a restore by pg_restore, which has filled the database, instead of FILE."
        ),
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace the system in the data folder; its mail and key are lost.")
    ] = False,
    send_queue: Annotated[
        bool,
        typer.Option("--send-queue", help="Relay the mail that was waiting at the backup, instead of parking it."),
    ] = False,
    data: Data = None,
    json: Json = False,
) -> None:
    """Restore a data folder from the backup FILE; the system must not run.

    With --loaded, complete a restore by pg_restore, as in containers: otherwise mail clients would take new mail for
    old, and waiting mail would be relayed again.

    Mail that was waiting to be relayed needs attention afterwards (parked), since it may have been relayed after the
    backup; with --send-queue it is relayed, and marked as uncertain.

    Example: mailgroup restore /backup/mailgroup-monday --data /srv/mail
    """
    if loaded == (file is not None):
        raise typer.BadParameter("name the backup, or --loaded")
    with report_errors():
        settings = all_settings.load(data=data)
        say = (lambda line: None) if json else console.print
        if file is None:
            found = maintenance.prepare_loaded(settings, send_queue=send_queue)
        else:
            with show_progress("Database", "octets", shown=not json) as progress:
                found = maintenance.restore(
                    settings, file, replace=replace, send_queue=send_queue, say=say, progress=progress
                )
        if json:
            print_json({"made_at": found.made_at, "queue": found.queue, "held": found.held, "key": found.key})
            return
        where = "the database" if loaded else str(settings.data)
        console.print(f"{where}: restored as of {found.made_at or 'the time of the dump'}")
        if found.queue:
            ids = ", ".join(map(str, found.queue))
            what = (
                "parked, as they may have been relayed after the backup ('parked requeue' or 'parked discard')"
                if found.held
                else "relayed again, and marked as uncertain"
            )
            console.print(f"{len(found.queue)} submissions waited to be relayed; they are {what}: {ids}")
        if not found.key:
            console.print(
                "The backup has no key: set the upstream passwords again ('mailgroup status' names them), or put the "
                "key into secret.key of the data folder."
            )
        console.print(f"Next: {_next_step(settings)}")


def _next_step(settings: all_settings.Settings) -> str:
    """Return what the operator does after a restore."""
    if settings.database_url is not None:
        return "start the services on this database, then see 'mailgroup status'."
    folder = shlex.quote(str(settings.data))
    return f"start it with 'mailgroup up --data {folder}', then see 'mailgroup status --data {folder}'."
