"""The programs that mailgroup is compared with, as packaged by Debian: Dovecot, Postfix, and Postfix's smtp-sink.

They are configured for speed, with their default durability: Dovecot in its manual's high-performance mode, with a
cheap password scheme and a login cache; Postfix with queue and SASL on this machine and without lookups. All listen on
the loopback interface only. Servers that change their user need root.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from bench.processes import processor_seconds
from deploy.machine import dovecot, ports
from deploy.machine.dovecot import USER, DovecotServer
from deploy.machine.programs import PATH, Process, Program
from deploy.machine.provider_config import POSTFIX_PROGRAMS
from shared.errors import Permanent, Temporary

PORTS = range(28_000, 31_000)
PASSWORD = "secret"
USERS = 16
"""Users of each kind, such as u0 to u15."""
KINDS = "ula"
"""Kinds of users: with mails of 10 KB, with large mails, and those whose clients store mails by APPEND."""

_START_SECONDS = 30.0
# A program that changes its user loses its parent-death signal (prctl(2)): this shell forwards the signal.
_PASS_ON_TERM = ("sh", "-c", """trap 'kill $child' TERM; setsid "$@" & child=$!; wait $child; wait $child""", "sh")
_NEEDED = {
    "dovecot-pop3d": "/usr/lib/dovecot/pop3",
    "dovecot-imapd": "/usr/lib/dovecot/imap",
    "postfix": "/usr/sbin/postfix",
    "mpop": "/usr/bin/mpop",
    "fetchmail": "/usr/bin/fetchmail",
    "maildrop": "/usr/bin/maildrop",
    "getmail6": "/usr/bin/getmail",
    "isync": "/usr/bin/mbsync",
}


def require() -> None:
    """Check what the benchmarks need. :raises Permanent: this is not root, or it names the missing Debian packages."""
    if os.geteuid() != 0:
        raise Permanent("the benchmark needs root: Dovecot, Postfix, and fetchers run as users of their own")
    missing = [package for package, file in _NEEDED.items() if not Path(file).exists()]
    if missing:
        raise Permanent(f"these Debian packages are missing: {', '.join(missing)}; 'make bench' installs them")


class Baseline(ABC):
    """A server that runs while it is open as a context. folder: of its files; its users must be able to reach it."""

    name = ""
    greeting = b""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        (self.port,) = ports.choose(1, str(folder), PORTS)
        self._process: Process | None = None

    @abstractmethod
    def program(self) -> Program:
        """Return the program to start, in the foreground."""

    @property
    def pid(self) -> int:
        """Id of the server's first process, the ancestor of the others."""
        assert self._process is not None
        return self._process.child.pid

    def start(self) -> None:
        """Start it, and wait until it answers. :raises Temporary: it does not."""
        self._process = self.program().start(self.folder / "out")
        deadline = time.monotonic() + _START_SECONDS
        while not ports.greets(self.port, self.greeting):
            self._process.check()
            if time.monotonic() > deadline:
                raise Temporary(f"{self.name} does not answer after {_START_SECONDS:g} s: {self.folder}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop it; its files stay."""
        if self._process is not None:
            self._process.stop()

    def restart(self) -> None:
        """Stop and start it, which empties its memory."""
        self.stop()
        self.start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


class Dovecot(Baseline):
    """POP3 and IMAP with Maildirs, and the authentication for Postfix.

    Users: see ``USERS``, and those of single benchmarks.
    """

    name = "dovecot"
    greeting = b"+OK"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        (self.imap_port,) = ports.choose(1, f"{folder} imap", PORTS)
        users = [f"{kind}{number}" for kind in KINDS for number in range(USERS)] + [
            "big", "searched", "source", "some", "few", "fewest", "polled10", "polled1000", "sized10240", "sized75000",
        ]  # fmt: skip
        (folder / "mail").mkdir(exist_ok=True)
        shutil.chown(folder / "mail", "mail", "mail")
        (folder / "passwd").write_text("".join(f"{user}:{{PLAIN}}{PASSWORD}\n" for user in users), encoding="ascii")
        text = dovecot.configuration(_dovecot(folder, self.port, self.imap_port), dovecot.installed_version())
        (folder / "dovecot.conf").write_text(text, encoding="utf-8")

    def maildir(self, user: str) -> Path:
        """Return the Maildir of a user."""
        return self.folder / "mail" / user / "Maildir"

    @property
    def auth_socket(self) -> Path:
        """Socket at which Postfix verifies logins."""
        return self.folder / "run" / "auth-client"

    def program(self) -> Program:
        return Program(
            "dovecot", ("dovecot", "-F", "-c", str(self.folder / "dovecot.conf")), {"PATH": PATH}, self.folder, 40,
            stop_seconds=10,
        )  # fmt: skip


class Postfix(Baseline):
    """SMTP reception into the hold queue: durable, and nothing is relayed until ``release``."""

    name = "postfix"
    greeting = b"220"

    def __init__(self, folder: Path, relay_port: int, auth_socket: Path | None = None) -> None:
        """:param relay_port: where released mail goes. :param auth_socket: a Dovecot's; None: no AUTH."""
        super().__init__(folder)
        for name in ("etc", "queue", "state"):
            (folder / name).mkdir(exist_ok=True)
        shutil.chown(folder / "state", "postfix")
        self._etc, self._queue = folder / "etc", folder / "queue"
        (self._etc / "dynamicmaps.cf").touch()
        (self._etc / "main.cf").write_text(_postfix(folder, relay_port, auth_socket), encoding="utf-8")
        (self._etc / "master.cf").write_text(_postfix_services(self.port), encoding="utf-8")
        done = subprocess.run(
            ["postfix", "-c", str(self._etc), "check"], capture_output=True, text=True, check=False, env={"PATH": PATH}
        )
        if done.returncode:
            raise Temporary(f"postfix check: {done.stderr.strip()}")

    def program(self) -> Program:
        daemons = subprocess.run(
            ["postconf", "-d", "-h", "daemon_directory"], check=True, capture_output=True, text=True, env={"PATH": PATH}
        ).stdout.strip()
        return Program(
            "postfix", (*_PASS_ON_TERM, f"{daemons}/master", "-d", "-c", str(self._etc)),
            {"PATH": PATH}, self.folder, 41, stop_seconds=10,
        )  # fmt: skip

    def held(self) -> list[Path]:
        """Return the files of the mails in the hold queue."""
        return [entry for entry in (self._queue / "hold").rglob("*") if entry.is_file()]

    def clear(self) -> None:
        """Delete the mails in the hold queue."""
        for file in self.held():
            file.unlink()

    def release(self) -> None:
        """Release the mails in the hold queue, and flush the queue."""
        for words in (["postsuper", "-c", str(self._etc), "-H", "ALL"], ["postqueue", "-c", str(self._etc), "-f"]):
            subprocess.run(words, check=True, stderr=subprocess.DEVNULL, env={"PATH": PATH})

    def is_empty(self) -> bool:
        """Return whether all queues are empty."""
        for name in ("hold", "incoming", "active", "deferred"):
            for _, _, files in os.walk(self._queue / name):
                if files:
                    return False
        return True


class Sink(Baseline):
    """An SMTP server that accepts, counts and drops every mail."""

    name = "smtp-sink"
    greeting = b"220"

    def program(self) -> Program:
        words = ("smtp-sink", "-c", "-u", "nobody", f"127.0.0.1:{self.port}", "256")
        return Program("smtp-sink", (*_PASS_ON_TERM, *words), {"PATH": PATH}, self.folder, 42, stop_seconds=2)

    def count(self) -> int:
        """Return the number of mails accepted since its start."""
        with (self.folder / "out").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 200))
            found = re.findall(rb"mesg=(\d+)\r", file.read())
        return int(found[-1]) if found else 0


def used(*anchors: Baseline) -> dict[str, float]:
    """Return the processor seconds of each server's processes so far, by name."""
    return processor_seconds({anchor.name: anchor.pid for anchor in anchors})


def await_until(what: Callable[[], bool], seconds: float, pause: float = 0.01) -> None:
    """Poll until a condition is true. :raises Temporary: not within this time."""
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() > deadline:
            raise Temporary(f"not within {seconds:g} s")
        time.sleep(pause)


def _dovecot(folder: Path, port: int, imap_port: int) -> DovecotServer:
    return DovecotServer(
        run=folder / "run",
        log=folder / "dovecot.log",
        port=port,
        imap_port=imap_port,
        passwords=f"{folder}/passwd",
        home=f"{folder}/mail/{USER}",
        maildir=f"{folder}/mail/{USER}/Maildir",
        mail_user="mail",
        connections=2000,
        settings=("auth_cache_size = 1M", "auth_cache_ttl = 1 hour"),
        limits={
            "pop3-login": {"process_min_avail": 2, "client_limit": 2000},
            "pop3": {"process_min_avail": 4, "process_limit": 1200},
            "imap-login": {"process_min_avail": 2, "client_limit": 2000},
            "imap": {"process_min_avail": 4, "process_limit": 1200},
            "anvil": {"client_limit": 6000},
            "auth": {"client_limit": 6000},
        },
        connections_a_process={"pop3-login": None, "pop3": 1000, "imap-login": None, "imap": 1000},
    )


def _postfix(folder: Path, relay_port: int, auth_socket: Path | None) -> str:
    sasl = f"""\
smtpd_sasl_auth_enable = yes
smtpd_sasl_type = dovecot
smtpd_sasl_path = {auth_socket}
smtpd_sasl_security_options =
smtpd_tls_auth_only = no
"""
    return f"""\
compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/state
mail_owner = postfix
setgid_group = postdrop
myhostname = bench.example
mydestination =
alias_maps =
alias_database =
local_recipient_maps =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
smtputf8_enable = no
smtpd_tls_security_level = none
smtp_tls_security_level = none
biff = no
disable_dns_lookups = yes
smtpd_client_connection_rate_limit = 0
smtpd_client_connection_count_limit = 0
smtpd_peername_lookup = no
message_size_limit = 102400000
mailbox_size_limit = 0
virtual_mailbox_limit = 0
smtpd_recipient_restrictions = check_client_access static:HOLD, permit_mynetworks, reject
relayhost = [127.0.0.1]:{relay_port}
smtp_destination_concurrency_limit = 20
smtp_connection_cache_destinations = [127.0.0.1]:{relay_port}
{sasl if auth_socket is not None else ""}"""


def _postfix_services(port: int) -> str:
    return f"127.0.0.1:{port} inet n - n - - smtpd\n{POSTFIX_PROGRAMS}"
