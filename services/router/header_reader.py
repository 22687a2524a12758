"""Reads the facts of a batch of mails from their headers, within a budget of memory and time."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from services.router.junk_headers import JunkRules, is_junk
from shared import routing
from shared.db.database import Connection
from shared.mime.headers import header_end
from shared.model import External
from shared.runtime.parsing import Parsing
from shared.store import blobs
from shared.store.inbound import FetchedMail

PREFIX_OCTETS = 8192
"""Size of the first read of a mail: octets; few headers are longer."""
LONGER_OCTETS = 64 * 1024
"""Size of the second read: octets; nearly every header is shorter, and so are most notices. The third is the last."""
LONGER_MAILS = 16
"""Limits the second reads that are in memory: mails; together 1 MiB."""
BUDGET_OCTETS = 4 * 1024 * 1024
"""Limits the longer reads of a batch: octets; it bounds the facts in memory."""
BUDGET_SECONDS = 0.1
"""Limits the time for parsing the longer reads of a batch: seconds; other mail waits this long. A usual header of 16
KiB takes 0.2 ms, the worst ones 40 ms."""


class HeaderReader:
    """Reads the mails of one batch. junk: the ids of the fetched ones to which a rule of the operator applies."""

    def __init__(
        self, connection: Connection, externals: Mapping[int, External], parsing: Parsing, rules: JunkRules
    ) -> None:
        self._connection = connection
        self._externals = externals
        self._parsing = parsing
        self._rules = rules
        self.junk: set[int] = set()
        self._budget_octets = BUDGET_OCTETS
        self._budget_seconds = BUDGET_SECONDS

    async def read(self, mails: Sequence[FetchedMail]) -> dict[int, routing.HeaderFacts]:
        """Read the facts of each mail, by its id. Mails that exceed the budget are left out; the first never is.

        Longer reads follow for mails whose header exceeds PREFIX_OCTETS, and for notices, whose body names the mail
        that they report on.
        """
        facts: dict[int, routing.HeaderFacts] = {}
        longer = []
        heads = await blobs.prefixes(self._connection, [mail.blob_id for mail in mails], PREFIX_OCTETS)
        for mail in mails:
            read = await self._read_head(mail, heads[mail.blob_id], PREFIX_OCTETS)
            if read is None:
                longer.append(mail)
            else:
                facts[mail.id] = read
        for start in range(0, len(longer), LONGER_MAILS):
            part = longer[start : start + LONGER_MAILS]
            heads = await blobs.prefixes(self._connection, [mail.blob_id for mail in part], LONGER_OCTETS)
            for mail in part:
                facts[mail.id] = await self._read_longer(mail, heads[mail.blob_id])
                if self._budget_octets <= 0 or self._budget_seconds <= 0:
                    return facts
        return facts

    async def _read_longer(self, mail: FetchedMail, head: bytes) -> routing.HeaderFacts:
        started = time.monotonic()
        facts = await self._read_head(mail, head, LONGER_OCTETS)
        if facts is None:
            head = (await blobs.prefixes(self._connection, [mail.blob_id], blobs.HEAD_OCTETS))[mail.blob_id]
            facts = await self._parse(mail, head)
        self._budget_octets -= len(head)
        self._budget_seconds -= time.monotonic() - started
        return facts

    async def _read_head(self, mail: FetchedMail, head: bytes, octets: int) -> routing.HeaderFacts | None:
        """Read a mail of which so many octets were loaded; None if it needs a longer read."""
        is_cut = len(head) == octets
        if is_cut and header_end(head) == octets:
            return None
        facts = await self._parse(mail, head)
        return None if is_cut and facts.is_notice else facts

    async def _parse(self, mail: FetchedMail, head: bytes) -> routing.HeaderFacts:
        if self._rules and mail.source == "fetched" and await self._parsing.run(len(head), is_junk, head, self._rules):
            self.junk.add(mail.id)
        return await self._parsing.run(len(head), routing.read_facts, head, self._externals.get(mail.external_id or 0))
