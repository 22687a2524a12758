"""HAProxy with the configuration of the Kubernetes component, in front of the services of mail clients."""

from __future__ import annotations

import asyncio
import base64
import imaplib
import json
import os
import poplib
import re
import smtplib
import socket
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from deploy.machine import ports as free_ports
from shared.db.database import Database
from shared.settings import SERVICES
from shared.store import folders
from tests.submission_harness import add_office

ROOT = Path(__file__).resolve().parents[2]
CONFIGURATION = ROOT / "deploy/k8s/components/mail-proxy/haproxy.cfg"
PORTS = ("IMAP", "IMAPS", "POP3", "POP3S", "SMTP", "SUBMISSION", "SMTPS")
CLIENT = "127.0.0.5"  # the proxy itself connects from 127.0.0.1
MAIL = b"From: alex@local.com\r\nTo: jim@local.com\r\nSubject: lunch\r\n\r\nNow?\r\n"


@dataclass
class Proxied:
    """The services behind the proxy."""

    ports: dict[str, int]  # of the proxy, by name
    direct: dict[str, int]  # of the services
    tls: ssl.SSLContext
    folder: Path  # with the log of each program

    def lines(self, name: str) -> list[dict[str, object]]:
        """The lines of the log of a service."""
        text = (self.folder / f"{name}.log").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


@asynccontextmanager
async def program(folder: Path, name: str, *words: str, **variables: str) -> AsyncIterator[None]:
    """Run a program for the block, with its output in a file."""
    with (folder / f"{name}.log").open("w") as log:
        process = await asyncio.create_subprocess_exec(*words, env=os.environ | variables, stdout=log, stderr=log)
        try:
            yield
        finally:
            with suppress(ProcessLookupError):
                process.terminate()
            await asyncio.wait_for(process.wait(), 60)


async def listens(port: int, log: Path) -> None:
    """Wait until a port is open."""
    for _ in range(600):
        with suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"port {port} is not open: see {log}")


def configuration(ports: dict[str, int], direct: dict[str, int], health: int) -> str:
    """The component's file with the ports of this test, all on loopback."""
    text = CONFIGURATION.read_text(encoding="utf-8")
    inner = ("1143", "1993", "1110", "1995", "1025", "1587", "1465", "8404")
    served = dict(zip(inner, (*ports.values(), health), strict=True))
    text, bound = re.subn(r"bind :::(\d+) v4v6", lambda found: f"bind 127.0.0.1:{served[found[1]]}", text)
    behind = {"imap:143": "IMAP", "imap:993": "IMAPS", "pop3:110": "POP3", "pop3:995": "POP3S"}
    behind |= {"smtp:25": "SMTP", "smtp:587": "SUBMISSION", "smtp:465": "SMTPS"}
    text, named = re.subn(r"mail-(\w+:\d+)$", lambda found: f"127.0.0.1:{direct[behind[found[1]]]}", text, flags=re.M)
    assert (bound, named) == (8, 7)
    return text


def settings(database_url: str, broker_url: str, folder: Path) -> dict[str, str]:
    """The environment of a service behind a proxy on this machine."""
    return {
        "MAILGROUP_DATA": str(folder),
        "MAILGROUP_DATABASE_URL": database_url,
        "MAILGROUP_BROKER_URL": broker_url,
        "MAILGROUP_SECRET_KEY": base64.urlsafe_b64encode(b"k" * 32).decode(),
        "MAILGROUP_ALLOW_PLAINTEXT_AUTH": "no",
        "MAILGROUP_PROXY_FROM": "127.0.0.1",
    }


@pytest.fixture
async def proxied(database: Database, database_url: str, broker_url: str, tmp_path: Path) -> AsyncIterator[Proxied]:
    people = await add_office(database)
    async with database.transaction() as connection:
        await folders.create_standard_folders(connection, people["jim"])
    numbers = free_ports.choose(18, str(tmp_path))
    direct, ports = dict(zip(PORTS, numbers, strict=False)), dict(zip(PORTS, numbers[7:], strict=False))
    health, *metrics_ports = numbers[14:]
    variables = {f"MAILGROUP_{name}_PORT": str(port) for name, port in direct.items()}
    variables |= settings(database_url, broker_url, tmp_path)
    file = tmp_path / "haproxy.cfg"
    file.write_text(configuration(ports, direct, health), encoding="utf-8")
    async with AsyncExitStack() as stack:
        served = (("smtp_in", "SMTPS"), ("pop3_out", "POP3S"), ("imap_out", "IMAPS"))
        for (name, port), metrics in zip(served, metrics_ports, strict=True):
            variables["MAILGROUP_METRICS_PORT"] = str(metrics - SERVICES.index(name))
            words = (sys.executable, "-m", f"services.{name}")
            await stack.enter_async_context(program(tmp_path, name, *words, **variables))
            await listens(direct[port], tmp_path / f"{name}.log")
        await stack.enter_async_context(program(tmp_path, "haproxy", "/usr/sbin/haproxy", "-db", "-f", str(file)))
        for port_number in (*ports.values(), health):
            await listens(port_number, tmp_path / "haproxy.log")
        tls = ssl.create_default_context(cafile=tmp_path / "tls/self-signed.pem")
        tls.check_hostname = False
        yield Proxied(ports, direct, tls, tmp_path)


def submit(proxied: Proxied, port: str, password: str = "secret") -> None:
    """Submit a mail from the client's address, with STARTTLS or TLS."""
    where = ("127.0.0.1", proxied.ports[port])
    client: smtplib.SMTP
    if port == "SMTPS":
        client = smtplib.SMTP_SSL(*where, context=proxied.tls, source_address=(CLIENT, 0), timeout=60)
    else:
        client = smtplib.SMTP(*where, source_address=(CLIENT, 0), timeout=60)
    with client:
        if port != "SMTPS":
            client.ehlo()
            assert not client.has_extn("auth")  # not before TLS
            client.starttls(context=proxied.tls)
        client.login("alex@local.com", password)
        client.sendmail("alex@local.com", ["jim@local.com"], MAIL)


class Pop3(poplib.POP3):
    """POP3 from the client's address, with implicit TLS if ``tls`` is given."""

    def __init__(self, port: int, tls: ssl.SSLContext | None) -> None:
        self._tls = tls
        super().__init__("127.0.0.1", port, timeout=60)

    def _create_socket(self, timeout: float) -> socket.socket:
        plain = socket.create_connection((self.host, self.port), timeout, (CLIENT, 0))
        return self._tls.wrap_socket(plain) if self._tls else plain


class Imap(imaplib.IMAP4):
    """IMAP from the client's address, with implicit TLS if ``tls`` is given."""

    def __init__(self, port: int, tls: ssl.SSLContext | None) -> None:
        self._tls = tls
        super().__init__("127.0.0.1", port, timeout=60)

    def _create_socket(self, timeout: float | None) -> socket.socket:
        plain = socket.create_connection((self.host, self.port), timeout, (CLIENT, 0))
        return self._tls.wrap_socket(plain) if self._tls else plain


def read_by_imap(proxied: Proxied, port: str, password: str = "secret") -> int:
    """Log in by IMAP from the client's address, and return the number of mails in INBOX."""
    with Imap(proxied.ports[port], proxied.tls if port == "IMAPS" else None) as session:
        if port == "IMAP":
            assert "LOGINDISABLED" in session.capabilities  # not before TLS
            session.starttls(proxied.tls)
        session.login("jim@local.com", password)
        return int(session.select()[1][0] or b"")


def read(proxied: Proxied, port: str, password: str = "secret") -> tuple[int, int]:
    """Log in by POP3 from the client's address, and return the number of mails and octets."""
    session = Pop3(proxied.ports[port], proxied.tls if port == "POP3S" else None)
    if port == "POP3":
        session.stls(proxied.tls)
    session.user("jim@local.com")
    session.pass_(password)
    found = session.stat()
    session.quit()
    return found


async def test_clients_reach_all_services_which_see_their_address(proxied: Proxied) -> None:
    for port in ("SMTP", "SUBMISSION", "SMTPS"):
        await asyncio.to_thread(partial(submit, proxied, port))
        with pytest.raises(smtplib.SMTPAuthenticationError):
            await asyncio.to_thread(partial(submit, proxied, port, "wrong"))
    for port in ("POP3", "POP3S"):
        assert await asyncio.to_thread(partial(read, proxied, port)) == (0, 0)
        with pytest.raises(poplib.error_proto, match="AUTH"):
            await asyncio.to_thread(partial(read, proxied, port, "wrong"))
    for port in ("IMAP", "IMAPS"):
        assert await asyncio.to_thread(partial(read_by_imap, proxied, port)) == 0
        with pytest.raises(imaplib.IMAP4.error, match="AUTHENTICATIONFAILED"):
            await asyncio.to_thread(partial(read_by_imap, proxied, port, "wrong"))
    for service, count in (("smtp_in", 3), ("pop3_out", 2), ("imap_out", 2)):
        refused = [line["peer"] for line in proxied.lines(service) if "address" in line and "peer" in line]
        assert set(refused) == {CLIENT} and len(refused) >= count


@pytest.mark.parametrize(("port", "service"), [("POP3", "pop3_out"), ("IMAP", "imap_out")])
async def test_the_proxys_address_cannot_connect_without_the_header(proxied: Proxied, port: str, service: str) -> None:
    def greeting() -> bytes:
        with socket.create_connection(("127.0.0.1", proxied.direct[port]), 60) as client:
            client.sendall(b"1 NOOP\r\nQUIT but this is no header of the protocol\r\n")
            return client.recv(100)

    with suppress(ConnectionResetError):
        assert await asyncio.to_thread(greeting) == b""
    assert any(line["event"] == "proxy header refused" for line in proxied.lines(service))


async def test_the_proxy_of_the_page_spreads_clients_over_all_replicas(
    database: Database, database_url: str, broker_url: str, tmp_path: Path
) -> None:
    # given two replicas of imap_out on the first two ports of the range that docs/containers.md publishes
    people = await add_office(database)
    async with database.transaction() as connection:
        await folders.create_standard_folders(connection, people["jim"])
    page = (ROOT / "docs/containers.md").read_text(encoding="utf-8")
    [written] = re.findall(r"^```haproxy\n(.*?)^```$", page, re.M | re.S)
    [(first, last)] = re.findall(r'target: 1143, published: "(\d+)-(\d+)"', page)
    servers = re.findall(r"server \S+ 127\.0\.0\.1:(\d+)", written)
    assert len(servers) == 2 and int(first) <= int(servers[0]) < int(servers[1]) <= int(last)
    front, *clear, tls_1, tls_2, metrics_1, metrics_2 = free_ports.choose(7, str(tmp_path))
    text = written.replace("bind :143", f"bind 127.0.0.1:{front}")
    for port, here in zip(servers, clear, strict=True):
        text = text.replace(f"127.0.0.1:{port} ", f"127.0.0.1:{here} ")
    file = tmp_path / "haproxy.cfg"
    file.write_text(text, encoding="utf-8")
    async with AsyncExitStack() as stack:
        for number, (port, tls_port, metrics) in enumerate(
            zip(clear, (tls_1, tls_2), (metrics_1, metrics_2), strict=True)
        ):
            variables = settings(database_url, broker_url, tmp_path) | {
                "MAILGROUP_IMAP_PORT": str(port),
                "MAILGROUP_IMAPS_PORT": str(tls_port),
                "MAILGROUP_METRICS_PORT": str(metrics - SERVICES.index("imap_out")),
            }
            words = (sys.executable, "-m", "services.imap_out")
            await stack.enter_async_context(program(tmp_path, f"imap_out-{number}", *words, **variables))
            await listens(port, tmp_path / f"imap_out-{number}.log")
        await stack.enter_async_context(program(tmp_path, "haproxy", "/usr/sbin/haproxy", "-db", "-f", str(file)))
        await listens(front, tmp_path / "haproxy.log")
        tls = ssl.create_default_context(cafile=tmp_path / "tls/self-signed.pem")
        tls.check_hostname = False
        proxied = Proxied({"IMAP": front}, {}, tls, tmp_path)
        # when clients log in, one after the other, twice as many as there are replicas
        for _ in range(4):
            assert await asyncio.to_thread(partial(read_by_imap, proxied, "IMAP")) == 0
        for _ in range(4):
            with pytest.raises(imaplib.IMAP4.error, match="AUTHENTICATIONFAILED"):
                await asyncio.to_thread(partial(read_by_imap, proxied, "IMAP", "wrong"))
        # then both replicas have served some, and know the clients' own address
        for number in range(2):
            seen = {line["peer"] for line in proxied.lines(f"imap_out-{number}") if line["event"] == "login refused"}
            assert seen == {CLIENT}
