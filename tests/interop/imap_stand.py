"""imap_out alone, with the three mails in a person's INBOX, for the mail programs that use it by IMAP."""

from __future__ import annotations

import asyncio
import imaplib
import secrets
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from tests import servers
from tests.imap_clients import PASSWORD as PASSWORD
from tests.imap_clients import ImapServerProcess, imap_server
from tests.interop.imap_programs import IMAP_PROGRAMS, ImapProgram
from tests.interop.mails import KINDS, Letter, letter
from tests.interop.programs import Failed, version_of
from tests.interop.stand import WAYS, Account, Tls, compared
from tests.interop.table import ImapRow

_READER, _AUTHOR = "alex@local.com", "anna@customer.example"


class ImapStand:
    """The running service. waiting: the mails in INBOX."""

    def __init__(self, server: ImapServerProcess, data: Path, waiting: list[Letter]) -> None:
        self._server = server
        self._data = data
        self.waiting = waiting

    def account(self, tls: Tls, folder: Path) -> Account:
        """Return the person's settings for this TLS mode."""
        port = self._server.implicit if tls == "implicit" else self._server.clear
        certificate = self._data / "tls" / "self-signed.pem"
        return Account("localhost", port, tls, _READER, PASSWORD, certificate, folder, 0, (0, 0))

    def letters(self) -> list[Letter]:
        """Return three new mails."""
        return [letter(kind, secrets.token_hex(6), _READER, (_AUTHOR,)) for kind in KINDS]

    def session(self) -> imaplib.IMAP4:
        """A session of the test, logged in."""
        client = imaplib.IMAP4("127.0.0.1", self._server.clear, timeout=60)
        client.login(_READER, PASSWORD)
        return client


@asynccontextmanager
async def imap_stand() -> AsyncIterator[ImapStand]:
    """Run the service with a PostgreSQL of its own for the block."""
    waiting = [letter(kind, secrets.token_hex(6), _AUTHOR, (_READER,)) for kind in KINDS]
    async with AsyncExitStack() as stack:
        databases = servers.Databases(stack.enter_context(servers.postgres()))
        url = stack.enter_context(databases.fresh())
        database = await stack.enter_async_context(servers.opened(url))
        data = stack.enter_context(servers.scratch())
        mails = [each.raw for each in waiting]
        yield ImapStand(await stack.enter_async_context(imap_server(url, database, data, mails)), data, waiting)


def reading(stand: ImapStand, program: ImapProgram, tls: Tls) -> str | None:
    """Read the three mails with a program. :return: the problem; "": none; None: it does not support the mode."""
    if program.read is None or tls not in program.reads:
        return None
    with tempfile.TemporaryDirectory(prefix="interop-") as folder:
        try:
            return compared(stand.waiting, program.read(stand.account(tls, Path(folder))))
        except (Failed, OSError) as error:
            return str(error)


def changing(stand: ImapStand, program: ImapProgram) -> str | None:
    """Let a program store mails, and what else it changes, in a folder of its own. :return: as ``reading``."""
    if program.change is None:
        return None
    session = stand.session()
    name = f"Interop{secrets.token_hex(4)}"
    session.create(name)
    with tempfile.TemporaryDirectory(prefix="interop-") as folder:
        try:
            return program.change(stand.account(program.reads[-1], Path(folder)), session, name, stand.letters())
        except (Failed, OSError, AssertionError) as error:
            return str(error) or repr(error)
        finally:
            session.logout()


async def imap_rows(names: list[str]) -> list[ImapRow]:
    """Test the named programs, or all of them."""
    rows = []
    async with imap_stand() as stand:
        for program in IMAP_PROGRAMS:
            if not names or program.name in names:
                rows.append(await asyncio.to_thread(_row, stand, program))
    return rows


def _row(stand: ImapStand, program: ImapProgram) -> ImapRow:
    read = [reading(stand, program, tls) for tls in WAYS]
    return ImapRow(program.name, version_of(program.version), read, changing(stand, program))
