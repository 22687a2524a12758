"""Two PostgreSQL servers with streaming replication: a primary, and a standby that can be promoted.

The standby replicates through a proxy, so its replication can be cut. The data of a killed primary is deleted. Its
server is set up again as the standby of the new primary, from a new base backup.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import subprocess
from contextlib import ExitStack, suppress
from pathlib import Path

import psycopg

from deploy.machine.folders import make_sockets
from deploy.machine.postgres import SOCKET, USER, Postgres
from deploy.machine.programs import PATH, give, identity
from tests.faults.stand import Server

STANDBY = "standby"
"""The application_name of the standby, as in synchronous_standby_names, and the name of its replication slot."""


class Pair:
    """A primary, which the gateway uses, and its standby."""

    def __init__(
        self, folder: Path, ports: tuple[int, int], synchronous: bool, primary: Postgres | None = None
    ) -> None:
        """:param ports: of servers that are made here. :param primary: a server that runs already; None: make it."""
        self.synchronous = synchronous  # a commit waits for the standby's disk
        self._folder, self._ports = folder, ports
        self._passwords = secrets.token_hex(16), secrets.token_hex(16)
        if primary is not None:
            self._passwords = primary.password, primary.admin_password
        self._made = 0
        self._servers: dict[int, Server] = {}
        self.primary = primary or self._place()
        self.standby = self.primary

    def _place(self) -> Postgres:
        """Return a new server with an empty folder, on the port that neither primary nor standby uses."""
        self._made += 1
        home = self._folder / f"postgres-{self._made}"
        home.mkdir()
        give(home, USER)
        port = self._ports[(self._made - 1) % 2]
        return Postgres(home, make_sockets(home, USER, SOCKET), port, *self._passwords)

    def start_primary(self, stack: ExitStack) -> None:
        """Create the database cluster and start its server, from the main thread. :param stack: ends both servers."""
        stack.callback(self._stop)
        self.primary.prepare()
        self._start(self.primary)

    def _start(self, postgres: Postgres) -> None:
        server = Server(postgres.program(), self._folder / f"{postgres.folder.name}.log")
        server.start()
        self._servers[postgres.port] = server

    def _stop(self) -> None:
        for server in self._servers.values():
            server.stop()

    # ------------------------------------------------------------------------------------------ replication

    def copy_primary(self, port: int) -> None:
        """Create the standby from a base backup of the primary, which takes seconds. Call ``start_standby`` next.

        :param port: where the standby reaches the primary.
        """
        self.standby = self._place()
        data = self.standby.folder / "data"
        version = (self.primary.folder / "data" / "PG_VERSION").read_text(encoding="ascii").strip()
        source = f"host=127.0.0.1 port={port} user=postgres application_name={STANDBY}"
        subprocess.run(
            [
                *("setpriv", *identity(USER)),
                *("env", "-i", f"PATH={PATH}", f"PGPASSWORD={self.primary.admin_password}"),
                f"/usr/lib/postgresql/{version}/bin/pg_basebackup",
                *("--pgdata", str(data), "--dbname", source, "--checkpoint=fast", "--wal-method=stream"),
                *("--create-slot", f"--slot={STANDBY}", "--write-recovery-conf"),
            ],
            cwd=self.standby.folder,
            check=True,
        )

    def start_standby(self) -> int:
        """Start the standby, from the main thread. :return: its process id."""
        self._start(self.standby)
        return self._servers[self.standby.port].pid

    def stop_standby(self) -> None:
        """Shut the standby down; commits wait for it no more."""
        self.ask("alter system reset synchronous_standby_names")
        self.ask("select pg_reload_conf()")
        self._servers[self.standby.port].stop()

    def require_standby(self) -> None:
        """Let each commit wait for the standby from now on, if the pair is synchronous."""
        if self.synchronous:
            self.ask(f"alter system set synchronous_standby_names = '{STANDBY}'")
            self.ask("select pg_reload_conf()")

    def replicates(self) -> bool:
        """Return whether the standby streams, in the wanted mode."""
        rows = self.ask("select sync_state from pg_stat_replication where state = 'streaming'")
        return rows == [("sync" if self.synchronous else "async",)]

    def is_replicated(self) -> bool:
        """Return whether the standby has every commit."""
        return self.ask("select pg_current_wal_insert_lsn() <= flush_lsn from pg_stat_replication") == [(True,)]

    def ask(self, sql: str) -> list[tuple[object, ...]]:
        """Execute a statement on the primary, without a proxy, and return its rows."""
        with psycopg.connect(self.primary.admin_url_of("postgres"), autocommit=True, connect_timeout=5) as connection:
            cursor = connection.execute(sql.encode())
            return cursor.fetchall() if cursor.description else []

    # ------------------------------------------------------------------------------------------ failover

    def kill_primary(self) -> None:
        """Kill all processes of the primary at once, as a power failure does."""
        server = self._servers.pop(self.primary.port)
        main = server.pid
        # Otherwise the server processes of the connections would run for another moment, and commit.
        os.kill(main, signal.SIGSTOP)
        memory = _shared_memory(main)
        for process in (*_children(main), main):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        server.stop()
        _free(*memory)

    def promote(self) -> None:
        """Make the standby the primary, and delete the data of the old one. Returns when it accepts writes."""
        old, self.primary = self.primary, self.standby
        # A promoted server waits for no standby until a new one streams. With two servers it would otherwise accept
        # no mail.
        self.ask("select pg_promote(wait => true, wait_seconds => 60)")
        self.ask("alter system reset synchronous_standby_names")
        self.ask("select pg_reload_conf()")
        shutil.rmtree(old.folder)

    def is_writable(self) -> bool:
        """Return whether the primary accepts writes."""
        try:
            return self.ask("select pg_is_in_recovery()") == [(False,)]
        except psycopg.OperationalError:
            return False


def _children(process: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def _shared_memory(process: int) -> tuple[set[str], set[str]]:
    """Return the shared memory of a server, which outlives its killed processes: files, and System V ids."""
    maps = Path(f"/proc/{process}/maps").read_text()
    return set(re.findall(r"/dev/shm/PostgreSQL\.\d+", maps)), set(re.findall(r" (\d+) +/SYSV", maps))


def _free(files: set[str], ids: set[str]) -> None:
    for file in files:
        Path(file).unlink(missing_ok=True)
    for each in ids:
        subprocess.run(["ipcrm", "--shmem-id", each], check=False)
