"""Runs Claws Mail on a virtual screen: its command line starts the action, and mails to send are in its queue."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.interop.mails import Letter
from tests.interop.programs import SECONDS, Client, Failed
from tests.interop.stand import Account

_FOLDERS = {"inbox": "inbox", "sent": "outbox", "draft": "draft", "queue": "queue", "trash": "trash"}
_TLS = {"none": 0, "implicit": 1, "starttls": 2}


def read(account: Account) -> list[bytes]:
    log = account.folder / "claws.log"
    _configure(account)
    with _running(account, "--receive-all"):
        _wait(lambda: b"): destroyed" in log.read_bytes())  # the session ended, as the debug log says
        return [file.read_bytes() for file in _numbered(account.folder / "Mail" / "inbox")]


def send(account: Account, letters: list[Letter]) -> None:
    _configure(account)
    queue = account.folder / "Mail" / "queue"
    for number, letter in enumerate(letters, 1):
        recipients = ",".join(f"<{recipient}>" for recipient in letter.recipients)
        orders = f"NF:0\nPS:10\nSRH:1\nPT:0\nS:{letter.author}\nSSV:{account.host}\nR:{recipients}\nMAID:1\n"
        orders += "X-Claws-End-Special-Headers: 1\n"
        (queue / str(number)).write_bytes(orders.encode() + letter.raw.replace(b"\r\n", b"\n"))
    with _running(account, "--send"):
        _wait(lambda: not _numbered(queue))


def _numbered(folder: Path) -> list[Path]:
    """Return the mails of an MH folder, whose names are numbers."""
    return sorted(folder.glob("[0-9]*"))


def _configure(account: Account) -> None:
    """Write the configuration of one account. Its certificate is trusted, as after a user has accepted it."""
    settings = account.folder / ".claws-mail"
    (settings / "certs").mkdir(parents=True)
    for name in _FOLDERS:
        (account.folder / "Mail" / name).mkdir(parents=True)
    items = "".join(f'<folderitem path="{name}" name="{name}" type="{kind}"/>' for name, kind in _FOLDERS.items())
    mailbox = f'<folder name="Mailbox" path="Mail" type="mh">{items}</folder>'
    (settings / "folderlist.xml").write_text(f'<?xml version="1.0"?>\n<folderlist>{mailbox}</folderlist>\n')
    (settings / "clawsrc").write_text("[Common]\nconfig_version=3\nreceive_dialog_mode=2\nsend_dialog_mode=1\n")
    (settings / "passwordstorerc").write_text(
        f"[account:1]\nrecv {account.password}\nsend {account.password}\n"  # the old format, without encryption
    )
    (settings / "accountrc").write_text(
        f"""\
[Account: 1]
config_version=3
account_name={account.user}
is_default=1
name=Alex
address={account.user}
protocol=0
receive_server={account.host}
smtp_server={account.host}
user_id={account.user}
inbox=#mh/Mailbox/inbox
remove_mail=0
get_all_mail=1
filter_on_receive=0
receive_at_get_all=1
use_smtp_auth=1
smtp_user_id={account.user}
ssl_pop={_TLS[account.tls]}
ssl_smtp={_TLS[account.tls]}
set_popport=1
pop_port={account.port}
set_smtpport=1
smtp_port={account.port}
"""
    )
    (settings / "certs" / f"{account.host}.{account.port}.cert").write_bytes(account.certificate)


@contextmanager
def _running(account: Account, order: str) -> Iterator[None]:
    with _screen() as display, (account.folder / "claws.log").open("wb") as log:
        environment = {"PATH": os.environ["PATH"], "HOME": str(account.folder), "LC_ALL": "C.UTF-8", "DISPLAY": display}
        environment |= {"SSL_CERT_FILE": str(account.ca_file), "NO_AT_BRIDGE": "1"}
        program = subprocess.Popen(
            ["claws-mail", "--debug", order],
            cwd=account.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            yield
        finally:
            program.kill()  # a normal end asks for confirmation; all data is in the folder
            program.wait()


@contextmanager
def _screen() -> Iterator[str]:
    """Run a virtual screen for the block. Yield the name of its display."""
    reading, writing = os.pipe()
    try:
        server = subprocess.Popen(
            ["Xvfb", "-displayfd", str(writing), "-screen", "0", "1024x768x24", "-nolisten", "tcp"],
            pass_fds=[writing],
            stderr=subprocess.DEVNULL,
        )
    finally:
        os.close(writing)
    try:
        with os.fdopen(reading) as chosen:
            number = chosen.readline().strip()  # written when Xvfb is ready; empty if it cannot start
        if not number:
            raise Failed("Xvfb does not start")
        yield f":{number}"
    finally:
        server.terminate()
        server.wait()


def _wait(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not done():
        if time.monotonic() > deadline:
            raise Failed(f"not done after {SECONDS:g} s")
        time.sleep(0.1)


CLAWS = Client("Claws Mail", ("claws-mail", "--version"), read, send)
