"""The status of the system: services, queues, accounts, books, and the problems as texts."""

from __future__ import annotations

import asyncio
import datetime
import re
import time
from collections.abc import Sequence
from typing import Any

from services.admin.context import AdminContext
from services.admin.formatting import counted
from services.admin.monitoring import reconciliation
from services.admin.monitoring.background_work import describe_failures
from services.admin.monitoring.database_health import find_in_database
from services.admin.monitoring.health_client import (
    certificate_problems,
    corruption_problems,
    fetch_health,
    health_url,
)
from services.admin.monitoring.problems import (
    STALE_SECONDS,
    describe_filing,
    describe_full,
    describe_held,
    find_absent_delegates,
    find_in_connections,
    find_in_disks,
    find_organizers,
    find_parked,
    find_unstarted,
    load_facts,
    measure_disks,
)
from shared import __version__
from shared.amqp import topology
from shared.db.database import Connection
from shared.errors import Permanent, Temporary
from shared.model import External
from shared.settings import SERVICES, Settings
from shared.store import accounts, relays
from shared.store.polls import PollState
from shared.store.relays import RelayStatus

OLD_SECONDS = 4 * 3600.0
"""Seconds in the relay queue after which a submission is a problem."""
CONNECT_SECONDS, CONNECTED_SECONDS = 10.0, 2.0
"""Seconds to wait for the broker: for a new connection, and for one that the process keeps."""


async def gather(system: AdminContext, thoroughly: bool = False) -> dict[str, Any]:
    """Return the status in the form of ``status --json``. :param thoroughly: as ``reconciliation.load_accounts``."""
    problems: list[str] = []
    services, unacked = await _services(system.settings, problems)
    problems += [f"service {service['name']}: {service.pop('why')}" for service in services if not service["ready"]]
    queues = await _queues(system, unacked, problems)
    externals: list[dict[str, Any]] = []
    accounted: list[reconciliation.AccountBooks] = []
    database: dict[str, int] = {}
    weak_passwords = 0
    try:
        async with system.database.snapshot(30) as connection:
            facts = await load_facts(connection)
            accounted = await reconciliation.load_accounts(connection, thoroughly)
            weak_passwords = await accounts.count_weak_passwords(connection)
        for external in facts.externals:
            poll, states = facts.polls.get(external.id), facts.relays.get(external.id, [])
            externals.append(_external(external, poll, states, facts.now, problems))
            if external.enabled and (trouble := facts.filings.get(external.id)) is not None:
                problems.append(f"{external.address}: {describe_filing(trouble)}")
            _unreadable(system, external, problems)
        if facts.held:
            problems.append(f"{describe_held(facts.held)} (held list)")
        problems += [
            f"{problem.text}; run: mailgroup external start {problem.subject}" for problem in find_unstarted(facts)
        ]
        problems += [f"{problem.text} (parked list)" for problem in find_parked(facts)]
        problems += [problem.text for problem in find_organizers(facts)]
        problems += [problem.text for problem in find_absent_delegates(facts)]
        database = {"connections": facts.connections.used, "connections_limit": facts.connections.limit}
        problems += [problem.text for problem in find_in_connections(facts.connections)]
        problems += [problem.text for problem in find_in_database(facts.server)]
        if facts.read_only:
            problems.append("PostgreSQL accepts no changes, it is read-only: mail waits")
        for account in accounted:
            problems += [
                f"{account.address}: {what}"
                for what in (reconciliation.describe_difference(account), reconciliation.describe_late(account))
                if what
            ]
        if facts.relaying and facts.relaying_oldest > OLD_SECONDS:
            problems.append(
                f"{facts.relaying} submissions wait to be relayed, the oldest for "
                f"{facts.relaying_oldest / 3600:.0f} hours (queue list)"
            )
    except Temporary as error:
        problems.append(await system.database.connection_error() or str(error))
    problems += [problem.text for problem in find_in_disks(measure_disks(system.settings))]
    return {
        "version": __version__,
        "ok": not problems,
        "problems": problems,
        "services": services,
        "database": database,
        "queues": queues,
        "externals": externals,
        "weak_passwords": weak_passwords,
        "books": {account.address: account.shown() for account in accounted},
    }


def _external(
    external: External,
    poll: PollState | None,
    states: Sequence[RelayStatus],
    now: datetime.datetime,
    problems: list[str],
) -> dict[str, Any]:
    """Return the entry of one account, and add its problems to ``problems``. Pure."""
    last_success = poll.last_success_at if poll else None
    in_use = next((state.position for state in states if not state.in_trouble), None)
    error = _latest_error(poll, states)
    if external.enabled:
        if poll and poll.skipped:
            stay = "stays" if poll.skipped == 1 else "stay"
            problems.append(
                f"{external.address}: {counted(poll.skipped)} could not be fetched and {stay} at the provider "
                f"(external skipped {external.address})"
            )
        if error:
            problems.append(f"{external.address}: {error}")
        elif last_success is None:
            problems.append(f"{external.address}: not checked yet")
        elif (now - last_success).total_seconds() > max(STALE_SECONDS, 3 * external.poll_seconds):
            problems.append(f"{external.address}: no successful check since {last_success:%Y-%m-%d %H:%M} UTC")
    return {
        "address": external.address,
        "enabled": external.enabled,
        "last_success": iso(last_success),
        "last_error": error,
        "backlog": poll.backlog if poll else None,
        "authorize": external.enabled
        and external.oauth is not None
        and external.oauth.needs_consent
        and any(d and d.paused_at for d in (poll, *states)),
        "relays": [
            {
                "host": state.host,
                "in_use": state.position == in_use,
                "last_success": iso(state.last_success_at),
                "last_error": find_account_problem(state),
                "full_until": iso(state.full_until),
            }
            for state in states
        ],
    }


def _latest_error(poll: PollState | None, states: Sequence[RelayStatus]) -> str | None:
    """Return the present errors of both directions, fetching first."""
    return "; ".join(filter(None, (find_account_problem(poll), find_relaying_problem(states)))) or None


def find_relaying_problem(states: Sequence[RelayStatus]) -> str | None:
    """Return the present errors of an account's relays. A limit is one if no other relay takes mail. Pure."""
    errors = [error for state in states if (error := find_account_problem(state))]
    if all(state.in_trouble for state in states):
        errors += [f"relaying: {full}" for state in states if (full := describe_full(state))]
    return "; ".join(errors) or None


def why_waits(states: Sequence[RelayStatus]) -> str | None:
    """Return why no relay of an account takes mail now; None if one does. Pure."""
    return find_relaying_problem(states) if all(state.in_trouble for state in states) else None


async def load_why_waits(connection: Connection) -> dict[str, str]:
    """Return why the mail of an account waits, by its address: of accounts without a relay that takes mail now."""
    states = await relays.load_status(connection)
    externals = await accounts.load_externals(connection, sorted(states))
    found = {external.address: why_waits(states[external.id]) for external in externals}
    return {address: why for address, why in found.items() if why}


def find_account_problem(direction: PollState | RelayStatus | None) -> str | None:
    """Return the present error of one direction of an account, that is one without a later success. Pure."""
    if direction is None or not direction.last_error or not (direction.failures or direction.paused_at):
        return None
    paused = " (paused: one try an hour)" if direction.paused_at and "paused" not in direction.last_error else ""
    if isinstance(direction, PollState):
        return f"fetching: {direction.last_error}{paused}"
    host = f"{direction.host}: " if direction.of > 1 and not direction.last_error.startswith(direction.host) else ""
    return f"relaying: {host}{direction.last_error}{paused}"


def _unreadable(system: AdminContext, external: External, problems: list[str]) -> None:
    own = [relay.password for relay in external.relays if relay.password is not None]
    try:
        for sealed in (external.password, *own):
            system.vault.open(sealed)
    except (Permanent, ValueError) as error:
        problems.append(f"{external.address}: {error}")


def iso(at: datetime.datetime | None) -> str | None:
    """Format a time as ISO 8601 in UTC, to the millisecond."""
    if at is None:
        return None
    return at.astimezone(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


async def _services(settings: Settings, problems: list[str]) -> tuple[list[dict[str, Any]], dict[str, int]]:
    answers = await asyncio.gather(*(asyncio.to_thread(fetch_health, health_url(settings, name)) for name in SERVICES))
    services, unacked = [], dict[str, int]()
    for name, (why, metrics) in zip(SERVICES, answers, strict=True):
        services.append({"name": name, "ready": not why, **({"why": why} if why else {})})
        for queue, value in re.findall(
            r'^mailgroup_queue_unacked_messages\{queue="(\w+)"\} ([\d.e+]+)$', metrics, re.M
        ):
            unacked[queue] = unacked.get(queue, 0) + int(float(value))
        now = time.time()
        found = [*certificate_problems(metrics, now), *corruption_problems(metrics, now), *describe_failures(metrics)]
        problems += [f"service {name}: {problem}" for problem in found]
    return services, unacked


async def _queues(system: AdminContext, unacked: dict[str, int], problems: list[str]) -> list[dict[str, Any]]:
    queues = []
    try:
        async with system.broker() as broker:
            await broker.wait_until_ready(CONNECT_SECONDS if system.connected is None else CONNECTED_SECONDS)
            for queue in topology.QUEUES:
                ready, consumers = await broker.queue_depth(queue.name)
                queues.append(
                    {"name": queue.name, "ready": ready, "unacked": unacked.get(queue.name, 0), "consumers": consumers}
                )
                if queue.name == topology.DEAD_LETTERS:
                    if ready:
                        problems.append(f"{ready} dead-lettered messages in the queue {queue.name}")
                elif not consumers:
                    problems.append(f"queue {queue.name}: it has no consumer")
    except (Temporary, Permanent) as error:
        problems.append(str(error))
    return queues
