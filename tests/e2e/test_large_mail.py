"""A mail of 50 MB is fetched and relayed, and no service holds several copies of it in memory."""

from __future__ import annotations

import hashlib
import os
import poplib
import re
from pathlib import Path

from tests.system import PASSWORD, System, until

MIB = 1024 * 1024
CUSTOMER = "anna@customer.example"
LINE = b"The quick brown fox jumps over the lazy dog, again and again and again.\r\n"


def mail(header: bytes, octets: int = 50 * 1000 * 1000) -> bytes:
    body = LINE * (octets // len(LINE))
    return header + b"Subject: large\r\n\r\n" + body + b".leading dot\r\n..two\r\n"


def peak(pid: int) -> int:
    """Return the largest resident size of a process so far: octets."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(encoding="ascii"))
    assert found
    return int(found[1]) * 1024


def watched(system: System) -> dict[str, int]:
    """Return the services' process ids by name, and reset the kernel's record of their largest resident size."""
    pids = {name: pid for name, pid in system.instance.pids().items() if name not in ("postgres", "rabbitmq", "epmd")}
    for pid in pids.values():
        Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")
    return pids


def read_large(system: System, address: str) -> bytes | None:
    """Return the SHA-256 digest of the only mail in a mailbox, read by POP3; None if the mailbox is empty."""
    session = poplib.POP3("127.0.0.1", system.settings.pop3_port, timeout=120)
    try:
        session.user(address)
        session.pass_(PASSWORD)
        if session.stat()[0] == 0:
            return None
        return hashlib.sha256(b"\r\n".join(session.retr(1)[1]) + b"\r\n").digest()
    finally:
        session.quit()


def test_a_mail_of_50_mb_is_fetched_and_relayed_in_bounded_memory(system: System) -> None:
    system.provider.add_mailbox(CUSTOMER, PASSWORD)
    account = system.external("large@company.com")
    company = system.company()
    company["local_accounts"][0] |= {
        "address": "large@local.com",
        "user_name": "Large",
        "external": "large@company.com",
    }
    company["external_accounts"].append(account)
    system.apply(company)
    system.mails("large@local.com")  # the first login needs 19 MiB for its password hash
    pids = watched(system)
    before = {name: peak(pid) for name, pid in pids.items()}

    arriving = mail(b"From: anna@customer.example\r\nTo: large@company.com\r\n")
    system.provider.put("large@company.com", arriving)
    assert until(lambda: read_large(system, "large@local.com")) == hashlib.sha256(arriving).digest()

    leaving = mail(
        b"From: large@local.com\r\nTo: anna@customer.example\r\nMessage-ID: <large@local.com>\r\nDate: x\r\n"
    )
    system.submit("large@local.com", [CUSTOMER], leaving)
    [got] = until(lambda: [found for found in system.provider.mail_of(CUSTOMER) if b"<large@local.com>" in found])
    assert got.replace(b"\n", b"\r\n").partition(b"\r\n\r\n")[2] == leaving.partition(b"\r\n\r\n")[2]

    growth = {name: peak(pid) - before[name] for name, pid in pids.items()}
    print({name: f"{octets / MIB:.0f} MiB" for name, octets in growth.items()}, os.linesep)
    assert growth.pop("pop3_out") < 16 * MIB
    assert max(growth.values()) < 3 * len(arriving), growth
