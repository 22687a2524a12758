"""A private PostgreSQL: a cluster with its own passwords, on a Unix socket and on loopback.

The services work as the role ``mailgroup``, which owns its database and is no superuser. The superuser ``postgres``
creates, renames and drops databases; only this module uses it.

The services use the socket: a mail of some MB is read a quarter faster through it than through TCP. The port is for the
administrator's tools.

PostgreSQL refuses to run as root, so root starts it as the user ``postgres`` of Debian's package.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import psycopg
from psycopg import sql

from deploy.machine.programs import PATH, Program, give, identity, write_private
from shared.errors import Permanent, Temporary

USER = "postgres"
ROLE = "mailgroup"
"""The role of the services and commands in the database."""
_STATE_LINE = 7
"""The line of the state in postmaster.pid, from 0 (PostgreSQL's miscadmin.h, LOCK_FILE_LINE_PM_STATUS)."""
_ADMIN = "postgres"
SOCKET = ".s.PGSQL.65535"
"""The name of the socket on the highest port: the longest name."""
_INSTALLED = Path("/usr/lib/postgresql")
_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(4 * 2**20), "MALLOC_MMAP_THRESHOLD_": str(4 * 2**20)}
"""Settings of glibc: a server process keeps up to 4 MiB of freed memory. Otherwise it would request the memory for each
value of some 100 KB from the kernel, page by page, which is a sixth of the cost of reading a large mail."""


@dataclass(frozen=True, slots=True)
class Postgres:
    """A cluster and its server."""

    folder: Path  # of the cluster; the server's user must be able to reach it
    sockets: Path  # folder of its socket, see folders.py
    port: int
    password: str = field(repr=False)  # of the role mailgroup
    admin_password: str = field(repr=False)  # of the superuser
    durable: bool = True  # False in tests only

    @property
    def url(self) -> str:
        """URL of the database ``mailgroup``."""
        return self.url_of("mailgroup")

    def url_of(self, database: str) -> str:
        """Return the URL of a database of the cluster, for the role mailgroup."""
        return self._url(ROLE, self.password, database)

    def admin_url_of(self, database: str) -> str:
        """Return the URL of a database of the cluster, for the superuser."""
        return self._url(_ADMIN, self.admin_password, database)

    def _url(self, role: str, password: str, database: str) -> str:
        return f"postgresql://{role}:{password}@/{database}?host={quote(str(self.sockets))}&port={self.port}"

    def prepare(self) -> None:
        """Create the cluster if there is none. After an interrupted initdb, start it from the beginning.

        :raises Permanent: PostgreSQL is not installed, or the cluster needs another version of it.
        """
        data = self.folder / "data"
        if not data.exists():
            self._initialise()
        version = (data / "PG_VERSION").read_text(encoding="ascii").strip()
        if not (_INSTALLED / version / "bin" / "postgres").exists():
            raise Permanent(f"{data} was made by PostgreSQL {version}, which is not installed any more")

    def _initialise(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        secret, part = self.folder / "password", self.folder / "data.part"
        write_private(secret, self.admin_password)
        give(self.folder, USER)
        subprocess.run(["setpriv", *identity(USER), "rm", "-rf", str(part)], check=True)
        made = subprocess.run(
            [
                "setpriv",
                *identity(USER),
                str(_newest() / "initdb"),
                "--pgdata",
                str(part),
                f"--username={_ADMIN}",
                "--auth=scram-sha-256",
                f"--pwfile={secret}",
                "--encoding=UTF8",
                "--locale=C.UTF-8",
                "--no-instructions",
                *([] if self.durable else ["--no-sync"]),
            ],
            cwd=self.folder,
            env={"PATH": PATH},
            capture_output=True,
            text=True,
            check=False,
        )
        secret.unlink()
        if made.returncode:
            raise Permanent(f"initdb: {made.stderr.strip()}")
        part.rename(self.folder / "data")

    def program(self) -> Program:
        """Return the server's program, in the foreground."""
        data = self.folder / "data"
        binary = _INSTALLED / (data / "PG_VERSION").read_text(encoding="ascii").strip() / "bin" / "postgres"
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": '"{}"'.format(str(self.sockets).replace('"', '""')),
            "unix_socket_permissions": "0700",
            "max_connections": "200",
            "shared_buffers": "128MB",
            "max_wal_size": "2GB",
            "log_line_prefix": "%m ",
            "log_timezone": "UTC",
            "timezone": "UTC",
        }
        if not self.durable:
            settings |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        options = [f"--{name}={value}" for name, value in settings.items()]
        # SIGINT is a fast shutdown: it disconnects clients and writes what is committed; SIGTERM waits for clients.
        return Program(
            "postgres",
            (str(binary), "-D", str(data), *options),
            {"PATH": PATH, "LANG": "C.UTF-8", **_MEMORY},
            self.folder,
            priority=10,
            user=USER,
            stop_signal="INT",
            stop_seconds=15,
        )

    def answers(self) -> bool:
        """Return whether the server accepts connections."""
        try:
            # The server logs a connection that comes before it is ready as FATAL.
            state = (self.folder / "data" / "postmaster.pid").read_text(encoding="utf-8").splitlines()[_STATE_LINE]
        except (OSError, IndexError):
            return False
        if state.strip() != "ready":
            return False
        try:
            psycopg.connect(self.admin_url_of("postgres"), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def create(self, database: str, template: str = "template1") -> None:
        """Create a database of the role mailgroup, unless it exists. :raises Temporary: the server is unavailable."""
        with self._connect() as connection:
            role, password = sql.Identifier(ROLE), sql.Literal(self.password)
            if connection.execute("select 1 from pg_roles where rolname = %s", (ROLE,)).fetchone() is None:
                connection.execute(sql.SQL("create role {} login password {}").format(role, password))
            if connection.execute("select 1 from pg_database where datname = %s", (database,)).fetchone() is None:
                connection.execute(
                    sql.SQL("create database {} template {} owner {}").format(
                        sql.Identifier(database), sql.Identifier(template), role
                    )
                )

    def drop(self, database: str) -> None:
        """Drop a database and disconnect its users. :raises Temporary: the server is unavailable."""
        with self._connect() as connection:
            connection.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(database)))

    def rename(self, database: str, name: str) -> None:
        """Rename a database that has no connections. :raises Temporary: the server is unavailable."""
        with self._connect() as connection:
            connection.execute(
                sql.SQL("alter database {} rename to {}").format(sql.Identifier(database), sql.Identifier(name))
            )

    @contextmanager
    def _connect(self) -> Iterator[psycopg.Connection]:
        try:
            with psycopg.connect(self.admin_url_of("postgres"), autocommit=True, connect_timeout=5) as connection:
                yield connection
        except psycopg.OperationalError as error:
            raise Temporary(f"PostgreSQL: {str(error).strip()}") from error


def _newest() -> Path:
    """Return the bin folder of the newest installed PostgreSQL."""
    folders = [
        path
        for path in _INSTALLED.glob("*/bin")
        if re.fullmatch(r"\d+", path.parent.name)
        and os.access(path / "initdb", os.X_OK)
        and os.access(path / "postgres", os.X_OK)
    ]
    if not folders:
        raise Permanent(f"PostgreSQL is not installed: no {_INSTALLED}/*/bin/postgres; install the package postgresql")
    return max(folders, key=lambda path: int(path.parent.name))
