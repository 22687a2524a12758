"""The whole way of a mail, timed: ``make bench``, or ``.venv/bin/python -m bench.run [MAILS] [OCTETS]``.

Mails lie at a real provider (Dovecot); they are fetched, routed, delivered and read by POP3. PostgreSQL and RabbitMQ
are durable, as in ``up``. Each stage's rate is its mails over the time between its first and its last commit.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time

from rich.console import Console
from rich.table import Table

from shared.database import Database
from tests.servers import scratch
from tests.system import System, running, until

RUNS = 3
STAGES = ("fetched", "routed", "delivered")


def offer(system: System, address: str, mails: int, octets: int) -> None:
    """Mails into the provider's mailbox: half of them name Alex, half name nobody."""
    for number in range(mails):
        to = f'"Alex" <{address}>' if number % 2 else address
        header = (
            f"From: anna@customer.example\r\nTo: {to}\r\nMessage-ID: <{number}@{address}>\r\nSubject: {number}\r\n\r\n"
        )
        line = b"x" * 76 + b"\r\n"
        system.provider.put(address, header.encode() + line * ((octets - len(header)) // len(line)))


async def spans(system: System, address: str) -> dict[str, float]:
    """Seconds between the first and the last commit of each stage."""
    database = Database(str(system.settings.database_url), "bench")
    await database.open()
    async with database.transaction() as connection:
        cursor = await connection.execute(
            """select event, extract(epoch from max(at) - min(at))::float8 from events
               where external = %s group by event""",
            (address,),
        )
        found = {str(row[0]): float(row[1]) for row in await cursor.fetchall()}
    await database.close()
    return found


def measure(system: System, run: int, mails: int, octets: int) -> dict[str, float]:
    """Mails per second by stage, and in all."""
    address = f"run{run}@company.com"
    account = system.external(address)
    offer(system, address, mails, octets)
    company = system.company()
    company["external_accounts"].append(account)
    company["local_accounts"][0] |= {"address": f"alex{run}@local.com", "external": address}
    started = time.monotonic()
    system.apply(company, prune=False)
    until(lambda: system.json("status")["books"][address]["delivered"] == mails, 600)
    delivered = time.monotonic()
    read = len(system.mails(f"alex{run}@local.com"))
    ended = time.monotonic()
    assert read == mails, f"{read} of {mails} mails are readable"
    rates = {
        stage: mails / max(seconds, 1e-3)
        for stage, seconds in asyncio.run(spans(system, address)).items()
        if stage in STAGES
    }
    return rates | {
        "read by POP3 (poplib)": mails / (ended - delivered),
        "all, until readable": mails / (delivered - started),
    }


def main(mails: int = 2000, octets: int = 10_240) -> None:
    """Print the medians of some runs."""
    with scratch() as folder, running(folder) as system:
        runs = [measure(system, run, mails, octets) for run in range(RUNS)]
    table = Table(
        "Stage",
        "Mails per second: median",
        "lowest",
        "highest",
        title=f"{mails} mails of {octets} octets, {RUNS} runs",
        title_justify="left",
    )
    for stage in runs[0]:
        rates = [run[stage] for run in runs]
        table.add_row(stage, f"{statistics.median(rates):.0f}", f"{min(rates):.0f}", f"{max(rates):.0f}")
    Console().print(table)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
