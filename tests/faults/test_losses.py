"""No mail is lost or duplicated when a service is killed or the broker loses all data.

The tests compare the mails that they offered with the mails in the mailboxes, read by POP3.
"""

from __future__ import annotations

import imaplib
import os
import poplib
import random
import re
import shutil
import signal
import smtplib
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from tests.company import local
from tests.faults.steps import not_reached
from tests.system import System, until

PEOPLE = {"Alex": "alex@local.com", "Jim": "jim@local.com", "Kim": "kim@local.com", "Tom": "tom@local.com"}
CUSTOMER = "anna@customer.example"
SERVICES = ("fetcher", "router", "mailbox", "pop3_out", "smtp_in", "sender")


def mail(token: str, to: str) -> bytes:
    return (
        f"From: {CUSTOMER}\r\nTo: {to}\r\nSubject: {token}\r\nMessage-ID: <{token}@customer.example>\r\n\r\n"
        + "A line of some length, so that the mail has a size.\r\n" * 20
    ).encode()


def offer(system: System, count: int, run: str) -> dict[str, list[str]]:
    """Put mails into the provider's mailboxes. Return the expected recipients of each, by token."""
    expected = {}
    for number in range(count):
        token = f"{run}-in-{number}"
        account, team = (("support", ["Alex", "Jim"]), ("sales", ["Kim", "Tom"]))[number % 2]
        name = random.choice([None, *team])
        address = f"{account}@company.com"
        system.provider.put(address, mail(token, f'"{name}" <{address}>' if name else address))
        expected[token] = [PEOPLE[name]] if name else [PEOPLE[person] for person in team]
    return expected


def in_mailboxes(system: System, run: str) -> Counter[tuple[str, str]]:
    """Count the copies of each token in each mailbox."""
    found: Counter[tuple[str, str]] = Counter()
    for address in PEOPLE.values():
        for body in system.mails(address):
            token = re.search(rb"^Subject: (\S+)", body, re.M)
            if token and token[1].decode().startswith(run):
                found[token[1].decode(), address] += 1
    return found


def at_customer(system: System, run: str) -> Counter[str]:
    """Count the copies of each token that were relayed to the customer."""
    tokens = (re.search(rb"^Subject: (\S+)", body, re.M) for body in system.provider.mail_of(CUSTOMER))
    return Counter(token[1].decode() for token in tokens if token and token[1].decode().startswith(run))


@contextmanager
def submitting(system: System, run: str, pause: float) -> Iterator[list[str]]:
    """Submit mails in a thread during the block. Yield the list of the tokens that were answered with 250."""
    accepted: list[str] = []
    stop = threading.Event()

    def submit() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            token = f"{run}-out-{number}"
            try:
                with smtplib.SMTP("127.0.0.1", system.settings.smtp_port, timeout=30) as smtp:
                    smtp.login("alex@local.com", "secret")
                    smtp.sendmail(
                        "alex@local.com",
                        [CUSTOMER],
                        mail(token, CUSTOMER).replace(f"From: {CUSTOMER}".encode(), b"From: alex@local.com"),
                    )
                    accepted.append(token)  # QUIT may still fail
            except (OSError, smtplib.SMTPException):
                time.sleep(0.2)  # smtp_in was killed or is starting: this mail was not answered
            time.sleep(pause)

    thread = threading.Thread(target=submit)
    thread.start()
    try:
        yield accepted
    finally:
        stop.set()
        thread.join()


def settled(system: System, expected: dict[str, list[str]], run: str) -> Counter[tuple[str, str]]:
    wanted = Counter((token, address) for token, people in expected.items() for address in people)

    def all_there() -> bool:
        with suppress(OSError, poplib.error_proto):  # pop3_out may be starting again
            return not wanted - in_mailboxes(system, run)
        return False

    until(all_there)
    return wanted


def test_each_service_killed_among_500_mails_loses_and_repeats_nothing(system: System) -> None:
    system.provider.add_mailbox(CUSTOMER, "secret")
    random.seed(4711)
    expected: dict[str, list[str]] = {}
    with submitting(system, "kill", 0.02) as accepted:
        for name in random.sample(SERVICES, len(SERVICES)):
            expected |= offer(system, 500 // len(SERVICES) + 1, f"kill-{name}")
            time.sleep(random.uniform(0.3, 1.2))
            os.kill(system.instance.pids()[name], signal.SIGKILL)
    assert len(expected) >= 500
    wanted = settled(system, expected, "kill")
    assert in_mailboxes(system, "kill") == wanted  # each once, and in no other mailbox
    until(lambda: not (set(accepted) - set(at_customer(system, "kill"))))
    for token, copies in at_customer(system, "kill").items():
        if copies > 1:  # only a mail in transmission when its sender was killed, and its trace shows that
            [found] = system.json("trace", f"{token}@customer.example")
            assert "uncertain" in [event["event"] for event in found["events"]], token
    until(lambda: system.json("status")["ok"])


def test_a_broker_that_lost_all_data_loses_no_mail_of_any_stage(system: System) -> None:
    system.provider.add_mailbox(CUSTOMER, "secret")
    programs = system.instance
    until(lambda: _in_flight(system) == 0)
    programs.stop_program("mailbox")
    routed = offer(system, 20, "wipe-a")
    until(lambda: _in_flight(system) == 20 and _queue(system, "mailbox") and not _queue(system, "router"))
    programs.stop_program("router")
    fetched = offer(system, 20, "wipe-b")
    until(lambda: _in_flight(system) == 40 and _queue(system, "router"))
    programs.stop_program("sender")
    with submitting(system, "wipe", 0.01) as accepted:
        until(lambda: len(accepted) >= 20)
    until(lambda: _queue(system, "sender"))

    programs.stop_program("rabbitmq")
    rabbitmq = programs._servers.rabbitmq
    assert rabbitmq is not None
    shutil.rmtree(rabbitmq.folder / "mnesia")
    (rabbitmq.folder / "mnesia").mkdir()
    shutil.chown(rabbitmq.folder / "mnesia", "rabbitmq", "rabbitmq")
    unannounced = offer(system, 20, "wipe-c")  # fetched while RabbitMQ does not run
    until(lambda: _in_flight(system) == 60)
    programs.start_program("rabbitmq")
    for name in ("mailbox", "router", "sender"):
        programs.start_program(name)

    expected = routed | fetched | unannounced
    assert in_mailboxes(system, "wipe") <= settled(system, expected, "wipe")
    until(lambda: at_customer(system, "wipe") == Counter(accepted))
    until(lambda: system.json("status")["ok"])


def test_a_rolling_restart_repeats_and_interrupts_no_mail(system: System) -> None:
    # given mail in transit in both directions
    system.provider.add_mailbox(CUSTOMER, "secret")
    expected: dict[str, list[str]] = {}
    with submitting(system, "roll", 0.02) as accepted:
        # when each service is shut down and started again
        for name in SERVICES:
            expected |= offer(system, 60, f"roll-{name}")
            time.sleep(0.5)
            began = time.monotonic()
            system.instance.stop_program(name)
            assert time.monotonic() - began < 60
            system.instance.start_program(name)
    wanted = settled(system, expected, "roll")
    # then each mail has arrived once, no outcome is uncertain, and no service had to be killed
    assert in_mailboxes(system, "roll") == wanted
    until(lambda: at_customer(system, "roll") >= Counter(accepted))
    assert at_customer(system, "roll") == Counter(accepted)
    for token in at_customer(system, "roll"):
        [*found] = system.json("trace", f"{token}@customer.example")
        assert "uncertain" not in [event["event"] for mail in found for event in mail["events"]], token
    assert "with SIGKILL" not in (system.settings.data / "log" / "supervisord.log").read_text()


def test_mail_in_both_directions_reaches_every_step_of_the_faults(system: System, reached: Path) -> None:
    # given an account whose mails are deleted as soon as they are fetched
    system.provider.add_mailbox(CUSTOMER, "secret")
    company = system.company()
    company["external_accounts"][1]["delete_after_days"] = 0
    # and two by IMAP: one likewise, one whose answers are filed and marked
    info, help_ = "info@company.com", "help@company.com"
    company["external_accounts"] += [
        system.external_by_imap(info, sent="Sent"),
        system.external_by_imap(help_, delete_after_days=0),
    ]
    company["local_accounts"] += [local("Mia", info), local("Pat", help_)]
    system.apply(company)
    for address, person in ((info, "mia"), (help_, "pat")):
        system.provider.put(address, mail(f"steps-{person}", address))
        until(partial(system.mails, f"{person}@local.com"))
    answer = mail("steps-answer", CUSTOMER).replace(f"From: {CUSTOMER}".encode(), b"From: mia@local.com")
    answer = answer.replace(b"Message-ID: ", b"In-Reply-To: <steps-mia@customer.example>\r\nMessage-ID: ")
    system.submit("mia@local.com", [CUSTOMER], answer)
    # when a mail comes in, another one goes to a colleague and to a customer, and a client deletes a mail
    system.provider.put("sales@company.com", mail("steps-in", '"Kim" <sales@company.com>'))
    settled(system, {"steps-in": [PEOPLE["Kim"]]}, "steps-in")
    system.submit(
        PEOPLE["Alex"],
        [PEOPLE["Jim"], CUSTOMER],
        mail("steps-out", CUSTOMER).replace(f"From: {CUSTOMER}".encode(), b"From: alex@local.com"),
    )
    session = poplib.POP3("127.0.0.1", system.settings.pop3_port, timeout=60)
    session.user(PEOPLE["Kim"])
    session.pass_("secret")
    session.dele(1)
    session.quit()
    use_imap(system, PEOPLE["Kim"])
    # then every step is reached
    until(lambda: at_customer(system, "steps-out") == Counter(["steps-out"]))
    until(lambda: not system.provider.mail_of(help_))
    with suppress(AssertionError):
        until(lambda: not_reached(reached) == [])
    assert not_reached(reached) == []


def use_imap(system: System, address: str) -> None:
    """Make every kind of change by IMAP."""
    with imaplib.IMAP4("127.0.0.1", system.settings.imap_port, timeout=60) as session:
        session.login(address, "secret")
        for number in (1, 2):
            draft = f"Subject: draft {number}\r\n\r\n".encode()
            assert session.append("Drafts", r"(\Draft)", "", draft)[0] == "OK"
        session.select("Drafts")
        for command in (("STORE", "1", "+FLAGS", r"(\Deleted)"), ("COPY", "2", "Archive"), ("MOVE", "2", "Trash")):
            assert session.uid(*command)[0] == "OK"
        assert session.expunge()[0] == "OK"


def _queue(system: System, name: str) -> int:
    return int(next(queue["ready"] for queue in system.json("status")["queues"] if queue["name"] == name))


def _in_flight(system: System) -> int:
    return sum(book["in_flight"] for book in system.json("status")["books"].values())
