"""All that runs during a benchmark. Each part is started when a work first asks for it, and stopped at the end."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Self

from bench.baselines import PORTS, USERS, Dovecot, Postfix, Sink
from bench.gateway import Gateway, external, person
from bench.processes import Run, beside, command
from deploy.machine import ports

OWN = "own@company.example"
"""The external account of all people that only read or submit mail; what they send goes to the sink."""
ROUND_TRIP = 20
"""Milliseconds to a provider that is far away."""


class Environment:
    """A context manager. folder: for the data of both sides. filled: the kinds of mailboxes that are full already."""

    def __init__(self, folder: Path, lock: Path | None = None) -> None:
        """:param lock: a file that is locked while something is measured."""
        self.folder = folder
        self._lock = lock
        self.filled: set[str] = set()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *problem: object) -> None:
        self._stack.close()

    @cached_property
    def gateway(self) -> Gateway:
        """mailgroup, with USERS people u0 … and as many l0 …"""
        gateway = self._stack.enter_context(Gateway(self.folder / "gateway"))
        people = [person(f"{kind}{number}", OWN) for kind in "ul" for number in range(USERS)]
        gateway.add([external(OWN, smtp_port=self.sink.port)], [*people, person("big", OWN)])
        return gateway

    @cached_property
    def dovecot(self) -> Dovecot:
        """The anchor of POP3, the provider of all fetchers, and who checks passwords for Postfix."""
        return self._stack.enter_context(Dovecot(self.folder / "dovecot"))

    @cached_property
    def postfix(self) -> Postfix:
        """The anchor of SMTP; released mail goes to the sink."""
        return self._stack.enter_context(Postfix(self.folder / "postfix", self.sink.port, self.dovecot.auth_socket))

    @cached_property
    def sink(self) -> Sink:
        """The provider that all mail is relayed to."""
        return self._stack.enter_context(Sink(self.folder / "sink"))

    @contextmanager
    def far(self, port: int) -> Iterator[int]:
        """A port that leads to another one, ROUND_TRIP away."""
        (far,) = ports.choose(1, f"{self.folder}{port}", PORTS)
        with beside("delay", [*command("delay"), str(far), str(port), str(ROUND_TRIP)], self.folder):
            deadline = time.monotonic() + 10
            while ports.is_free(far) and time.monotonic() < deadline:
                time.sleep(0.05)
            yield far

    def alternate(self, pairs: int, *sides: Callable[[], Run]) -> list[list[Run]]:
        """Let the sides work in turn. :return: the runs of each side."""
        runs: list[list[Run]] = [[] for _ in sides]
        with self.turn():
            for _ in range(pairs):
                for side, found in zip(sides, runs, strict=True):
                    found.append(side())
        return runs

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Hold the lock, if there is one: who else measures on this machine waits."""
        if self._lock is None:
            yield
            return
        with self._lock.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
