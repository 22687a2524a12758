"""All servers of a benchmark. Each one is started on its first use, and stopped at the end."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Self

from bench.baselines import KINDS, PORTS, USERS, Dovecot, Postfix, Sink
from bench.gateway import Gateway, external, person
from bench.processes import Run, beside, command
from deploy.machine import ports

OWN = "own@company.example"
"""The external account of all people that only read or submit mail; their mail is relayed to the sink."""
ROUND_TRIP = 20
"""Round-trip time to a distant provider: milliseconds."""


class Environment:
    """A context manager; stops all servers at its end."""

    def __init__(self, folder: Path, lock: Path | None = None) -> None:
        """:param folder: for the data of both sides. :param lock: a file that is locked during measurements."""
        self.folder = folder
        self._lock = lock
        self.filled: set[str] = set()  # the kinds of mailboxes that are filled already
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *problem: object) -> None:
        self._stack.close()

    @cached_property
    def gateway(self) -> Gateway:
        """mailgroup, with USERS people of each kind, and those with large mailboxes."""
        gateway = self._stack.enter_context(Gateway(self.folder / "gateway"))
        people = [person(f"{kind}{number}", OWN) for kind in KINDS for number in range(USERS)]
        people += [person("big", OWN), person("searched", OWN)]
        gateway.add([external(OWN, smtp_port=self.sink.port)], people)
        return gateway

    @cached_property
    def dovecot(self) -> Dovecot:
        """The anchor of POP3, the provider of all fetchers, and the authentication server of Postfix."""
        return self._stack.enter_context(Dovecot(self.folder / "dovecot"))

    @cached_property
    def postfix(self) -> Postfix:
        """The anchor of SMTP; it relays released mail to the sink."""
        return self._stack.enter_context(Postfix(self.folder / "postfix", self.sink.port, self.dovecot.auth_socket))

    @cached_property
    def sink(self) -> Sink:
        """The provider's SMTP server for all relayed mail."""
        return self._stack.enter_context(Sink(self.folder / "sink"))

    @contextmanager
    def far(self, port: int) -> Iterator[int]:
        """Provide a port that forwards to another one with ROUND_TRIP."""
        (far,) = ports.choose(1, f"{self.folder}{port}", PORTS)
        with beside("delay", [*command("delay"), str(far), str(port), str(ROUND_TRIP)], self.folder):
            deadline = time.monotonic() + 10
            while ports.is_free(far) and time.monotonic() < deadline:
                time.sleep(0.05)
            yield far

    def alternate(self, pairs: int, *sides: Callable[[], Run]) -> list[list[Run]]:
        """Run the sides alternately. :return: the runs of each side."""
        runs: list[list[Run]] = [[] for _ in sides]
        with self.turn():
            for _ in range(pairs):
                for side, side_runs in zip(sides, runs, strict=True):
                    side_runs.append(side())
        return runs

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Hold the lock, if there is one, so that other measurements on this machine wait."""
        if self._lock is None:
            yield
            return
        with self._lock.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
