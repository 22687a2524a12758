"""Runs all servers and services of one data folder on this machine: starts, monitors and stops them together."""

from __future__ import annotations

import json
import os
import secrets
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from deploy.machine import folders, ports, servers
from deploy.machine.launch import remove_environments
from deploy.machine.postgres import Postgres
from deploy.machine.programs import tail, write_private
from deploy.machine.supervise import Supervisor, leftovers, service
from shared.data_folder import FolderState, locked
from shared.db.migrations.migrate import migrate
from shared.errors import Temporary
from shared.provider.vault import new_key
from shared.settings import SERVICES, Settings

_START_SECONDS = 120.0
"""Limits the start of one part: seconds, enough for a slow machine."""
_STOP_SECONDS = 58.0
"""Limits the stop of everything: seconds, below the minute that is promised."""
_ASK_SECONDS = 8.0
"""RabbitMQ is asked about its queues at most this often: seconds; it is restarted after two bad answers."""
_MAIL_PORTS = {
    "imap_port": "imap",
    "imaps_port": "imaps",
    "pop3_port": "pop3",
    "pop3s_port": "pop3s",
    "smtp_port": "smtp",
    "submission_port": "smtp",
    "smtps_port": "smtps",
}
"""The settings of the ports for mail clients, with the schemes of their URLs."""


class Interrupted(Exception):
    """The stop was requested during the start."""


class Instance:
    """A context manager; everything runs while it is open."""

    def __init__(
        self,
        settings: Settings,
        say: Callable[[str], None] = print,
        services: Sequence[str] = SERVICES,
        set_state: Callable[[FolderState], None] | None = None,
    ) -> None:
        """:param settings: as the command read them. :param say: shows a line of progress.
        :param set_state: of the lock of the data folder, if the caller holds it.
        """
        self.settings = settings  # from the start on with the URLs of the private servers and the key
        self.admin_password: str | None = None  # of the console, if this start created it
        self.stopping = threading.Event()  # set it to end the wait
        self.failure: BaseException | None = None  # why the instance ended by itself
        self._say = say
        self._set_state = set_state
        self._services = tuple(services)
        self._data = settings.data.absolute()
        self._servers = servers.PrivateServers(self._data, None, None)
        self._supervisor: Supervisor | None = None
        self._ready = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="watcher", daemon=True)
        self._stack = ExitStack()
        self._end = threading.Event()
        self._rabbitmq_asked_at = time.monotonic()
        self._rabbitmq_bad_answers = 0

    def __enter__(self) -> Self:
        """Start everything, and wait until every service reports that it is ready.

        :raises Permanent: a port is in use, a package is missing, or another instance uses this data folder.
        :raises Temporary: a part is not ready in time. :raises Interrupted: ``stopping`` was set.
        """
        with ExitStack() as stack:
            folders.make_data_folder(self._data)
            if self._set_state is None:
                self._set_state = stack.enter_context(locked(self._data, "up"))
            _end_leftovers(self._data, self._say)
            self._check_ports()
            self._prepare()
            stack.callback(self._finish)
            self._watcher.start()
            while not self._ready.wait(0.1) and self.failure is None:
                pass
            if self.failure is not None:
                raise self.failure
            self._set_state("ready")
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop the services, then the servers, within a minute."""
        self._stack.close()

    @property
    def postgres(self) -> Postgres | None:
        """Return the private PostgreSQL; None if a setting names another one."""
        return self._servers.postgres

    def wait(self) -> None:
        """Wait until ``stopping`` is set."""
        self.stopping.wait()

    def pids(self) -> dict[str, int]:
        """Return the process ids of the programs that run: postgres, epmd, rabbitmq and the services, by name."""
        return self._supervisor.pids() if self._supervisor is not None else {}

    def start_program(self, name: str) -> None:
        """Start a program that ``stop_program`` stopped."""
        self._running().start_program(name)

    def stop_program(self, name: str) -> None:
        """Stop one program; nothing starts it again until ``start_program``."""
        self._running().stop_program(name)

    def _running(self) -> Supervisor:
        if self._supervisor is None:
            raise RuntimeError("the instance has not been started")
        return self._supervisor

    def urls(self) -> dict[str, str]:
        """Return the URLs of the mail services, the console and the metrics."""
        settings = self.settings
        urls = {
            name.removesuffix("_port"): f"{scheme}://{settings.bind}:{getattr(settings, name)}"
            for name, scheme in _MAIL_PORTS.items()
        }
        if "admin" in self._services:
            scheme = "https" if settings.console_has_tls else "http"
            urls["console"] = f"{scheme}://{settings.admin_bind}:{settings.admin_port}"
        return urls | {f"metrics_{name}": f"{_health_url(settings, name)}/metrics" for name in self._services}

    # ------------------------------------------------------------------------------------------ starting

    def _check_ports(self) -> None:
        settings = self.settings
        ports.require({f"MAILGROUP_{name.upper()}": getattr(settings, name) for name in _MAIL_PORTS}, settings.bind)
        if "admin" in self._services:
            ports.require({"MAILGROUP_ADMIN_PORT": settings.admin_port}, settings.admin_bind, "MAILGROUP_ADMIN_BIND")
        for name in self._services:
            ports.require(
                {f"MAILGROUP_METRICS_PORT (for {name})": settings.metrics_port_of(name)}, settings.metrics_host
            )

    def _prepare(self) -> None:
        settings, data = self.settings, self._data
        private = [
            name
            for name, url in (("PostgreSQL", settings.database_url), ("RabbitMQ", settings.broker_url))
            if url is None
        ]
        if private:
            self._say(f"Preparing {' and '.join(private)} in {data}")
        self._servers = servers.prepare(data, settings.database_url is None, settings.broker_url is None)
        changes: dict[str, Any] = {"data": data}
        if self._servers.postgres is not None:
            changes["database_url"] = self._servers.postgres.url
        if self._servers.rabbitmq is not None:
            changes["broker_url"] = self._servers.rabbitmq.url
        changes["secret_key"] = settings.secret_key or _kept(data / "secret.key", new_key)[0]
        if settings.admin_password is None:
            changes["admin_password"], made = _kept(data / "admin.password", lambda: secrets.token_urlsafe(12))
            self.admin_password = changes["admin_password"] if made else None
        self.settings = settings.model_copy(update=changes)

    def _watch(self) -> None:
        """Run the instance, in a thread of its own: supervisord ends with the thread that started it."""
        programs = [*self._servers.programs(), *(service(name) for name in self._services)]
        environments = {name: _environment(self.settings.of_service(name)) for name in self._services}
        self._supervisor = Supervisor(self._data, programs, environments)
        try:
            self._bring_up()
            self._ready.set()
            while not self._end.wait(0.5):
                self._keep_up()
        except Interrupted as error:
            self.failure = error
        except Exception as error:  # the waiting thread reports it
            self.failure = error
            self.stopping.set()
        finally:
            self._supervisor.stop(_STOP_SECONDS)

    def _keep_up(self) -> None:
        """Check that everything runs. An error here stops nothing; the next call tries again."""
        try:
            if self._running().pid is None:
                self._say("supervisord has ended; starting again")
                _end_leftovers(self._data, self._say)
                self._bring_up()
            self._write_run_file()
            self._restart_broken_rabbitmq()
        except (Temporary, OSError) as error:
            self._say(f"{error}; trying again")

    def _restart_broken_rabbitmq(self) -> None:
        """Restart a node that reports that its queues have ended, as they do when its disk is full.

        Services that wait for the broker are only the reason to ask it: their view may be old, or wrong.
        """
        rabbitmq = self._servers.rabbitmq
        if rabbitmq is None or time.monotonic() < self._rabbitmq_asked_at + _ASK_SECONDS:
            return
        self._rabbitmq_asked_at = time.monotonic()
        waiting = any(_waits_for_broker(self.settings, name) for name in self._services)
        if not (waiting and rabbitmq.answers() and rabbitmq.has_lost_queues()):
            self._rabbitmq_bad_answers = 0
            return
        self._rabbitmq_bad_answers += 1
        if self._rabbitmq_bad_answers == 2:
            self._rabbitmq_bad_answers = 0
            self._say("RabbitMQ reports that its queues have ended; restarting it")
            self._running().stop_program("rabbitmq")
            self._running().start_program("rabbitmq")

    def _bring_up(self) -> None:
        supervisor, started = self._running(), time.monotonic()
        supervisor.start()
        self._await("supervisord", supervisor.answers)
        if self._servers.postgres is not None:
            self._await("PostgreSQL", self._servers.postgres.answers, "postgres")
            self._servers.postgres.create("mailgroup")
        if revisions := migrate(str(self.settings.database_url)):
            self._say(f"Database migrated to revision {revisions[-1]}")
        for name in self._services:  # they load while RabbitMQ starts, and wait for it themselves
            supervisor.start_program(name)
        if self._servers.rabbitmq is not None:
            self._await("RabbitMQ", self._servers.rabbitmq.answers, "rabbitmq")
        for name in self._services:
            self._await(name, partial(_is_ready, self.settings, name))
        self._write_run_file()
        self._say(f"Ready after {time.monotonic() - started:.1f} s")

    def _await(self, what: str, answers: Callable[[], bool], program: str | None = None) -> None:
        """Wait until a part answers. :param program: name of its log, if not ``what``."""
        supervisor = self._running()
        deadline = time.monotonic() + _START_SECONDS
        self._say(f"Waiting for {what}")
        while not answers():
            if self.stopping.is_set() or self._end.is_set():
                raise Interrupted
            if supervisor.pid is None:
                raise Temporary(f"supervisord ended: {supervisor.problem()}")
            if time.monotonic() > deadline:
                log = self._data / "log" / f"{program or what}.log"
                raise Temporary(f"{what} is not ready after {_START_SECONDS:g} s; {log} ends: {tail(log)}")
            time.sleep(0.1)

    def _write_run_file(self) -> None:
        pids = {"up": os.getpid(), **self.pids()}
        if self._supervisor is not None and self._supervisor.pid is not None:
            pids["supervisord"] = self._supervisor.pid
        settings = self.settings.model_dump(mode="json", exclude_none=True, exclude={"data"})
        text = json.dumps({"settings": settings, "pids": pids, "urls": self.urls()}, indent=1) + "\n"
        file = self._data / "run.json"
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            write_private(file, text)

    def _finish(self) -> None:
        self._say("Stopping")
        if self._set_state is not None:
            self._set_state("stopping")
        self._end.set()
        self._watcher.join()
        self._servers.tidy()
        remove_environments(self._data)
        (self._data / "run.json").unlink(missing_ok=True)


def with_free_ports(settings: Settings) -> Settings:
    """Return the settings with free ports, usually the same ones for the same data folder."""
    seed = str(settings.data.absolute())
    names = (*_MAIL_PORTS, "admin_port")
    chosen = dict(zip(names, ports.choose(len(names), seed, ports.OURS), strict=True))
    first = ports.choose_run(len(SERVICES), seed, ports.OURS, taken=chosen.values())
    return settings.model_copy(update={**chosen, "metrics_port": first})


def up(
    settings: Settings,
    ready: Callable[[Instance], None],
    say: Callable[[str], None] = print,
    services: Sequence[str] = SERVICES,
) -> int:
    """Run everything in the foreground until SIGINT, SIGTERM or SIGHUP.

    :param ready: called when everything is ready, to print addresses.
    :return: the exit status: 0 after a requested stop, 1 if a part failed permanently.
    :raises Permanent, Temporary: as Instance.
    """
    instance = Instance(settings, say, services)
    with stopped_by_signals(instance.stopping):
        try:
            with instance:
                ready(instance)
                instance.wait()
        except Interrupted:
            return 0
    return 0 if instance.failure is None else 1


@contextmanager
def stopped_by_signals(stopping: threading.Event) -> Iterator[None]:
    """Let the signals that end a program only set the event, during the block. Call it from the main thread."""

    def stop(number: int, frame: FrameType | None) -> None:
        stopping.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _environment(settings: Settings) -> dict[str, str]:
    """Return the settings as environment variables of the services."""
    variables = {}
    for name, value in settings.model_dump(mode="json", exclude_none=True).items():
        variables[f"MAILGROUP_{name.upper()}"] = str(value).lower() if isinstance(value, bool) else str(value)
    return variables


def _health_url(settings: Settings, name: str) -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.metrics_host, settings.metrics_host)
    return f"http://{host}:{settings.metrics_port_of(name)}"


def _is_ready(settings: Settings, name: str) -> bool:
    try:
        urllib.request.urlopen(f"{_health_url(settings, name)}/readyz", timeout=3).close()
    except OSError:  # URLError, and HTTPError for 503, are among them
        return False
    return True


def _waits_for_broker(settings: Settings, name: str) -> bool:
    """Return whether a service reports that it waits for the broker."""
    try:
        urllib.request.urlopen(f"{_health_url(settings, name)}/readyz", timeout=3).close()
    except urllib.error.HTTPError as error:
        return b"broker" in error.read()
    except OSError:
        return False
    return False


def _kept(file: Path, make: Callable[[], str]) -> tuple[str, bool]:
    """Read a secret from a file, which the first start creates; return it, and whether it was created now."""
    if not file.exists():
        write_private(file, make() + "\n")
        return file.read_text(encoding="ascii").strip(), True
    return file.read_text(encoding="ascii").strip(), False


def _end_leftovers(data: Path, say: Callable[[str], None]) -> None:
    """Wait for the processes of a killed ``up``, which stop by themselves, in order; kill those that take too long."""
    deadline = time.monotonic() + _STOP_SECONDS
    if pids := leftovers(data):
        say(f"Waiting for {len(pids)} processes of an earlier start to end")
    while pids := leftovers(data):
        if time.monotonic() > deadline:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
