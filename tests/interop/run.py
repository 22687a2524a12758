"""Tests clients and servers, prints each result, and writes docs/interoperation.md after a full run.

    python -m tests.interop.run                all of them
    python -m tests.interop.run mutt Courier   only these; no file is written

The exit status is 1 after a failed transfer, 2 for an unknown name.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.interop import table, upstream
from tests.interop.claws import CLAWS
from tests.interop.imap_programs import IMAP_PROGRAMS
from tests.interop.imap_stand import imap_rows
from tests.interop.mails import difference, difference_in_content
from tests.interop.programs import PROGRAMS, Client, Failed, version_of
from tests.interop.stand import OUTSIDE, WAYS, Stand, Tls, as_relayed, compared, stand
from tests.interop.table import ImapRow, Row
from tests.interop.thunderbird import THUNDERBIRD
from tests.system import System

CLIENTS = (THUNDERBIRD, CLAWS, *PROGRAMS)


def reading(stand: Stand, client: Client, tls: Tls) -> str | None:
    """Read the three mails with a client. :return: the problem; "": none; None: the client does not support it."""
    if client.read is None or tls not in client.reads:
        return None
    with _folder() as folder:
        try:
            return compared(stand.waiting, client.read(stand.account("pop3", tls, folder)))
        except (Failed, OSError) as error:
            return str(error)


def sending(stand: Stand, client: Client, tls: Tls) -> str | None:
    """Send the three mails with a client to a colleague and a customer. :return: as ``reading``."""
    if client.send is None or tls not in client.sends:
        return None
    letters = stand.letters()
    with _folder() as folder:
        try:
            client.send(stand.account("smtp", tls, folder), letters)
            inside, outside = stand.received(letters)
        except (Failed, OSError) as error:  # TimeoutError is one
            return str(error)
    for letter in letters:
        for place, expected, got in (
            ("inside", letter.raw, inside[letter.token]),
            ("outside", as_relayed(letter.raw, OUTSIDE), outside[letter.token]),
        ):
            why = difference_in_content(letter, got) if client.composes else difference(expected, got)
            if why:
                return f"the {letter.kind} mail, {place}: {why}"
    return ""


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="interop-") as name:
        yield Path(name)


def client_row(stand: Stand, client: Client) -> Row:
    """Test a client in all TLS modes."""
    return Row(
        client.name,
        version_of(client.version),
        [reading(stand, client, tls) for tls in WAYS],
        [sending(stand, client, tls) for tls in WAYS],
        client.composes,
    )


def server_row(system: System, name: str) -> Row:
    """Test a provider's server in all TLS modes."""
    try:
        with upstream.provider(name, system) as provider:
            return Row(name, provider.version, *upstream.outcomes(system, provider))
    except Failed as error:
        return Row(name, "?", [str(error)] * (2 * len(WAYS)), [None] * len(WAYS))


def main(names: list[str]) -> int:
    """Test the named programs, or all of them. Return the exit status."""
    known = [one.name for one in (*CLIENTS, *IMAP_PROGRAMS)] + list(upstream.NAMES)
    if unknown := [name for name in names if name not in known]:
        print(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}", file=sys.stderr)
        return 2
    clients, servers = [], []
    by_imap: list[ImapRow] = []
    with stand() as running:
        for client in CLIENTS:
            if not names or client.name in names:
                clients.append(_printed(time.monotonic(), client_row(running, client)))
        for name in upstream.NAMES:
            if not names or name in names:
                servers.append(_printed(time.monotonic(), server_row(running.system, name)))
    if not names or any(program.name in names for program in IMAP_PROGRAMS):
        by_imap = asyncio.run(imap_rows(names))
        for row in by_imap:
            print(f"{row.name} {row.version} by IMAP: {'; '.join(row.problems) or 'no problems'}", flush=True)
    if not names:
        table.write(clients, by_imap, servers)
    rows: list[Row | ImapRow] = [*clients, *by_imap, *servers]
    return 1 if any(row.problems for row in rows) else 0


def _printed(started: float, row: Row) -> Row:
    seconds = time.monotonic() - started
    print(f"{row.name} {row.version}: {'; '.join(row.problems) or 'no problems'} ({seconds:.0f} s)", flush=True)
    return row


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
