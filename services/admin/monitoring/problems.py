"""What is wrong that a person has to hear of: facts from the database and the machine, and what they mean."""

from __future__ import annotations

import datetime
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from services.admin.monitoring import reconciliation
from services.admin.monitoring.health_client import ask, certificate_problems, health_url
from services.admin.monitoring.problem_kinds import Trouble
from services.admin.monitoring.reconciliation import LATE_SECONDS, Account
from shared.db.database import Connection
from shared.model import External
from shared.settings import Settings
from shared.store import accounts, inbound_admin, polls, relay_queue, relay_status, submissions_admin
from shared.store.polls import Polled
from shared.store.relay_status import Relay

STALE_SECONDS = 900.0
"""Nothing polled for longer than this is a trouble."""
DISK_SHARE, DISK_OCTETS = 0.05, 1024**3
"""A disk with less free than either is nearly full."""
DOORS = ("pop3_out", "smtp_in")


@dataclass(frozen=True, slots=True)
class Facts:
    """How the system is, by its database. late: seconds of the oldest mail on its way, by id of the external account,
    None for mail between local accounts. unhanded: seconds of the oldest submission that nobody took up.

    parked: of whatever reason, restored and looping among them.
    relaying, relaying_oldest: mails in the relay queue, and the age of the oldest.
    """

    now: datetime.datetime
    externals: Sequence[External]
    polls: dict[int, Polled]
    relays: dict[int, Relay]
    held: int
    parked: int
    restored: int
    looping: int
    late: dict[int | None, float]
    unhanded: float
    relaying: int
    relaying_oldest: float


async def read(connection: Connection) -> Facts:
    """The facts of this moment; cheap, however many mails there are."""
    held, parked, looping = await inbound_admin.standing(connection)
    stuck, restored = await submissions_admin.count_parked(connection)
    waiting, oldest = await relay_queue.backlog(connection)
    return Facts(
        datetime.datetime.now(datetime.UTC),
        await accounts.externals(connection),
        await polls.polled(connection),
        await relay_status.states(connection),
        held,
        parked + stuck,
        restored,
        looping,
        await inbound_admin.oldest_in_flight(connection),
        await submissions_admin.oldest_submitted(connection),
        waiting,
        oldest,
    )


def find(facts: Facts, accounted: Iterable[Account] = ()) -> list[Trouble]:
    """What is wrong. :param accounted: the books, as they were read last. Pure."""
    found = [trouble for external in facts.externals if external.enabled for trouble in _of(external, facts)]
    if facts.held:
        found.append(Trouble("held", "", f"{facts.held} mails are held: nobody enabled shares their external account"))
    found += of_parked(facts)
    found += [
        Trouble("books", account.address, f"{account.address}: {what}")
        for account in accounted
        if (what := reconciliation.wrong(account))
    ]
    addresses = {external.id: external.address for external in facts.externals}
    for external_id, seconds in facts.late.items():
        if seconds > LATE_SECONDS:
            of = addresses.get(external_id or 0, "")
            found.append(Trouble("late", of, f"{of or 'mail inside'}: in flight for {seconds / 60:.0f} minutes"))
    if facts.unhanded > LATE_SECONDS:
        found.append(
            Trouble("late", "submissions", f"a submission is taken up by no sender for {facts.unhanded / 60:.0f} min")
        )
    return found


def of_parked(facts: Facts) -> list[Trouble]:
    """The mails that wait for somebody to decide, by what set them apart. Pure."""
    counted = (
        ("", facts.parked - facts.restored - facts.looping, "are parked after failing here"),
        ("restored", facts.restored, "are parked by a restore from a backup: they may have been relayed since"),
        ("mail loop", facts.looping, "are parked for going round in a loop"),
    )
    return [Trouble("parked", subject, f"{count} mails {why}") for subject, count, why in counted if count]


def _of(external: External, facts: Facts) -> list[Trouble]:
    """What is wrong with an account's two directions. Pure."""
    poll, relay = facts.polls.get(external.id), facts.relays.get(external.id)
    kind = "grant" if external.oauth is not None else "login"
    found = [
        Trouble(kind, f"{external.address} {name}", f"{external.address}: {name}: {direction.last_error}", 0.0)
        for name, direction in (("fetching", poll), ("relaying", relay))
        if direction is not None and direction.paused_at is not None
    ]
    if poll is None or poll.paused_at is not None:
        return found
    why = f" ({poll.last_error})" if poll.last_error else ""
    if poll.last_success_at is None:
        found.append(Trouble("poll", external.address, f"{external.address}: never polled yet{why}", STALE_SECONDS))
    elif (facts.now - poll.last_success_at).total_seconds() > max(STALE_SECONDS, 3 * external.poll_seconds):
        since = f"{poll.last_success_at:%Y-%m-%d %H:%M} UTC"
        found.append(Trouble("poll", external.address, f"{external.address}: nothing polled since {since}{why}"))
    return found


# ---------------------------------------------------------------------------------------------- the machine


def of_disks(settings: Settings) -> list[Trouble]:
    """What is wrong with the disks, as far as this process sees them: of the data folder and the servers in it."""
    found = []
    disks: dict[int, Path] = {}
    for folder in (settings.data, settings.data / "postgres", settings.data / "rabbitmq"):
        if folder.exists():
            disks.setdefault(folder.stat().st_dev, folder)
    for folder in disks.values():
        usage = shutil.disk_usage(folder)
        if is_nearly_full(usage.free, usage.total):
            share = 100 * usage.free / usage.total
            found.append(
                Trouble("disk", str(folder), f"disk of {folder}: {usage.free >> 20} MiB ({share:.0f} %) are free")
            )
    return found


def is_nearly_full(free: int, total: int) -> bool:
    """Whether a disk with so many octets free is nearly full. Pure."""
    return free < max(DISK_OCTETS, int(DISK_SHARE * total))


def of_doors(settings: Settings) -> list[Trouble]:
    """What is wrong with the certificates that mail clients are shown, as their services tell."""
    return [
        Trouble("certificate", name, f"service {name}: {problem}")
        for name in DOORS
        for problem in certificate_problems(ask(health_url(settings, name))[1], time.time())
    ]


def gathered(troubles: Sequence[Trouble]) -> list[Trouble]:
    """One of each kind and subject, the one that says that it is to be told soonest. Pure."""
    found: dict[tuple[str, str], Trouble] = {}
    for trouble in troubles:
        key = (trouble.kind, trouble.subject)
        old = found.get(key)
        found[key] = trouble if old is None else replace(old, lasting=min(old.lasting, trouble.lasting))
    return list(found.values())
