"""Reads and changes a mailbox by IMAP with Alpine, whose keys are typed on a pseudo-terminal."""

from __future__ import annotations

from tests.interop.imap_program import ImapProgram
from tests.interop.programs import run_on_terminal
from tests.interop.stand import Account

_SELECT_ALL = b";a"


def read(account: Account) -> list[bytes]:
    box = account.folder / "box"
    save = b"as" + b"\x15" + str(box).encode() + b"\r"
    _alpine(
        account,
        "INBOX",
        (b"opened with", _SELECT_ALL),
        (b"selected", save),
        (b"Create", b"y"),
        (b"messages saved|DONE", b"q"),
    )
    return mails_of(box.read_bytes())


def mails_of(box: bytes) -> list[bytes]:
    """Return the mails of a file in the format mbox, in which an empty line follows each mail.

    The first one is not a mail: Alpine keeps data of the folder there.
    """
    return [mail.partition(b"\n")[2] for mail in (b"\n" + box + b"From ").split(b"\nFrom ")[2:-1]]


def _alpine(account: Account, folder: str, *typed: tuple[bytes, bytes]) -> None:
    words = {"none": "notls", "starttls": "tls", "implicit": "ssl"}[account.tls]
    (account.folder / "pinerc").write_text(
        f"""\
personal-name=Alex
inbox-path={{{account.host}:{account.port}/imap/{words}/user="{account.user}"}}{folder}
folder-collections=files {account.folder}/[]
feature-list=enable-aggregate-command-set,quit-without-confirm,save-will-not-delete,expunge-without-confirm
last-version-used=9.99
initial-keystroke-list=
"""
    )
    run_on_terminal(
        ["alpine", "-p", str(account.folder / "pinerc"), "-i"],
        account.folder,
        variables={"SSL_CERT_FILE": str(account.ca_file)},
        typed=[(b"PASSWORD", account.password.encode() + b"\r"), (b"Preserve password", b"n"), *typed],
    )


ALPINE = ImapProgram("alpine", ("alpine", "-v"), read)
