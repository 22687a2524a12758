"""The processes of a service, replaced one after the other as a Deployment of Kubernetes does it.

The order of an end: the pod leaves the endpoints of its Service a moment after it was deleted, the preStop hook lasts
longer than that, then SIGTERM, and SIGKILL after the grace period.
"""

from __future__ import annotations

import asyncio
import itertools
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deploy.machine import ports
from shared.settings import SERVICES
from tests.faults.proxy import Proxy

READY_SECONDS = 180.0
"""Limit of a start, on a busy machine: seconds."""
DOORS = {
    "imap_out": ("IMAP_PORT", "IMAPS_PORT"),
    "pop3_out": ("POP3_PORT", "POP3S_PORT"),
    "smtp_in": ("SMTP_PORT", "SUBMISSION_PORT", "SMTPS_PORT"),
    "admin": ("ADMIN_PORT",),
}
"""The settings with the ports of a service for clients; the balancer forwards to the first one."""

_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Timing:
    """How an orchestrator ends a process: seconds."""

    propagation: float  # from the deletion of a pod until its Service forwards no connection to it
    pre_stop: float  # from the deletion until SIGTERM
    grace: float  # from the deletion until SIGKILL


class Balancer(Proxy):
    """A Service: forwards each connection to one endpoint, in turn, and never tries a second one."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self._turn = 0

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if not self.targets:
            raise ConnectionRefusedError
        self._turn += 1
        return await asyncio.open_connection("127.0.0.1", self.targets[self._turn % len(self.targets)])


class Replica:
    """One process of a service."""

    def __init__(self, service: str, program: Path, folder: Path, environment: Mapping[str, str]) -> None:
        """:param program: the root of the version. :param folder: for its data and log."""
        name = f"{service}-{next(_numbers)}"
        doors = DOORS.get(service, ())
        chosen = ports.choose(len(doors), f"{folder} {name}", ports.OURS) if doors else []
        first = ports.choose_run(len(SERVICES), f"{folder} {name} metrics", ports.OURS, taken=chosen)
        self.service = service
        self.port = chosen[0] if chosen else 0
        self._url = f"http://127.0.0.1:{first + SERVICES.index(service)}/readyz"
        self._program, self._log, self._data = program, folder / f"{name}.log", folder / name
        self._environment = {
            **environment,
            "PYTHONPATH": str(program),
            "MAILGROUP_DATA": str(self._data),
            "MAILGROUP_METRICS_PORT": str(first),
            **{f"MAILGROUP_{door}": str(port) for door, port in zip(doors, chosen, strict=True)},
        }
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start the process."""
        self._data.mkdir()
        words = ["console"] if self.service == "admin" else []
        with self._log.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", f"services.{self.service}", *words,
                cwd=self._program, env=self._environment, stdout=log, stderr=log,
            )  # fmt: skip

    async def is_ready(self) -> bool:
        """Probe it."""
        return await asyncio.to_thread(self._probe)

    def _probe(self) -> bool:
        try:
            urllib.request.urlopen(self._url, timeout=10).close()
        except OSError:
            return False
        return True

    async def await_ready(self) -> None:
        """Wait until it is ready. :raises TimeoutError: it takes too long. :raises RuntimeError: it has ended."""
        async with asyncio.timeout(READY_SECONDS):
            while not await self.is_ready():
                if self._process is None or self._process.returncode is not None:
                    raise RuntimeError(f"{self._log.name}: {self._log.read_text(errors='replace')[-2000:]}")
                await asyncio.sleep(0.1)

    async def end(self, seconds: float) -> bool:
        """Send SIGTERM, and SIGKILL after ``seconds``. :return: whether it ended by itself, with status 0."""
        assert self._process is not None
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(seconds):
                return await self._process.wait() == 0
        except TimeoutError:
            self.kill()
            await self._process.wait()
            return False

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()


class Deployment:
    """The replicas of a service, and its Service if mail clients connect to it.

    :ivar unclean: the ends of processes that did not stop by themselves.
    """

    def __init__(self, service: str, timing: Timing, folder: Path, environment: Mapping[str, str]) -> None:
        self.service = service
        self.unclean = 0
        self._timing, self._folder, self._environment = timing, folder, environment
        self._replicas: list[Replica] = []
        self.balancer: Balancer | None = None
        if service in DOORS:
            [port] = ports.choose(1, f"{folder} {service} balancer")
            self.balancer = Balancer(port)

    async def add(self, program: Path) -> Replica:
        """Start a replica; it is an endpoint as soon as a probe has found it ready."""
        replica = Replica(self.service, program, self._folder, self._environment)
        self._replicas.append(replica)
        await replica.start()
        await replica.await_ready()
        if self.balancer is not None:
            self.balancer.targets = (*self.balancer.targets, replica.port)
        return replica

    async def delete(self, replica: Replica) -> None:
        """End a replica as Kubernetes ends a pod."""
        timing = self._timing
        await asyncio.sleep(timing.propagation)
        self._leave(replica)
        await asyncio.sleep(timing.pre_stop - timing.propagation)
        await self._end(replica, timing.grace - timing.pre_stop)

    async def replace_each(self, program: Path) -> None:
        """Replace the replicas by another version: maxSurge 1, maxUnavailable 0."""
        for old in list(self._replicas):
            await self.add(program)
            await self.delete(old)

    async def recreate(self, program: Path) -> None:
        """Stop the only replica, then start another version on the same ports, as docker compose does it."""
        [old] = self._replicas
        await self._end(old, self._timing.grace)
        self._leave(old)
        await self.add(program)

    async def end_all(self) -> None:
        """End every replica, at the end of a run."""
        await asyncio.gather(*(self._end(replica, self._timing.grace) for replica in list(self._replicas)))

    def kill_all(self) -> None:
        """End every process at once."""
        for replica in self._replicas:
            replica.kill()

    def _leave(self, replica: Replica) -> None:
        if self.balancer is not None:
            self.balancer.targets = tuple(port for port in self.balancer.targets if port != replica.port)

    async def _end(self, replica: Replica, seconds: float) -> None:
        self.unclean += not await replica.end(seconds)
        self._replicas.remove(replica)
