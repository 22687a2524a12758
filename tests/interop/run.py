"""Tests clients and servers, prints each result, and writes docs/interoperation.md after a full run.

    python -m tests.interop.run                all of them
    python -m tests.interop.run mutt Courier   only these; no file is written
    python -m tests.interop.run --write mutt   only this one; its rows in the page are replaced

The exit status is 1 after a failed transfer, 2 for an unknown name.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from tests.interop import table, upstream
from tests.interop.alpine import ALPINE
from tests.interop.claws import CLAWS
from tests.interop.evolution import EVOLUTION
from tests.interop.imap_programs import IMAP_PROGRAMS
from tests.interop.imap_run import imap_row
from tests.interop.mails import difference, difference_in_content
from tests.interop.programs import PROGRAMS, Client, Failed, version_of
from tests.interop.roundcube import ROUNDCUBE
from tests.interop.stand import OUTSIDE, WAYS, Stand, Tls, as_relayed, compared, stand
from tests.interop.table import AnyRow, Row
from tests.interop.thunderbird import THUNDERBIRD, THUNDERBIRD_AT_WORK, THUNDERBIRD_BY_IMAP
from tests.interop.work import work_row
from tests.system import System

CLIENTS = (THUNDERBIRD, CLAWS, *PROGRAMS)
BY_IMAP = (THUNDERBIRD_BY_IMAP, EVOLUTION, ALPINE, *IMAP_PROGRAMS)
WORK_PROGRAMS = (THUNDERBIRD_AT_WORK, ROUNDCUBE)
S = TypeVar("S")
P = TypeVar("P")
T = TypeVar("T", bound=AnyRow)


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
    write, names = not names or "--write" in names, [name for name in names if name != "--write"]
    known = [one.name for one in (*CLIENTS, *BY_IMAP, *WORK_PROGRAMS)] + list(upstream.NAMES)
    if unknown := [name for name in names if name not in known]:
        print(f"unknown: {', '.join(unknown)}; known: {', '.join(dict.fromkeys(known))}", file=sys.stderr)
        return 2

    def wanted(name: str) -> bool:
        return not names or name in names

    with stand() as running:
        clients = [_tested("", client_row, running, one) for one in CLIENTS if wanted(one.name)]
        by_imap = [
            _tested(" by IMAP", imap_row, running, one)
            for one in BY_IMAP
            if wanted(one.name) and (one.in_debian or shutil.which(one.version[0]))
        ]
        at_work = [_tested(" at work", work_row, running, one) for one in WORK_PROGRAMS if wanted(one.name)]
        servers = [_tested("", server_row, running.system, name) for name in upstream.NAMES if wanted(name)]
    if write:
        before = table.FILE.read_text(encoding="utf-8") if names else ""
        table.FILE.write_text(table.page(clients, by_imap, at_work, servers, before), encoding="utf-8")
    rows: list[AnyRow] = [*clients, *by_imap, *at_work, *servers]
    return 1 if any(row.problems for row in rows) else 0


def _tested(how: str, test: Callable[[S, P], T], stand: S, program: P) -> T:
    started = time.monotonic()
    row = test(stand, program)
    seconds = time.monotonic() - started
    print(f"{row.name} {row.version}{how}: {'; '.join(row.problems) or 'no problems'} ({seconds:.0f} s)", flush=True)
    return row


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
