"""Compares a small and a large database: speed and memory of two systems, filled by fill.py, that work alternately.

The cost of a poll is the processor time of fetcher and PostgreSQL, while both systems poll equally often: the small one
few accounts often, the large one many accounts rarely.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from bench import Wrong
from bench.baselines import PASSWORD
from bench.environment import Environment
from bench.fill import fill
from bench.gateway import DOMAIN, Gateway, external, person
from bench.mails import fill_maildir, mail
from bench.pipeline import OCTETS, SOME, deliver, fill_source
from bench.processes import Run, cpu_seconds, generate, measured, memory, tree
from bench.submission import drain
from bench.table import Goal, Line

READ_MAILS, SENT_MAILS, SENT_OCTETS = 1_000, 800, 4_096
_POLLS_A_SECOND = 10
_SPREAD_SECONDS, _POLLED_SECONDS = 4.0, 20.0
"""Wait before the measurement and its duration: seconds; spreading the polls of many accounts is no cost of a poll."""
_POLLED_MAILS = 20
_MEBI = 2**20


@dataclass(frozen=True, slots=True)
class Size:
    """The size of a database."""

    mails: int
    people: int
    externals: int
    polled: str  # user at the provider whose maildrop all external accounts poll


SMALL, LARGE = Size(1_000, 10, 10, "polled10"), Size(1_000_000, 10_000, 1_000, "polled1000")


class System:
    """One of the two systems, with an account that sends and a mailbox that is read."""

    def __init__(self, environment: Environment, stack: ExitStack, size: Size) -> None:
        self.size = size
        self.gateway = stack.enter_context(Gateway(environment.folder / f"gateway-{size.mails}"))
        fill(
            self.gateway.connection, size.mails, size.people, size.externals, size.polled, environment.dovecot.port,
            size.externals // _POLLS_A_SECOND,
        )  # fmt: skip
        account = "sends@provider.example"
        self.gateway.add(
            [external(account, smtp_port=environment.sink.port)], [person("reader", account), person("author", account)]
        )
        self.gateway.fill(f"reader@{DOMAIN}", (mail(OCTETS, number) for number in range(READ_MAILS)))
        self._meet_provider()
        self.gateway.wait_until_idle()

    def fetch(self, port: int) -> Run:
        """Fetch and deliver a maildrop."""
        return deliver(self.gateway, port, "some", SOME)

    def read(self) -> Run:
        """Read the mailbox by POP3, from a server that was just started."""
        self.gateway.restart("pop3_out")
        load = partial(
            generate, "pop3_load", port=self.gateway.settings.pop3_port, user=f"reader@{DOMAIN}", password=PASSWORD
        )
        load("login")
        return measured(partial(load, "retr", mails=READ_MAILS, octets=OCTETS), self.gateway.used)

    def submit(self) -> Run:
        """Submit mails in 16 SMTP sessions."""
        author = f"author@{DOMAIN}"
        load = partial(
            generate, "smtp_load", port=self.gateway.settings.smtp_port, user=author, sender=author, password=PASSWORD,
            mails=SENT_MAILS, octets=SENT_OCTETS, concurrency=16,
        )  # fmt: skip
        run = measured(load, self.gateway.used)
        drain(self.gateway)
        return run

    def _meet_provider(self) -> None:
        """Poll all external accounts twice: the first poll records the mails there as history, the second finds no new
        one, as with accounts that have existed for a while."""
        self._enable(True)
        for _ in range(2):
            began = self.gateway.value("select clock_timestamp()")
            self.gateway.connection.execute(
                """update polls set next_poll_at = now() from external_accounts e
                   where e.id = external_id and e.address like 'grown%'"""
            )
            self.gateway.await_value(
                self.size.externals,
                """select count(*) from polls join external_accounts e on e.id = external_id
                   where e.address like 'grown%%' and last_success_at > %s""",
                began,
            )
        self._enable(False)

    def _enable(self, enabled: bool) -> None:
        self.gateway.connection.execute(
            "update external_accounts set enabled = %s where address like 'grown%%'", (enabled,)
        )

    def start_polling(self) -> None:
        """Enable every external account, with polls spread over the interval."""
        self._enable(True)
        self.gateway.connection.execute(
            """update polls set next_poll_at = now() + random() * make_interval(secs => e.poll_seconds)
               from external_accounts e where e.id = external_id and e.address like 'grown%'"""
        )

    def stop_polling(self) -> None:
        """Disable every external account until ``start_polling``."""
        self._enable(False)

    def cpu(self) -> float:
        """Return the seconds of cores that fetcher and PostgreSQL have used so far."""
        pids = self.gateway.pids()
        return cpu_seconds(tree(pids["fetcher"]) + tree(pids["postgres"]))


def growth(environment: Environment, pairs: int) -> list[Line]:
    """Measure the large system, with the small one as the anchor."""
    fill_source(environment)
    for size in (SMALL, LARGE):
        fill_maildir(environment.dovecot.maildir(size.polled), _POLLED_MAILS, OCTETS)
    with ExitStack() as stack:
        small, large = System(environment, stack, SMALL), System(environment, stack, LARGE)
        words = f"{SMALL.mails:,} → {LARGE.mails:,} mails, {SMALL.people} → {LARGE.people:,} people"
        lines = []
        for work, one, other in (
            (
                f"from the provider's maildrop to readable; {words}",
                partial(small.fetch, environment.dovecot.port),
                partial(large.fetch, environment.dovecot.port),
            ),
            ("RETR of 10 KB, 1 session; the same", small.read, large.read),
            ("submission of 4 KB, 16 sessions; the same", small.submit, large.submit),
        ):
            before, after = environment.alternate(pairs, one, other)
            lines.append(
                Line(
                    work,
                    tuple(1e3 / run.rate for run in after),
                    "ms/mail",
                    Goal("≤", 1.1),
                    tuple(1e3 / run.rate for run in before),
                    "small",
                    max((run.cpu for run in (*before, *after) if run.cpu is not None), default=None),
                    (after, before),
                )
            )
        lines.append(_polls(environment, pairs, small, large))
        return lines + _memory(small, large)


def _polls(environment: Environment, pairs: int, small: System, large: System) -> Line:
    """Measure the polls of one system while the other one does not poll."""
    before, after = environment.alternate(pairs, partial(_poll, environment, small), partial(_poll, environment, large))
    return Line(
        f"cores' time of a poll; {SMALL.externals} → {LARGE.externals:,} external accounts, {_POLLS_A_SECOND} polls/s",
        tuple(1e3 / run.rate for run in after),
        "ms",
        Goal("≤", 1.1),
        tuple(1e3 / run.rate for run in before),
        "small",
    )


def _poll(environment: Environment, system: System) -> Run:
    """Measure the polls of a system. items: polls; seconds: of cores."""
    system.start_polling()
    time.sleep(_SPREAD_SECONDS)
    polls, used = _logins(environment, system), system.cpu()
    time.sleep(_POLLED_SECONDS)
    polls, used = _logins(environment, system) - polls, system.cpu() - used
    system.stop_polling()
    time.sleep(1.0)
    if polls < _POLLED_SECONDS * _POLLS_A_SECOND / 2:
        raise Wrong(f"{polls} polls in {_POLLED_SECONDS:g} s, with {_POLLS_A_SECOND} due every second")
    return Run(polls, used)


def _logins(environment: Environment, system: System) -> int:
    """Count the logins in the provider's log."""
    log = (environment.dovecot.folder / "dovecot.log").read_text(encoding="utf-8", errors="replace")
    return log.count(f"Login: user=<{system.size.polled}>")


def _memory(small: System, large: System) -> list[Line]:
    """Measure the memory of each service after the same work; 1 % of the people have also polled by POP3."""
    for system in (small, large):
        people = max(1, system.size.people // 100)
        generate(
            "pop3_load", "poll", port=system.gateway.settings.pop3_port, user="grown{i}@" + DOMAIN, users=people,
            password=PASSWORD, sessions=people, concurrency=4, mails=system.size.mails // system.size.people,
        )  # fmt: skip
    held = [
        {name: memory(tree(pid)) / _MEBI for name, pid in system.gateway.services().items()}
        for system in (small, large)
    ]
    return [
        *(
            Line(f"memory of {name}; the same", (held[1][name],), "MiB", Goal("≤", 1.1), (held[0][name],), "small")
            for name in held[0]
        ),
        Line("memory of pop3_out, large", (held[1]["pop3_out"],), "MiB", Goal("≤", 256, "MiB")),
    ]
