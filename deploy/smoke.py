"""Tests the running containers from outside, through their published ports. Needs only python3.

    export COMPOSE_PROFILES=demo,observability,backup
    docker compose up --detach --wait && python3 deploy/smoke.py

Plays the manual's section 4.3 with the stand-in provider; kills each service's container while mail is in transit;
stops and starts everything; rotates the key; makes a backup with mail under way, and restores it into a second system
with ports and volumes of its own. After each step every mail must have arrived exactly once. With the profile
observability it checks that Prometheus reaches all targets, and that every expression of the dashboards returns data.
"""

from __future__ import annotations

import imaplib
import json
import os
import poplib
import re
import smtplib
import ssl
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import EmailMessage
from email.parser import BytesHeaderParser
from email.utils import make_msgid
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SERVICES = ("fetcher", "router", "mailbox", "pop3_out", "smtp_in", "sender", "admin", "imap_out")
SUPPORT, CUSTOMER, PASSWORD = "support@company.com", "anna@customer.example", "demo-secret"
PEOPLE = {name: f"{name.lower()}@local.com" for name in ("Alex", "Jim", "Kim", "Tom")}
ANYONE = ssl._create_unverified_context()  # the certificate is self-signed
WAIT_SECONDS = 90.0


def port(name: str, default: int) -> int:
    """Return a published port, which docker-compose.yml reads from the environment."""
    return int(os.environ.get(f"MAILGROUP_{name}_PORT", default))


def compose(*words: str, stdin: str | None = None) -> str:
    """Run ``docker compose`` and return its output."""
    done = subprocess.run(["docker", "compose", *words], cwd=ROOT, input=stdin, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"docker compose {' '.join(words)}: {done.stderr.strip()[-2000:]}")
    return done.stdout


def say(text: str) -> None:
    """Print a line of progress."""
    print(f"== {text}", flush=True)


def until(what: str, find_problem: Callable[[], object], seconds: float = WAIT_SECONDS) -> None:
    """Wait until ``find_problem`` returns an empty value."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            problem = find_problem()
        except (OSError, poplib.error_proto, imaplib.IMAP4.error, smtplib.SMTPException) as error:
            problem = repr(error)
        if not problem:
            return
        if time.monotonic() > deadline:
            sys.exit(f"smoke: {what}: {problem}")
        time.sleep(0.3)


# ------------------------------------------------------------------------------------------ mail clients


def customer_writes(to: str, subject: str, answers: str | None = None) -> str:
    """Submit a mail to the provider, and return its Message-ID."""
    message = _message(f"Anna <{CUSTOMER}>", to, subject, answers)
    with smtplib.SMTP("127.0.0.1", port("DEMO_SMTP", 11025), timeout=20) as smtp:
        smtp.send_message(message)
    return str(message["Message-ID"])


def person_writes(name: str, to: str, subject: str, answers: str | None = None, way: str = "SUBMISSION") -> str:
    """Send a mail as one of the people through a published port, and return its Message-ID."""
    message = _message(f"{name} <{PEOPLE[name]}>", to, subject, answers)
    if way == "SMTPS":
        session: smtplib.SMTP = smtplib.SMTP_SSL("127.0.0.1", port(way, 465), timeout=20, context=ANYONE)
    else:
        session = smtplib.SMTP("127.0.0.1", port(way, {"SMTP": 25, "SUBMISSION": 587}[way]), timeout=20)
        session.starttls(context=ANYONE)
    with session:
        session.login(PEOPLE[name], PASSWORD)
        session.send_message(message)
    return str(message["Message-ID"])


def _message(sender: str, to: str, subject: str, answers: str | None) -> EmailMessage:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = sender, to, subject
    message["Message-ID"] = make_msgid(domain="smoke.example")
    if answers is not None:
        message["In-Reply-To"] = answers
    message.set_content("Please see the subject.\n")
    return message


def read(name: str, way: str = "implicit") -> Counter[str]:
    """Return the subjects in a person's mailbox, with the number of mails.

    :param way: implicit, stls: by POP3; imaps, imap: by IMAP with TLS and with STARTTLS.
    """
    if way in ("imaps", "imap"):
        return _read_by_imap(PEOPLE[name], way)
    if way == "implicit":
        session: poplib.POP3 = poplib.POP3_SSL("127.0.0.1", port("POP3S", 995), timeout=20, context=ANYONE)
    else:
        session = poplib.POP3("127.0.0.1", port("POP3", 110), timeout=20)
        session.stls(ANYONE)
    return Counter(str(header["Subject"]) for header in _headers(session, PEOPLE[name]))


def _read_by_imap(user: str, way: str) -> Counter[str]:
    if way == "imaps":
        session: imaplib.IMAP4 = imaplib.IMAP4_SSL("127.0.0.1", port("IMAPS", 993), timeout=20, ssl_context=ANYONE)
    else:
        session = imaplib.IMAP4("127.0.0.1", port("IMAP", 143), timeout=20)
        session.starttls(ANYONE)
    with session:
        session.login(user, PASSWORD)
        session.select("INBOX", readonly=True)
        _, found = session.uid("FETCH", "1:*", "(BODY.PEEK[HEADER.FIELDS (SUBJECT)])")
        parser = BytesHeaderParser()
        return Counter(str(parser.parsebytes(item[1])["Subject"]) for item in found if isinstance(item, tuple))


def read_customer() -> dict[str, str]:
    """Return the mails to the customer: From by Subject."""
    session = poplib.POP3("127.0.0.1", port("DEMO_POP3", 11110), timeout=20)
    return {str(header["Subject"]): str(header["From"]) for header in _headers(session, CUSTOMER)}


def _headers(session: poplib.POP3, user: str) -> list[EmailMessage]:
    try:
        session.user(user)
        session.pass_(PASSWORD)
        parser = BytesHeaderParser()
        return [
            parser.parsebytes(b"\n".join(session.top(number, 0)[1]))  # type: ignore[misc]  # typeshed has the parser make Message
            for number in range(1, session.stat()[0] + 1)
        ]
    finally:
        session.quit()


# ------------------------------------------------------------------------------------------ the smoke


class Books:
    """Records who must get which mail, and finds lost, duplicate and misdirected mail."""

    def __init__(self, run: str) -> None:
        """:param run: prefix of each subject, so that mail of an earlier run does not count."""
        self.run = run
        self.due: dict[str, set[str]] = {name: set() for name in PEOPLE}

    def expect(self, subject: str, *names: str) -> str:
        """Record that these people must get this mail, and return its full subject."""
        for name in names:
            self.due[name].add(f"{self.run} {subject}")
        return f"{self.run} {subject}"

    def differ(self, way: str = "implicit") -> str:
        """Return the mails that are missing, duplicate or at the wrong person; empty if there are none."""
        wrong = []
        for name, due in self.due.items():
            got = Counter({subject: n for subject, n in read(name, way).items() if subject.startswith(self.run)})
            if got != Counter(due):
                wrong.append(f"{name}: missing {sorted(due - set(got))}, not expected {sorted(got - Counter(due))}")
        return "; ".join(wrong)


def play_the_manual(books: Books) -> None:
    """Play section 4.3: a new customer, Alex's reply, the customer's replies."""
    say("the manual's 4.3")
    first = customer_writes(SUPPORT, books.expect("My printer does not print", "Alex", "Jim"))
    customer_writes("sales@company.com", books.expect("How much is it?", "Kim", "Tom"))
    until("a new customer", books.differ)
    answer = person_writes("Alex", f"Anna <{CUSTOMER}>", f"{books.run} Switch it on", first)
    until("Alex's answer", lambda: f"{books.run} Switch it on" not in read_customer())
    sender = read_customer()[f"{books.run} Switch it on"]
    if sender.replace('"', "") != f"Alex <{SUPPORT}>":
        sys.exit(f"smoke: Alex's answer came from {sender}")
    for to in (f'"Alex" <{SUPPORT}>', SUPPORT, f'"Company Support" <{SUPPORT}>'):
        customer_writes(to, books.expect(f"Re: to {to}", "Alex"), answer)
    until("the customer's answers", books.differ)
    for way in ("SMTP", "SUBMISSION", "SMTPS"):
        person_writes("Jim", PEOPLE["Alex"], books.expect(f"by {way}", "Alex"), way=way)
    for way in ("stls", "imap", "imaps"):
        until(f"mail between colleagues, by {way}", partial(books.differ, way))


def status() -> str:
    """Return the problems that ``mailgroup status`` reports."""
    done = subprocess.run(
        ["docker", "compose", "exec", "-T", "fetcher", "mailgroup", "status", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    status: dict[str, Any] = (
        json.loads(done.stdout) if done.stdout.startswith("{") else {"ok": False, "problems": [done.stderr]}
    )
    return "" if status["ok"] else "; ".join(status["problems"])


def kill_each(books: Books) -> None:
    """Kill each service's container while mail is in transit."""
    for service in SERVICES:
        say(f"{service} is killed and comes back")
        container = compose("ps", "-q", service).strip()
        before = _restarts(container)
        for number in range(5):
            customer_writes(SUPPORT, books.expect(f"before {service} {number}", "Alex", "Jim"))
        # Kills every process of the container but the first, which then ends as well.
        subprocess.run(["docker", "exec", container, "bash", "-c", "kill -KILL -1"], capture_output=True)
        for number in range(5):
            customer_writes(f'"Jim" <{SUPPORT}>', books.expect(f"after {service} {number}", "Jim"))
        until(f"{service} is started again", partial(_not_restarted, container, before))
        until("status", status)
        until(f"after {service}", books.differ)


def _not_restarted(container: str, before: int) -> bool:
    return _restarts(container) == before


def _restarts(container: str) -> int:
    done = subprocess.run(["docker", "inspect", "-f", "{{.RestartCount}}", container], capture_output=True, text=True)
    return int(done.stdout)


def restart(books: Books) -> None:
    """Stop and start everything, and check that no mail is lost."""
    say("everything stops and starts")
    customer_writes(SUPPORT, books.expect("before the stop", "Alex", "Jim"))
    until("before the stop", books.differ)  # the stand-in keeps its mail in memory
    compose("down")
    compose("up", "--detach", "--wait", "--no-build")
    until("after the start", books.differ)
    customer_writes(SUPPORT, books.expect("after the start", "Alex", "Jim"))
    until("new mail after the start", books.differ)
    until("status", status)


# ------------------------------------------------------------------------------------------ key, backup and restore


def once(service: str, *command: str, stdin: str | None = None) -> str:
    """Run a command in a new container of a service, without starting others, and return its output."""
    return compose("run", "--rm", "--no-deps", "-T", service, *command, stdin=stdin)


def rotate_key(books: Books) -> None:
    """Seal the providers' passwords under a new key, and check that the old one is not needed any more."""
    say("a new key")
    before = compose("exec", "-T", "fetcher", "cat", "/secrets/key/secret.key").split()
    once("secrets", "make-secrets", "new-key")
    compose("restart", "fetcher", "sender", "admin")
    until("status with two keys", status)
    compose("exec", "-T", "fetcher", "mailgroup", "rotate-key")
    once("secrets", "make-secrets", "drop-keys")
    compose("restart", "fetcher", "sender", "admin")
    after = compose("exec", "-T", "fetcher", "cat", "/secrets/key/secret.key").split()
    if len(after) != 1 or set(after) & set(before):
        sys.exit("smoke: the key is not replaced by one new key")
    customer_writes(SUPPORT, books.expect("after the rotation", "Alex", "Jim"))
    until("mail with the new key", books.differ)
    until("status with the new key", status)


def back_up_and_restore(books: Books) -> None:
    """Restore a backup, which is made while mail waits for the provider, into a second system; try what it says."""
    say("a backup with mail under way")
    compose("pause", "provider")
    waits = f"{books.run} waits for the provider"
    try:
        for number in range(5):
            person_writes("Jim", PEOPLE["Alex"], books.expect(f"before the backup {number}", "Alex"))
        person_writes("Alex", f"Anna <{CUSTOMER}>", waits)
        until("before the backup", books.differ)
        once("backup", "mailgroup", "backup", "/backup/smoke", "--force")
    finally:
        compose("unpause", "provider")
    if (mode := once("backup", "stat", "-c", "%a", "/backup/smoke").strip()) != "600":
        sys.exit(f"smoke: the backup has mode {mode}")
    until("the mail leaves the first system", lambda: waits not in read_customer())
    backup = _docker_read("backup", "cat", "/backup/smoke")
    key = once("backup", "tar", "-xOf", "/backup/smoke", "secret.key")
    with second_system():
        say("the restore into a second system")
        compose("up", "--detach", "--wait", "--no-build", "postgres")
        _docker_write(backup, "backup", "sh", "-c", "umask 077; cat >/backup/smoke")
        once("secrets", "make-secrets", "key", stdin=key)
        once("backup", "mailgroup", "restore", "/backup/smoke")
        compose("up", "--detach", "--wait", "--no-build", *SERVICES, "provider")
        until("the mailboxes of the backup", books.differ)
        parked = json.loads(compose("exec", "-T", "fetcher", "mailgroup", "parked", "list", "--json"))
        if len(parked) != 1 or read_customer():
            sys.exit(f"smoke: the mail that waited is not parked alone: {parked}, {read_customer()}")
        compose("exec", "-T", "fetcher", "mailgroup", "parked", "requeue", str(parked[0]["id"]))
        until("the mail that waited", lambda: waits not in read_customer())
        customer_writes(f'"Jim" <{SUPPORT}>', books.expect("after the restore", "Jim"))
        until("new mail after the restore", books.differ)  # fetched with the password that the key opens
        until("status", status)
    books.due["Jim"].discard(f"{books.run} after the restore")
    until("the first system", books.differ)


@contextmanager
def second_system() -> Iterator[None]:
    """Let every command and client use another project with volumes and ports of its own; removed at the end."""
    before = dict(os.environ)
    project = json.loads(compose("config", "--format", "json"))["name"]
    published = {
        "IMAP": 143,
        "IMAPS": 993,
        "POP3": 110,
        "POP3S": 995,
        "SMTP": 25,
        "SUBMISSION": 587,
        "SMTPS": 465,
        "ADMIN": 8080,
    }
    published |= {"DEMO_POP3": 11110, "DEMO_SMTP": 11025}
    others = {f"MAILGROUP_{name}_PORT": str(port(name, default) + 100) for name, default in published.items()}
    os.environ.update(others, COMPOSE_PROJECT_NAME=f"{project}-restored", COMPOSE_PROFILES="demo,backup")
    try:
        yield
    finally:
        compose("down", "--volumes", "--timeout", "30")
        os.environ.clear()
        os.environ.update(before)


def _docker_read(service: str, *command: str) -> bytes:
    words = ["docker", "compose", "run", "--rm", "--no-deps", "-T", service, *command]
    return subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout


def _docker_write(octets: bytes, service: str, *command: str) -> None:
    words = ["docker", "compose", "run", "--rm", "--no-deps", "-T", service, *command]
    subprocess.run(words, cwd=ROOT, input=octets, check=True)


# ------------------------------------------------------------------------------------------ Prometheus


def ask_prometheus(path: str, **words: str) -> dict[str, object]:
    """Query the HTTP API of Prometheus, and return the data of its reply."""
    where = f"http://127.0.0.1:{port('PROMETHEUS', 9090)}/api/v1/{path}?{urllib.parse.urlencode(words)}"
    with urllib.request.urlopen(where, timeout=20) as answer:
        data: dict[str, object] = json.load(answer)["data"]
    return data


def targets_down() -> str:
    """Return the targets that Prometheus cannot scrape."""
    active: list[dict[str, object]] = ask_prometheus("targets")["activeTargets"]  # type: ignore[assignment]  # JSON
    down = [f"{target['scrapePool']}: {target['lastError']}" for target in active if target["health"] != "up"]
    found = {target["scrapePool"] for target in active}
    return ", ".join([*down, *(f"{name}: no target" for name in SERVICES if name not in found)])


def expressions() -> dict[str, str]:
    """Return every expression of every dashboard, by its place."""
    by_place = {}
    for file in sorted((ROOT / "deploy/grafana/dashboards").glob("*.json")):
        for panel in json.loads(file.read_text(encoding="utf-8"))["panels"]:
            for target in panel.get("targets", []):
                expression = re.sub(r"\$__(rate_interval|range)", "1m", target["expr"])
                by_place[f"{file.stem}: {panel['title']} {target['refId']}"] = expression
    return by_place


def without_data() -> str:
    """Return the places of expressions without data.

    Only the profile backup has data about backups here, and only Kubernetes has those of its operator.
    """
    makes_backups = "backup" in os.environ.get("COMPOSE_PROFILES", "")
    elsewhere = ("barman_cloud",) if makes_backups else ("barman_cloud", "mailgroup_backup")
    return ", ".join(
        where
        for where, expression in expressions().items()
        if not any(name in expression for name in elsewhere) and not ask_prometheus("query", query=expression)["result"]
    )


def check_prometheus() -> None:
    """Check that all targets are scraped, the rules loaded, and that every expression returns data."""
    say("Prometheus")
    until("targets", targets_down)
    groups: list[dict[str, object]] = ask_prometheus("rules")["groups"]  # type: ignore[assignment]  # JSON
    if not groups:
        sys.exit("smoke: no rules are loaded")
    with urllib.request.urlopen(f"http://127.0.0.1:{port('ADMIN', 8080)}/", timeout=20) as answer:
        answer.read()  # the console must have answered a request
    until("expressions without data", without_data, 120)
    print(f"{len(expressions())} expressions return data")


def main() -> None:
    """Run all tests."""
    books = Books(str(int(time.time())))
    until("status", status)
    play_the_manual(books)
    if compose("ps", "-q", "prometheus").strip():
        check_prometheus()
    kill_each(books)
    restart(books)
    rotate_key(books)
    back_up_and_restore(books)
    say("all is well")


if __name__ == "__main__":
    main()
