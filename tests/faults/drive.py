"""Offers mail from both sides while faults happen, and judges the result by its own books.

``python -m tests.faults.drive [--seed N] [--short]``; ``make faults`` runs it in full.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import secrets
import shutil
import sys
import time
from collections import Counter
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Any, Protocol

from deploy.machine.supervise import ROOT
from tests.faults import clients
from tests.faults.books import Copies, Findings, Submitted, digest, judge, relays_expected, token
from tests.faults.clients import Gone, Refused, copies
from tests.faults.faults import Faults
from tests.faults.imap_people import ImapPeople
from tests.faults.mails import ACCOUNTS, BY_IMAP, CUSTOMERS, DESK, HELP, PEOPLE, SALES, incoming, outgoing
from tests.faults.plan import FULL, SHORT, Plan
from tests.faults.seen import Listings, Relayed, failed_recipients, is_alarm, is_notice, reported_mail
from tests.faults.stand import Stand
from tests.faults.steps import not_reached
from tests.servers import scratch

READER = PEOPLE["Tom"]
"""The person who reads and deletes mail by POP3 during the run. The mailboxes of the others are read at the end."""
SENDING = 12
"""Limit of submissions at the same time."""

STATUS_SECONDS = 60.0
"""Limits the wait for a status without a problem, after the last mail: seconds; a new login clears the last error."""


class Troubles(Protocol):
    """The faults of a run. happened: number of faults by name."""

    happened: Counter[str]

    async def keep(self) -> None:
        """Restart servers that ended; never returns."""

    async def happen(self) -> None:
        """Cause all faults; returns after the last one."""

    async def heal(self) -> None:
        """End every fault that still lasts."""


class Drive:
    """One run."""

    readers: Mapping[str, bool] = MappingProxyType({READER: True})
    """The addresses that read while mail is offered, and whether they delete what they have read."""
    imap_readers: Mapping[str, bool] = MappingProxyType({READER: False, PEOPLE["Pat"]: True})
    """The addresses that work by IMAP meanwhile, READER beside POP3, and whether they move mail out of INBOX."""

    def __init__(self, stand: Stand, plan: Plan, seed: int) -> None:
        self.lines: list[str] = []  # the report, to be printed
        # No mail was lost, duplicated, altered or misdirected, no client was refused permanently, no deleted mail was
        # listed again, no mail waited without a reason, and the gateway's status is ok.
        self.clean = False
        self.not_reached: list[str] = []  # the steps of steps.py that no service has reached
        self._stand, self._plan, self._seed = stand, plan, seed
        self._run = f"run{seed}"
        self._expected: Copies = Counter()
        self._offered: dict[str, float] = {}  # when each mail was offered: monotonic seconds
        self._mails = 0
        self._submitted: dict[str, Submitted] = {}
        self._mailboxes: dict[str, dict[bytes, bytes]] = {address: {} for address in PEOPLE.values()}
        self._at_providers = Relayed(self._submitted)
        self._counted_taken = 0
        self._counted_files: set[Path] = set()
        self._uidls = itertools.count(1)
        self._offering = True
        self._listings = Listings()
        self._unexplained = 0  # mails that waited for a retry that was too far away
        self._refusals: list[str] = []  # permanent ones, of sessions that read
        self._imap = ImapPeople(stand.system.settings.imap_port, seed, self.imap_readers, plan.settle_seconds)

    @property
    def passed(self) -> bool:
        """Whether the run is clean and has reached every step."""
        return self.clean and not self.not_reached

    async def run(self, faults: Troubles) -> None:
        """Offer mail during the faults, wait until all mail has arrived, and judge the result."""
        keeper = asyncio.create_task(faults.keep())
        beside = [asyncio.create_task(each) for each in self._beside()]
        started = time.monotonic()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._offer_mails())
                group.create_task(self._offer_submissions())
                group.create_task(faults.happen())
            await faults.heal()
            healed = time.monotonic()
            self._offering = False
            await asyncio.gather(*beside)
            await self._imap.read_archives()
            backlog = await asyncio.to_thread(self._missing)
            await self._settle()
            await self._settle_copies()
            await self._imap.compare(self._mailboxes, self._submitted.values())
            settled = time.monotonic()
            await self._await_steps()
        finally:
            for task in (keeper, *beside):
                task.cancel()
        self.lines += [
            f"seed {self._seed}: {self._mails} mails and {len(self._submitted)} submissions in "
            f"{healed - started:.0f} s; {backlog} were under way at the last fault, all at rest "
            f"{settled - healed:.0f} s after it",
            "faults: " + ", ".join(f"{what} {count}" for what, count in sorted(faults.happened.items())),
            f"steps not reached: {', '.join(self.not_reached) or 'none'}",
        ]
        await asyncio.to_thread(self._judge)

    # ------------------------------------------------------------------------------------------ offering

    async def _offer_mails(self) -> None:
        chance = Random(f"{self._seed} mails")
        pace = Pace(self._plan.seconds, self._plan.mails)
        for mail in itertools.islice(incoming(chance, self._run), self._plan.mails):
            await pace.next()
            if self._is_over():
                break
            self._mails += 1
            if mail.account == SALES:
                self._stand.pop3.mails[f"{next(self._uidls)}"] = mail.mail
            elif mail.account == DESK:
                self._stand.imap.arrive(next(self._uidls), mail.mail)
            else:
                await asyncio.to_thread(self._stand.provider.put, mail.account, mail.mail)
            self._offered[digest(mail.mail)] = time.monotonic()
            self._expected.update((digest(mail.mail), address) for address in mail.people)

    async def _offer_submissions(self) -> None:
        chance = Random(f"{self._seed} submissions")
        pace = Pace(self._plan.seconds, self._plan.submissions)
        room = asyncio.Semaphore(SENDING)
        async with asyncio.TaskGroup() as group:
            for named in itertools.islice(outgoing(chance, self._run), self._plan.submissions):
                await pace.next()
                if self._is_over():
                    break
                name, author, mail, relayed, refused, inside = named
                mine = Submitted(name, author, mail, relayed, refused, (inside,) if inside else ())
                self._submitted[name] = mine
                self._stand.smtp.by_recipient |= dict.fromkeys(refused, "550 5.1.1 no such user")
                await room.acquire()
                task = group.create_task(self._submit(mine))
                task.add_done_callback(lambda _: room.release())

    def _is_over(self) -> bool:
        """Return whether to stop offering mail before the planned number."""
        return False

    async def _submit(self, mine: Submitted) -> None:
        await clients.submit(self._stand.system.settings.smtp_port, mine)

    def _beside(self) -> list[Coroutine[Any, Any, None]]:
        """Return the coroutines that run while mail is offered."""
        return [
            *(self._read_all_the_time(address) for address in self.readers),
            *(self._imap.work_while(address, lambda: self._offering) for address in self.imap_readers),
        ]

    async def _read_all_the_time(self, address: str) -> None:
        while self._offering:
            with suppress(Gone):
                await self._read(address, delete=self.readers[address])
            await asyncio.sleep(1.0)

    async def _read(self, address: str, *, delete: bool = False) -> int:
        port, got = self._stand.system.settings.pop3_port, self._mailboxes[address]
        try:
            return await clients.read(port, address, got, self._listings, delete=delete)
        except Refused as error:
            self._refusals.append(f"{address}: {error}")
            raise

    # ------------------------------------------------------------------------------------------ judging

    async def _settle(self) -> None:
        """Wait until all mail has arrived, then read all mailboxes once more, for duplicates that arrive later.

        The limits count from the last progress: a busy machine needs long for a backlog.
        """
        progressed, least = time.monotonic(), sys.maxsize
        hurried = False
        while time.monotonic() < progressed + self._plan.settle_seconds:
            for address in PEOPLE.values():
                try:
                    await self._read(address)
                except Gone as error:
                    print(f"not read: {error}", file=sys.stderr)
            missing = await asyncio.to_thread(self._missing)  # in a thread: the loop runs the proxies
            if not missing:
                break
            if missing < least:
                progressed, least = time.monotonic(), missing
            if not hurried and time.monotonic() > progressed + self._plan.hands_off_seconds:
                hurried = True
                self.lines += await asyncio.to_thread(self._list_waiting)
                print(await asyncio.to_thread(self._stand.system.run, "queue", "retry"), file=sys.stderr)
            await asyncio.sleep(1.0)
        await asyncio.sleep(3.0)
        for address in PEOPLE.values():
            await self._read(address)

    async def _settle_copies(self) -> None:
        """Wait until all copies of sent mail are at the provider.

        After a failure, or the death of the sender that had them, they wait for some minutes: here these pass at once.
        """
        ask, deadline = self._stand.ask, time.monotonic() + self._plan.settle_seconds
        # In a thread: the commit of a change may wait for a standby, whose proxy this loop runs.
        while await asyncio.to_thread(ask, "select 1 from provider_filings limit 1") and time.monotonic() < deadline:
            await asyncio.to_thread(ask, "update provider_filings set next_try_at = now() where next_try_at > now()")
            await asyncio.sleep(5.0)  # the only sender works them off meanwhile, one after the other

    def _judge_copies(self, unknown: Copies) -> Findings:
        """One copy at the provider of each accepted mail of an account with IMAP, if it left for certain."""
        wanted = {
            (each.token, ACCOUNTS[each.author])
            for each in self._submitted.values()
            if each.accepted and ACCOUNTS[each.author] in BY_IMAP
        }
        doubtful = {name for name, _ in unknown}
        found = Counter((token(mail), address) for address in BY_IMAP for mail in self._stand.filed(address))
        findings = judge(Counter(dict.fromkeys(wanted, 1)), found, self._submitted.keys())
        for name, address in [each for each in findings.lost if each[0] in doubtful]:
            del findings.lost[name, address]
        return findings

    def _list_waiting(self) -> list[str]:
        """What waits for a later retry, and after which replies. A wait that no reply explains is a fault."""
        [[late]] = self._stand.ask(
            """select count(*) from submissions where state = 'queued' and next_try_at > now() + 1.1 *
                   case tries when 0 then interval '0' when 1 then interval '1 min' when 2 then interval '5 min'
                              when 3 then interval '15 min' else interval '30 min' end"""
        )
        self._unexplained += int(str(late))
        waiting = self._stand.ask(
            """select count(distinct s.id), s.tries, coalesce(r.reply, e.last_error, '')
               from submissions s join relays e using (external_id)
               left join submission_recipients r on r.submission_id = s.id and r.kind = 'relay' and r.state = 'waiting'
               where s.state = 'queued' group by 2, 3 order by 1 desc"""
        )
        total = sum(int(str(count)) for count, _, _ in waiting)
        return [
            f"waiting for a later retry, hurried by the operator: {total}, for longer than their tries explain: {late}",
            *(f"  {count} after {tries} tries: {reply}" for count, tries, reply in waiting),
        ]

    async def _await_steps(self) -> None:
        """Wait until every step is reached. Delete mail meanwhile: faults may have cut every session that tried."""
        deadline = time.monotonic() + self._plan.settle_seconds
        while (steps := not_reached(self._stand.reached)) and time.monotonic() < deadline:
            with suppress(Gone):
                await self._read(READER, delete=True)
            await self._imap.work_once()
            await asyncio.sleep(0.5)
        self.not_reached = steps

    def _missing(self) -> int:
        """Count the copies that have not arrived, and the mails that are not finished."""
        found = self._relayed().found
        _, unknown = self._read_notices(self._told_of())
        inward, outward = self._wanted() - self._delivered(), relays_expected(self._submitted) - found - unknown
        lost = (inward - self._may_be_lost("mailboxes")).total() + (outward - self._may_be_lost("providers")).total()
        [[unfinished]] = self._stand.ask(
            """select (select count(*) from submissions where state not in ('done', 'parked'))
                    + (select count(*) from inbound where state in ('fetched', 'routed'))"""
        )
        left = sum(self._stand.count_at_provider(each) for each in (HELP, DESK) if self._stand.deletes_by_imap)
        return lost + left + int(str(unfinished))

    def _wanted(self) -> Copies:
        """Return the copies that must be in mailboxes: fetched mail, and submissions to local recipients."""
        local = ((digest(each.mail), address) for each in self._submitted.values() for address in each.inside)
        return self._expected + Counter(local)

    def _delivered(self) -> Copies:
        return copies(
            {
                address: {uidl: mail for uidl, mail in got.items() if not (is_notice(mail) or is_alarm(mail))}
                for address, got in self._all_mail().items()
            }
        )

    def _all_mail(self) -> dict[str, dict[bytes, bytes]]:
        """Return the mails that each person got, also those that were moved out of INBOX."""
        return {address: got | self._imap.archived.get(address, {}) for address, got in self._mailboxes.items()}

    def _relayed(self) -> Relayed:
        """Return the mails at the providers; each mail is read only once."""
        taken = self._stand.smtp.taken[self._counted_taken :]  # the list grows meanwhile, in another thread
        for mail in taken:
            for address in mail.recipients:
                self._at_providers.add(address, mail.mail)
        self._counted_taken += len(taken)
        for address in CUSTOMERS:
            for path in self._stand.provider.maildir(address).glob("[nc]*/*"):
                if path not in self._counted_files:
                    self._counted_files.add(path)
                    self._at_providers.add(address, path.read_bytes().replace(b"\n", b"\r\n"))
        return self._at_providers

    def _judge(self) -> None:
        again: Copies = Counter(
            {
                (digest(each.mail), address): each.outstanding
                for each in self._submitted.values()
                for address in each.inside
            }
        )
        offered = self._offered.keys() | {digest(each.mail) for each in self._submitted.values()}
        inward = self._excuse("mailboxes", judge(self._wanted(), self._delivered(), offered, again))
        relayed = self._relayed()
        told = self._told_of()
        reported, unknown = self._read_notices(told)
        notices = self._excuse("notices", self._judge_notices(reported))
        filed = self._excuse("copies", self._judge_copies(unknown))
        outward = judge(
            relays_expected(self._submitted) - (unknown - relayed.found),
            relayed.found,
            self._submitted.keys(),
            Counter({(name, address): told[name] for name, address in relayed.found}),
        )
        outward.altered += relayed.altered
        outward = self._excuse("providers", outward)
        outstanding = sum(each.outstanding for each in self._submitted.values())
        self.lines += inward.lines("into mailboxes") + outward.lines("relayed") + notices.lines("notices")
        self.lines += filed.lines("copies in the provider's folder for sent mail")
        alarms = sum(is_alarm(mail) for got in self._all_mail().values() for mail in got.values())
        status = self._await_status()
        refusals = [
            *self._refusals,
            *self._imap.refusals,
            *(f"{each.token}: {reply}" for each in self._submitted.values() for reply in each.refusals),
        ]
        changed = self._changed_listings()
        self.lines += [
            f"notices that nobody knows whether a mail arrived: {len(unknown)}",
            f"clients' transactions without a final reply: {outstanding}; mails told of as uncertain: {len(told)}",
            f"permanent refusals of what is allowed: {len(refusals)}",
            *refusals[:10],
            f"mails that came back or vanished: {changed.total()}",
            *(f"  {uidl} in {address}" for uidl, address in list(changed)[:10]),
            *self._imap.lines(),
            f"alarms that the gateway mailed: {alarms}",
            f"the gateway's own status: {'ok' if status['ok'] else status['problems']}",
        ]
        self.clean = (
            all(findings.clean for findings in (inward, outward, notices, filed))
            and not (refusals or changed or self._imap.wrong or self._unexplained)
            and bool(status["ok"])
        )
        self.lines += self._stories(outward)

    def _await_status(self) -> dict[str, Any]:
        """What the gateway says about itself, once it says that all is well, or after a while."""
        deadline = time.monotonic() + STATUS_SECONDS
        while not (status := self._stand.system.json("status"))["ok"] and time.monotonic() < deadline:
            time.sleep(2.0)
        return dict(status)

    def _changed_listings(self) -> Copies:
        """Mails that came back although a client had deleted them, or vanished although none had."""
        return self._listings.came_back + self._listings.vanished

    def _may_be_lost(self, place: str) -> Copies:
        """Return the copies that may be missing. :param place: "mailboxes", "providers" or "notices"."""
        return Counter()

    def _excuse(self, place: str, findings: Findings) -> Findings:
        """Return the findings without those that the faults explain. :param place: as for ``_may_be_lost``."""
        return findings

    def _stories(self, outward: Findings) -> list[str]:
        """Return traces of lost and duplicate mails, and the provider's queue, for printing."""
        names = sorted({name for name, _ in outward.lost | outward.duplicate})[:10]
        stories = [self._stand.system.run("trace", f"<{name}@local.com>").output for name in names]
        if names:
            stories.append(self._stand.provider.queue())
        return stories

    def _told_of(self) -> Counter[str]:
        """How often the gateway has told of a mail that it may be there once more."""
        rows = self._stand.ask(
            """select split_part(s.message_id, '@', 1), count(*)
               from maillog e join submissions s on s.id = e.submission_id where e.event = 'uncertain' group by 1"""
        )
        return Counter({str(name): int(str(count)) for name, count in rows})

    def _read_notices(self, told: Counter[str]) -> tuple[Copies, Copies]:
        """Return the failures that notices report, by recipient and author, and the relayed copies whose authors know
        that nobody knows the outcome: both tries ended without an answer, so such a mail may be missing."""
        found: Copies = Counter()
        unknown: Copies = Counter()
        for address, got in self._all_mail().items():
            for mail in filter(is_notice, got.values()):
                of = reported_mail(mail)
                for name in failed_recipients(mail):
                    if told[of] and self._submitted[of].author == address and name in CUSTOMERS:
                        unknown[of, name] = 1
                    else:
                        found[name, address] += 1
        return found, unknown

    def _judge_notices(self, found: Copies) -> Findings:
        """One notice of failure for each refused recipient, to the author. A clock that jumps brings delays."""
        refused = {(name, each.author) for each in self._submitted.values() for name in each.refused}
        again = Counter(
            {(name, each.author): each.outstanding for each in self._submitted.values() for name in each.refused}
        )
        return judge(Counter(dict.fromkeys(refused, 1)), found, {name for name, _ in refused}, again)


class Pace:
    """Spreads a number of actions evenly over a time."""

    def __init__(self, seconds: float, count: int) -> None:
        self._start, self._step, self._number = time.monotonic(), seconds / count, 0

    async def next(self) -> None:
        """Wait until the next action is due."""
        self._number += 1
        await asyncio.sleep(max(0.0, self._start + self._number * self._step - time.monotonic()))


def drive(plan: Plan, seed: int, logs: Path | None = None) -> Drive:
    """Run once on private servers. To be called from the main thread, as root.

    :param logs: a folder that is made for the logs of services and servers, unless the run is clean.
    """
    with scratch() as folder, Stand(folder).running() as stand:

        async def work() -> Drive:
            async with stand.open():
                run = Drive(stand, plan, seed)
                try:
                    await run.run(Faults(stand, plan, seed))
                finally:
                    if logs is not None and not run.passed:
                        await asyncio.to_thread(_keep_logs, folder, stand.system.settings.data / "log", logs)
                return run

        return asyncio.run(work())


def _keep_logs(folder: Path, services: Path, kept: Path) -> None:
    shutil.copytree(services, kept, dirs_exist_ok=True)
    for log in folder.glob("*.log"):
        shutil.copy(log, kept)
    print(f"logs: {kept}", flush=True)


def main() -> None:
    """The command. The exit status is 1 if something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.drive", description=__doc__)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000), help="repeats the choices of a run")
    parser.add_argument("--short", action="store_true", help="some hundred mails instead of ten thousand")
    parser.add_argument("--logs", type=Path, help="folder for the logs of a run that fails (default: in data/faults)")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    logs = arguments.logs or ROOT / "data" / "faults" / str(arguments.seed)
    run = drive(SHORT if arguments.short else FULL, arguments.seed, logs)
    print("\n".join(run.lines))
    sys.exit(0 if run.passed else 1)


if __name__ == "__main__":
    main()
