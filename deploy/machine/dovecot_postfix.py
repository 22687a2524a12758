"""A stand-in for the mail provider and for the internet behind it: a real Dovecot and a real Postfix, both private.

An address with a mailbox here is deliverable in any domain, every other one is refused with 550; no mail leaves the
machine. Mail that the gateway relays as support@company.com therefore reaches the customer's mailbox, and the
customer's mail reaches support@company.com. Postfix changes no header; it adds Return-Path, X-Original-To,
Delivered-To and Received.

Only root can start Postfix.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import secrets
import shutil
import ssl
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from deploy.machine import dovecot, ports
from deploy.machine.certificates import make_authority
from deploy.machine.programs import PATH, Process, Program, write_private
from deploy.machine.provider_config import dovecot_server, postfix_configuration, postfix_services
from shared.errors import Permanent, Temporary

_MAIL_USER = "mail"
_PACKAGES = {
    "dovecot-pop3d": "/usr/lib/dovecot/pop3",
    "dovecot-imapd": "/usr/lib/dovecot/imap",
    "postfix": "/usr/sbin/postfix",
}
"""Debian packages, each with a file of it."""
_START_SECONDS = 30.0
_PASS_ON_TERM = """trap 'kill $child' TERM; setsid "$@" & child=$!; wait $child; wait $child"""
_DOVECOT_REREADS_SECONDS = 2.1
"""Time until Dovecot has noticed a changed file of users: seconds; it checks time (in seconds) and size each second."""


class DemoProvider:
    """A context manager; the servers run while it is open.

    pop3_port, imap_port, smtp_port: plain and STARTTLS; pop3s_port, imaps_port, smtps_port: implicit TLS. AUTH PLAIN
    and LOGIN are checked if used, but not required. Folders of IMAP have names like ``A/B``; Drafts, Sent and Trash are
    marked as such (RFC 6154). ca_file: PEM of the authority that signed the servers' certificate, which is for
    localhost and 127.0.0.1. fingerprint: SHA-256 of that certificate, 64 hex digits.
    """

    def __init__(self, folder: Path, accounts: Sequence[tuple[str, str]] = (), seed: str = "") -> None:
        """:param folder: for mail, configuration and queue; users dovecot, postfix and mail must be able to reach it.
        :param accounts: addresses with their passwords. :param seed: the same one usually gives the same ports.
        """
        self.folder = folder
        self.host = "127.0.0.1"
        self.pop3_port, self.pop3s_port, self.smtp_port, self.smtps_port, self.imap_port, self.imaps_port = (
            ports.choose(6, seed or str(folder), ports.PROVIDER)
        )
        self.ca_file = folder / "tls" / "ca.pem"
        self.fingerprint = ""
        self._passwords = dict(accounts)
        self._changed = 0
        self._stack = ExitStack()
        self._processes: dict[str, Process] = {}

    def __enter__(self) -> Self:
        """Start both servers and wait until they answer.

        :raises Permanent: a package is missing, or this is not root. :raises Temporary: a server does not start.
        """
        if os.geteuid() != 0:
            raise Permanent("the stand-in provider needs root: Postfix can only be started by root")
        for package, file in _PACKAGES.items():
            if not Path(file).exists():
                raise Permanent(f"{package} is not installed: no {file}")
        with ExitStack() as stack:
            # Dovecot's sockets need a short path.
            self._run = Path(tempfile.mkdtemp(prefix="mailgroup-provider-"))
            stack.callback(shutil.rmtree, self._run, ignore_errors=True)
            self._run.chmod(0o755)
            self._prepare()
            for name in ("dovecot", "postfix"):
                self.start_program(name)
                stack.callback(self.stop_program, name)
            self._wait()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop both servers; mail and configuration stay in the folder."""
        self._stack.close()

    def start_program(self, name: str) -> None:
        """Start dovecot or postfix, also again after ``stop_program``."""
        program = next(program for program in self._programs() if program.name == name)
        self._processes[name] = program.start(self.folder / f"{name}.out")

    def stop_program(self, name: str) -> None:
        """Stop dovecot or postfix."""
        self._processes[name].stop()

    def add_mailbox(self, address: str, password: str) -> None:
        """Create a mailbox, or change its password; effective when it returns."""
        changed = self._passwords.get(address, password) != password
        self._passwords[address] = password
        self._write_accounts()
        if changed:
            time.sleep(_DOVECOT_REREADS_SECONDS)

    def mail_of(self, address: str) -> list[bytes]:
        """Return the mails of a mailbox in the order of their arrival, with LF line ends as in Maildirs."""
        mails = []
        for name in ("new", "cur"):
            for path in (self.maildir(address) / name).iterdir():
                mails.append((path.stat().st_mtime_ns, path.name, path.read_bytes()))
        return [content for _, _, content in sorted(mails)]

    def wait_for_mail(self, address: str, count: int = 1, seconds: float = 30.0) -> list[bytes]:
        """Wait for ``count`` mails, and return them as ``mail_of``. :raises TimeoutError: not within ``seconds``."""
        deadline = time.monotonic() + seconds
        while len(mails := self.mail_of(address)) < count:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{address} has {len(mails)} mails instead of {count} after {seconds:g} s")
            time.sleep(0.05)
        return mails

    def put(self, address: str, message: bytes) -> None:
        """Put a mail directly into a mailbox, without Postfix: fast, and byte for byte (LF or CRLF)."""
        maildir, name = self.maildir(address), f"{time.time_ns()}.{secrets.token_hex(4)}.provider"
        draft = maildir / "tmp" / name
        draft.write_bytes(message)
        _give_to_mail_user(draft)
        draft.rename(maildir / "new" / name)

    def queue(self) -> str:
        """Return the output of postqueue: mail that Postfix has accepted and not delivered."""
        return subprocess.run(
            ["postqueue", "-c", str(self.folder / "etc"), "-p"],
            check=True,
            capture_output=True,
            text=True,
            env={"PATH": PATH},
        ).stdout

    def maildir(self, address: str) -> Path:
        """Return the Maildir of a mailbox."""
        if address not in self._passwords:
            raise KeyError(f"the provider has no mailbox {address}")
        return self.folder / "mail" / address

    def _prepare(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        etc, queue, state = self.folder / "etc", self.folder / "queue", self.folder / "state"
        for path in (etc, queue, state, self.folder / "mail"):
            path.mkdir(exist_ok=True)
        shutil.chown(state, "postfix")
        self.fingerprint = _certificates(self.folder / "tls")
        pop3, imap = (self.pop3_port, self.pop3s_port), (self.imap_port, self.imaps_port)
        server = dovecot_server(self.folder, self._run, pop3, imap, _MAIL_USER)
        (etc / "dovecot.conf").write_text(dovecot.configuration(server, dovecot.installed_version()), encoding="utf-8")
        (etc / "main.cf").write_text(
            postfix_configuration(self.folder, self._run, pwd.getpwnam(_MAIL_USER), _database_type()), encoding="utf-8"
        )
        (etc / "master.cf").write_text(postfix_services(self.smtp_port, self.smtps_port), encoding="utf-8")
        (etc / "dynamicmaps.cf").touch()
        self._write_accounts()
        checked = subprocess.run(
            ["postfix", "-c", str(etc), "check"], capture_output=True, text=True, check=False, env={"PATH": PATH}
        )
        if checked.returncode:
            raise Temporary(f"postfix check: {checked.stderr.strip()}")

    def _write_accounts(self) -> None:
        """Write Dovecot's file for each account, and Postfix's list of addresses, which Postfix rereads on a change."""
        etc = self.folder / "etc"
        (etc / "users").mkdir(exist_ok=True)
        for address, password in self._passwords.items():
            for name in ("", "tmp", "new", "cur"):
                path = self.folder / "mail" / address / name
                path.mkdir(parents=True, exist_ok=True)
                _give_to_mail_user(path)
            user = etc / "users" / address
            write_private(user, f"{address}:{{PLAIN}}{password}\n")
            shutil.chown(user, "dovecot")
        boxes = etc / "mailboxes"
        boxes.write_text("".join(f"{address} {address}/\n" for address in self._passwords), encoding="utf-8")
        subprocess.run(["postmap", "-c", str(etc), f"{_database_type()}:{boxes}"], check=True, env={"PATH": PATH})
        # Postfix compares the time of change in seconds, so each change gets another second.
        self._changed = max(self._changed + 1, int(time.time()))
        for table in etc.glob("mailboxes.*"):
            os.utime(table, (self._changed, self._changed))

    def _programs(self) -> list[Program]:
        etc = self.folder / "etc"
        return [
            Program(
                "dovecot",
                ("dovecot", "-F", "-c", str(etc / "dovecot.conf")),
                {"PATH": PATH},
                self.folder,
                30,
                stop_seconds=10,
            ),
            # Postfix changes its user, which clears its parent-death signal (prctl(2)): a shell forwards the signal.
            Program(
                "postfix",
                ("sh", "-c", _PASS_ON_TERM, "sh", f"{_daemons()}/master", "-d", "-c", str(etc)),
                {"PATH": PATH},
                self.folder,
                31,
                stop_seconds=10,
            ),
        ]

    def _wait(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        for name, port, greeting in (
            ("dovecot", self.pop3_port, b"+OK"),
            ("dovecot", self.imap_port, b"* OK"),
            ("postfix", self.smtp_port, b"220"),
        ):
            while not ports.greets(port, greeting):
                self._processes[name].check()
                if time.monotonic() > deadline:
                    raise Temporary(f"{name} does not answer after {_START_SECONDS:g} s: {self.folder}/{name}.log")
                time.sleep(0.05)


def _certificates(folder: Path) -> str:
    """Create authority, certificate and key in this folder if missing, and return the certificate's fingerprint."""
    server = folder / "server.pem"
    if not server.exists():
        folder.mkdir(exist_ok=True)
        authority, certificate = make_authority(["localhost"], ["127.0.0.1"])
        (folder / "ca.pem").write_text(authority, encoding="ascii")
        write_private(server, certificate)  # certificate and key; Dovecot and Postfix read it as root
    text = server.read_text(encoding="ascii")
    pem = text[text.index("-----BEGIN CERTIFICATE") :]
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()


def _give_to_mail_user(path: Path) -> None:
    shutil.chown(path, _MAIL_USER, _MAIL_USER)


def _postconf(name: str) -> str:
    return subprocess.run(
        ["postconf", "-d", "-h", name], check=True, capture_output=True, text=True, env={"PATH": PATH}
    ).stdout.strip()


def _daemons() -> str:
    return _postconf("daemon_directory")


def _database_type() -> str:
    return _postconf("default_database_type")
