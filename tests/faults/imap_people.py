"""The people of a run who work by IMAP, one of them beside POP3, and what contradicts their books."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from random import Random

from tests.faults.books import Submitted, digest, token
from tests.faults.clients import Gone
from tests.faults.imap_reader import ImapReader


class ImapPeople:
    """The clients. archived: mails that were moved out of INBOX, which POP3 does not show, by address."""

    def __init__(self, port: int, seed: int, people: Mapping[str, bool], seconds: float) -> None:
        """:param people: addresses, and whether they move mail out of INBOX. :param seconds: limit of reading all."""
        self.archived: dict[str, dict[bytes, bytes]] = {}
        self._people, self._seconds = people, seconds
        self._readers = {
            address: ImapReader(port, address, Random(f"{seed} imap {address}"), moves=moves)
            for address, moves in people.items()
        }
        self._wrong: list[str] = []

    @property
    def wrong(self) -> list[str]:
        """What contradicts the books, a line each."""
        return self._wrong + [line for reader in self._readers.values() for line in reader.wrong]

    @property
    def refusals(self) -> list[str]:
        """Permanent refusals of what is allowed."""
        return [line for reader in self._readers.values() for line in reader.refusals]

    def lines(self) -> list[str]:
        """Return the report."""
        answered = sum((reader.answered for reader in self._readers.values()), Counter[str]())
        counts = ", ".join(f"{what} {count}" for what, count in sorted(answered.items()))
        return [
            f"answered by IMAP: {counts or 'nothing'}",
            f"contradictions by IMAP: {len(self.wrong)}",
            *(f"  {line}" for line in self.wrong[:10]),
        ]

    async def work_while(self, address: str, goes_on: Callable[[], bool]) -> None:
        """Let a client work, session after session."""
        while goes_on():
            with suppress(Gone):
                await self._readers[address].work()
            await asyncio.sleep(0.5)

    async def work_once(self) -> None:
        """Let each client work for a session."""
        for reader in self._readers.values():
            with suppress(Gone):
                await reader.work()

    async def read_archives(self) -> None:
        """Fill ``archived``."""
        for address, reader in self._readers.items():
            if self._people[address]:
                moved = (await self._read_all(reader))["Archive"]
                self.archived[address] = {b"archive %d" % place: mail for place, mail in enumerate(moved)}

    async def compare(self, by_pop3: Mapping[str, Mapping[bytes, bytes]], submitted: Collection[Submitted]) -> None:
        """Compare INBOX with what POP3 shows, and Sent with what was submitted. :param by_pop3: mails by address."""
        for address, reader in self._readers.items():
            folders = await self._read_all(reader)
            if self._people[address]:
                shown, known = (Counter(map(digest, mails)) for mails in (folders["INBOX"], by_pop3[address].values()))
                if shown != known:
                    differing = ((shown - known) + (known - shown)).total()
                    self._wrong.append(f"{address} INBOX: {differing} mails differ between IMAP and POP3")
            filed = Counter(map(token, folders["Sent"]))
            sent = Counter(each.token for each in submitted if each.accepted and each.author == address)
            for name in (filed - sent) + (sent - filed):
                self._wrong.append(f"{address} Sent: {name}: {filed[name]} copies, not {sent[name]}")

    async def _read_all(self, reader: ImapReader) -> dict[str, list[bytes]]:
        deadline = time.monotonic() + self._seconds
        while True:
            try:
                return await reader.read_all()
            except Gone:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(1.0)
