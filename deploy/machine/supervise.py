"""Keeps programs running, with supervisord: whatever dies is started again within two seconds, however often.

Supervisord knows the order of stopping but not readiness: servers start with it, services when Instance says so.
It ends in order when we die, whatever the reason, and everything below it does so when it dies.
"""

from __future__ import annotations

import http.client
import os
import resource
import shlex
import socket
import subprocess
import sys
import tempfile
import xmlrpc.client
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from deploy.machine.programs import Program, tail
from shared.errors import Temporary

ROOT = Path(__file__).resolve().parents[2]
"""The checkout."""

_GROUP, _GROUP_PRIORITY = "services", 30
_MARK = "MAILGROUP_UP"
_ALREADY_STARTED, _NOT_RUNNING = 60, 70  # faults, as supervisor/xmlrpc.py numbers them
_FILES = 16_384
_LONGEST_SOCKET = 100


def service(name: str) -> Program:
    """A service of ours: ``python -m services.NAME``. That of admin is the command line, and its process a command."""
    words = ("console",) if name == "admin" else ()
    command = (sys.executable, "-m", f"services.{name}", *words)
    return Program(name, command, None, ROOT, _GROUP_PRIORITY, stop_seconds=45, on_demand=True)


def configuration(programs: Sequence[Program], data: Path, control: Path) -> str:
    """supervisord.conf. Programs of ours are started on demand, the servers at once."""
    limit = min(_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    blocks = [
        f"""\
[supervisord]
nodaemon = true
silent = true
directory = {_escape(data)}
logfile = {_escape(data)}/log/supervisord.log
logfile_maxbytes = 5MB
logfile_backups = 1
pidfile = {_escape(data)}/supervisord.pid
childlogdir = {_escape(data)}/log
minfds = {limit}
{"user = root" if os.geteuid() == 0 else ""}

[unix_http_server]
file = {_escape(control)}
chmod = 0600

[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
"""
    ]
    on_demand = [program.name for program in programs if program.on_demand]
    if on_demand:  # a group is stopped at once, one group after the other
        blocks.append(f"[group:{_GROUP}]\nprograms = {','.join(on_demand)}\npriority = {_GROUP_PRIORITY}\n")
    for program in programs:
        # startsecs = 0: an early death is a death like any other, so no number of them makes supervisord give up.
        # startretries counts only failures to start a process at all.
        blocks.append(f"""\
[program:{program.name}]
command = {_escape(shlex.join(program.arguments()))}
directory = {_escape(program.folder)}
priority = {program.priority}
autostart = {"false" if program.on_demand else "true"}
autorestart = true
startsecs = 0
startretries = 1000000
stopsignal = {program.stop_signal}
stopwaitsecs = {program.stop_seconds}
killasgroup = true
redirect_stderr = true
stdout_logfile = {_escape(data)}/log/{program.name}.log
stdout_logfile_maxbytes = 10MB
stdout_logfile_backups = 3
""")
    return "\n".join(blocks)


def _escape(value: str | Path) -> str:
    return str(value).replace("%", "%%")


class Supervisor:
    """One supervisord and how to talk to it. Thread-safe only for ``pids``."""

    def __init__(self, data: Path, programs: Sequence[Program], environment: Mapping[str, str]) -> None:
        """:param environment: of the services, added to ours without the settings of mailgroup in it."""
        self._data = data
        self._programs = [
            program
            if program.environment is None
            else replace(program, environment={**program.environment, _MARK: str(data)})
            for program in programs
        ]
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("MAILGROUP_")}
        self._environment |= {"PYTHONUNBUFFERED": "1", _MARK: str(data), **environment}
        # The checkout goes first on the import path, whatever the working directory is.
        self._environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process: subprocess.Popen[bytes] | None = None
        self._control = data / "supervisord.sock"

    def start(self) -> None:
        """Start supervisord, and with it the servers. It ends with the thread that calls this."""
        if len(str(self._control)) > _LONGEST_SOCKET:
            self._control = Path(tempfile.mkdtemp(prefix="mailgroup-")) / "supervisord.sock"
        (self._data / "log").mkdir(mode=0o700, exist_ok=True)
        file = self._data / "supervisord.conf"
        file.write_text(configuration(self._programs, self._data, self._control), encoding="utf-8")
        self._process = subprocess.Popen(
            ["setpriv", "--pdeathsig=TERM", sys.executable, "-m", "supervisor.supervisord", "-c", str(file)],
            cwd=self._data,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=(self._data / "log" / "supervisord.out").open("ab"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    @property
    def pid(self) -> int | None:
        """Of supervisord, while it runs."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def problem(self) -> str:
        """What supervisord said last."""
        return tail(self._data / "log" / "supervisord.out")

    def stop(self, seconds: float) -> None:
        """Stop the services, then the servers, then supervisord."""
        if self._process is not None:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
            self._process.kill()
            self._process.wait()
        if self._control.parent != self._data:
            self._control.unlink(missing_ok=True)
            with suppress(OSError):
                self._control.parent.rmdir()

    def answers(self) -> bool:
        """Whether it takes commands."""
        try:
            self._call("getState")
        except Temporary:
            return False
        return True

    def pids(self) -> dict[str, int]:
        """Of each program that runs now; empty if supervisord does not answer."""
        try:
            found: Any = self._call("getAllProcessInfo")
        except Temporary:
            return {}
        return {entry["name"]: entry["pid"] for entry in found if entry["pid"]}

    def start_program(self, name: str) -> None:
        """Start one that is not running; nothing to do if it is. :raises Temporary: supervisord does not answer."""
        self._call("startProcess", self._full(name), False, unless=_ALREADY_STARTED)

    def stop_program(self, name: str) -> None:
        """Stop one, and wait until it has ended; it stays so until ``start_program``. Raises as that."""
        self._call("stopProcess", self._full(name), True, unless=_NOT_RUNNING)

    def _full(self, name: str) -> str:
        group = next(_GROUP if program.on_demand else name for program in self._programs if program.name == name)
        return f"{group}:{name}"

    def _call(self, method: str, *arguments: Any, unless: int = 0) -> Any:
        """Call supervisord; None if it answers with the fault ``unless``."""
        try:
            with xmlrpc.client.ServerProxy("http://localhost/RPC2", transport=_Unix(self._control)) as proxy:
                return getattr(proxy.supervisor, method)(*arguments)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode == unless:
                return None
            raise Temporary(f"supervisord: {method}: {fault.faultString}") from fault
        except (OSError, http.client.HTTPException, xmlrpc.client.Error) as error:
            raise Temporary(f"supervisord: {method}: {error}") from error


class _Unix(xmlrpc.client.Transport):
    """XML-RPC over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("localhost", timeout=60)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(60)
        connection.sock.connect(str(self._path))
        return connection


def leftovers(data: Path) -> list[int]:
    """Processes of an earlier start of this data folder that still run, found by a mark in their environment."""
    mark = f"{_MARK}={data}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found
