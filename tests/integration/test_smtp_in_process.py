"""python -m services.smtp_in: real mail clients, the whole process."""

from __future__ import annotations

import asyncio
import base64
import os
import smtplib
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest

from deploy.machine import ports as free_ports
from shared.db.database import Database
from shared.settings import SERVICES, Settings
from shared.store import submissions_admin
from tests.submission_harness import Client, add_office, make_settings, plain


@dataclass
class Served:
    """The service as a separate process, on uvloop."""

    settings: Settings
    database: Database
    cafile: Path
    process: asyncio.subprocess.Process


@pytest.fixture
async def served(database: Database, database_url: str, broker_url: str, tmp_path: Path) -> AsyncIterator[Served]:
    """python -m services.smtp_in"""
    settings = make_settings(tmp_path)
    await add_office(database)
    metrics = free_ports.choose(1, str(tmp_path) + "metrics")[0]
    environment = {
        **os.environ,
        "MAILGROUP_DATA": str(tmp_path),
        "MAILGROUP_DATABASE_URL": database_url,
        "MAILGROUP_BROKER_URL": broker_url,
        "MAILGROUP_SECRET_KEY": base64.urlsafe_b64encode(b"k" * 32).decode(),
        "MAILGROUP_SMTP_PORT": str(settings.smtp_port),
        "MAILGROUP_SUBMISSION_PORT": str(settings.submission_port),
        "MAILGROUP_SMTPS_PORT": str(settings.smtps_port),
        "MAILGROUP_METRICS_PORT": str(metrics - SERVICES.index("smtp_in")),
    }
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "services.smtp_in", env=environment)
    for port in (settings.smtp_port, settings.submission_port, settings.smtps_port):
        for _ in range(100):
            with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            await asyncio.sleep(0.1)
    yield Served(settings, database, tmp_path / "tls" / "self-signed.pem", process)
    if process.returncode is None:
        process.terminate()
    assert await asyncio.wait_for(process.wait(), 20) == 0


async def run(*command: str) -> None:
    """Run a client; it has to succeed."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, output.decode("utf-8", "replace")


async def mail_with_curl(served: Served) -> int:
    """curl, over each TLS mode; how many mails."""
    mail = served.cafile.parent / "mail"
    mail.write_bytes(b"From: alex@local.com\r\nTo: x@example.net\r\n\r\n.body\r\n")
    common = (
        "curl",
        "-sS",
        "--max-time",
        "20",
        "--mail-from",
        "alex@local.com",
        "--mail-rcpt",
        "x@example.net",
        "--user",
        "alex@local.com:secret",
        "--upload-file",
        str(mail),
        "--cacert",
        str(served.cafile),
    )
    await run(*common, f"smtp://localhost:{served.settings.smtp_port}/client")
    await run(*common, f"smtp://localhost:{served.settings.smtp_port}/client", "--ssl-reqd")
    await run(*common, f"smtp://localhost:{served.settings.submission_port}/client", "--ssl-reqd")
    await run(*common, f"smtps://localhost:{served.settings.smtps_port}/client", "--login-options", "AUTH=LOGIN")
    return 4


async def mail_with_swaks(served: Served) -> int:
    """swaks, in clear (its TLS needs a Perl package more); how many mails."""
    common = (
        "swaks",
        "--from",
        "alex@local.com",
        "--to",
        "x@example.net",
        "--au",
        "alex@local.com",
        "--ap",
        "secret",
        "--server",
        "127.0.0.1",
        "--timeout",
        "20",
    )
    for more in (("--auth", "LOGIN"), ("--auth", "PLAIN"), ("--pipeline",)):
        await run(*common, "--port", str(served.settings.smtp_port), *more)
    return 3


async def mail_with_smtplib(served: Served) -> int:
    """Python's smtplib, over each TLS mode; how many mails."""

    def send() -> None:
        mail = EmailMessage()
        mail["From"], mail["To"] = "Alex <alex@local.com>", "J\xf6rg <x@example.net>"
        mail.set_content("Gr\xfc\xdfe\n.\n..\n" + "x" * 2000)
        context = ssl.create_default_context(cafile=str(served.cafile))
        with smtplib.SMTP("localhost", served.settings.submission_port, timeout=20) as client:
            client.starttls(context=context)
            client.login("alex@local.com", "secret")
            client.send_message(mail)
            client.send_message(mail)
        with smtplib.SMTP_SSL("localhost", served.settings.smtps_port, context=context, timeout=20) as client:
            client.login("alex@local.com", "secret")
            client.send_message(mail)
        with smtplib.SMTP("localhost", served.settings.smtp_port, timeout=20) as client:
            client.login("alex@local.com", "secret")
            client.send_message(mail)

    await asyncio.to_thread(send)
    return 4


@pytest.mark.parametrize("send", [mail_with_curl, mail_with_swaks, mail_with_smtplib])
async def test_mail_clients_work_with_the_process(
    served: Served, send: Callable[[Served], Coroutine[Any, Any, int]]
) -> None:
    sent = await send(served)

    async with served.database.transaction() as connection:
        assert len(await submissions_admin.list_submissions(connection, ["submitted"])) == sent


def peak_octets(process: asyncio.subprocess.Process) -> int:
    """The most memory that a process has had, in octets."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


async def test_a_mail_of_50_mb_costs_less_than_two_and_a_half_times_its_size(served: Served) -> None:
    client = await Client.connect(served.settings.smtp_port)
    await client.reply()
    assert (await client.ask("EHLO x", plain("alex@local.com"))).startswith("235")
    assert (await client.send(b"Subject: small\r\n\r\n.\r\n")).startswith("250")
    before = peak_octets(served.process)
    mail = b"Subject: x\r\n\r\n" + (b"x" * 76 + b"\r\n") * 672_000  # 52,416,014 octets

    reply = await client.send(mail + b".\r\n")

    assert reply.startswith("250")
    assert peak_octets(served.process) - before < 2.5 * len(mail)
