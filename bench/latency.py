"""Measures the latency of a mail on an idle system: each one is sent a pause after the one before has arrived.

Median and 99th percentile of: from a client's final dot to its 250; from that dot to the provider's 250; from the
fetcher's RETR to the commit that delivers the mail, which the next POP3 session sees.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import poplib
import random
import secrets
import time
from contextlib import AsyncExitStack

import psycopg
import uvloop

from bench import Wrong
from bench.baselines import PASSWORD
from bench.environment import Environment
from bench.gateway import DOMAIN, Gateway, external, person
from bench.mails import mail
from bench.smtp_load import Client
from bench.smtp_target import Target
from bench.table import Goal, Line
from tests.scripted_pop3 import ScriptedPop3

MAILS, OCTETS = 250, 4_096
_ACCOUNTS = 5
"""Accounts to fetch from: each is polled once a second, one after the other, and finds one mail. Polls of more accounts
would overlap."""
_PAUSE_SECONDS = 0.05
_LONGEST_SECONDS = 30.0
_LOOK_SECONDS = 0.001
_runs = itertools.count(1)


def latency(environment: Environment, pairs: int) -> list[Line]:
    """Measure once, as there is nothing to compare with, with enough mails for a percentile."""
    with environment.turn(), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        accepted, relayed = runner.run(_submit(environment.gateway))
        delivered = runner.run(fetch(environment.gateway, MAILS, 1))
    return [
        line
        for work, seconds, median, most in (
            ("submission: from the final dot to 250", accepted, 5, 20),
            ("relay: from the final dot to the provider's 250", relayed, 50, 150),
            ("delivery: from the poll's RETR to readable by POP3", delivered, 50, 150),
        )
        for line in (
            Line(f"{work}, median", (percentile(seconds, 0.5),), "ms", Goal("≤", median, "ms")),
            Line(f"{work}, 99th percentile", (percentile(seconds, 0.99),), "ms", Goal("≤", most, "ms")),
        )
    ]


def percentile(seconds: list[float], share: float) -> float:
    """Return a percentile in milliseconds. :param share: from 0 to 1."""
    return sorted(seconds)[min(len(seconds) - 1, int(len(seconds) * share))] * 1e3


async def _submit(gateway: Gateway) -> tuple[list[float], list[float]]:
    """Return the seconds from each final dot to the gateway's 250, and to the provider's."""
    taken: dict[str, float] = {}
    changed = asyncio.Event()
    server = await asyncio.get_running_loop().create_server(lambda: Target(taken, changed), "127.0.0.1", 0)
    account, author = "latency@provider.example", f"hasty@{DOMAIN}"
    port = server.sockets[0].getsockname()[1]
    await asyncio.to_thread(gateway.add, [external(account, smtp_port=port)], [person("hasty", account)])
    accepted, relayed = [], []
    try:
        _, client = await asyncio.get_running_loop().create_connection(Client, "127.0.0.1", gateway.settings.smtp_port)
        await client.reply(b"220")
        await client.ask(b"EHLO bench.example\r\n", b"250")
        identity = base64.b64encode(f"\0{author}\0{PASSWORD}".encode())
        await client.ask(b"AUTH PLAIN " + identity + b"\r\n", b"235")
        for number in range(MAILS):
            message_id = f"{number}.{secrets.token_hex(4)}@bench.example"
            body = mail(OCTETS, number, to="someone@example.net", author=author, message_id=message_id) + b".\r\n"
            await client.ask(f"MAIL FROM:<{author}>\r\n".encode(), b"250")
            await client.ask(b"RCPT TO:<someone@example.net>\r\n", b"250")
            await client.ask(b"DATA\r\n", b"354")
            dot = time.perf_counter()
            await client.ask(body, b"250")
            accepted.append(time.perf_counter() - dot)
            async with asyncio.timeout(_LONGEST_SECONDS):
                while message_id not in taken:
                    changed.clear()
                    await changed.wait()
            relayed.append(taken[message_id] - dot)
            await asyncio.sleep(_PAUSE_SECONDS)
        await client.ask(b"QUIT\r\n", b"221")
        client.close()
    finally:
        server.close()
        await asyncio.to_thread(gateway.remove, [account], [author])
    if len(taken) != MAILS:
        raise Wrong(f"the provider took {len(taken)} mails instead of {MAILS}")
    return accepted, relayed


class Source(ScriptedPop3):
    """A provider that records the time of the last RETR."""

    asked = 0.0

    def _answer(self, verb: str, argument: str, listed: list[tuple[str, bytes]], deleted: set[str]) -> bytes:
        if verb == "RETR":
            self.asked = time.perf_counter()
        return super()._answer(verb, argument, listed, deleted)


async def fetch(gateway: Gateway, mails: int, sharers: int) -> list[float]:
    """Return the seconds from each RETR to the delivery to all sharers of the account."""
    each, run = mails // _ACCOUNTS, next(_runs)
    async with AsyncExitStack() as stack:
        sources = [Source() for _ in range(_ACCOUNTS)]
        for source in sources:
            await stack.enter_async_context(source.running())
        names = [f"latency{run}x{number}@provider.example" for number in range(_ACCOUNTS)]
        people = [
            [person(f"waiting{run}x{number}x{which}", name) for which in range(sharers)]
            for number, name in enumerate(names)
        ]
        readers = [[fields["address"] for fields in those] for those in people]
        accounts = [external(name, source.port, poll_seconds=1) for name, source in zip(names, sources, strict=True)]
        await asyncio.to_thread(gateway.add, accounts, [one for those in people for one in those], 0.5, 1 / _ACCOUNTS)
        url = str(gateway.settings.database_url)
        try:
            found = await asyncio.gather(
                *(_follow(url, source, those, each) for source, those in zip(sources, readers, strict=True))
            )
            for those in readers:
                await asyncio.to_thread(_check, gateway, those[-1], each)
        finally:
            await asyncio.to_thread(gateway.remove, names, [one for those in readers for one in those])
    return [seconds for one in found for seconds in one]


async def _follow(url: str, source: Source, readers: list[str], mails: int) -> list[float]:
    """Put one mail after the other into a maildrop, and wait until all readers have it.

    The database is queried only after the mail's RETR.
    """
    found = []
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        for number in range(mails):
            source.asked = 0.0
            source.mails[f"mail{number}"] = mail(OCTETS, number)
            async with asyncio.timeout(_LONGEST_SECONDS):
                while not source.asked:  # noqa: ASYNC110  # the server has no event for it
                    await asyncio.sleep(_LOOK_SECONDS)
                while await count_mails(connection, readers) < len(readers) * (number + 1):  # noqa: ASYNC110  # nor has it
                    await asyncio.sleep(_LOOK_SECONDS)
            found.append(time.perf_counter() - source.asked)
            await asyncio.sleep(_PAUSE_SECONDS * random.random())
    return found


async def count_mails(connection: psycopg.AsyncConnection, readers: list[str]) -> int:
    """Return the number of mails in these people's mailboxes."""
    cursor = await connection.execute(
        """select count(*) from folder_mails r join folders f on f.id = r.folder_id and f.special_use = 'inbox'
           join local_accounts l on l.id = f.local_id
           where l.address = any(%s)""",
        (readers,),
    )
    row = await cursor.fetchone()
    return int(row[0]) if row else 0


def _check(gateway: Gateway, reader: str, mails: int) -> None:
    session = poplib.POP3("127.0.0.1", gateway.settings.pop3_port, timeout=60)
    session.user(reader)
    session.pass_(PASSWORD)
    bodies = [b"\r\n".join(session.retr(number + 1)[1]) + b"\r\n" for number in range(session.stat()[0])]
    session.quit()
    if bodies != [mail(OCTETS, number) for number in range(mails)]:
        raise Wrong(f"{reader} reads {len(bodies)} mails instead of the {mails} at the provider, or other ones")
