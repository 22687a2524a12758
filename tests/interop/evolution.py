"""Reads and changes a mailbox by IMAP with Camel, the library with which Evolution does so."""

from __future__ import annotations

import imaplib
from pathlib import Path

from tests.interop.imap_program import ImapProgram, stored
from tests.interop.mails import Letter
from tests.interop.programs import run
from tests.interop.stand import Account, compared

_MODES = {"none": "NONE", "starttls": "STARTTLS_ON_STANDARD_PORT", "implicit": "SSL_ON_ALTERNATE_PORT"}
_SCRIPT = Path(__file__).with_name("camel_script.py")


def read(account: Account) -> list[bytes]:
    return _camel(account, "INBOX", {})


def change(account: Account, session: imaplib.IMAP4, folder: str, letters: list[Letter]) -> str:
    """New mails, a flag and a deletion."""
    one, two, three = letters
    left = _camel(account, folder, {"1-delete": one, "2-flag": two, "3": three})
    if why := compared([two, three], left):
        return f"Camel's view: {why}"
    found = stored(session, folder).values()
    flags = [head for head, mail in found if two.token.encode() in mail]
    if len(flags) != 1 or b"\\Flagged" not in flags[0]:
        return f"the mark is not on the server: {flags}"
    return compared([two, three], [mail for _, mail in found])


def _camel(account: Account, folder: str, new: dict[str, Letter]) -> list[bytes]:
    for name in ("new", "read"):
        (account.folder / name).mkdir()
    for name, letter in new.items():
        (account.folder / "new" / name).write_bytes(letter.raw)
    where = (account.host, str(account.port), _MODES[account.tls], account.user, account.password)
    run(["/usr/bin/python3", str(_SCRIPT), *where, str(account.ca_file), folder, str(account.folder)], account.folder)
    return [file.read_bytes() for file in sorted((account.folder / "read").iterdir())]


EVOLUTION = ImapProgram(
    "Evolution", ("dpkg-query", "--show", "--showformat=${Version}", "evolution-data-server"), read, change
)
