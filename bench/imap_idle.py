"""Measures IMAP sessions in IDLE: how soon they hear of a mail, and their memory."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from contextlib import AsyncExitStack

import uvloop

from bench import Wrong
from bench.baselines import PASSWORD, USERS
from bench.environment import Environment
from bench.gateway import DOMAIN, Gateway, external, person
from bench.imap_load import Client
from bench.imap_serving import ready, restart
from bench.latency import Source, percentile
from bench.mails import mail
from bench.processes import holding, memory, tree
from bench.table import Goal, Line

SESSIONS = 500
_ACCOUNTS, _MAILS, _OCTETS = 5, 40, 4_096
_LONGEST_SECONDS = 30.0
_PAUSE_SECONDS = 0.05
_LOOK_SECONDS = 0.001
_runs = itertools.count(1)


def arrival(environment: Environment, pairs: int) -> list[Line]:
    """Measure once from the fetcher's RETR to EXISTS in IDLE; there is nothing to compare with."""
    with environment.turn(), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        seconds = runner.run(_arrivals(environment.gateway))
    work = "from the poll's RETR to EXISTS in IDLE"
    return [
        Line(f"{work}, median", (percentile(seconds, 0.5),), "ms", Goal("≤", 50, "ms")),
        Line(f"{work}, 99th percentile", (percentile(seconds, 0.99),), "ms", Goal("≤", 150, "ms")),
    ]


async def _arrivals(gateway: Gateway) -> list[float]:
    run = next(_runs)
    async with AsyncExitStack() as stack:
        sources = [Source() for _ in range(_ACCOUNTS)]
        for source in sources:
            await stack.enter_async_context(source.running())
        names = [f"arriving{run}x{number}@provider.example" for number in range(_ACCOUNTS)]
        people = [person(f"idler{run}x{number}", name) for number, name in enumerate(names)]
        accounts = [external(name, source.port, poll_seconds=1) for name, source in zip(names, sources, strict=True)]
        await asyncio.to_thread(gateway.add, accounts, people, 0.5, 1 / _ACCOUNTS)
        readers = [fields["address"] for fields in people]
        try:
            found = await asyncio.gather(
                *(
                    _follow(gateway.settings.imap_port, source, reader)
                    for source, reader in zip(sources, readers, strict=True)
                )
            )
        finally:
            await asyncio.to_thread(gateway.remove, names, readers)
    return [seconds for one in found for seconds in one]


async def _follow(port: int, source: Source, reader: str) -> list[float]:
    """Put one mail after the other into a maildrop, and wait until the reader's session has heard of it."""
    found = []
    client = Client()
    greeted = client.expect(b"* ")
    await asyncio.get_running_loop().create_connection(lambda: client, "127.0.0.1", port)
    await greeted
    await client.ask(f"LOGIN {reader} {PASSWORD}".encode())
    await client.ask(b"SELECT INBOX")
    idling = client.expect(b"+ ")
    client.send(b"i IDLE\r\n")
    await idling
    for number in range(1, _MAILS + 1):
        source.asked = 0.0
        reported = client.expect(b"* %d EXISTS\r\n* 0 RECENT" % number)
        source.mails[f"mail{number}"] = mail(_OCTETS, number)
        async with asyncio.timeout(_LONGEST_SECONDS):
            await reported
        found.append(time.perf_counter() - source.asked)
        await asyncio.sleep(_PAUSE_SECONDS * random.random())
    client.close()
    return found


def idle_sessions(environment: Environment, pairs: int) -> list[Line]:
    """Measure the memory of sessions in IDLE, once, as it hardly varies."""
    ready(environment, "u")
    return [
        Line(
            f"{SESSIONS} sessions in IDLE, each, {name}", (_held(environment, tls) / 1e3,), "kB", Goal("≤", most, "kB")
        )
        for name, tls, most in (("in clear", False, 20), ("under TLS", True, 60))
    ]


def _held(environment: Environment, tls: bool) -> float:
    """Return the memory of a session in octets."""
    restart(environment, "ours", "u")
    gateway = environment.gateway
    root = gateway.pids()["imap_out"]
    options = {"tls": True} if tls else {}
    before = memory(tree(root))
    if not before:
        raise Wrong("the process of imap_out is not there")
    with holding(
        "imap_load",
        "idle",
        port=gateway.settings.imaps_port if tls else gateway.settings.imap_port,
        user=f"u{{i}}@{DOMAIN}",
        users=USERS,
        password=PASSWORD,
        sessions=SESSIONS,
        **options,
    ):
        return (memory(tree(root)) - before) / SESSIONS
