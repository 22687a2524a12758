"""Both servers with a fresh account for each stream, and the search for the first difference."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import replace

from deploy.machine.dovecot_postfix import DemoProvider
from shared.store import account_changes, folders
from tests.imap_clients import PASSWORD, ImapClient, ImapServerProcess
from tests.imap_oracle.duel import Difference, Duel
from tests.imap_oracle.shrink import shrink
from tests.imap_oracle.sides import LogIn, Side
from tests.imap_oracle.streams import FOLDERS, Step, make_stream


class OracleStand:
    """Runs streams against imap_out and Dovecot."""

    def __init__(self, server: ImapServerProcess, provider: DemoProvider) -> None:
        """:param server: without other clients."""
        self._server = server
        self._provider = provider
        self._numbers = itertools.count(1)

    async def compare(self, seed: int, length: int) -> str:
        """Run the stream of a seed. :return: "", or a report with the shortest stream that fails."""
        steps = make_stream(seed, length)
        if await self.run(steps) is None:
            return ""

        async def fails(shorter: Sequence[Step]) -> bool:
            return await self.run(shorter) is not None

        shortest = await shrink(steps, fails)
        found = await self.run(shortest)
        lines = "\n".join(map(str, shortest))
        return f"seed {seed}, shortened to {len(shortest)} of {len(steps)} steps:\n{lines}\n--- differs at {found}"

    async def run(self, steps: Sequence[Step]) -> Difference | None:
        """Run a stream on fresh accounts."""
        name = f"oracle{next(self._numbers)}"
        ours = Side("imap_out", await self._add_ours(f"{name}@local.com"))
        theirs = Side("Dovecot", await self._add_theirs(f"{name}@imap.test"))
        try:
            return await Duel(ours, theirs).run(steps)
        finally:
            await ours.close()
            await theirs.close()

    async def _add_ours(self, address: str) -> LogIn:
        server = self._server
        async with server.database.transaction() as connection:
            local = replace(server.alex, id=0, address=address, user_name=address.partition("@")[0])
            await folders.create_standard_folders(connection, await account_changes.save_local(connection, local))

        async def log_in() -> ImapClient:
            client = await server.connect()
            await client.ok(b'LOGIN %b "%b"' % (address.encode(), PASSWORD.encode()))
            return client

        return log_in

    async def _add_theirs(self, address: str) -> LogIn:
        await asyncio.to_thread(self._provider.add_mailbox, address, "secret")

        async def log_in() -> ImapClient:
            client = ImapClient(*await asyncio.open_connection("127.0.0.1", self._provider.imap_port, limit=1 << 26))
            client.greeting = await client.response()
            await client.ok(b"LOGIN %b secret" % address.encode())
            return client

        first = await log_in()
        for folder in FOLDERS[1:]:
            await first.run(b"CREATE " + folder.encode())
        await first.close()
        return log_in
