"""IMAP clients during the attack of ``hostile.py``: one works on the worst mails, one waits for honest mail."""

from __future__ import annotations

import imaplib
import re
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.system import PASSWORD

SECONDS = 300.0
"""Longest wait for an answer: seconds."""
LAST_SECONDS = 30.0
"""Wait for honest mail after the attack: seconds."""
_COMMANDS = (
    b'SELECT "INBOX"',
    b"UID FETCH 1:* (UID FLAGS RFC822.SIZE ENVELOPE BODYSTRUCTURE)",
    b'UID SEARCH OR TEXT "customer" BODY "hello"',
    b'UID SEARCH HEADER References "x" SUBJECT "y"',
    b"UID SORT (REVERSE DATE SUBJECT FROM TO CC) UTF-8 ALL",
    b"UID THREAD REFERENCES UTF-8 ALL",
    b"UID THREAD ORDEREDSUBJECT UTF-8 ALL",
    b"UID FETCH 1:* (BODY.PEEK[HEADER.FIELDS (FROM TO CC SUBJECT REFERENCES)] BODY.PEEK[1.MIME] BODY.PEEK[1.1])",
)


@dataclass(slots=True)
class ImapMeasurements:
    """What the IMAP clients saw. sent: when each honest mail was sent, by its token: monotonic seconds."""

    sent: dict[bytes, float] = field(default_factory=dict)
    readable: list[float] = field(default_factory=list)  # seconds until each honest mail was readable
    missing: int = 0  # honest mails that were never readable
    commands: int = 0  # on the worst mails
    failures: list[str] = field(default_factory=list)


def work_on_the_worst(port: int, address: str, measured: ImapMeasurements, stop: threading.Event) -> None:
    """Run what is expensive on a mailbox with the worst mails, again and again."""
    try:
        with socket.create_connection(("127.0.0.1", port), SECONDS) as connection:
            _finish(connection, b"* OK")
            _run(connection, f"LOGIN {address} {PASSWORD}".encode())
            while not stop.is_set():
                for command in _COMMANDS:
                    answer = _run(connection, command)
                    measured.commands += 1
                    if not answer.startswith(b"OK"):
                        measured.failures.append(f"{command[:40].decode()}: {answer.decode('latin-1')}")
                stop.wait(0.5)
    except OSError as error:
        measured.failures.append(f"{address}: {error!r}")


def _run(connection: socket.socket, command: bytes) -> bytes:
    """Run a command, and return its answer without the tag. The data is dropped as it comes."""
    tag = b"t%d" % time.monotonic_ns()
    connection.sendall(tag + b" " + command + b"\r\n")
    return _finish(connection, tag)


def _finish(connection: socket.socket, tag: bytes) -> bytes:
    """Read up to the line that begins with a tag, and return the rest of it."""
    kept = b"\r\n"
    while True:
        kept += connection.recv(1 << 20) or _ended()
        found = re.search(rb"\r\n%b ?([^\r\n]*)\r\n" % re.escape(tag), kept)
        if found is not None:
            return found[1]
        kept = kept[-1000:]


def _ended() -> bytes:
    raise ConnectionResetError("the connection ended")


def wait_for_honest(port: int, address: str, measured: ImapMeasurements, stop: threading.Event) -> None:
    """Read each honest mail as soon as a check lists it."""
    last, ends_at = 0, float("inf")
    waiting: Mapping[bytes, float] = {}
    seen: set[bytes] = set()
    try:
        with imaplib.IMAP4("127.0.0.1", port, timeout=SECONDS) as session:
            session.login(address, PASSWORD)
            session.select("INBOX")
            while True:
                session.noop()
                _, found = session.uid("FETCH", f"{last + 1}:*", "(BODY.PEEK[])")
                now = time.monotonic()
                for item in found:
                    if not isinstance(item, tuple):
                        continue
                    uid = re.search(rb"UID (\d+)", item[0])
                    token = re.search(rb"honest-\d+-", item[1])
                    assert uid is not None
                    last = max(last, int(uid[1]))
                    if token is not None and token[0] not in seen:
                        seen.add(token[0])
                        measured.readable.append(now - measured.sent[token[0]])
                waiting = {token: at for token, at in list(measured.sent.items()) if token not in seen}
                if stop.is_set():
                    ends_at = min(ends_at, now + LAST_SECONDS)
                    if not waiting or now > ends_at:
                        break
                time.sleep(0.1)
    except (OSError, imaplib.IMAP4.error) as error:
        measured.failures.append(f"{address}: {error!r}")
    measured.missing = len(waiting)
