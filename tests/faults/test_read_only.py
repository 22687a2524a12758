"""A PostgreSQL server that is read-only for a while, as a tool sets it on a full disk or after a failover."""

from __future__ import annotations

import json
import os
import poplib
import smtplib
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psycopg

from shared.settings import SERVICES
from tests.system import System, until

SECONDS = 30.0 if "FAULTS_LONG" in os.environ else 10.0
MAX_LINES = 12
"""Limit of log lines of one event meanwhile: retries pause for 1, 2, 4 … seconds, for each cause."""
RECOVERY_SECONDS = 60.0
"""A few seconds on a machine that does nothing else."""
ANNA = "anna@customer.example"


@contextmanager
def read_only(system: System) -> Iterator[None]:
    postgres = system.instance.postgres
    assert postgres is not None
    with psycopg.connect(postgres.admin_url_of("mailgroup"), autocommit=True) as connection:
        connection.execute("alter system set default_transaction_read_only = on")
        connection.execute("select pg_reload_conf()")
        try:
            yield
        finally:
            connection.execute("alter system reset default_transaction_read_only")
            connection.execute("select pg_reload_conf()")


def incoming(token: str) -> bytes:
    return f'From: {ANNA}\r\nTo: "Alex" <support@company.com>\r\nSubject: {token}\r\n\r\n'.encode()


def outgoing(token: str) -> bytes:
    return f"From: alex@local.com\r\nTo: {ANNA}\r\nSubject: {token}\r\n\r\n".encode()


def submitted(system: System, token: str) -> bool:
    """Submit a mail to the customer. :return: False if it is refused temporarily; any other refusal is an error."""
    try:
        system.submit("alex@local.com", [ANNA], outgoing(token))
    except smtplib.SMTPServerDisconnected:
        raise
    except (smtplib.SMTPResponseException, smtplib.SMTPRecipientsRefused) as error:
        codes = (
            [code for code, _ in error.recipients.values()]
            if isinstance(error, smtplib.SMTPRecipientsRefused)
            else [error.smtp_code]
        )
        assert all(400 <= code < 500 for code in codes), error
        return False
    return True


def deleted(system: System) -> bool:
    """Delete the first mail in Alex's mailbox. :return: False if that is refused temporarily."""
    session = poplib.POP3("127.0.0.1", system.settings.pop3_port, timeout=60)
    try:
        session.user("alex@local.com")
        session.pass_("secret")
        session.dele(1)
        session.quit()
    except poplib.error_proto as error:
        assert b"SYS/TEMP" in error.args[0], error
        session.close()
        return False
    return True


def subjects(mails: list[bytes]) -> Counter[str]:
    return Counter(
        line.removeprefix(b"Subject: ").strip().decode()
        for mail in mails
        for line in mail.splitlines()
        if line.startswith(b"Subject: ")
    )


def lines(log: Path, since: int) -> Counter[str]:
    """Count the warnings and errors in a log by event. :param since: the offset to read from: octets."""
    found: Counter[str] = Counter()
    for line in log.read_bytes()[since:].decode().splitlines():
        if line.startswith("{") and (entry := json.loads(line))["level"] != "info":
            found[str(entry["event"])] += 1
    return found


def test_services_wait_and_no_mail_is_lost_or_sent_twice(system: System) -> None:
    system.provider.add_mailbox(ANNA, "secret")
    system.apply(system.company())
    for number in range(3):
        system.provider.put("support@company.com", incoming(f"before{number}"))
    until(lambda: len(system.mails("alex@local.com")) == 3)
    pids = {name: system.instance.pids()[name] for name in SERVICES}
    logs = {name: system.settings.data / "log" / f"{name}.log" for name in SERVICES}
    sizes = {name: log.stat().st_size for name, log in logs.items()}
    # given mail in transit in both directions
    pool = ThreadPoolExecutor(4)
    submitting = {f"out{number}": pool.submit(submitted, system, f"out{number}") for number in range(100)}
    for number in range(25):
        system.provider.put("support@company.com", incoming(f"in{number}"))
    until(lambda: sum(future.done() for future in submitting.values()) > 30)
    # when the database accepts no changes
    with read_only(system), pool:
        end = time.monotonic() + SECONDS
        tries = 0
        time.sleep(1.0)  # sessions in use notice it at their next statement
        while time.monotonic() < end:
            # then clients get temporary failures
            assert not submitted(system, f"refused{tries}")
            assert not deleted(system)
            tries += 1
            time.sleep(0.5)
        assert any("read-only" in problem for problem in system.json("status")["problems"])
    back = time.monotonic()
    accepted = [token for token, future in submitting.items() if future.result()]
    # and afterwards mail flows again
    assert until(lambda: submitted(system, "after"))
    accepted.append("after")
    until(lambda: all(f"in{number}" in subjects(system.mails("alex@local.com")) for number in range(25)))
    recovered = time.monotonic() - back
    print(f"{tries} tries refused; all mail was readable {recovered:.1f} s after the database accepted changes")
    assert recovered < RECOVERY_SECONDS
    until(lambda: len(subjects(system.provider.mail_of(ANNA))) >= len(accepted))
    # no mail was sent twice, no refused mail was sent, and no mailbox has a mail twice
    time.sleep(2.0)
    assert subjects(system.provider.mail_of(ANNA)) == Counter(accepted)
    in_mailbox = subjects(system.mails("alex@local.com"))
    assert in_mailbox == Counter([*(f"before{n}" for n in range(3)), *(f"in{n}" for n in range(25))])
    assert system.json("parked", "list") == []
    # no process ended, and the logs stayed short
    assert {name: system.instance.pids()[name] for name in SERVICES} == pids
    written = {name: lines(log, sizes[name]) for name, log in logs.items()}
    print({name: dict(counted) for name, counted in written.items()})
    assert max(count for counted in written.values() for count in counted.values()) <= MAX_LINES
    until(lambda: system.json("status")["ok"])
