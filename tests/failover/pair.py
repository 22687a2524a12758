"""Two PostgreSQL servers with streaming replication: a primary, and a standby that can be promoted.

The standby replicates through a proxy, so its replication can be cut. A primary that was killed never serves again: its
data is deleted, and it comes back as the standby of the other one, from a new base backup.
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
from tests.faults.proxy import Proxy
from tests.faults.stand import Server

STANDBY = "standby"
"""The application_name of the standby, which synchronous_standby_names refers to, and the name of its slot."""


class Pair:
    """primary: the server that the gateway uses. synchronous: a commit waits for the standby's disk."""

    def __init__(self, folder: Path, ports: tuple[int, int], synchronous: bool) -> None:
        self.synchronous = synchronous
        self._folder, self._ports = folder, ports
        self._passwords = secrets.token_hex(16), secrets.token_hex(16)
        self._made = 0
        self._servers: dict[int, Server] = {}
        self.primary = self._place()
        self.standby = self.primary

    def _place(self) -> Postgres:
        """A new, empty folder for a cluster, for the server that is neither primary nor standby."""
        self._made += 1
        home = self._folder / f"postgres-{self._made}"
        home.mkdir()
        give(home, USER)
        port = self._ports[(self._made - 1) % 2]
        return Postgres(home, make_sockets(home, USER, SOCKET), port, *self._passwords)

    def start_primary(self, stack: ExitStack) -> None:
        """Create the cluster and start its server, from the main thread. The stack ends what runs then."""
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

    def copy_primary(self, replication: Proxy) -> None:
        """Make the standby by a base backup of the primary; it takes seconds. ``start_standby`` is next."""
        replication.targets = (self.primary.port,)
        self.standby = self._place()
        data = self.standby.folder / "data"
        version = (self.primary.folder / "data" / "PG_VERSION").read_text(encoding="ascii").strip()
        source = f"host=127.0.0.1 port={replication.port} user=postgres application_name={STANDBY}"
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

    def start_standby(self) -> None:
        """Start it, from the main thread."""
        self._start(self.standby)

    def require_standby(self) -> None:
        """From now on a commit waits for the standby, if it is a synchronous one."""
        if self.synchronous:
            self.ask(f"alter system set synchronous_standby_names = '{STANDBY}'")
            self.ask("select pg_reload_conf()")

    def replicates(self) -> bool:
        """Whether the standby streams, and as a synchronous one if it has to be that."""
        rows = self.ask("select sync_state from pg_stat_replication where state = 'streaming'")
        return rows == [("sync" if self.synchronous else "async",)]

    def is_replicated(self) -> bool:
        """Whether the standby has every commit."""
        return self.ask("select pg_current_wal_insert_lsn() <= flush_lsn from pg_stat_replication") == [(True,)]

    def ask(self, sql: str) -> list[tuple[object, ...]]:
        """Ask the primary, past every proxy."""
        with psycopg.connect(self.primary.admin_url_of("postgres"), autocommit=True, connect_timeout=5) as connection:
            cursor = connection.execute(sql.encode())
            return cursor.fetchall() if cursor.description else []

    # ------------------------------------------------------------------------------------------ failover

    def kill_primary(self) -> None:
        """End it as a power cut does: all of its processes at once. Nothing starts it again."""
        server = self._servers.pop(self.primary.port)
        main = server.pid
        # The server processes of the connections would otherwise live on for a moment, and commit.
        os.kill(main, signal.SIGSTOP)
        memory = _shared_memory(main)
        for process in (*_children(main), main):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        server.stop()
        _free(*memory)

    def promote(self) -> None:
        """Make the standby the primary; returns when it takes writes. The data of the old primary are deleted."""
        old, self.primary = self.primary, self.standby
        # A promoted server waits for no standby until a new one streams: with two servers the other choice would be
        # to take no mail.
        self.ask("select pg_promote(wait => true, wait_seconds => 60)")
        self.ask("alter system reset synchronous_standby_names")
        self.ask("select pg_reload_conf()")
        shutil.rmtree(old.folder)

    def is_writable(self) -> bool:
        """Whether the primary takes writes."""
        try:
            return self.ask("select pg_is_in_recovery()") == [(False,)]
        except psycopg.OperationalError:
            return False


def _children(process: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def _shared_memory(process: int) -> tuple[set[str], set[str]]:
    """The shared memory of a server, which the kernel keeps when all of it is killed: files, and ids of System V."""
    maps = Path(f"/proc/{process}/maps").read_text()
    return set(re.findall(r"/dev/shm/PostgreSQL\.\d+", maps)), set(re.findall(r" (\d+) +/SYSV", maps))


def _free(files: set[str], ids: set[str]) -> None:
    for file in files:
        Path(file).unlink(missing_ok=True)
    for each in ids:
        subprocess.run(["ipcrm", "--shmem-id", each], check=False)
