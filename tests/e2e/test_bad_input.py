"""Bad input gives a clear error in the command, in status, in the log and as a metric. Other mail still flows."""

from __future__ import annotations

import json
import smtplib
import socket
import threading
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from tests.company import local
from tests.system import PASSWORD, System, until


def problem(system: System, *words: str) -> str:
    """Wait until status shows a problem with all these words, and return its text; status exits with 1 then."""

    def find() -> str:
        done = system.run("status", "--json")
        found = [line for line in json.loads(done.stdout)["problems"] if all(word in line for word in words)]
        assert not found or done.exit_code == 1
        return found[0] if found else ""

    return until(find)


def metric(system: System, service: str, name: str, *labels: str) -> float:
    """Return the sum of a metric's values whose lines have all these labels; 0 if there are none."""
    with urllib.request.urlopen(system.instance.urls()[f"metrics_{service}"], timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return sum(
        float(line.split()[-1])
        for line in lines
        if line.startswith(f"mailgroup_{name}") and all(label in line for label in labels)
    )


def logged(system: System, service: str, *words: str) -> bool:
    """Return whether one line of a service's log has all these words."""
    text = (system.settings.data / "log" / f"{service}.log").read_text(encoding="utf-8", errors="replace")
    return any(all(word in line for word in words) for line in text.splitlines())


def goes_on(system: System, token: str) -> None:
    """Check that mail of the other account is still delivered."""
    system.provider.put("sales@company.com", f"To: sales@company.com\r\nSubject: {token}\r\n\r\nHi\r\n".encode())
    until(lambda: system.who_has(token, ["kim@local.com", "tom@local.com"]))


def with_support(system: System, **fields: Any) -> dict[str, Any]:
    """Return the manual's company with these fields changed for support@company.com."""
    company = system.company()
    for name, value in fields.items():
        old = company["external_accounts"][0].get(name)
        company["external_accounts"][0][name] = old | value if isinstance(old, dict) else value
    return company


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A TCP port on which no server listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def test_a_wrong_upstream_password_is_shown_until_the_right_one_is_tested(system: System) -> None:
    printed = system.apply(with_support(system, password="wrong"))
    assert "not reachable now" in printed
    assert "the login was refused" in printed
    assert "fetching" in problem(system, "support@company.com", "login")
    tested = system.run("external", "test", "support@company.com")
    assert tested.exit_code == 1
    assert "the login was refused" in tested.output
    assert metric(system, "fetcher", "fetch_errors_total", 'external="support@company.com"', 'kind="refused"') > 0
    assert logged(system, "fetcher", "support@company.com", "refused")
    goes_on(system, "bad-password")
    done = system.run("external", "set", "support@company.com", "password=-", stdin=f"{PASSWORD}\n")
    assert done.exit_code == 0, done.output
    until(lambda: system.json("status")["ok"])


def test_an_unreachable_host_is_reported_everywhere(system: System, silent_port: int) -> None:
    system.apply(with_support(system, pop3={"port": silent_port}))
    assert f"127.0.0.1:{silent_port}" in problem(system, "support@company.com", "fetching")
    assert metric(system, "fetcher", "fetch_errors_total", 'external="support@company.com"', 'kind="unreachable"') > 0
    assert logged(system, "fetcher", "support@company.com", str(silent_port))
    goes_on(system, "bad-host")


def test_a_bad_certificate_is_reported_everywhere_until_it_is_pinned(system: System) -> None:
    tls = {"host": "localhost", "port": system.provider.pop3s_port, "tls": "implicit"}
    system.apply(with_support(system, pop3=tls))
    assert "certificate" in problem(system, "support@company.com", "fetching")
    assert metric(system, "fetcher", "fetch_errors_total", 'external="support@company.com"', 'kind="tls"') > 0
    goes_on(system, "bad-certificate")
    system.apply(with_support(system, pop3=tls | {"tls_fingerprint": system.provider.fingerprint}))
    until(lambda: system.json("status")["ok"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"local_accounts": [local("Alex", naem="x")]},
            "local account alex@local.com: naem: there is no such field; allowed here are address",
        ),
        (
            {"local_accounts": [local("Alex"), local("Jim", user_name="alex")]},
            "alex@local.com has this name in the same share",
        ),
    ],
)
def test_a_bad_accounts_file_is_refused_as_misuse(system: System, change: dict[str, Any], words: str) -> None:
    file = system.folder / "bad.json"
    file.write_text(json.dumps(system.company() | change), encoding="utf-8")
    done = system.run("apply", str(file))
    assert done.exit_code == 2
    assert words in done.stderr
    assert system.json("export") == {"external_accounts": [], "local_accounts": []}


def test_a_header_of_a_megabyte_is_delivered_and_so_is_the_next_mail(system: System) -> None:
    system.apply(system.company())
    long = b"X-Long: " + b"x" * 900 + b"\r\n"
    big = (
        b"From: a@x.example\r\n"
        + long * 1100
        + b'To: "Jim" <support@company.com>\r\nSubject: huge-header\r\n\r\nHi\r\n'
    )
    system.provider.put("support@company.com", big)
    system.provider.put("support@company.com", b'To: "Alex" <support@company.com>\r\nSubject: behind-it\r\n\r\nHi\r\n')
    assert until(lambda: system.who_has("behind-it", ["alex@local.com", "jim@local.com"])) == ["alex@local.com"]
    until(lambda: "jim@local.com" in system.who_has("huge-header", ["alex@local.com", "jim@local.com"]))
    assert system.json("status")["ok"]


def test_a_too_large_mail_stays_upstream_and_its_recipients_are_notified(system: System) -> None:
    system.apply(system.company())
    too_large = (
        b'From: anna@x.example\r\nTo: "Jim" <support@company.com>\r\nSubject: too-large\r\n\r\n'
        + (b"x" * 998 + b"\r\n") * 53_000
    )
    system.provider.put("support@company.com", too_large)
    assert until(lambda: system.who_has("too-large", ["alex@local.com", "jim@local.com"]), 90) == ["jim@local.com"]
    [notice] = [mail for mail in system.mails("jim@local.com") if b"too-large" in mail]
    assert len(notice) < 20_000
    assert "could not be fetched" in problem(system, "support@company.com")
    assert any(
        mail[:200] == too_large[:200].replace(b"\r\n", b"\r\n")
        for mail in system.provider.mail_of("support@company.com")
    )
    goes_on(system, "behind-too-large")


def test_an_unknown_recipient_at_the_provider_becomes_a_failure_notice(system: System) -> None:
    system.apply(system.company())
    system.submit(
        "alex@local.com",
        ["nobody@customer.example"],
        (b"From: alex@local.com\r\nTo: nobody@customer.example\r\nSubject: into-the-void\r\n\r\nHi\r\n"),
    )
    [notice] = until(lambda: [mail for mail in system.mails("alex@local.com") if b"into-the-void" in mail])
    assert b"multipart/report" in notice
    assert b"nobody@customer.example" in notice
    assert b"Status: 5.1.1" in notice
    assert metric(system, "sender", "messages_relayed_total", 'result="failed"') > 0


def test_an_unknown_local_recipient_is_refused_at_once_and_never_relayed(system: System) -> None:
    system.apply(system.company())
    with pytest.raises(smtplib.SMTPRecipientsRefused) as refused:
        system.submit("alex@local.com", ["nobody@local.com"], b"From: alex@local.com\r\n\r\nHi\r\n")
    code, text = refused.value.recipients["nobody@local.com"]
    assert (code, text[:5]) == (550, b"5.1.1")


def test_a_truncated_mail_is_read_again_and_not_stored_in_part(system: System) -> None:
    whole = b"To: support@company.com\r\nSubject: cut-mail\r\n\r\n" + b"A line.\r\n" * 2000
    with _cutting_provider(whole) as port:
        system.apply(with_support(system, pop3={"port": port}))
        both = ["alex@local.com", "jim@local.com"]
        until(lambda: system.who_has("cut-mail", both) == both)
    assert [mail for mail in system.mails("alex@local.com") if b"cut-mail" in mail] == [whole]
    assert metric(system, "fetcher", "fetch_errors_total", 'external="support@company.com"') > 0


class _cutting_provider:  # used as a function in a with statement
    """A POP3 server with one mail. It closes the connection in the middle of the first RETR."""

    def __init__(self, mail: bytes) -> None:
        self._mail, self._cuts = mail, 1
        self._socket = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._serve, daemon=True).start()

    def __enter__(self) -> int:
        return int(self._socket.getsockname()[1])

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection, connection.makefile("rwb") as stream:
                try:
                    self._talk(stream)
                except OSError:
                    continue

    def _talk(self, stream: Any) -> None:
        answers = {
            b"USER": b"+OK\r\n",
            b"PASS": b"+OK\r\n",
            b"STAT": b"+OK 1 %d\r\n" % len(self._mail),
            b"UIDL": b"+OK\r\n1 only-one\r\n.\r\n",
            b"LIST": b"+OK\r\n1 %d\r\n.\r\n" % len(self._mail),
            b"RETR": b"+OK\r\n" + self._mail + b".\r\n",
            b"QUIT": b"+OK\r\n",
        }
        stream.write(b"+OK ready\r\n")
        stream.flush()
        while line := stream.readline():
            word = line.split()[0].upper() if line.split() else b""
            answer = answers.get(word, b"-ERR\r\n")
            if word == b"RETR" and self._cuts:
                self._cuts -= 1
                stream.write(answer[: len(answer) // 2])
                stream.flush()
                return
            stream.write(answer)
            stream.flush()
            if word == b"QUIT":
                return
