"""Whether a store that has grown makes anything slower or larger: two systems side by side, one small and one large.

The same work is done in both in turn. They are filled by fill.py. What a poll costs is the time of cores that fetcher
and PostgreSQL use for it, while both systems poll equally often: a few accounts often, many seldom.
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
"""What it takes to spread the polls of many accounts anew is none of a poll's cost."""
_POLLED_MAILS = 20
_MEBI = 2**20


@dataclass(frozen=True, slots=True)
class Size:
    """Of a store. polled: the user at the provider whose maildrop all its external accounts poll."""

    mails: int
    people: int
    externals: int
    polled: str


SMALL, LARGE = Size(1_000, 10, 10, "polled10"), Size(1_000_000, 10_000, 1_000, "polled1000")


class System:
    """One of the two, with an account that sends, and a mailbox that is read."""

    def __init__(self, stand: Environment, stack: ExitStack, size: Size) -> None:
        self.size = size
        self.gateway = stack.enter_context(Gateway(stand.folder / f"gateway-{size.mails}"))
        fill(
            self.gateway.connection, size.mails, size.people, size.externals, size.polled, stand.dovecot.port,
            size.externals // _POLLS_A_SECOND,
        )  # fmt: skip
        account = "sends@provider.example"
        self.gateway.add(
            [external(account, smtp_port=stand.sink.port)], [person("reader", account), person("author", account)]
        )
        self.gateway.fill(f"reader@{DOMAIN}", (mail(OCTETS, number) for number in range(READ_MAILS)))
        self._meet_provider()
        self.gateway.settle()

    def fetch(self, port: int) -> Run:
        """From the provider's maildrop to readable."""
        return deliver(self.gateway, port, "some", SOME)

    def read(self) -> Run:
        """RETR by POP3, for the first time."""
        self.gateway.restart("pop3_out")
        load = partial(
            generate, "pop3_load", port=self.gateway.settings.pop3_port, user=f"reader@{DOMAIN}", password=PASSWORD
        )
        load("login")
        return measured(partial(load, "retr", mails=READ_MAILS, octets=OCTETS), self.gateway.used)

    def submit(self) -> Run:
        """By SMTP, 16 sessions."""
        author = f"author@{DOMAIN}"
        load = partial(
            generate, "smtp_load", port=self.gateway.settings.smtp_port, user=author, sender=author, password=PASSWORD,
            mails=SENT_MAILS, octets=SENT_OCTETS, concurrency=16,
        )  # fmt: skip
        run = measured(load, self.gateway.used)
        drain(self.gateway)
        return run

    def _meet_provider(self) -> None:
        """The first polls of all external accounts, to which what lies there is history, and the second ones, which
        find that there is nothing to do: as it is with accounts that have been there for a while."""
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
        """Every external account, their polls spread over the interval."""
        self._enable(True)
        self.gateway.connection.execute(
            """update polls set next_poll_at = now() + random() * make_interval(secs => e.poll_seconds)
               from external_accounts e where e.id = external_id and e.address like 'grown%'"""
        )

    def stop_polling(self) -> None:
        """Until ``start_polling``."""
        self._enable(False)

    def cpu(self) -> float:
        """Seconds of cores that fetcher and PostgreSQL have used so far."""
        pids = self.gateway.pids()
        return cpu_seconds(tree(pids["fetcher"]) + tree(pids["postgres"]))


def growth(stand: Environment, pairs: int) -> list[Line]:
    """Figures of the large system, beside those of the small one as the anchor."""
    fill_source(stand)
    for size in (SMALL, LARGE):
        fill_maildir(stand.dovecot.maildir(size.polled), _POLLED_MAILS, OCTETS)
    with ExitStack() as stack:
        small, large = System(stand, stack, SMALL), System(stand, stack, LARGE)
        words = f"{SMALL.mails:,} → {LARGE.mails:,} mails, {SMALL.people} → {LARGE.people:,} people"
        lines = []
        for work, one, other in (
            (
                f"from the provider's maildrop to readable; {words}",
                partial(small.fetch, stand.dovecot.port),
                partial(large.fetch, stand.dovecot.port),
            ),
            ("RETR of 10 KB, 1 session; the same", small.read, large.read),
            ("submission of 4 KB, 16 sessions; the same", small.submit, large.submit),
        ):
            before, after = stand.alternate(pairs, one, other)
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
        lines.append(_polls(stand, pairs, small, large))
        return lines + _memory(small, large)


def _polls(stand: Environment, pairs: int, small: System, large: System) -> Line:
    """Each system polls while the other one does not."""
    before, after = stand.alternate(pairs, partial(_poll, stand, small), partial(_poll, stand, large))
    return Line(
        f"cores' time of a poll; {SMALL.externals} → {LARGE.externals:,} external accounts, {_POLLS_A_SECOND} polls/s",
        tuple(1e3 / run.rate for run in after),
        "ms",
        Goal("≤", 1.1),
        tuple(1e3 / run.rate for run in before),
        "small",
    )


def _poll(stand: Environment, system: System) -> Run:
    """items: polls; seconds: those of cores."""
    system.start_polling()
    time.sleep(_SPREAD_SECONDS)
    polls, used = _logins(stand, system), system.cpu()
    time.sleep(_POLLED_SECONDS)
    polls, used = _logins(stand, system) - polls, system.cpu() - used
    system.stop_polling()
    time.sleep(1.0)
    if polls < _POLLED_SECONDS * _POLLS_A_SECOND / 2:
        raise Wrong(f"{polls} polls in {_POLLED_SECONDS:g} s, with {_POLLS_A_SECOND} due every second")
    return Run(polls, used)


def _logins(stand: Environment, system: System) -> int:
    """As the provider's log tells."""
    log = (stand.dovecot.folder / "dovecot.log").read_text(encoding="utf-8", errors="replace")
    return log.count(f"Login: user=<{system.size.polled}>")


def _memory(small: System, large: System) -> list[Line]:
    """Of each service, after the same work; in the POP3 server a hundredth of the people have polled too."""
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
