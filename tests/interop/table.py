"""The page docs/interoperation.md, from the results of a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

FILE = Path(__file__).resolve().parent.parent.parent / "docs" / "interoperation.md"

_INTRODUCTION = """\
# Mail programs that were tried with mailgroup

`make interop` writes this page, on a running system with real programs of Debian; nothing here is written by hand. It
takes about ten minutes. `./mailgroup interop mutt Courier` tries some of the programs; with `--write` it also replaces
their rows.

Each program transfers three mails: one with an empty body, one whose lines begin with dots, and one of 5 MB with an
attachment. "yes": all three arrived once, octet by octet. "–": the program has no such function. Certificates are
checked or pinned in every case.

## Mail clients

*Read*: by POP3, from the mailbox of a person; the mails came from a provider. Every octet is compared, except header
fields that the client adds for itself.

*Sent*: by SMTP with a password, to a colleague (delivered inside) and to a customer (relayed through the provider). If
the client gets a complete mail, every octet is compared, for the customer all but the two replaced addresses. If the
client writes the mail itself (*), its text and the octets of its attachment are compared.

Thunderbird gets only a name, an address and a password: it finds the servers by itself, as described in [mail
clients](mail-clients.md), and runs without a screen. Its ports without TLS, which no settings announce, are entered by
the test. Claws Mail runs by its command line on a virtual screen, and sends the mails in its queue.

"""
_IMAP = """
## Mail clients by IMAP

*Read*: from INBOX, every octet compared as above. *Changed*: the three mails are stored in a folder, every octet
compared. curl stores only. mutt, neomutt and Evolution also set a flag and delete. mbsync and offlineimap3 synchronise
the folder with a Maildir: new mails and flags in both directions, mbsync deletions, too. imapsync, which Debian does
not have, copies from one folder to another with flags and dates; its row is there if the machine has the command.
IMAPClient runs the tests that its authors wrote for IMAP servers (`imapclient.livetest`), all but four: two of them
fail with every server, one wants the flag `\\Recent`, which this server never sets, and one a new folder that is not
subscribed. Evolution runs without its windows: a script drives Camel, the library with which it reads mailboxes. Claws
Mail is not tried, as its command line does not read by IMAP.

"""
_WORK = """
## A day's work by IMAP

A customer has written to the team. A person reads the mail, answers as the team (the customer gets the answer from the
team's address, with a reference to the question), finds the answer once in Sent, although the program stores a copy of
its own, searches the text of the mails, saves a draft, moves a mail and deletes one. The server says after each step
whether it is so. The program is then set up once more, as on a second device, and shows the same mails as read.

Thunderbird finds the servers by itself, as above. Roundcube runs with PHP's web server and SQLite and the lines of
[mail clients](mail-clients.md), and is used in Chromium.

"""
_SERVERS = """
## Providers' servers

*Fetched*: by our fetcher, every octet compared; the mail is then deleted from the server. *Sent*: relayed by our
sender, with a password; every octet compared, except the replaced address and header fields that the server adds.

"""
_CLIENT_HEAD = ("client", "version", "read: in clear", "STLS", "TLS", "sent: in clear", "STARTTLS", "TLS")
_IMAP_HEAD = ("client", "version", "read: in clear", "STARTTLS", "TLS", "changed")
_WORK_HEAD = (
    *("client", "version", "read", "answered as the team", "once in Sent", "found", "draft", "moved", "deleted"),
    "read marks on a second device",
)
_SERVER_HEAD = (
    *("server", "version", "fetched by POP3: in clear", "STLS", "TLS", "by IMAP: in clear", "STARTTLS", "TLS"),
    *("sent: in clear", "STARTTLS", "TLS"),
)


@dataclass(frozen=True, slots=True)
class Row:
    """The results of a client or a server."""

    name: str
    version: str
    read: Sequence[
        str | None
    ]  # the problem in each TLS mode, for a server by POP3, then by IMAP; "": none; None: cannot
    sent: Sequence[str | None]  # as read
    composes: bool = False  # the client writes the mails that it sends

    @property
    def problems(self) -> list[str]:
        """All problems."""
        return [why for why in (*self.read, *self.sent) if why]

    def cells(self) -> list[str]:
        """Return the cells of the row in the table."""
        star = "*" if self.composes else ""
        return [self.name, self.version, *map(_cell, self.read), *(_cell(why, star) for why in self.sent)]


@dataclass(frozen=True, slots=True)
class ImapRow:
    """The results of a client by IMAP. read: as in ``Row``. changed: likewise."""

    name: str
    version: str
    read: Sequence[str | None]
    changed: str | None

    @property
    def problems(self) -> list[str]:
        """All problems."""
        return [why for why in (*self.read, self.changed) if why]

    def cells(self) -> list[str]:
        """Return the cells of the row in the table."""
        return [self.name, self.version, *map(_cell, self.read), _cell(self.changed)]


@dataclass(frozen=True, slots=True)
class WorkRow:
    """The results of a day's work. steps: the problem of each; "": none."""

    name: str
    version: str
    steps: Sequence[str]

    @property
    def problems(self) -> list[str]:
        """All problems."""
        return [why for why in self.steps if why]

    def cells(self) -> list[str]:
        """Return the cells of the row in the table."""
        return [self.name, self.version, *map(_cell, self.steps)]


AnyRow = Row | ImapRow | WorkRow


def _cell(why: str | None, star: str = "") -> str:
    if why is None:
        return "–"
    return "no: " + " ".join(why.replace("|", "/").split()) if why else f"yes{star}"


def page(
    clients: Iterable[Row], by_imap: Iterable[ImapRow], at_work: Iterable[WorkRow], servers: Iterable[Row], text: str
) -> str:
    """Return the whole page.

    :param text: the page as it was; rows of programs that were not tested are kept from it. "": there is none.
    """
    return "".join(
        introduction + _table(head, rows, _stored(text, head))
        for introduction, head, rows in (
            (_INTRODUCTION, _CLIENT_HEAD, clients),
            (_IMAP, _IMAP_HEAD, by_imap),
            (_WORK, _WORK_HEAD, at_work),
            (_SERVERS, _SERVER_HEAD, servers),
        )
    )


def _stored(text: str, head: Sequence[str]) -> dict[str, str]:
    """Return the lines of the table with this head, by the name of the program."""
    _, _, rest = text.partition(_line(head) + _line(["---"] * len(head)))
    lines = takewhile(lambda line: line.startswith("| "), rest.splitlines(keepends=True))
    return {line.split(" | ")[0].removeprefix("| "): line for line in lines}


def _table(head: Sequence[str], rows: Iterable[AnyRow], stored: dict[str, str]) -> str:
    lines = stored | {row.name: _line(row.cells()) for row in rows}
    return _line(head) + _line(["---"] * len(head)) + "".join(lines.values())


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |\n"
