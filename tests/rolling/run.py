"""Measures what mail clients notice while every service is replaced by a new version.

    python -m tests.rolling.run [two] [one]; ``make rolling`` runs both

``two``: two replicas behind a balancer, replaced as Kubernetes replaces them, with the times of deploy/k8s/base.
``one``: one replica, stopped and then started, as docker compose does it. The new version brings a migration.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML

from deploy.machine.supervise import ROOT
from shared.db.migrations import revisions
from shared.db.migrations.migrate import migrate
from shared.settings import SERVICES
from tests import servers
from tests.company import KEY, apply, external, local
from tests.faults.books import Copies, Submitted, digest, judge, relays_expected, token
from tests.faults.mails import CUSTOMERS, PEOPLE, SALES, SHARERS
from tests.faults.recovery import measure_slowness
from tests.polling import until
from tests.rolling.clients import Ended, Tally, read_mailbox, submit
from tests.rolling.imap_clients import Inbox, follow_inbox, read_inbox
from tests.rolling.replicas import Balancer, Deployment, Timing
from tests.rolling.result import Result
from tests.rolling.versions import copy_with_wider_tables, migrate_with
from tests.scripted_pop3 import ScriptedPop3
from tests.scripted_smtp import ScriptedSmtp, scripted_smtp
from tests.servers import scratch

DOORS = ("pop3_out", "imap_out", "smtp_in")
TEAM = tuple(PEOPLE[name] for name in SHARERS[SALES])
ARRIVE_SECONDS = 300.0
"""Limit of the wait for all mail after the last replacement: seconds."""
OUTAGE_SECONDS = 10.0
"""Limit of the time without service while the only replica is replaced: seconds."""
CALM_SECONDS = 3.0
"""Time without a replacement before and after the others: seconds; also for duplicates to arrive."""
LONG_SESSION_SECONDS = 8.0
"""Length of the sessions that are open while a process ends: seconds."""
GAPS = (0.3, 3.0)
"""Pauses between two commands of such sessions: seconds; the longer one is longer than a stopping server waits."""


def pod_timing() -> Timing:
    """Return the times of the pods: preStop and grace period of deploy/k8s/base, and a usual propagation."""
    base = ROOT / "deploy/k8s/base"
    pod = YAML(typ="safe").load((base / "pod.yaml").read_text(encoding="utf-8"))["spec"]["template"]["spec"]
    [container] = pod["containers"]
    pre_stop = container["lifecycle"]["preStop"]["exec"]["command"]
    files = [(base / f"{name.replace('_', '-')}.yaml").read_text(encoding="utf-8") for name in DOORS]
    doors = [list(YAML(typ="safe").load_all(file))[1]["spec"]["template"]["spec"] for file in files]
    return Timing(
        propagation=2.0,
        pre_stop=float(pre_stop[1]),
        grace=min(float(door["terminationGracePeriodSeconds"]) for door in doors),
    )


@dataclass(frozen=True, slots=True)
class Plan:
    """A run."""

    replicas: int  # 2: replaced one after the other, 1: stopped, then started
    timing: Timing
    services: Sequence[str]  # that are replaced, in this order
    others: Sequence[str] = ()  # that run in one process meanwhile
    readers: int = 4  # by POP3, and as many by IMAP
    authors: int = 4
    pause: float = 0.2  # seconds between two sessions of a client


class Rolling:
    """One run: load on the balancers, and the mail that has to arrive."""

    def __init__(self, plan: Plan, folder: Path, pop3: ScriptedPop3, smtp: ScriptedSmtp) -> None:
        self.plan, self.result = plan, Result()
        self.deployments: dict[str, Deployment] = {}
        self._folder, self._provider_pop3, self._provider_smtp = folder, pop3, smtp
        self._loaded = True
        self._numbers = itertools.count(1)
        self._expected: Copies = Counter()
        self._submitted: dict[str, Submitted] = {}
        self._mailboxes: dict[str, dict[bytes, bytes]] = {address: {} for address in TEAM}
        self._inboxes = {address: Inbox() for address in TEAM}

    @asynccontextmanager
    async def running(self, environment: dict[str, str]) -> AsyncIterator[None]:
        """Run the old version of every service for the block."""
        plan = self.plan
        for name in (*plan.services, *plan.others):
            self.deployments[name] = Deployment(name, plan.timing, self._folder, environment)
        async with AsyncExitStack() as stack:
            for deployment in self.deployments.values():
                stack.callback(deployment.kill_all)
                if deployment.balancer is not None:
                    await stack.enter_async_context(deployment.balancer.running())
            async with asyncio.TaskGroup() as group:
                for name, deployment in self.deployments.items():
                    for _ in range(plan.replicas if name in plan.services else 1):
                        group.create_task(deployment.add(ROOT))
            yield
            await asyncio.gather(*(deployment.end_all() for deployment in self.deployments.values()))
            self.result.unclean = sum(deployment.unclean for deployment in self.deployments.values())

    async def run(self, new: Path, database_url: str) -> None:
        """Replace the services by the version in ``new`` while clients work, and judge."""
        started = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for client in self._clients():
                group.create_task(client)
            await asyncio.sleep(CALM_SECONDS)
            await asyncio.to_thread(migrate_with, new, database_url)
            for name in self.plan.services:
                await self._replace(self.deployments[name], new)
            await asyncio.sleep(CALM_SECONDS)
            self._loaded = False
        self.result.seconds = time.monotonic() - started
        await self._await_mail()
        self._judge()

    async def _replace(self, deployment: Deployment, new: Path) -> None:
        slow = await asyncio.to_thread(measure_slowness)
        self.result.slowness = max(self.result.slowness, slow)
        print(f"  replacing {deployment.service}", file=sys.stderr, flush=True)
        await (deployment.replace_each(new) if self.plan.replicas > 1 else deployment.recreate(new))

    # ------------------------------------------------------------------------------------------ load

    def _clients(self) -> list[Coroutine[None, None, None]]:
        plan = self.plan
        readers = [TEAM[number % len(TEAM)] for number in range(plan.readers)]
        return [
            self._offer_mails(),
            *(self._repeat(self.result.pop3, self._reading(address, 0.0, 0.0)) for address in readers),
            *(self._repeat(self.result.pop3, self._reading(TEAM[0], LONG_SESSION_SECONDS, gap)) for gap in GAPS),
            *(self._repeat(self.result.imap, self._reading_by_imap(address, 0.0, 0.0)) for address in readers),
            *(self._repeat(self.result.imap, self._reading_by_imap(TEAM[0], LONG_SESSION_SECONDS, g)) for g in GAPS),
            *(self._repeat(self.result.imap, self._idling(address)) for address in TEAM),
            *(self._repeat(self.result.smtp, self._writing(1, 0.0)) for _ in range(plan.authors)),
            *(self._repeat(self.result.smtp, self._writing(int(LONG_SESSION_SECONDS / gap), gap)) for gap in GAPS),
        ]

    async def _repeat(self, tally: Tally, session: Callable[[], Awaitable[None]]) -> None:
        while self._loaded:
            try:
                await session()
            except Ended as end:
                tally.fail(end)
            else:
                tally.succeed()
            await asyncio.sleep(self.plan.pause)

    def _reading(self, address: str, seconds: float, gap: float) -> Callable[[], Awaitable[None]]:
        port, got, tally = self._port("pop3_out"), self._mailboxes[address], self.result.pop3
        return lambda: read_mailbox(port, address, got, tally, seconds, gap)

    def _reading_by_imap(self, address: str, seconds: float, gap: float) -> Callable[[], Awaitable[None]]:
        port, inbox, tally = self._port("imap_out"), self._inboxes[address], self.result.imap
        return lambda: read_inbox(port, address, inbox, tally, seconds, gap)

    def _idling(self, address: str) -> Callable[[], Awaitable[None]]:
        port, inbox, tally = self._port("imap_out"), self._inboxes[address], self.result.imap
        return lambda: follow_inbox(port, address, inbox, tally, LONG_SESSION_SECONDS)

    def _writing(self, count: int, pause: float) -> Callable[[], Awaitable[None]]:
        """Return a client that submits mails, and those once more that were not accepted."""
        port, tally = self._port("smtp_in"), self.result.smtp
        author = TEAM[count % len(TEAM)]
        mine: list[Submitted] = []

        async def session() -> None:
            mine[:] = [mail for mail in mine if not mail.accepted] or [self._new_mail(author) for _ in range(count)]
            await submit(port, mine, tally, pause)

        return session

    def _port(self, service: str) -> int:
        balancer = self.deployments[service].balancer
        assert isinstance(balancer, Balancer)
        return balancer.port

    def _new_mail(self, author: str) -> Submitted:
        number = next(self._numbers)
        name, customer = f"out-{number}", CUSTOMERS[number % len(CUSTOMERS)]
        inside = (TEAM[number % len(TEAM)],) if number % 3 == 0 else ()
        mail = (
            f"From: {author}\r\nTo: {customer}\r\nSubject: {name}\r\nDate: Thu, 01 Oct 2026 10:00:00 +0000\r\n"
            f"Message-ID: <{name}@local.com>\r\n\r\nHello\r\n"
        ).encode()
        self._submitted[name] = Submitted(name, author, mail, (customer,), inside=inside)
        return self._submitted[name]

    async def _offer_mails(self) -> None:
        """Put mails into the provider's maildrop, for everybody."""
        while self._loaded:
            number = next(self._numbers)
            mail = (
                f"From: anna@customer.example\r\nTo: {SALES}\r\nSubject: in-{number}\r\n"
                f"Message-ID: <in-{number}@customer.example>\r\n\r\nHello\r\n"
            ).encode()
            self._provider_pop3.mails[str(number)] = mail
            self._expected.update((digest(mail), address) for address in TEAM)
            self.result.mails += 1
            await asyncio.sleep(self.plan.pause)

    # ------------------------------------------------------------------------------------------ judging

    async def _await_mail(self) -> None:
        """Read until all mail has arrived, and for a while longer."""
        quiet = Tally()

        async def has_arrived() -> bool:
            for address in TEAM:
                await read_mailbox(self._port("pop3_out"), address, self._mailboxes[address], quiet)
                await read_inbox(self._port("imap_out"), address, self._inboxes[address], quiet)
            missing = self._wanted() - self._delivered() or self._wanted() - self._delivered_by_imap()
            return not (missing or relays_expected(self._submitted) - self._relayed())

        try:
            await until(has_arrived, ARRIVE_SECONDS)
        except TimeoutError:
            print("  mail is missing", file=sys.stderr)
        await asyncio.sleep(CALM_SECONDS)
        await has_arrived()

    def _wanted(self) -> Copies:
        accepted = (mail for mail in self._submitted.values() if mail.accepted)
        return self._expected + Counter((digest(mail.mail), address) for mail in accepted for address in mail.inside)

    def _delivered(self) -> Copies:
        return Counter((digest(mail), address) for address, got in self._mailboxes.items() for mail in got.values())

    def _delivered_by_imap(self) -> Copies:
        """Count the mails of the INBOXes. A UID that named two mails counts as another one."""
        found = Counter((digest(m), address) for address, inbox in self._inboxes.items() for m in inbox.mails.values())
        for address, inbox in self._inboxes.items():
            found.update((f"UID {uid} named two mails", address) for _, uid in inbox.changed)
        return found

    def _relayed(self) -> Copies:
        taken = self._provider_smtp.taken
        return Counter((token(mail.mail), address) for mail in taken for address in mail.recipients)

    def _judge(self) -> None:
        """Compare what was offered with what was found. A client that got no reply may have submitted a mail twice."""
        mails = self._submitted.values()
        inside = Counter({(digest(mail.mail), to): mail.outstanding for mail in mails for to in mail.inside})
        outside = Counter({(mail.token, to): mail.outstanding for mail in mails for to in mail.relayed})
        offered = {digest(mail.mail) for mail in mails} | {what for what, _ in self._expected}
        result = self.result
        result.submissions = len(self._submitted)
        result.mailboxes = judge(self._wanted(), self._delivered(), offered, inside)
        result.inboxes = judge(self._wanted(), self._delivered_by_imap(), offered, inside)
        result.providers = judge(relays_expected(self._submitted), self._relayed(), self._submitted.keys(), outside)


def drive(plan: Plan) -> Result:
    """Run once on private servers."""

    async def work(folder: Path, url: str, broker_url: str, new: Path) -> Result:
        pop3 = ScriptedPop3()
        async with pop3.running(), scripted_smtp() as smtp, servers.opened(url) as database:
            there = {"host": "127.0.0.1", "tls": "none"}
            account = external(
                SALES, pop3=there | {"port": pop3.port}, smtp=there | {"port": smtp.port, "connections": 2}
            )
            people = [local(name, SALES) for name in SHARERS[SALES]]
            await apply(database, {"external_accounts": [account | {"poll_seconds": 1}], "local_accounts": people})
            environment = {
                "PATH": "/usr/bin:/bin",
                "MAILGROUP_DATABASE_URL": url,
                "MAILGROUP_BROKER_URL": broker_url,
                "MAILGROUP_SECRET_KEY": KEY,
                "MAILGROUP_ADMIN_PASSWORD": "the-first-password",
                "MAILGROUP_ALLOW_PRIVATE_UPSTREAM": "yes",
            }
            rolling = Rolling(plan, folder, pop3, smtp)
            async with rolling.running(environment):
                await rolling.run(new, url)
            rolling.result.log = _find_failures(folder)
            return rolling.result

    with servers.postgres() as postgres, servers.rabbitmq() as rabbitmq, scratch() as folder:
        postgres.create("rolling")
        url = postgres.url_of("rolling")
        migrate(url)
        new = folder / "new"
        copy_with_wider_tables(new, url, revisions.known_revisions()[-1])
        return asyncio.run(work(folder, url, rabbitmq.url, new))


def _find_failures(folder: Path) -> list[str]:
    """Return a line of each kind of failure in the logs of the services."""
    by_kind: dict[tuple[str, str], str] = {}
    for file in sorted(folder.glob("*.log")):
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            entry = json.loads(line) if line.startswith("{") else {"level": "error", "event": line}
            if entry["level"] in ("warning", "error"):
                by_kind.setdefault((file.name.partition("-")[0], entry["event"]), line)
    return list(by_kind.values())


def plans() -> dict[str, Plan]:
    """Return the runs of the command, by name."""
    timing = pod_timing()
    return {"two": Plan(2, timing, SERVICES), "one": Plan(1, timing, SERVICES)}


SHORT = Plan(
    2,
    Timing(propagation=0.5, pre_stop=1.5, grace=60.0),
    DOORS,
    others=("fetcher", "router", "mailbox", "sender"),
    readers=2,
    authors=2,
)
"""The run that every test run contains."""


def main() -> None:
    """Run the command. The exit status is 1 if mail is lost or repeated, or clients noticed more than they may."""
    parser = argparse.ArgumentParser(prog="python -m tests.rolling.run", description=__doc__)
    parser.add_argument("plan", nargs="*", choices=[[], *plans()], help="by default both")
    clean = True
    for name in parser.parse_args().plan or plans():
        result = drive(plans()[name])
        print("\n".join([f"== {name}", *result.lines()]), flush=True)
        clean = clean and is_clean(result, plans()[name])
    sys.exit(0 if clean else 1)


def is_clean(result: Result, plan: Plan) -> bool:
    """Return whether no mail is lost or repeated, and clients noticed no more than they may. Pure.

    With two replicas a client may be told between two commands that the server goes down, and nothing else. With one,
    connections may also be refused, but not for longer than OUTAGE_SECONDS on a machine that has no other work.
    """
    mine = result.mailboxes.clean and result.inboxes.clean and result.providers.clean and not result.unclean
    allowed = {"told"} if plan.replicas > 1 else {"told", "refused", "temporary"}
    return mine and all(
        +tally.ends <= Counter(dict.fromkeys(allowed, tally.ends.total()))
        and tally.sessions > 0
        and tally.longest_outage <= OUTAGE_SECONDS * result.slowness
        for tally in result.tallies.values()
    )


if __name__ == "__main__":
    main()
