"""Tests the command-line mail programs by IMAP in each TLS mode, on the running system."""

from __future__ import annotations

import secrets
import tempfile
from pathlib import Path

from tests.interop.imap_program import ImapProgram
from tests.interop.programs import Failed, version_of
from tests.interop.stand import WAYS, Stand, Tls, compared
from tests.interop.table import ImapRow


def reading(stand: Stand, program: ImapProgram, tls: Tls) -> str | None:
    """Read the three mails with a program. :return: the problem; "": none; None: it does not support the mode."""
    if program.read is None or tls not in program.reads:
        return None
    with tempfile.TemporaryDirectory(prefix="interop-") as folder:
        try:
            return compared(stand.waiting, program.read(stand.account("imap", tls, Path(folder))))
        except (Failed, OSError) as error:
            return str(error)


def changing(stand: Stand, program: ImapProgram) -> str | None:
    """Let a program store mails, and what else it changes, in a folder of its own. :return: as ``reading``."""
    if program.change is None:
        return None
    session = stand.session()
    name = f"Interop{secrets.token_hex(4)}"
    session.create(name)
    session.subscribe(name)
    with tempfile.TemporaryDirectory(prefix="interop-") as folder:
        try:
            account = stand.account("imap", program.reads[-1], Path(folder))
            return program.change(account, session, name, stand.letters())
        except (Failed, OSError, AssertionError) as error:
            return str(error) or repr(error)
        finally:
            session.logout()


def imap_row(stand: Stand, program: ImapProgram) -> ImapRow:
    """Test a program in all TLS modes."""
    read = [reading(stand, program, tls) for tls in WAYS]
    return ImapRow(program.name, version_of(program.version), read, changing(stand, program))
