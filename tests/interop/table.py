"""docs/interoperation.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).resolve().parent.parent.parent / "docs" / "interoperation.md"

_INTRODUCTION = """\
# Who was tried with mailgroup

Made by `make interop`, on a running system with real programs of Debian: nothing here is written by hand. It takes
about two minutes; `./mailgroup interop mutt Courier` tries some of them.

Each moves three mails: one with an empty body, one whose lines begin with dots, and one of 5 MB with an attachment.
"yes": all three arrived once, with their octets. "–": the program cannot. Certificates are checked, or pinned,
everywhere.

## Mail clients

Read: by POP3, from the mailbox of a person; the mails came from a provider. Every octet is compared, but for header
fields that the client puts on for itself.

Sent: by SMTP with a password, to a colleague (delivered inside) and to a customer (relayed through the provider).
Where the client is given a mail, every octet is compared, and for the customer all but the two replaced addresses;
where it writes the mail itself (*), its text and the octets of its attachment are.

Thunderbird is given a name, an address and a password only: it finds the servers by itself, as [mail
clients](mail-clients.md) tells, and is driven without a screen; the ports without TLS, which it is never told, are
set by hand. Claws Mail is driven by its command line on a virtual screen; it sends what lies in its queue.

"""
_SERVERS = """
## Providers' servers

Fetched: by our fetcher, every octet compared, and deleted from the server then. Sent: relayed by our sender, with a
password; every octet compared but for the replaced address and for header fields that the server puts on.

"""
_CLIENT_HEAD = ("client", "version", "read: in clear", "STLS", "TLS", "sent: in clear", "STARTTLS", "TLS")
_SERVER_HEAD = ("server", "version", "fetched: in clear", "STLS", "TLS", "sent: in clear", "STARTTLS", "TLS")


@dataclass(frozen=True, slots=True)
class Row:
    """What came of a client or a server: what was wrong, in each of the ways; empty if nothing was, None if it cannot.

    composes: it writes the mails that it sends.
    """

    name: str
    version: str
    read: Sequence[str | None]
    sent: Sequence[str | None]
    composes: bool = False

    @property
    def problems(self) -> list[str]:
        """What was wrong."""
        return [why for why in (*self.read, *self.sent) if why]

    def cells(self) -> list[str]:
        """As they stand in the table."""
        star = "*" if self.composes else ""
        return [self.name, self.version, *map(_cell, self.read), *(_cell(why, star) for why in self.sent)]


def _cell(why: str | None, star: str = "") -> str:
    if why is None:
        return "–"
    return "no: " + " ".join(why.replace("|", "/").split()) if why else f"yes{star}"


def write(clients: Iterable[Row], servers: Iterable[Row]) -> None:
    """The whole page."""
    text = _INTRODUCTION + _table(_CLIENT_HEAD, clients) + _SERVERS + _table(_SERVER_HEAD, servers)
    FILE.write_text(text, encoding="utf-8")


def _table(head: Sequence[str], rows: Iterable[Row]) -> str:
    lines = [head, ["---"] * len(head), *(row.cells() for row in rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
