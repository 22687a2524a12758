"""Measures fetching by IMAP: throughput beside other programs, the wait for news, and the memory of idle accounts.

Throughput: all read the same mailbox of the same Dovecot. News and memory: a scripted server in this process, which
tells of new mail at once; Dovecot waits half a second for more before it tells of any.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import ssl
import tempfile
import time
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import psycopg
import uvloop

from bench.environment import ROUND_TRIP, Environment
from bench.fetchers import fetch
from bench.gateway import Gateway, imap_external, person
from bench.latency import count_mails, percentile
from bench.mails import mail
from bench.pipeline import FEW, FEWEST, MAILS, deliver, fill_source
from bench.processes import memory, tree
from bench.table import Goal, Line, rate_line
from shared.net.dial import fingerprint
from shared.net.server_tls import self_signed_file
from shared.settings import Settings
from tests.scripted_imap import ScriptedImap

NEWS, OCTETS = 200, 4_096
ACCOUNTS = 500
_WATCHED = 5
"""Accounts whose news are measured: each gets a mail more than a second after the one before, since an account is
polled for news at most once a second."""
_APART_SECONDS = 1.2
_LONGEST_SECONDS = 120.0
_LOOK_SECONDS = 0.001
_FIRST_ACCOUNTS = 60
"""Accounts that are in IDLE before the memory is measured."""
_SETTLE_SECONDS = 10.0
_runs = itertools.count(1)


def throughput(environment: Environment, pairs: int) -> list[Line]:
    """Measure with a near and a distant provider."""
    fill_source(environment)
    port = environment.dovecot.imap_port
    lines = _beside(environment, pairs, port, "")
    with environment.far(port) as far:
        return lines + _beside(environment, pairs, far, f", {ROUND_TRIP} ms away")


def _beside(environment: Environment, pairs: int, port: int, where: str) -> list[Line]:
    folder = environment.folder / "fetched"
    ours, getmail, mbsync, fetchmail = environment.alternate(
        pairs,
        partial(deliver, environment.gateway, port, "source", MAILS, imap=True),
        partial(fetch, "getmail6", folder, port, "fewest", FEWEST),
        partial(fetch, "mbsync", folder, port, "source", MAILS),
        partial(fetch, "fetchmail by IMAP", folder, port, "few", FEW),
    )
    return [
        rate_line(f"2,000 mails of 10 KB by IMAP{where}", ours, mbsync, Goal("≥", 2), "mails/s", "mbsync"),
        rate_line(f"the same beside {FEWEST} mails{where}", ours, getmail, Goal("≥", 3), "mails/s", "getmail6"),
        rate_line(f"the same beside {FEW} mails{where}", ours, fetchmail, Goal("≥", 2), "mails/s", "fetchmail"),
    ]


# ------------------------------------------------------------------------------------------------------------ news


def news(environment: Environment, pairs: int) -> list[Line]:
    """Measure once from the server's EXISTS to the commit that delivers the mail; there is nothing to compare with."""
    with environment.turn(), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        seconds = runner.run(_news(environment.gateway))
    work = "from the provider's news (IDLE) to readable"
    return [
        Line(f"{work}, median", (percentile(seconds, 0.5),), "ms", Goal("≤", 100, "ms")),
        Line(f"{work}, 99th percentile", (percentile(seconds, 0.99),), "ms", Goal("≤", 300, "ms")),
    ]


async def _news(gateway: Gateway) -> list[float]:
    run = next(_runs)
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(ScriptedImap().running()) for _ in range(_WATCHED)]
        names = [f"news{run}x{number}@provider.example" for number in range(_WATCHED)]
        people = [person(f"told{run}x{number}", name) for number, name in enumerate(names)]
        readers = [fields["address"] for fields in people]
        accounts = [imap_external(name, server.port) for name, server in zip(names, servers, strict=True)]
        await asyncio.to_thread(gateway.add, accounts, people, 0.0)
        try:
            await _until_idle(servers)
            url = str(gateway.settings.database_url)
            found = await asyncio.gather(
                *(_follow(url, server, reader) for server, reader in zip(servers, readers, strict=True))
            )
        finally:
            await asyncio.to_thread(gateway.remove, names, readers)
    return [seconds for one in found for seconds in one]


async def _follow(url: str, server: ScriptedImap, reader: str) -> list[float]:
    """Let one mail after the other arrive, and wait until the reader has it."""
    found = []
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        for number in range(1, NEWS // _WATCHED + 1):
            await asyncio.sleep(_APART_SECONDS + random.random() / 5)
            await _until_idle([server])
            began = time.perf_counter()
            server.arrive(number, mail(OCTETS, number))
            async with asyncio.timeout(_LONGEST_SECONDS):
                while await count_mails(connection, [reader]) < number:  # noqa: ASYNC110  # nothing tells of it
                    await asyncio.sleep(_LOOK_SECONDS)
            found.append(time.perf_counter() - began)
    return found


async def _until_idle(servers: list[ScriptedImap], sessions: int = 1) -> None:
    async with asyncio.timeout(_LONGEST_SECONDS):
        while any(len(server.idlers) < sessions for server in servers):  # noqa: ASYNC110  # the servers have no event
            await asyncio.sleep(_LOOK_SECONDS)


# ---------------------------------------------------------------------------------------------------------- memory


def idle_accounts(environment: Environment, pairs: int) -> list[Line]:
    """Measure the fetcher's memory for each account in IDLE, once: in clear and under TLS."""
    with environment.turn(), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return [
            Line(
                f"the fetcher's memory for each of {ACCOUNTS} accounts in IDLE, {name}",
                (runner.run(_memory_each(environment.gateway, tls)) / 1e3,),
                "kB",
                Goal("≤", most, "kB"),
            )
            for name, tls, most in (("in clear", False, 20), ("under TLS", True, 60))
        ]


async def _memory_each(gateway: Gateway, tls: bool) -> float:
    """Return octets.

    The process has polled and watched other accounts before: the threads and pools of its first polls belong to no
    account.
    """
    run = next(_runs)
    with tempfile.TemporaryDirectory() as folder:
        file = self_signed_file(Settings(data=Path(folder)))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        text = file.read_text(encoding="ascii")
    certificate = ssl.PEM_cert_to_DER_cert(text[text.index("-----BEGIN CERTIFICATE") :])
    async with ScriptedImap(context=context if tls else None, implicit=tls).running() as server:
        names = [f"still{run}x{number}@provider.example" for number in range(_FIRST_ACCOUNTS + ACCOUNTS)]
        reader = person(f"still{run}", names[0])
        await asyncio.to_thread(gateway.restart, "fetcher")
        accounts = [imap_external(name, server.port, fingerprint(certificate) if tls else None) for name in names]
        try:
            await asyncio.to_thread(gateway.add, accounts[:_FIRST_ACCOUNTS], [reader], 0.0)
            await _until_idle([server], _FIRST_ACCOUNTS)
            await asyncio.sleep(_SETTLE_SECONDS)
            before = await asyncio.to_thread(_fetcher_memory, gateway)
            await asyncio.to_thread(gateway.add, accounts[_FIRST_ACCOUNTS:], [], 0.0)
            await _until_idle([server], len(accounts))
            await asyncio.sleep(_SETTLE_SECONDS)
            after = await asyncio.to_thread(_fetcher_memory, gateway)
        finally:
            await asyncio.to_thread(gateway.remove, names, [reader["address"]])
    return (after - before) / ACCOUNTS


def _fetcher_memory(gateway: Gateway) -> int:
    return memory(tree(gateway.services()["fetcher"]))
