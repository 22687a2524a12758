"""The whole system for end-to-end tests: all that ``up`` runs, and a provider of real Dovecot and Postfix."""

from __future__ import annotations

import asyncio
import imaplib
import json
import poplib
import smtplib
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from email.message import Message
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import structlog
from typer.testing import CliRunner, Result

from deploy.machine.dovecot_postfix import DemoProvider
from deploy.machine.instance import Instance, with_free_ports
from services.admin.cli.app import app
from shared.settings import Settings
from tests.company import local

PASSWORD = "secret"
T = TypeVar("T")


class System:
    """A running gateway and its provider, as users and operators use them."""

    def __init__(self, instance: Instance, provider: DemoProvider, folder: Path) -> None:
        self.instance, self.provider, self.folder = instance, provider, folder
        self.settings = instance.settings
        self.password = PASSWORD  # of the local accounts

    # ---------------------------------------------------------------------------------------- the operator

    def run(self, *words: str, stdin: str = "") -> Result:
        """Run a command of the command line in this process, which is faster than in a new one."""
        with structlog.testing.capture_logs():  # a command changes the log's configuration, which is restored here
            command = partial(CliRunner(env={"COLUMNS": "200"}).invoke, app, [*words, *self._data()], stdin)
            if not _in_a_loop():
                return command()
            with ThreadPoolExecutor(1) as beside:  # Playwright's loop runs in this thread; a command has its own
                return beside.submit(command).result()

    def _data(self) -> list[str]:
        return ["--data", str(self.settings.data)]

    def json(self, *words: str) -> Any:
        """Run a command with --json and return its parsed output."""
        done = self.run(*words, "--json")
        assert done.stdout, done.stderr
        return json.loads(done.stdout)

    def apply(self, document: dict[str, Any], prune: bool = True) -> str:
        """Apply an accounts file by the command, and return its output."""
        file = self.folder / "accounts.json"
        file.write_text(json.dumps(document), encoding="utf-8")
        done = self.run("apply", str(file), *(["--prune"] if prune else []))
        assert done.exit_code == 0, done.output
        return done.stdout

    def external(self, address: str, **fields: Any) -> dict[str, Any]:
        """Create a mailbox at the provider. Return the fields of its external account, polled every second."""
        self.provider.add_mailbox(address, PASSWORD)
        server = {"host": self.provider.host, "tls": "none"}
        return {
            "address": address,
            "password": PASSWORD,
            "poll_seconds": 1,
            "hold": False,  # an account that is added again is on hold if it was so in an earlier test
            "pop3": server | {"port": self.provider.pop3_port},
            "smtp": server | {"port": self.provider.smtp_port},
        } | fields

    def external_by_imap(self, address: str, sent: str | None = None, **fields: Any) -> dict[str, Any]:
        """As ``external``, fetched by IMAP. :param sent: the folder that gets copies of sent mail; it is created."""
        entry = self.external(address, **fields)
        del entry["pop3"]
        imap = {"host": self.provider.host, "port": self.provider.imap_port, "tls": "none"}
        if sent is not None:
            with imaplib.IMAP4(self.provider.host, self.provider.imap_port) as owner:
                owner.login(address, PASSWORD)
                owner.create(sent)
            imap |= {"sent": sent, "answered": True}
        return entry | {"imap": imap | fields.get("imap", {})}

    def company(self) -> dict[str, Any]:
        """Return the accounts file of the company in the manual's section 4.3."""
        return {
            "external_accounts": [self.external("support@company.com"), self.external("sales@company.com")],
            "local_accounts": [
                local("Alex"),
                local("Jim"),
                local("Kim", "sales@company.com"),
                local("Tom", "sales@company.com"),
            ],
        }

    # ---------------------------------------------------------------------------------------- people

    def mails(self, address: str, password: str | None = None) -> list[bytes]:
        """Return the mails in a local account's mailbox, read by POP3, with CRLF line ends."""
        session = poplib.POP3("127.0.0.1", self.settings.pop3_port, timeout=60)
        try:
            session.user(address)
            session.pass_(password or self.password)
            return [b"\r\n".join(session.retr(number + 1)[1]) + b"\r\n" for number in range(session.stat()[0])]
        finally:
            session.quit()

    def who_has(self, token: str, people: list[str]) -> list[str]:
        """Return the people whose mailboxes have a mail with this text."""
        return [address for address in people if any(token.encode() in mail for mail in self.mails(address))]

    def submit(self, author: str, recipients: list[str], message: bytes | Message) -> None:
        """Submit a mail as a mail client does."""
        body = message if isinstance(message, bytes) else message.as_bytes()
        with smtplib.SMTP("127.0.0.1", self.settings.smtp_port, timeout=120) as smtp:
            smtp.login(author, self.password)
            smtp.sendmail(author, recipients, body)

    def empty(self) -> None:
        """Remove all accounts, and all mail at the provider: an account that is added again keeps its UIDL ledger.

        Held mail is discarded, and alarms are deleted: otherwise the people of the next test would get this mail, and
        notices that alarms of an earlier test are over.
        """
        self.password = PASSWORD
        self.apply({})
        for mail in self.json("held", "list"):
            done = self.run("parked", "discard", str(mail["id"]), "--reason", "of an earlier test")
            assert done.exit_code == 0, done.output
        with psycopg.connect(str(self.settings.database_url), autocommit=True) as connection:
            connection.execute("delete from alerts")
        for folder in ("new", "cur"):
            for mail in (self.provider.folder / "mail").glob(f"*/{folder}/*"):
                mail.unlink(missing_ok=True)


def _in_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def until(what: Callable[[], T], seconds: float = 600.0) -> T:
    """Call a function until its result is true, and return it. :raises AssertionError: not within ``seconds``."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s"
        time.sleep(0.1)
    return found


@contextmanager
def running(folder: Path, **settings: Any) -> Iterator[System]:
    """Run a system with a private data folder on free ports for the block."""
    base = Settings(data=folder / "data", allow_private_upstream=True, **settings)
    with (
        DemoProvider(folder / "provider") as provider,
        Instance(with_free_ports(base), say=lambda line: print(line, file=sys.stderr)) as instance,
    ):
        yield System(instance, provider, folder)
