"""A mail client by IMAP that keeps books of all it was answered: flags, copies, moves, drafts, deletions.

It works on the mailbox of one person, beside clients by POP3. Each session reads what is new and makes some changes.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from random import Random

from tests.faults.books import digest
from tests.faults.clients import PASSWORD, PATIENCE_SECONDS, Gone, Refused
from tests.faults.imap_books import FolderBooks
from tests.imap_clients import ImapClient

WORK, ARCHIVE = "Work", "Archive"
"""A folder that the client makes, and one that takes mail from INBOX."""
READ_AT_ONCE = 20
"""Mails that one session reads, from each folder."""
FLAGS = (b"\\Seen", b"\\Flagged", b"\\Answered", b"Own")


class ImapReader:
    """The client of one person.

    :ivar folders: its books. :ivar refusals: permanent refusals of what is allowed. :ivar answered: changes by name.
    """

    def __init__(self, port: int, address: str, chance: Random, *, moves: bool) -> None:
        """:param moves: take mail out of INBOX. False: other clients delete its mail."""
        self.folders = {name: FolderBooks(f"{address} {name}") for name in ("INBOX", WORK, ARCHIVE)}
        self.folders["INBOX"].shared = not moves
        self.refusals: list[str] = []
        self.answered: Counter[str] = Counter()
        self._port, self._address, self._chance, self._moves = port, address, chance, moves
        self._mails: dict[str, bytes] = {}  # octets by digest
        self._numbers = 0

    @property
    def wrong(self) -> list[str]:
        """What contradicts the books."""
        return [line for books in self.folders.values() for line in books.wrong]

    async def work(self) -> None:
        """One session. :raises Gone: it was cut, or what was asked cannot be done now."""
        await self._session(self._change_all)

    async def read_all(self) -> dict[str, list[bytes]]:
        """Return the mails of each folder, of Sent too. :raises Gone: as ``work``."""
        found: dict[str, list[bytes]] = {}

        async def read(client: ImapClient) -> None:
            for name, books in self.folders.items():
                await self._open(client, books, name)
                while unread := books.unread():
                    await self._read(client, books, unread[:READ_AT_ONCE])
                found[name] = [
                    self._mails[mail.digest] for mail in books.mails.values() if mail.digest and not mail.is_gone
                ]
            await self._ask(client, b"EXAMINE Sent")
            responses = await self._ask(client, b"UID FETCH 1:* BODY.PEEK[]")
            found["Sent"] = [_literal(response) for response in responses if b" FETCH (" in response]

        await self._session(read)
        return found

    async def _session(self, use: Callable[[ImapClient], Awaitable[None]]) -> None:
        client = None
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                client = ImapClient(*await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 26))
                client.greeting = await client.response()
            if not client.greeting.startswith(b"* OK"):
                raise Gone(client.greeting.decode("latin-1"))
            await self._ask(client, f"LOGIN {self._address} {PASSWORD}".encode())
            await use(client)
        except (OSError, EOFError, TimeoutError, ValueError) as error:
            raise Gone(repr(error)) from error
        finally:
            if client is not None:
                await client.close()

    async def _ask(self, client: ImapClient, command: bytes) -> list[bytes]:
        """Run a command. :raises Gone: it failed for now. :raises Refused: it was refused for good."""
        return (await self._run(client, command))[0]

    async def _run(self, client: ImapClient, command: bytes) -> tuple[list[bytes], bytes]:
        async with asyncio.timeout(PATIENCE_SECONDS):
            untagged, answer = await client.run(command)
        self._judge(command, answer)
        return untagged, answer

    def _judge(self, command: bytes, answer: bytes) -> None:
        if answer.startswith(b"OK"):
            return
        words = f"{self._address}: {command[:40].decode('latin-1')}: {answer.decode('latin-1')}"
        if b"[UNAVAILABLE]" in answer or answer.startswith(b"* BYE"):
            raise Gone(words)
        self.refusals.append(words)
        raise Refused(words)

    # ------------------------------------------------------------------------------------------ a session

    async def _change_all(self, client: ImapClient) -> None:
        if WORK.encode() not in b" ".join(await self._ask(client, b'LIST "" ' + WORK.encode())):
            await self._ask(client, b"CREATE " + WORK.encode())
        inbox, work, archive = self.folders.values()
        await self._open(client, inbox, "INBOX")
        await self._read(client, inbox, inbox.unread()[:READ_AT_ONCE])
        await self._flag(client, inbox)
        await self._transfer(client, b"COPY", inbox, work, WORK)
        if self._moves:
            await self._transfer(client, b"MOVE", inbox, archive, ARCHIVE)
        await self._open(client, work, WORK)
        await self._read(client, work, work.unread()[:READ_AT_ONCE])
        await self._flag(client, work)
        await self._expunge(client, work)
        await self._append(client, work)
        if self._moves:
            await self._open(client, archive, ARCHIVE)
            await self._read(client, archive, archive.unread()[:READ_AT_ONCE])

    async def _open(self, client: ImapClient, books: FolderBooks, name: str) -> None:
        shown = b" ".join(await self._ask(client, b"SELECT " + name.encode() + b" (CONDSTORE)"))
        numbers = [
            int(re.findall(rb"%b (\d+)" % word, shown)[0]) for word in (b"UIDVALIDITY", b"UIDNEXT", b"HIGHESTMODSEQ")
        ]
        books.select(*numbers)
        listed = {}
        for response in await self._ask(client, b"UID FETCH 1:* (UID FLAGS)"):
            found = re.match(rb"\* \d+ FETCH \(UID (\d+) FLAGS \(([^)]*)\)", response)
            if found:
                listed[int(found[1])] = frozenset(found[2].split())
        books.compare_list(listed, numbers[1])

    async def _read(self, client: ImapClient, books: FolderBooks, uids: list[int]) -> None:
        if not uids:
            return
        named = b",".join(b"%d" % uid for uid in uids)
        read = set()
        for response in await self._ask(client, b"UID FETCH %b (UID BODY.PEEK[])" % named):
            found = re.match(rb"\* \d+ FETCH \(UID (\d+) BODY\[\] ", response)
            if found:
                mail = _literal(response)
                self._mails[digest(mail)] = mail
                books.read(int(found[1]), digest(mail))
                read.add(int(found[1]))
        if books.shared:  # others have deleted the rest
            for uid in set(uids) - read:
                books.mails[uid].is_gone = True

    # ------------------------------------------------------------------------------------------ changes

    def _some(self, uids: list[int], most: int) -> list[int]:
        return sorted(self._chance.sample(uids, min(len(uids), self._chance.randint(1, most))))

    async def _flag(self, client: ImapClient, books: FolderBooks) -> None:
        uids = self._some(books.steady(), 10)
        if not uids:
            return
        chosen = self._chance.sample(FLAGS, 2)
        adds = self._chance.random() < 0.7
        books.begin_flags(uids)
        named = b",".join(b"%d" % uid for uid in uids)
        await self._ask(
            client, b"UID STORE %b %bFLAGS.SILENT (%b)" % (named, b"+" if adds else b"-", b" ".join(chosen))
        )
        books.end_flags(uids, chosen if adds else (), () if adds else chosen)
        self.answered["flags"] += 1

    async def _append(self, client: ImapClient, books: FolderBooks) -> None:
        self._numbers += 1
        mail = b"Subject: draft-%d\r\n\r\n" % self._numbers + b"A line of a draft.\r\n" * self._chance.choice((1, 9000))
        async with asyncio.timeout(PATIENCE_SECONDS):
            answer = await client.append(mail, b"%b (\\Draft)" % WORK.encode())
        self._judge(b"APPEND", answer)
        found = re.search(rb"\[APPENDUID \d+ (\d+)\]", answer)
        assert found is not None, answer
        self._mails[digest(mail)] = mail
        books.add(int(found[1]), digest(mail), frozenset((b"\\Draft",)))
        self.answered["append"] += 1

    async def _transfer(
        self, client: ImapClient, command: bytes, source: FolderBooks, target: FolderBooks, name: str
    ) -> None:
        uids = self._some(source.steady(), 3)
        if not uids:
            return
        if command == b"MOVE":
            source.begin_removal(uids)
        named = b",".join(b"%d" % uid for uid in uids)
        untagged, answer = await self._run(client, b"UID %b %b %b" % (command, named, name.encode()))
        found = re.search(rb"\[COPYUID \d+ (\S+) (\S+)\]", b" ".join((*untagged, answer)))
        pairs = list(zip(*map(_numbers, found.groups()), strict=True)) if found else []
        if command == b"MOVE":
            source.end_removal(uids)
        for old, new in pairs:
            target.add(new, source.mails[old].digest, source.mails[old].flags)
        if not source.shared and [old for old, _ in pairs] != uids:
            source.wrong.append(f"{source.name}: {command.decode()} took {pairs} of {uids}")
        self.answered[command.decode().lower()] += 1

    async def _expunge(self, client: ImapClient, books: FolderBooks) -> None:
        uids = self._some(books.steady(), 2)
        if not uids or self._chance.random() < 0.5:
            return
        books.begin_flags(uids)
        books.begin_removal(uids)
        named = b",".join(b"%d" % uid for uid in uids)
        await self._ask(client, b"UID STORE %b +FLAGS.SILENT (\\Deleted)" % named)
        await self._ask(client, b"UID EXPUNGE " + named)
        books.end_removal(uids)
        self.answered["expunge"] += 1


def _literal(response: bytes) -> bytes:
    """Return the literal of a response that has one."""
    found = re.search(rb"\{(\d+)\}\r\n", response)
    assert found is not None, response[:100]
    return response[found.end() : found.end() + int(found[1])]


def _numbers(numbers: bytes) -> list[int]:
    """Return the numbers of a set such as ``1:3,7``."""
    found: list[int] = []
    for part in numbers.split(b","):
        first, _, last = part.partition(b":")
        found += range(int(first), int(last or first) + 1)
    return found
