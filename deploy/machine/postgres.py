"""A private PostgreSQL: a cluster of its own, with a password of its own, on a socket and on loopback.

The socket is for us: a mail of megabytes comes a quarter faster through it than through TCP. The port is for the
operator's tools.

PostgreSQL refuses to run as root; then it runs as the user ``postgres`` of Debian's package.
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
SOCKET = ".s.PGSQL.65535"
"""The name of its socket on the highest port: no name is longer."""
_INSTALLED = Path("/usr/lib/postgresql")
_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(4 * 2**20), "MALLOC_MMAP_THRESHOLD_": str(4 * 2**20)}
"""For glibc: a server process keeps up to 4 MiB that it has freed. Otherwise it gets the memory for each value of some
100 KB from the kernel anew, page by page, which is a sixth of what it costs to read a large mail."""


@dataclass(frozen=True, slots=True)
class Postgres:
    """folder: to hold the cluster; the server's user must be able to reach it. sockets: for its socket, see folders.py.
    durable: False only for tests."""

    folder: Path
    sockets: Path
    port: int
    password: str = field(repr=False)
    durable: bool = True

    @property
    def url(self) -> str:
        """Of the database ``mailgroup``."""
        return self.url_of("mailgroup")

    def url_of(self, database: str) -> str:
        """Of any database in it."""
        return f"postgresql://mailgroup:{self.password}@/{database}?host={quote(str(self.sockets))}&port={self.port}"

    def prepare(self) -> None:
        """Make the cluster if there is none yet. One that was interrupted half-way is made anew.

        :raises Permanent: PostgreSQL is not installed, or the cluster belongs to another version of it.
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
        write_private(secret, self.password)
        give(self.folder, USER)
        subprocess.run(["setpriv", *identity(USER), "rm", "-rf", str(part)], check=True)
        made = subprocess.run(
            [
                "setpriv",
                *identity(USER),
                str(_newest() / "initdb"),
                "--pgdata",
                str(part),
                "--username=mailgroup",
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
        """The server, in the foreground."""
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
        # SIGINT is a fast shutdown: clients are cut off, what is committed is written; SIGTERM would wait for clients.
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
        """Whether it takes connections."""
        try:
            psycopg.connect(self.url_of("postgres"), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def create(self, database: str, template: str = "template1") -> None:
        """Create a database, unless it exists. :raises Temporary: the server is away."""
        with self._connect() as connection:
            if connection.execute("select 1 from pg_database where datname = %s", (database,)).fetchone() is None:
                connection.execute(
                    sql.SQL("create database {} template {}").format(sql.Identifier(database), sql.Identifier(template))
                )

    def drop(self, database: str) -> None:
        """Drop a database and cut off who uses it. :raises Temporary: the server is away."""
        with self._connect() as connection:
            connection.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(database)))

    def rename(self, database: str, name: str) -> None:
        """Give a database another name; nobody may use it. :raises Temporary: the server is away."""
        with self._connect() as connection:
            connection.execute(
                sql.SQL("alter database {} rename to {}").format(sql.Identifier(database), sql.Identifier(name))
            )

    @contextmanager
    def _connect(self) -> Iterator[psycopg.Connection]:
        try:
            with psycopg.connect(self.url_of("postgres"), autocommit=True, connect_timeout=5) as connection:
                yield connection
        except psycopg.OperationalError as error:
            raise Temporary(f"PostgreSQL: {str(error).strip()}") from error


def _newest() -> Path:
    """The bin folder of the newest PostgreSQL installed."""
    found = [
        path
        for path in _INSTALLED.glob("*/bin")
        if re.fullmatch(r"\d+", path.parent.name)
        and os.access(path / "initdb", os.X_OK)
        and os.access(path / "postgres", os.X_OK)
    ]
    if not found:
        raise Permanent(f"PostgreSQL is not installed: no {_INSTALLED}/*/bin/postgres; install the package postgresql")
    return max(found, key=lambda path: int(path.parent.name))
