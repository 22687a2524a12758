"""Backup and restore: mail in every stage, an empty broker, a lost key, and mail that must not be sent twice."""

from __future__ import annotations

import asyncio
import datetime
import json
import os
import pwd
import stat
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deploy.machine import backups, ports, servers
from deploy.machine.postgres import Postgres
from services.admin.cli.app import app
from services.admin.mail import operations
from services.admin.maintenance import restore
from services.admin.monitoring import problems, reconciliation
from services.mailbox.worker import MailboxWorker
from services.router.worker import RouterWorker
from services.sender.submission_worker import SubmissionWorker
from shared.db.database import Database
from shared.db.migrations.migrate import migrate
from shared.errors import MAX_FAILURES, Permanent
from shared.provider.credentials import Grant
from shared.provider.vault import Vault, new_key
from shared.runtime.process import Service
from shared.runtime.queue_worker import QueueWorker, run_worker
from shared.settings import Settings
from shared.store import accounts, folder_admin
from tests.company import COMPANY, KEY, SALES, SUPPORT, apply, arrive, everyone, external, local, mailbox_of
from tests.polling import until
from tests.scripted_smtp import scripted_smtp
from tests.sender_harness import SenderHarness, sending
from tests.servers import opened, scratch, wait_for
from tests.token_server import client_key

ALEX, JIM = "alex@local.com", "jim@local.com"
ANN, BOB, CAT = "ann@customer.org", "bob@customer.org", "cat@customer.org"
AT = "2026-11-05T12:00:00.000Z"


def mail(subject: str) -> bytes:
    return f"From: anna@x.example\r\nTo: {SUPPORT}\r\nSubject: {subject}\r\n\r\nHello\r\n".encode()


@contextmanager
def restored(postgres: Postgres, file: Path, send_queue: bool = False) -> Iterator[str]:
    """Restore a backup into a new database."""
    name = "restored"
    postgres.create(name, template="template0")
    try:
        url = postgres.url_of(name)
        with backups.opened(file) as backup:
            backups.load(backup, url)
            assert migrate(url) == []
        asyncio.run(restore.prepare_restored(url, AT, send_queue))
        yield url
    finally:
        postgres.drop(name)


async def subjects(database: Database, address: str) -> list[str]:
    return sorted(
        body.partition(b"Subject: ")[2].partition(b"\r\n")[0].decode() for body in await mailbox_of(database, address)
    )


async def until_holds(database: Database, address: str, count: int) -> None:
    """Wait until a mailbox has this number of mails."""

    async def so() -> bool:
        return len(await mailbox_of(database, address)) >= count

    await until(so, 30)


async def in_every_stage(harness: SenderHarness) -> None:
    """Write mails in the states fetched, routed, delivered, held and parked, and submissions in each state."""
    externals, _ = await everyone(harness.database)
    rows = await arrive(
        harness.database, externals[SUPPORT].id, [mail(s) for s in ("fetched", "routed", "delivered", "parked")]
    )
    await RouterWorker(harness.database, 5).handle(rows[1:3])
    await MailboxWorker(harness.database, 5).handle(rows[2:3])
    for _ in range(MAX_FAILURES):
        await RouterWorker(harness.database, 5).count_failure(rows[3], "router", "boom")
    [held] = await arrive(harness.database, externals[SALES].id, [mail("held")])
    await RouterWorker(harness.database, 5).handle([held])
    waiting = await harness.submit(ANN, JIM, mail=mail("waiting"))
    await harness.until(waiting, state="queued", tries=1)
    await harness.rows("update submissions set next_try_at = now() + interval '1 day'")
    unanswered = await harness.submit(BOB, mail=mail("unanswered"))
    await harness.until(unanswered, state="sent_unanswered")
    harness.relaying.schedule = lambda external_id, position=0: None  # type: ignore[method-assign]  # nobody takes up the next ones
    await harness.rows(
        """with m as (insert into blobs (octets, sha256, head) values (3, '', 'x') returning id)
           insert into submissions (author_id, external_id, blob_id, envelope_from, message_id, body_8bit, smtputf8)
           select %s, %s, m.id, 'a@x', 'taken@x', false, false from m""",
        harness.people["Alex"].id,
        harness.externals[SUPPORT].id,
    )
    await harness.rows(
        "insert into submission_recipients (submission_id, position, address, kind, target_id) "
        "select id, 0, 'jim@local.com', 'local', %s from submissions where message_id = 'taken@x'",
        harness.people["Jim"].id,
    )


@asynccontextmanager
async def at_work(url: str, broker_url: str) -> AsyncIterator[Database]:
    """Run router, mailbox and submission worker on an empty broker."""
    settings = Settings(database_url=url, broker_url=broker_url, sweep_grace_seconds=0.5)
    running = []
    for name in ("router", "mailbox", "sender"):
        service = Service(name, settings)
        await service.database.open()
        stages: dict[str, QueueWorker] = {
            "router": RouterWorker(service.database, 0.5),
            "mailbox": MailboxWorker(service.database, 0.5),
            "sender": SubmissionWorker(service.database, 0.5, lambda external_id: None),
        }
        running.append((service, asyncio.create_task(run_worker(service, stages[name]))))
        await asyncio.sleep(0)
        await service.broker.open()
    yield running[0][0].database
    for service, work in running:
        service.stopping.set()
        await work
        await service.broker.close()
        await service.database.close()


def test_mail_of_every_stage_continues_after_a_restore_without_repeats(
    postgres: Postgres, database_url: str, broker_url: str, tmp_path: Path
) -> None:
    file = tmp_path / "backup"

    async def before() -> str:
        async with scripted_smtp() as provider, sending(database_url) as harness:
            await harness.accounts({SUPPORT: provider.port})
            await apply(harness.database, {"external_accounts": [], "local_accounts": [
                local("Kim", SALES, enabled=False), local("Tom", SALES, enabled=False)]})  # fmt: skip
            provider.by_recipient[ANN] = "451 4.3.0 later"
            provider.gates["END"] = asyncio.Event()
            await in_every_stage(harness)
            backups.write(file, database_url, KEY, AT)
            # after the backup another mail arrives, which is not in it
            externals, people = await everyone(harness.database)
            rows = await arrive(harness.database, externals[SUPPORT].id, [mail("later")])
            await RouterWorker(harness.database, 5).handle(rows)
            await MailboxWorker(harness.database, 5).handle(rows)
            async with harness.database.transaction() as connection:
                listed = await folder_admin.list_mails(connection, people["Alex"].id)
                last = [entry.uidl for entry in listed if entry.folder == "INBOX"][-1]
            provider.gates["END"].set()
            return last

    async def after(url: str, last_uidl: str) -> None:
        async with at_work(url, broker_url) as database:
            # everything that was on its way arrives, once
            await until_holds(database, ALEX, 3)
            await until_holds(database, JIM, 5)
            await asyncio.sleep(1.0)
            assert await subjects(database, ALEX) == ["delivered", "fetched", "routed"]
            assert await subjects(database, JIM) == ["", "delivered", "fetched", "routed", "waiting"]
            # the provider still has the mail that came after the backup: it is fetched again, under a UIDL never seen
            externals, people = await everyone(database)
            await arrive(database, externals[SUPPORT].id, [mail("later")])
            await until_holds(database, ALEX, 4)
            assert "later" in await subjects(database, ALEX)
            async with database.snapshot() as connection:
                listed = await folder_admin.list_mails(connection, people["Alex"].id)
                assert last_uidl not in [entry.uidl for entry in listed]
                stuck = await operations.list_parked(connection)
                texts = [problem.text for problem in problems.find_parked(await problems.load_facts(connection))]
                assert [
                    book.difference for book in await reconciliation.load_accounts(connection, thoroughly=True)
                ] == [0, 0]
                assert len(await operations.list_held(connection)) == 1
                assert await operations.list_queue(connection) == []
        # the queued mail is parked with the reason
        held = [row for row in stuck if row["origin"] == "restore"]
        assert len(held) == 2 and all("may have been relayed since" in row["error"] for row in held)
        assert texts == [
            "1 mail needs attention: processing failed five times",
            "2 mails need attention: restored from a backup and perhaps relayed since",
        ]
        # one is sent when the operator says so
        async with scripted_smtp() as provider, sending(url) as harness:
            await harness.rows("update external_accounts set smtp_port = %s", provider.port)
            await harness.upkeep.schedule_due()
            assert provider.taken == []
            async with harness.database.transaction() as connection:
                await operations.requeue(connection, [held[1]["id"]])
                await operations.discard(connection, [held[0]["id"]], "it was there already")
            await harness.upkeep.schedule_due()
            await harness.until(held[1]["id"], state="done", uncertain=True)
            assert [taken.recipients for taken in provider.taken] == [[BOB]]

    last = asyncio.run(before())
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with restored(postgres, file) as url:
        asyncio.run(after(url, last))


async def back_up_a_queue(database_url: str, file: Path) -> int:
    """Make a backup with a mail that waits for a provider, and return the submission's id."""
    async with scripted_smtp() as provider, sending(database_url) as harness:
        await harness.accounts({SUPPORT: provider.port})
        provider.always("RCPT", "451 4.3.0 later")
        id_ = await harness.submit(CAT)
        await harness.until(id_, state="queued", tries=1)
        backups.write(file, database_url, KEY, AT)
        return id_


def test_a_restored_queue_that_is_to_be_sent_is_sent_and_marked(
    postgres: Postgres, database_url: str, tmp_path: Path
) -> None:
    file = tmp_path / "backup"

    async def after(url: str, id_: int) -> None:
        async with scripted_smtp() as provider, sending(url) as harness:
            await harness.rows("update external_accounts set smtp_port = %s", provider.port)
            await harness.make_due()
            await harness.until(id_, state="done", uncertain=True)
            assert len(provider.taken) == 1
            assert ("uncertain", None) in await harness.events(id_)

    id_ = asyncio.run(back_up_a_queue(database_url, file))
    with restored(postgres, file, send_queue=True) as url:
        asyncio.run(after(url, id_))


def test_a_command_prepares_a_database_that_pg_restore_has_loaded(
    postgres: Postgres, database_url: str, tmp_path: Path
) -> None:
    file = tmp_path / "dump"

    id_ = asyncio.run(back_up_a_queue(database_url, file))
    postgres.create("loaded", template="template0")
    try:
        url = postgres.url_of("loaded")
        where = {"MAILGROUP_DATABASE_URL": url, "MAILGROUP_DATA": str(tmp_path)}
        # an empty database is none that was loaded, and a file is read by restore itself
        for words, status in ((["--loaded"], 1), ([], 2), ([str(file), "--loaded"], 2)):
            assert CliRunner(env=where).invoke(app, ["restore", *words]).exit_code == status
        # given a database that pg_restore alone has loaded
        with backups.opened(file) as backup:
            backups.load(backup, url)
        # then the mail that waited to be relayed is parked
        done = CliRunner(env=where).invoke(app, ["restore", "--loaded", "--json"])
        assert done.exit_code == 0, done.output
        assert (json.loads(done.stdout)["queue"], json.loads(done.stdout)["held"]) == ([id_], True)
    finally:
        postgres.drop("loaded")


def test_the_key_of_an_application_comes_back_from_a_backup(
    postgres: Postgres, database_url: str, tmp_path: Path
) -> None:
    application = {"grant": "client_credentials", "issuer": "microsoft", "client_id": "us", "tenant": "company.com"}
    given, file = client_key(certified=True).pem, tmp_path / "backup"

    async def before() -> None:
        async with opened(database_url) as database:
            entry = external(oauth=application | {"client_key": given})
            await apply(database, {"external_accounts": [{k: v for k, v in entry.items() if k != "password"}]})
        backups.write(file, database_url, KEY, AT)

    async def after(url: str) -> None:
        async with opened(url) as database:
            account = (await everyone(database))[0][SUPPORT]
            assert Grant.open(Vault(KEY), account.password) == Grant(client_key=given)
            assert account.oauth is not None and account.oauth.tenant == "company.com"

    asyncio.run(before())
    with restored(postgres, file) as url:
        asyncio.run(after(url))


def test_without_the_key_only_the_upstream_passwords_are_missing(
    postgres: Postgres, database_url: str, broker_url: str, tmp_path: Path
) -> None:
    whole, plain = tmp_path / "backup", tmp_path / "dump"

    async def before() -> None:
        async with opened(database_url) as database:
            await apply(database, COMPANY)
            externals, _ = await everyone(database)
            await arrive(database, externals[SUPPORT].id, [mail("on its way")])
        backups.write(whole, database_url, KEY, AT)
        with backups.opened(whole) as backup:
            assert backup.key == KEY and backup.made_at == AT
            plain.write_bytes(backup.dump.read())  # a file that pg_dump alone writes

    async def after(url: str) -> None:
        async with at_work(url, broker_url) as database:
            await until_holds(database, ALEX, 1)
            async with database.transaction() as connection:
                for account in await accounts.load_externals(connection):
                    with pytest.raises(Permanent, match="set it again"):
                        Vault(new_key()).open(account.password)

    asyncio.run(before())
    with restored(postgres, plain) as url:
        asyncio.run(after(url))
        # status asks for them
        done = CliRunner(env={
            "MAILGROUP_DATABASE_URL": url, "MAILGROUP_BROKER_URL": broker_url, "MAILGROUP_SECRET_KEY": new_key(),
            "MAILGROUP_DATA": str(tmp_path),
        }).invoke(app, ["status", "--json"])  # fmt: skip
        problems = json.loads(done.stdout)["problems"]
        assert [p for p in problems if "cannot be decrypted with this key; set it again" in p] == [
            f"{address}: the stored password cannot be decrypted with this key; set it again"
            for address in (SALES, SUPPORT)
        ]


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PGDMP nonsense"])
def test_a_file_that_is_no_backup_is_refused_and_changes_nothing(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    data = tmp_path / "data"
    done = CliRunner().invoke(app, ["restore", str(tmp_path / "file"), "--data", str(data)])
    assert done.exit_code == 1, done.output
    assert "no backup" in done.stderr or "pg_restore" in done.stderr
    assert not (data / "secret.key").exists()


def test_the_commands_make_a_new_data_folder_of_a_backup(database_url: str, broker_url: str, tmp_path: Path) -> None:
    async def prepare() -> None:
        async with opened(database_url) as database:
            await apply(database, {"external_accounts": [external()], "local_accounts": [local("Alex")]})

    asyncio.run(prepare())
    with scratch() as folder:
        file, data = folder / "backup", folder / "data"
        where = {"MAILGROUP_DATABASE_URL": database_url, "MAILGROUP_SECRET_KEY": KEY}
        done = CliRunner(env=where).invoke(app, ["backup", str(file), "--json", "--data", str(data)])
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["key"] is True
        # a file that exists is replaced only if that is wished
        refused = CliRunner(env=where).invoke(app, ["backup", str(file), "--data", str(data)])
        assert (refused.exit_code, "exists already" in refused.stderr) == (2, True)
        assert CliRunner(env=where).invoke(app, ["backup", str(file), "--force", "--data", str(data)]).exit_code == 0
        # into the same database: it is not empty
        again = CliRunner(env=where).invoke(app, ["restore", str(file), "--data", str(data)])
        assert again.exit_code == 1 and "is not empty" in again.stderr
        # into a new data folder, and once more over it
        for words, status in (([], 0), ([], 1), (["--replace"], 0)):
            done = CliRunner().invoke(app, ["restore", str(file), "--json", "--data", str(data), *words])
            assert done.exit_code == status, done.output
        assert (data / "secret.key").read_text() == f"{KEY}\n"
        assert json.loads(done.stdout) == {"made_at": json.loads(done.stdout)["made_at"], "queue": [], "held": True,
                                           "key": True}  # fmt: skip
        told = CliRunner().invoke(app, ["restore", str(file), "--replace", "--data", str(data)])
        assert f"Next: start it with 'mailgroup up --data {data}'" in told.stdout, told.output
        # then 'up' finds it all
        server = servers.prepare(data, postgres=True, rabbitmq=False).postgres
        assert server is not None
        process = server.program().start(folder / "log")
        try:
            wait_for(server.answers, process)
            exported = CliRunner(env={"MAILGROUP_DATABASE_URL": server.url}).invoke(app, ["export", "--json"])
            assert [person["address"] for person in json.loads(exported.stdout)["local_accounts"]] == [ALEX]
        finally:
            process.stop()


def wait_for_line(log: Path, text: str) -> None:
    """Wait until a process has written this text."""
    asyncio.run(until(lambda: text in log.read_text()))


def wait_for_metric(port: int, name: str, value: float) -> None:
    """Wait until a process shows this value."""

    def shown() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
                lines = dict(line.rsplit(" ", 1) for line in answer.read().decode().splitlines())
                return float(lines[name]) == value
        except OSError:
            return False

    asyncio.run(until(shown))


def test_a_daily_backup_is_retried_pruned_and_ends_cleanly(postgres: Postgres, tmp_path: Path) -> None:
    folder = tmp_path / "backups"
    folder.mkdir()
    name = "mailgroup-{}T000000Z".format
    old = [folder / name(day) for day in (20260101, 20260102, 20260103)]
    for file in (*old, folder / f"{name(20260104)}.part"):
        file.touch()
    log = tmp_path / "log"
    url = postgres.url_of("later")
    where = os.environ | {"MAILGROUP_DATABASE_URL": url, "MAILGROUP_SECRET_KEY": KEY, "MAILGROUP_DATA": str(tmp_path)}
    code = (
        "from services.admin.maintenance import daily_backups; daily_backups.RETRY_SECONDS = 0.5; "
        "from services.admin.cli.app import app; app()"
    )
    [port] = ports.choose(1, str(tmp_path))
    command = [sys.executable, "-c", code, "backup", "--daily", "--keep", "2", "--metrics-port", str(port), str(folder)]
    # when the database is not there yet
    with log.open("w") as out, subprocess.Popen(command, env=where, stdout=out, stderr=out) as child:
        try:
            wait_for_line(log, "backup failed, tried again")
            wait_for_metric(port, "mailgroup_backup_failing", 1)
            wait_for_metric(port, "mailgroup_backup_last_success_timestamp_seconds", 1767398400)  # 2026-01-03
            assert all(file.exists() for file in old)
            postgres.create("later", template="template0")
            migrate(url)
            # then the next attempt writes it, and only the oldest ones are deleted
            wait_for_line(log, f"{old[1]}: deleted, 2 are kept")
            kept, made = sorted(folder.iterdir())
            assert kept == old[2] and stat.S_IMODE(made.stat().st_mode) == 0o600
            with backups.opened(made) as backup:
                assert backup.key == KEY
            wait_for_metric(port, "mailgroup_backup_failing", 0)
            at = datetime.datetime.strptime(made.name, "mailgroup-%Y%m%dT%H%M%SZ").replace(tzinfo=datetime.UTC)
            wait_for_metric(port, "mailgroup_backup_last_success_timestamp_seconds", at.timestamp())
        finally:
            child.terminate()
    assert child.returncode == 0, log.read_text()
    postgres.drop("later")


def test_a_restore_by_root_leaves_the_files_to_the_service_s_user(tmp_path: Path) -> None:
    # given the data folder of a system that ran as another user
    if os.geteuid() != 0:
        pytest.skip("root alone could")
    data, other = tmp_path / "data", pwd.getpwnam("games")
    (data / "postgres/data").mkdir(parents=True)
    for folder in (data, data / "postgres", data / "postgres/data"):
        os.chown(folder, other.pw_uid, other.pw_gid)
        folder.chmod(0o700)
    # when root restores into it
    (tmp_path / "dump").write_bytes(b"PGDMP")
    done = CliRunner().invoke(app, ["restore", str(tmp_path / "dump"), "--replace", "--data", str(data)])
    # then the command says to run it as that user, and no file is changed
    assert done.exit_code == 1 and "runuser -u games -- mailgroup" in done.stderr.replace("\n", " ")
    assert not (data / "postgres").is_symlink() and (data / "postgres/data").stat().st_uid == other.pw_uid
