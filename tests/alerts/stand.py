"""The system that the alerts watch: all of ``up`` on a disk of its own, its provider, Prometheus and an exporter.

Beside it a process writes daily backups onto another disk, here every quarter of a minute.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal

import psycopg

from deploy.machine import ports
from deploy.machine.instance import Instance
from deploy.machine.postgres import Postgres
from deploy.machine.programs import Process, Program
from deploy.machine.rabbitmq import RabbitMQ
from deploy.machine.supervise import ROOT
from services.admin.maintenance import daily_backups
from shared.settings import SERVICES
from tests.alerts.prometheus import Prometheus, program, prometheus
from tests.company import local
from tests.servers import scratch
from tests.system import System, running, until

SUPPORT, SALES, NOBODY, CLOSED, PINNED, UNSTARTED, LIMITED, TOKENS = (
    f"{name}@company.com"
    for name in ("support", "sales", "nobody", "closed", "pinned", "unstarted", "limited", "tokens")
)
MAX_OCTETS = 100_000
"""Limit of a mail: octets."""
_FULL, _ROOM = "900m", "6g"  # of the disk: less than 1 GiB; enough
_BACKUP = """
from services.admin.maintenance import daily_backups
daily_backups.PERIOD_SECONDS = daily_backups.RETRY_SECONDS = 15.0
from services.admin.cli.app import app
app()"""


class Stand:
    """What provokes alerts acts on this."""

    def __init__(self, system: System, folder: Path, backups: Path, rabbitmq_port: int, backup_port: int) -> None:
        """:param folder: the disk of the data folder. :param backups: the disk of the daily backup."""
        self.system, self.folder, self.backups = system, folder, backups
        self._rabbitmq_port, self._backup_port = rabbitmq_port, backup_port
        self._backup: Process | None = None

    @property
    def instance(self) -> Instance:
        """All servers and services."""
        return self.system.instance

    @property
    def rabbitmq(self) -> RabbitMQ:
        """The private node."""
        node = self.instance._servers.rabbitmq
        assert node is not None
        return node

    @property
    def postgres(self) -> Postgres:
        """The private server."""
        server = self.instance.postgres
        assert server is not None
        return server

    def sql(self, *statements: str) -> None:
        """Run statements as the superuser, each committed by itself."""
        with psycopg.connect(self.postgres.admin_url_of("mailgroup"), autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def disk(self, *, full: bool) -> None:
        """Change the size of the disk of the data folder."""
        size = _FULL if full else _ROOM
        subprocess.run(["mount", "-o", f"remount,size={size}", str(self.folder)], check=True)

    def start_backups(self) -> None:
        """Start the process that writes the daily backup."""
        words = ("backup", "--daily", "--keep", "1", "--metrics-port", str(self._backup_port), str(self.backups))
        command = (sys.executable, "-c", _BACKUP, *words, "--data", str(self.system.settings.data))
        self._backup = Program("backup", command, None, ROOT, 0).start(self.backups.with_suffix(".log"))

    def stop_backups(self) -> None:
        """Stop it; it leaves no unfinished file."""
        if self._backup is not None:
            self._backup.stop()

    def mount_backups(self, mode: Literal["ro", "rw"]) -> None:
        """Let every further backup fail (ro), or succeed."""
        subprocess.run(["mount", "-o", f"remount,{mode}", str(self.backups)], check=True)

    def age_backups(self) -> None:
        """Let the newest backup be of a past year; there is no other. The process must not run."""
        daily_backups.remove_unfinished(self.backups)
        *others, newest = daily_backups.list_complete(self.backups)
        for file in others:
            file.unlink()
        newest.rename(self.backups / "mailgroup-20250101T000000Z")

    def show_rabbitmq(self) -> None:
        """Let the node serve its metrics; again after each start."""
        plugins = self.rabbitmq.folder / "enabled_plugins"
        plugins.write_text("[rabbitmq_prometheus].\n", encoding="ascii")
        address = f'[{{port, {self._rabbitmq_port}}}, {{ip, "127.0.0.1"}}]'
        self.rabbitmq.control("eval", "application:load(rabbitmq_prometheus), ok.")
        self.rabbitmq.control("eval", f"application:set_env(rabbitmq_prometheus, tcp_config, {address}), ok.")
        self.rabbitmq.control("eval", f'rabbit_plugins:ensure("{plugins}").')


@contextmanager
def stand() -> Iterator[tuple[Stand, Prometheus]]:
    """Start everything. From the main thread, as root."""
    with scratch() as root:
        disk = root / "disk"
        disk.mkdir()
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={_ROOM},mode=755", "mailgroup-alerts", str(disk)], check=True
        )
        try:
            with running(disk, max_message_bytes=MAX_OCTETS) as system:
                yield from _watched(system, root, disk)
        finally:
            subprocess.run(["umount", "--lazy", str(disk)], check=False)


@contextmanager
def _backing_up(here: Stand) -> Iterator[None]:
    """Write daily backups onto their disk."""
    here.backups.mkdir()
    with ExitStack() as stack:
        subprocess.run(["mount", "-t", "tmpfs", "mailgroup-backups", str(here.backups)], check=True)
        stack.callback(subprocess.run, ["umount", "--lazy", str(here.backups)], check=False)
        stack.callback(here.stop_backups)
        here.start_backups()
        until(lambda: daily_backups.list_complete(here.backups), 120)
        yield


def _watched(system: System, root: Path, disk: Path) -> Iterator[tuple[Stand, Prometheus]]:
    exporter, rabbitmq, backup = ports.choose(3, f"{root}/watched")
    here = Stand(system, disk, root / "backups", rabbitmq, backup)
    _prepare(here)
    source = f"postgresql://postgres:{here.postgres.admin_password}@127.0.0.1:{here.postgres.port}/mailgroup"
    targets = {name: (f"127.0.0.1:{system.settings.metrics_port_of(name)}", "/metrics") for name in SERVICES} | {
        "postgres": (f"127.0.0.1:{exporter}", "/metrics"),
        "backup": (f"127.0.0.1:{backup}", "/metrics"),
        "rabbitmq": (f"127.0.0.1:{rabbitmq}", "/metrics"),
        "rabbitmq-queues": (f"127.0.0.1:{rabbitmq}", "/metrics/detailed"),
    }
    exporting = (f"--web.listen-address=127.0.0.1:{exporter}",)
    families = ("queue_coarse_metrics", "queue_consumer_count")
    with (
        _backing_up(here),
        program("prometheus-postgres-exporter", root, *exporting, DATA_SOURCE_NAME=f"{source}?sslmode=disable"),
        prometheus(root / "prometheus", targets, families) as server,
    ):
        yield here, server


def _prepare(here: Stand) -> None:
    """Accounts; and settings of PostgreSQL that need a restart: it archives, and freezes ids early."""
    system = here.system
    system.apply(
        {
            "external_accounts": [
                *(system.external(address) for address in (SUPPORT, SALES, NOBODY, CLOSED, PINNED)),
                system.external(UNSTARTED, hold=True),
                system.external_by_imap(LIMITED),
            ],
            "local_accounts": [
                local("Alex"),
                local("Kim", SALES),
                local("Pat", CLOSED),
                local("Pia", PINNED),
                local("Uma", UNSTARTED),
                local("Lea", LIMITED),
            ],
        }
    )
    here.sql(
        "alter system set archive_mode = 'on'",
        "alter system set archive_command = 'true'",
        "alter system set autovacuum_freeze_max_age = 100000",
        "alter system set autovacuum_naptime = '1s'",
    )
    here.instance.stop_program("postgres")
    here.instance.start_program("postgres")
    until(here.postgres.answers, 120)
    here.show_rabbitmq()
