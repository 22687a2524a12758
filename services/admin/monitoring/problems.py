"""The problems that are reported to a person: facts from the database and the machine, and what they mean."""

from __future__ import annotations

import datetime
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from services.admin.formatting import ago, counted, mail_status
from services.admin.monitoring import database_health, reconciliation
from services.admin.monitoring.database_health import DatabaseHealth
from services.admin.monitoring.health_client import (
    certificate_problems,
    corruption_problems,
    fetch_health,
    health_url,
)
from services.admin.monitoring.problem_kinds import Problem
from services.admin.monitoring.reconciliation import LATE_SECONDS, AccountBooks
from shared.db import connection_budget
from shared.db.connection_budget import ConnectionUse
from shared.db.database import Connection, is_read_only
from shared.metrics import READABLE_SECONDS, RELAYED_SECONDS, WINDOWS
from shared.model import External
from shared.net.dial import CertificateChanged
from shared.settings import SERVICES, Settings
from shared.store import (
    accounts,
    inbound_admin,
    maillog,
    polls,
    provider_filings,
    relay_queue,
    relays,
    submissions_admin,
)
from shared.store.accounts import AbsentDelegate
from shared.store.inbound_admin import UnstartedMail
from shared.store.maillog import LocalOrganizers
from shared.store.polls import PollState
from shared.store.provider_filings import FilingTrouble
from shared.store.relays import RelayStatus

START_SECONDS = 86_400.0
"""Seconds that mail waits for the start of its account before that is a problem; people are added within a day."""
FILING_SECONDS = 3600.0
"""Seconds for which sent mail cannot be filed at the provider before that is reported; no mail waits for it."""
FULL_SECONDS = 900.0
"""Seconds for which all relays of an account are at a limit before that is reported; a limit for a minute passes."""
STALE_SECONDS = 900.0
"""Seconds without a successful poll that are a problem."""
DISK_SHARE, DISK_OCTETS = 0.05, 1024**3
"""A disk is nearly full below either limit: share of its size; octets."""
FREE_CONNECTIONS_SHARE = 0.2
"""Share of PostgreSQL's connections below which too few are free."""
LISTENING_SERVICES = ("pop3_out", "imap_out", "smtp_in")
"""The services that show a certificate to mail clients."""


@dataclass(frozen=True, slots=True)
class SystemFacts:
    """The state of the system, from its database."""

    now: datetime.datetime
    externals: Sequence[External]
    polls: dict[int, PollState]  # by id of the external account
    relays: dict[int, list[RelayStatus]]  # by id of the external account
    held: int  # mails of started accounts
    parked: int  # mails, restored and looping included
    restored: int  # mails that a restore parked
    looping: int  # mails that are parked for a mail loop
    late: dict[int | None, float]  # seconds of the oldest mail in flight, by external account; None: local mail
    unhanded: float  # seconds of the oldest submission that no sender has claimed
    relaying: int  # submissions in the relay queue
    relaying_oldest: float  # seconds of the oldest of them
    connections: ConnectionUse  # of PostgreSQL
    absent_delegates: Sequence[AbsentDelegate] = ()
    read_only: bool = False  # PostgreSQL accepts no changes
    unstarted: Sequence[UnstartedMail] = ()  # the accounts that are not started, with their mail on hold
    organizers: Sequence[LocalOrganizers] = ()  # invitations that customers cannot answer, by author
    server: DatabaseHealth = field(default_factory=DatabaseHealth)
    late_in: int = 0  # fetched mails that are not readable after READABLE_SECONDS
    filings: Mapping[int, FilingTrouble] = field(default_factory=dict)  # by id of the external account
    late_out: Sequence[int] = ()  # submissions that are not relayed RELAYED_SECONDS later, since then: by WINDOWS


async def load_facts(connection: Connection) -> SystemFacts:
    """Load the facts of this moment; the cost does not depend on the number of mails."""
    held, parked, looping = await inbound_admin.count_problems(connection)
    stuck, restored = await submissions_admin.count_parked(connection)
    waiting, oldest = await relay_queue.measure_backlog(connection)
    return SystemFacts(
        datetime.datetime.now(datetime.UTC),
        await accounts.load_externals(connection),
        await polls.load_poll_states(connection),
        await relays.load_status(connection),
        held,
        parked + stuck,
        restored,
        looping,
        await inbound_admin.oldest_in_flight(connection),
        await submissions_admin.oldest_submitted(connection),
        waiting,
        oldest,
        await connection_budget.load_use(connection),
        await accounts.load_absent_delegates(connection),
        await is_read_only(connection),
        await inbound_admin.count_unstarted(connection),
        await maillog.count_local_organizers(connection),
        await database_health.load_health(connection),
        await inbound_admin.count_late(connection, READABLE_SECONDS),
        await provider_filings.load_troubles(connection),
        await relay_queue.count_late(connection, RELAYED_SECONDS, list(WINDOWS.values())),
    )


def find_problems(facts: SystemFacts, accounted: Iterable[AccountBooks] = ()) -> list[Problem]:
    """Return the problems that these facts show. :param accounted: the books, as they were read last. Pure."""
    found = [p for external in facts.externals if external.enabled for p in _find_in_account(external, facts)]
    if facts.held:
        found.append(Problem("held", "", describe_held(facts.held)))
    found += find_unstarted(facts) + find_parked(facts) + find_absent_delegates(facts)
    found += [
        Problem("books", account.address, f"{account.address}: {what}")
        for account in accounted
        if (what := reconciliation.describe_difference(account))
    ]
    addresses = {external.id: external.address for external in facts.externals}
    for external_id, seconds in facts.late.items():
        if seconds > LATE_SECONDS:
            of = addresses.get(external_id or 0, "")
            found.append(Problem("late", of, f"{of or 'local mail'}: in flight for {seconds / 60:.0f} minutes"))
    if facts.unhanded > LATE_SECONDS:
        found.append(
            Problem("late", "submissions", f"no sender has claimed a submission for {facts.unhanded / 60:.0f} min")
        )
    found += find_organizers(facts) + find_in_connections(facts.connections)
    return found + database_health.find_in_database(facts.server)


def find_organizers(facts: SystemFacts) -> list[Problem]:
    """Return a problem for each author of invitations that name a local organizer. Pure."""
    return [
        Problem(
            "organizer",
            f"{each.author} {each.external}",
            f"{each.author}: {each.invitations} invitations in {maillog.ORGANIZER_DAYS} days name a local address as "
            f"organizer, which customers cannot answer; set the identity of the mail program's calendar to "
            f"{each.external}",
            0.0,
        )
        for each in facts.organizers
    ]


def find_in_connections(use: ConnectionUse) -> list[Problem]:
    """Return a problem if few connections to PostgreSQL are free, or too few for what services may open. Pure.

    A service checks that it fits when it starts. Later the limit may be lowered, or other programs may use more.
    """
    if use.limit - use.used < FREE_CONNECTIONS_SHARE * use.limit:
        return [Problem("connections", "", f"PostgreSQL: {use.used} of {use.limit} connections are used")]
    if use.promised > use.limit:
        text = (
            f"PostgreSQL: {use.processes} services may open {use.shares} connections and other programs use "
            f"{use.others}; with {connection_budget.RESERVED} for commands that is more than the limit, {use.limit}"
        )
        return [Problem("connections", "", text)]
    return []


def describe_held(count: int) -> str:
    """Say how many mails are on hold, and why. Pure."""
    return f"{counted(count, verbs=('is', 'are'))} {mail_status('held')}: no enabled user shares the external account"


def find_unstarted(facts: SystemFacts) -> list[Problem]:
    """Return a problem for each account whose mail has waited for its start for a day. Pure."""
    return [
        Problem(
            "start",
            account.address,
            f"{account.address}: {counted(account.mails, verbs=('waits', 'wait'))} for a start, "
            f"the oldest for {ago(account.oldest)}",
        )
        for account in facts.unstarted
        if account.mails and account.oldest > START_SECONDS
    ]


def find_parked(facts: SystemFacts) -> list[Problem]:
    """Return a problem for each reason for which mails need attention (parked). Pure."""
    reasons = (
        ("", facts.parked - facts.restored - facts.looping, "processing failed five times"),
        ("restored", facts.restored, "restored from a backup and perhaps relayed since"),
        ("mail loop", facts.looping, "in a mail loop"),
    )
    return [
        Problem("parked", subject, f"{counted(count, verbs=('needs', 'need'))} attention: {why}")
        for subject, count, why in reasons
        if count
    ]


def find_absent_delegates(facts: SystemFacts) -> list[Problem]:
    """Return a problem for each disabled person whose mail does not reach the delegate. Pure."""
    return [
        Problem("delegate", absent.person, f"{absent.person}: is disabled, and {absent.text}")
        for absent in facts.absent_delegates
        if absent.away
    ]


def _find_in_account(external: External, facts: SystemFacts) -> list[Problem]:
    """Return the problems of an account's two directions. Pure."""
    poll = facts.polls.get(external.id)
    directions: list[tuple[str, PollState | RelayStatus | None]] = [("fetching", poll)]
    for state in facts.relays.get(external.id, []):
        directions.append((f"relaying by {state.host}" if state.of > 1 else "relaying", state))
    by_token = {relay.position for relay in external.relays if external.uses_tokens(relay)}

    def kind_of(direction: PollState | RelayStatus) -> str:
        if isinstance(direction, PollState):
            return "login" if external.oauth is None else "grant"
        return "grant" if direction.position in by_token else "login"

    found = [
        Problem(
            kind_of(direction),
            f"{external.address} {name}",
            f"{external.address}: {name}: {direction.last_error}",
            0.0,
        )
        for name, direction in directions
        if direction is not None and direction.paused_at is not None
    ]
    found += [
        Problem(
            "provider_certificate", f"{external.address} {name}", f"{external.address}: {name}: {direction.last_error}"
        )
        for name, direction in directions
        if direction is not None and is_certificate_changed(direction)
    ]
    if (trouble := facts.filings.get(external.id)) is not None:
        text = f"{external.address}: {describe_filing(trouble)}"
        found.append(Problem("filing", external.address, text, FILING_SECONDS))
    found += _find_full_relays(external, facts)
    if poll is None or poll.paused_at is not None:
        return found
    why = f" ({poll.last_error})" if poll.last_error else ""
    if poll.last_success_at is None:
        found.append(Problem("poll", external.address, f"{external.address}: not checked yet{why}", STALE_SECONDS))
    elif (facts.now - poll.last_success_at).total_seconds() > max(STALE_SECONDS, 3 * external.poll_seconds):
        since = f"{poll.last_success_at:%Y-%m-%d %H:%M} UTC"
        found.append(Problem("poll", external.address, f"{external.address}: no successful check since {since}{why}"))
    return found


def _find_full_relays(external: External, facts: SystemFacts) -> list[Problem]:
    """Return a problem if a limit lets mail wait: no other relay of the account takes it. Pure."""
    states = facts.relays.get(external.id, [])
    limits = [describe_full(state) or f"{state.host}: {state.last_error}" for state in states if is_full(state)]
    if not limits or not all(state.in_trouble for state in states):
        return []
    text = f"{external.address}: mail waits to be relayed: {'; '.join(limits)}"
    return [Problem("full", external.address, text, FULL_SECONDS)]


def is_full(state: RelayStatus) -> bool:
    """Return whether a relay has reached a limit: one of the operator, or its own, which it reported. Pure."""
    return state.full_until is not None or (state.failures > 0 and state.last_error_kind == "throttled")


def describe_full(state: RelayStatus) -> str | None:
    """Return which limit of the operator a relay has reached, and until when; None if none. Pure."""
    if state.full_until is None:
        return None
    return f"{state.host}: {state.full_why}, next at {state.full_until.astimezone(datetime.UTC):%H:%M} UTC"


def describe_filing(trouble: FilingTrouble) -> str:
    """Say what cannot be filed at the provider, and why. Pure."""
    return f"{counted(trouble.count)} cannot be filed or marked at the provider: {trouble.error}"


def is_certificate_changed(direction: PollState | RelayStatus) -> bool:
    """Return whether the provider's latest certificate is not the pinned one. Pure."""
    return direction.failures > 0 and direction.last_error_kind == CertificateChanged.kind


# ---------------------------------------------------------------------------------------------- the machine


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk that this process sees."""

    folder: Path  # the first folder on it
    free: int  # octets
    total: int  # octets


def measure_disks(settings: Settings) -> list[Disk]:
    """Measure the disks of the data folder and of the servers in it. Containers have PostgreSQL's there."""
    disks: dict[int, Disk] = {}
    for folder in (settings.data, settings.data / "postgres", settings.data / "rabbitmq"):
        if folder.exists():
            usage = shutil.disk_usage(folder)
            disks.setdefault(folder.stat().st_dev, Disk(folder, usage.free, usage.total))
    return list(disks.values())


def find_in_disks(disks: Iterable[Disk]) -> list[Problem]:
    """Return the disks that are nearly full. Pure."""
    return [
        Problem(
            "disk",
            str(disk.folder),
            f"disk of {disk.folder}: {disk.free >> 20} MiB ({100 * disk.free / disk.total:.0f} %) are free",
        )
        for disk in disks
        if is_nearly_full(disk.free, disk.total)
    ]


def is_nearly_full(free: int, total: int) -> bool:
    """Return whether a disk with this number of free octets is nearly full. Pure."""
    return free < max(DISK_OCTETS, int(DISK_SHARE * total))


def find_in_services(settings: Settings) -> list[Problem]:
    """Return the problems that the services export as metrics: certificates for mail clients, corrupted data."""

    def fetch(name: str) -> str:
        return fetch_health(health_url(settings, name))[1]

    with ThreadPoolExecutor(len(SERVICES)) as pool:  # one that hangs delays the alerts by its own time alone
        metrics = dict(zip(SERVICES, pool.map(fetch, SERVICES), strict=True))
    now = time.time()
    found = [
        Problem("certificate", name, f"service {name}: {problem}")
        for name in LISTENING_SERVICES
        for problem in certificate_problems(metrics[name], now)
    ]
    return found + [
        Problem("corrupted", name, f"service {name}: {problem}", 0.0)
        for name in SERVICES
        for problem in corruption_problems(metrics[name], now)
    ]


def deduplicated(problems: Sequence[Problem]) -> list[Problem]:
    """Keep one problem of each kind and subject, with the shortest minimum duration. Pure."""
    found: dict[tuple[str, str], Problem] = {}
    for problem in problems:
        key = (problem.kind, problem.subject)
        old = found.get(key)
        found[key] = problem if old is None else replace(old, min_duration=min(old.min_duration, problem.min_duration))
    return list(found.values())
