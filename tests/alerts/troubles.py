"""The troubles that provoke the alerts: how each begins and ends, and which alerts have to fire meanwhile."""

from __future__ import annotations

import datetime
import poplib
import re
import smtplib
import threading
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pika
import psycopg
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from shared.amqp.topology import DEAD_LETTERS, EXCHANGE
from shared.mime.headers import MAX_HOPS
from tests.alerts.stand import CLOSED, LIMITED, MAX_OCTETS, NOBODY, PINNED, SALES, SUPPORT, TOKENS, UNSTARTED, Stand
from tests.company import local
from tests.system import until
from tests.token_server import account_fields, token_server

WHO = "anna@customer.example"
EXPIRY = f'mailgroup_oauth_token_expiry_timestamp_seconds{{external="{TOKENS}"}}'.encode()


@dataclass(slots=True)
class Trouble:
    """Something that goes wrong for a while."""

    alerts: Sequence[str]
    begin: Callable[[Stand], object]
    end: Callable[[Stand], object]


class _Held:
    """What a trouble holds until its end."""

    def __init__(self) -> None:
        self.stack = ExitStack()

    def repeat(self, work: Callable[[], object], seconds: float, threads: int = 1) -> None:
        """Call ``work`` again and again in threads until the end; its errors are those that are provoked."""
        over = threading.Event()

        def loop() -> None:
            while not over.wait(seconds):
                with suppress(OSError, poplib.error_proto, pika.exceptions.AMQPError):
                    work()

        running = [threading.Thread(target=loop, daemon=True) for _ in range(threads)]
        for thread in running:
            thread.start()
            self.stack.callback(thread.join, 60)
        self.stack.callback(over.set)

    def end(self, _: Stand) -> None:
        self.stack.close()


def troubles() -> list[list[Trouble]]:
    """Return the troubles in groups: those of a group are there at the same time."""
    return [
        [
            _login(), _access_token(), _not_polled(), _provider_certificate(), _held(), _waits_for_start(), _parked(),
            _skipped(), _books(), _limited(), _provider(), _stray(), _connections(), _old_ids(), _standby(),
            _archive(), _disk(), _backup(), _guesses(), _certificate_expires(),
        ],
        [_mailbox(), _certificate_refused(), _background(), _corrupted()],
        [_broker_limit()],  # it accepts no messages meanwhile
        [_service("admin", "SystemNotChecked", "ServiceDown")],
        [_service("rabbitmq", "BrokerDown")],
        [_service("postgres", "DatabaseDown")],
    ]  # fmt: skip


# ---------------------------------------------------------------------------------------------- accounts and mail


def _mail(subject: str, to: str = SUPPORT, hops: int = 0, octets: int = 0) -> bytes:
    received = "Received: from a.example by b.example; Thu, 1 Jan 2026 00:00:00 +0000\r\n" * hops
    lines = "x" * 70 + "\r\n"
    body = lines * (octets // len(lines) + 1)
    return f"{received}From: {WHO}\r\nTo: {to}\r\nSubject: {subject}\r\n\r\n{body}".encode()


def _login() -> Trouble:
    def set_password(here: Stand, password: str) -> None:
        done = here.system.run("external", "set", SALES, f"password={password}")
        assert done.exit_code == 0, done.output

    return Trouble(
        ("LoginRefused", "AccountPaused"),
        lambda here: set_password(here, "wrong"),
        lambda here: set_password(here, "secret"),
    )


def _access_token() -> Trouble:
    """An issuer gives access tokens that expire at once, and then no other."""
    held = _Held()

    def begin(here: Stand) -> None:
        server = held.stack.enter_context(token_server())
        server.answers = [(200, {"access_token": "short", "expires_in": 6})] * 10_000
        oauth = account_fields(server, grant="client_credentials")["oauth"]
        account = {**here.system.external(TOKENS), "oauth": oauth}
        del account["password"]
        here.system.apply({"external_accounts": [account], "local_accounts": [local("Tia", TOKENS)]}, prune=False)
        page = f"http://127.0.0.1:{here.system.settings.metrics_port_of('fetcher')}/metrics"
        until(lambda: EXPIRY in urllib.request.urlopen(page, timeout=30).read())
        server.answers = [(503, {})] * 10_000

    def end(here: Stand) -> None:
        for words in (("local", "remove", local("Tia")["address"]), ("external", "remove", TOKENS)):
            done = here.system.run(*words)
            assert done.exit_code == 0, done.output
        held.end(here)

    return Trouble(("AccessTokenExpires",), begin, end)


def _not_polled() -> Trouble:
    def begin(here: Stand) -> None:
        port = here.system.provider.pop3_port
        here.sql(
            f"update external_accounts set pop3_port = 1 where address = '{CLOSED}' and pop3_port = {port}",
            f"""update polls set last_success_at = now() - interval '20 minutes', quiet_list = null from
                external_accounts e where e.id = external_id and e.address = '{CLOSED}'""",
        )

    def end(here: Stand) -> None:
        port = here.system.provider.pop3_port
        here.sql(f"update external_accounts set pop3_port = {port} where address = '{CLOSED}'")

    return Trouble(("ProviderNotPolled",), begin, end)


def _discard(here: Stand, kind: str, external: str) -> None:
    """Discard the mails of an account in ``held list`` or ``parked list``.

    A change of any account routes held mail once more; it is in no list meanwhile.
    """

    def listed() -> list[dict[str, Any]]:
        return [mail for mail in here.system.json(kind, "list") if mail["external"] == external]

    for mail in until(listed):
        done = here.system.run("parked", "discard", str(mail["id"]), "--reason", "provoked")
        assert done.exit_code == 0, done.output


def _held() -> Trouble:
    return Trouble(
        ("MailHeld",),
        lambda here: here.system.provider.put(NOBODY, _mail("held", NOBODY)),
        lambda here: _discard(here, "held", NOBODY),
    )


def _waits_for_start() -> Trouble:
    """Mail of an account that is not started; a day passes."""

    def begin(here: Stand) -> None:
        here.system.provider.put(UNSTARTED, _mail("waits for the start", UNSTARTED))
        until(lambda: any(mail["external"] == UNSTARTED for mail in here.system.json("held", "list")))
        here.sql(
            f"""update inbound set state_at = now() - interval '25 hours' from external_accounts e
                where e.id = external_id and e.address = '{UNSTARTED}' and state = 'held'"""
        )

    def end(here: Stand) -> None:
        done = here.system.run("external", "start", UNSTARTED)
        assert done.exit_code == 0, done.output

    return Trouble(("MailWaitsForStart",), begin, end)


def _provider_certificate() -> Trouble:
    """The provider's certificate is not the pinned one."""

    def set_server(here: Stand, *values: str) -> None:
        done = here.system.run("external", "set", PINNED, *values)
        assert done.exit_code == 0, done.output

    def begin(here: Stand) -> None:
        port = here.system.provider.pop3s_port
        set_server(here, f"pop3.port={port}", "pop3.tls=implicit", f"pop3.tls_fingerprint={'ab' * 32}")

    def end(here: Stand) -> None:
        port = here.system.provider.pop3_port
        set_server(here, f"pop3.port={port}", "pop3.tls=none", "pop3.tls_fingerprint=")

    return Trouble(("ProviderCertificateChanged",), begin, end)


def _parked() -> Trouble:
    return Trouble(
        ("MailParked",),
        lambda here: here.system.provider.put(SUPPORT, _mail("loop", hops=MAX_HOPS + 1)),
        lambda here: _discard(here, "parked", SUPPORT),
    )


def _skipped() -> Trouble:
    return Trouble(
        ("MailSkipped",),
        lambda here: here.system.provider.put(SUPPORT, _mail("large", octets=2 * MAX_OCTETS)),
        lambda here: here.system.run("external", "skipped", SUPPORT, "--acknowledge"),
    )


def _books() -> Trouble:
    of = f"from external_accounts e where e.id = external_id and e.address = '{SUPPORT}'"
    return Trouble(
        ("BooksDoNotBalance",),
        lambda here: here.sql(f"update polls set fetched = fetched + 1 {of}"),
        lambda here: here.sql(f"update polls set fetched = fetched - 1 {of}"),
    )


def _submit(here: Stand, subject: str, author: str = "alex@local.com") -> None:
    mail = EmailMessage()
    mail["From"], mail["To"], mail["Subject"] = author, WHO, subject
    mail.set_content("hello")
    here.system.submit(author, [WHO], mail)


def _limited() -> Trouble:
    """The only SMTP server of an account reaches its limit, and the folder for the copies of sent mail is missing."""

    def set_fields(here: Stand, *values: str) -> None:
        done = here.system.run("external", "set", LIMITED, *values)
        assert done.exit_code == 0, done.output

    def relays(here: Stand) -> list[dict[str, Any]]:
        [account] = [each for each in here.system.json("status")["externals"] if each["address"] == LIMITED]
        return list(account["relays"])

    def begin(here: Stand) -> None:
        here.system.provider.add_mailbox(WHO, "secret")  # a refused recipient does not count
        set_fields(here, "smtp.recipients_per_day=1", "imap.sent=No such folder")
        for number in range(2):
            _submit(here, f"limited {number}", "lea@local.com")
        until(lambda: relays(here)[0]["full_until"])  # before the next trouble stops the server

    return Trouble(
        ("RelayFull", "SentMailNotFiled"),
        begin,
        lambda here: set_fields(here, "smtp.recipients_per_day=", "imap.sent=false"),
    )


def _provider() -> Trouble:
    """The provider's SMTP server is down; time passes for the mails that wait."""

    def begin(here: Stand) -> None:
        here.system.provider.stop_program("postfix")
        for number in range(4):
            _submit(here, f"waits {number}")
        here.sql(
            "update submissions set created_at = now() - interval '6 minutes'",
            """update submissions set created_at = now() - interval '5 hours'
               where id = (select max(id) from submissions where state <> 'done')""",
        )

    def end(here: Stand) -> None:
        here.system.provider.start_program("postfix")
        here.system.run("queue", "retry")

    return Trouble(("MailRelayedLate", "OldestMailWaiting"), begin, end)


def _mailbox() -> Trouble:
    """The service mailbox is down; time passes for the mails that wait, and its queue grows."""
    held = _Held()

    def begin(here: Stand) -> None:
        here.instance.stop_program("mailbox")
        for number in range(5):
            here.system.provider.put(SUPPORT, _mail(f"late {number}"))
        age = "update inbound set created_at = now() - interval '15 minutes', state_at = now() - interval '15 minutes' "
        held.repeat(lambda: here.sql(age + "where state = 'routed' and created_at > now() - interval '9 minutes'"), 1)
        held.repeat(lambda: _publish(here, b'{"id": 999999999, "recipients": []}', "routed.nobody", 40), 1)

    def end(here: Stand) -> None:
        held.end(here)
        here.instance.start_program("mailbox")

    alerts = ("MailReadableLate", "MailLate", "ServiceDown", "QueueWithoutConsumer", "BacklogGrowing")
    return Trouble(alerts, begin, end)


def _publish(here: Stand, body: bytes, key: str, count: int = 1) -> None:
    connection = pika.BlockingConnection(pika.URLParameters(here.rabbitmq.url))
    channel = connection.channel()
    for _ in range(count):
        channel.basic_publish(EXCHANGE, key, body)
    connection.close()


def _stray() -> Trouble:
    def end(here: Stand) -> None:
        connection = pika.BlockingConnection(pika.URLParameters(here.rabbitmq.url))
        connection.channel().queue_purge(DEAD_LETTERS)
        connection.close()

    return Trouble(("StrayMessages",), lambda here: _publish(here, b"no work item", "fetched.nobody"), end)


def _guesses() -> Trouble:
    held = _Held()

    def guess(here: Stand) -> None:
        session = poplib.POP3("127.0.0.1", here.system.settings.pop3_port, timeout=40)
        session.user("alex@local.com")
        session.pass_("a guess")

    return Trouble(("ManyLoginsRefused",), lambda here: held.repeat(lambda: guess(here), 0.1, threads=30), held.end)


# ---------------------------------------------------------------------------------------------- PostgreSQL, disks


def _connections() -> Trouble:
    held = _Held()

    def begin(here: Stand) -> None:
        for _ in range(155):
            held.stack.enter_context(psycopg.connect(here.postgres.admin_url_of("postgres")))

    return Trouble(("DatabaseConnectionsUsed",), begin, held.end)


def _old_ids() -> Trouble:
    """A transaction stays open while a quarter of a million others pass: nothing can be frozen."""
    held = _Held()

    def begin(here: Stand) -> None:
        url = here.postgres.admin_url_of("mailgroup")
        open_ = held.stack.enter_context(psycopg.connect(url))
        open_.execute("select txid_current()")
        here.sql(
            "set synchronous_commit = off",
            "do $$ begin for i in 1..230000 loop perform txid_current(); commit; end loop; end $$",
        )

    return Trouble(("TransactionIdsOld",), begin, held.end)


def _standby() -> Trouble:
    def begin(here: Stand) -> None:
        here.sql("select pg_create_physical_replication_slot('gone', true)")
        for _ in range(4):
            here.sql("create table if not exists wal_filler ()", "drop table wal_filler", "select pg_switch_wal()")

    return Trouble(
        ("StandbyGone", "StandbyLags"), begin, lambda here: here.sql("select pg_drop_replication_slot('gone')")
    )


def _archive() -> Trouble:
    def command(here: Stand, what: str) -> None:
        here.sql(f"alter system set archive_command = '{what}'", "select pg_reload_conf()")
        here.sql("create table if not exists wal_filler ()", "drop table wal_filler", "select pg_switch_wal()")

    return Trouble(("ArchivingFails",), lambda here: command(here, "false"), lambda here: command(here, "true"))


def _disk() -> Trouble:
    return Trouble(("DiskNearlyFull",), lambda here: here.disk(full=True), lambda here: here.disk(full=False))


def _backup() -> Trouble:
    """The disk of the daily backup is read-only, and time passes."""

    def begin(here: Stand) -> None:
        here.stop_backups()
        here.age_backups()
        here.mount_backups("ro")
        here.start_backups()

    return Trouble(("BackupOld", "BackupFails"), begin, lambda here: here.mount_backups("rw"))


def _background() -> Trouble:
    return Trouble(
        ("BackgroundWorkFails",),
        lambda here: here.sql("alter table search_progress rename to search_progress_away"),
        lambda here: here.sql("alter table search_progress_away rename to search_progress"),
    )


def _corrupted() -> Trouble:
    """PostgreSQL reports corrupted data to the service that stores submissions."""

    def begin(here: Stand) -> None:
        here.sql(
            """create function corrupted() returns trigger language plpgsql as $$
               begin raise exception 'provoked' using errcode = 'data_corrupted'; end $$""",
            "create trigger corrupted before insert on submissions execute function corrupted()",
        )
        with suppress(smtplib.SMTPException):  # a temporary failure
            _submit(here, "corrupted")

    def end(here: Stand) -> None:
        here.sql("drop trigger corrupted on submissions", "drop function corrupted()")
        here.instance.stop_program("smtp_in")  # the time of the report ends with its process
        here.instance.start_program("smtp_in")

    return Trouble(("DatabaseCorrupted",), begin, end)


# ---------------------------------------------------------------------------------------------- services


def _service(name: str, *alerts: str) -> Trouble:
    def end(here: Stand) -> None:
        here.instance.start_program(name)
        if name == "rabbitmq":
            until(here.rabbitmq.answers, 240)
            here.show_rabbitmq()

    return Trouble(alerts, lambda here: here.instance.stop_program(name), end)


def _broker_limit() -> Trouble:
    return Trouble(
        ("BrokerShortOfResources",),
        lambda here: here.rabbitmq.control("set_disk_free_limit", "10000GB"),
        lambda here: here.rabbitmq.control("set_disk_free_limit", "64MB"),
    )


@dataclass(slots=True)
class _Files:
    """The certificate of the mail ports."""

    saved: bytes = field(default=b"")

    def path(self, here: Stand) -> Path:
        return here.system.settings.data / "tls" / "self-signed.pem"  # with its key

    def replace(self, here: Stand, content: bytes) -> None:
        path = self.path(here)
        self.saved = path.read_bytes()
        path.write_bytes(content)

    def restore(self, here: Stand) -> None:
        self.path(here).write_bytes(self.saved)


def _certificate_expires() -> Trouble:
    files = _Files()

    def begin(here: Stand) -> None:
        pem = files.path(here).read_bytes()
        old = x509.load_pem_x509_certificates(pem)[0]
        [key_pem] = re.findall(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----\n", pem, re.S)
        key = load_pem_private_key(key_pem, None)
        assert isinstance(key, EllipticCurvePrivateKey | RSAPrivateKey)
        now = datetime.datetime.now(datetime.UTC)
        new = x509.CertificateBuilder(old.subject, old.subject, key.public_key(), 1)
        new = new.not_valid_before(now).not_valid_after(now + datetime.timedelta(days=5))
        files.replace(here, new.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM) + key_pem)

    return Trouble(("CertificateExpires",), begin, files.restore)


def _certificate_refused() -> Trouble:
    files = _Files()
    return Trouble(("CertificateRefused",), lambda here: files.replace(here, b"no certificate"), files.restore)
