"""Keeps programs running, with supervisord: a program that ends is started again within two seconds, however often.

Supervisord knows the order of stopping, but not when a program is ready: it starts the servers itself, and the services
when Instance requests it. When this process dies, supervisord stops its programs in order and ends. When supervisord
dies, its programs end.
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

from deploy.machine.launch import write_environment
from deploy.machine.programs import Program, tail
from shared.errors import Temporary

ROOT = Path(__file__).resolve().parents[2]
"""The root of the checkout."""

_GROUP, _GROUP_PRIORITY = "services", 30
_MARK = "MAILGROUP_UP"
_ALREADY_STARTED, _NOT_RUNNING = 60, 70  # fault codes of supervisor/xmlrpc.py
_MAX_FILES = 16_384
"""Limits the open files of a service: descriptors, one for each connection of a client."""
_MAX_SOCKET_PATH = 100
"""Limits the path of supervisord's socket: characters; supervisord adds its process id while it binds the socket."""


def service(name: str) -> Program:
    """Return the program of a service: it becomes ``python -m services.NAME``."""
    command = (sys.executable, "-m", "deploy.machine.launch", name)
    return Program(name, command, None, ROOT, _GROUP_PRIORITY, stop_seconds=45, on_demand=True)


def configuration(programs: Sequence[Program], data: Path, control: Path) -> str:
    """Return supervisord.conf. The servers start at once, the services on demand."""
    limit = min(_MAX_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
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
    if on_demand:  # supervisord stops all programs of a group together, and one group after the other
        blocks.append(f"[group:{_GROUP}]\nprograms = {','.join(on_demand)}\npriority = {_GROUP_PRIORITY}\n")
    for program in programs:
        # startsecs = 0: supervisord restarts a program that ends early like any other, without a limit.
        # startretries counts only failures to create the process.
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
    """Controls one supervisord. Only ``pids`` is thread-safe."""

    def __init__(self, data: Path, programs: Sequence[Program], environments: Mapping[str, Mapping[str, str]]) -> None:
        """:param environments: by service, added to this process's environment without its MAILGROUP_ variables."""
        self._data = data
        self._programs = [
            program
            if program.environment is None
            else replace(program, environment={**program.environment, _MARK: str(data)})
            for program in programs
        ]
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("MAILGROUP_")}
        self._environment |= {"PYTHONUNBUFFERED": "1", _MARK: str(data)}
        self._environments = environments
        # The checkout is first on the import path, independent of the working directory.
        self._environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process: subprocess.Popen[bytes] | None = None
        self._control = data / "supervisord.sock"

    def start(self) -> None:
        """Start supervisord, and with it the servers. It ends with the thread that calls this."""
        if len(str(self._control)) > _MAX_SOCKET_PATH:
            self._control = Path(tempfile.mkdtemp(prefix="mailgroup-")) / "supervisord.sock"
        (self._data / "log").mkdir(mode=0o700, exist_ok=True)
        for name, environment in self._environments.items():
            write_environment(self._data, name, environment)
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
        """Process id of supervisord, None if it does not run."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def problem(self) -> str:
        """Return the last lines of supervisord's output."""
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
        """Return whether supervisord accepts commands."""
        try:
            self._call("getState")
        except Temporary:
            return False
        return True

    def pids(self) -> dict[str, int]:
        """Return the process id of each running program; empty if supervisord does not answer."""
        try:
            entries: Any = self._call("getAllProcessInfo")
        except Temporary:
            return {}
        return {entry["name"]: entry["pid"] for entry in entries if entry["pid"]}

    def start_program(self, name: str) -> None:
        """Start a program, unless it runs. :raises Temporary: supervisord does not answer."""
        self._call("startProcess", self._full(name), False, unless=_ALREADY_STARTED)

    def stop_program(self, name: str) -> None:
        """Stop a program, and wait for its end; only ``start_program`` starts it again. Raises the same."""
        self._call("stopProcess", self._full(name), True, unless=_NOT_RUNNING)

    def _full(self, name: str) -> str:
        group = next(_GROUP if program.on_demand else name for program in self._programs if program.name == name)
        return f"{group}:{name}"

    def _call(self, method: str, *arguments: Any, unless: int = 0) -> Any:
        """Call a method of supervisord; None if the reply is the fault ``unless``."""
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
    """Return the processes of an earlier start of this data folder, which have a mark in their environment."""
    mark = f"{_MARK}={data}".encode()
    pids = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    pids.append(int(entry.name))
    return pids
