"""services/admin/monitoring/monitor.py: alarms by mail and webhook, system metrics exist once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import psycopg
import pytest
import structlog
from prometheus_client import generate_latest
from prometheus_client.core import REGISTRY

from deploy.machine.postgres import Postgres
from services.admin.monitoring import monitor, problems
from services.admin.monitoring.monitor import Monitor
from services.mailbox.worker import MailboxWorker
from services.router.worker import RouterWorker
from shared.db.database import Database
from shared.errors import Temporary
from shared.metrics import WINDOWS
from shared.runtime.process import Service
from shared.settings import Settings
from tests.company import COMPANY, SUPPORT, apply, arrive, everyone, external, local, mailbox_of

ALEX, JIM = "alex@local.com", "jim@local.com"
MAIL = f"From: anna@x.example\r\nTo: {SUPPORT}\r\n\r\nHello\r\n".encode()


class Webhook:
    """A web server of the operator. got: the posted documents. status: of its replies."""

    def __init__(self) -> None:
        self.got: list[dict[str, Any]] = []
        self.status = 200
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = int(head.partition("content-length:")[2].partition("\r\n")[0])
            assert head.startswith("post /hook?team=1 ") and "content-type: application/json" in head
            body = json.loads(await reader.readexactly(length))
            if self.status == 200:
                self.got.append(body)
            writer.write(f"HTTP/1.1 {self.status} so\r\nContent-Length: 0\r\n\r\n".encode())
            await writer.drain()
        writer.close()


@pytest.fixture
async def webhook() -> AsyncIterator[Webhook]:
    hook = Webhook()
    server = await asyncio.start_server(hook.serve, "127.0.0.1", 0)
    hook.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook?team=1"
    yield hook
    server.close()


@asynccontextmanager
async def watcher(database_url: str, tmp_path: Any, **settings: Any) -> AsyncIterator[Monitor]:
    """A process that monitors; the test calls each check."""
    chosen = Settings(data=tmp_path, database_url=database_url, broker_url="amqp://127.0.0.1:1/", **settings)
    service = Service("admin", chosen)
    await service.database.open()
    yield Monitor(service)
    await service.database.close()


async def look(process: Monitor) -> None:
    """All that the process does in turn, until it has nothing more to report."""
    await process.check()
    await process.read_books()
    await process.check()
    await process.post()


async def change(database: Database, sql: str) -> None:
    async with database.transaction() as connection:
        await connection.execute(sql.encode())


async def later(database: Database, minutes: int) -> None:
    """Let so much time pass for the alarms."""
    step = f"interval '{minutes} minutes'"
    await change(database, f"update alerts set changed_at = changed_at - {step}, seen_at = seen_at - {step}")


async def alarms_of(database: Database, address: str) -> list[str]:
    """The subjects of the alarms in a mailbox."""
    async with database.transaction() as connection:
        cursor = await connection.execute("select id from inbound where state = 'routed'")
        rows = [row[0] for row in await cursor.fetchall()]
    await MailboxWorker(database, 5).handle(rows)
    subjects = [body.partition(b"Subject: ")[2].partition(b"\r\n")[0] for body in await mailbox_of(database, address)]
    return [subject.decode() for subject in subjects if subject.startswith(b"[mailgroup]")]


async def hold_a_mail(database: Database) -> list[int]:
    """Make a mail without an enabled sharer. Jim shares another account."""
    people = [local("Alex", enabled=False), local("Jim", "sales@company.com")]
    await apply(database, {"external_accounts": [external(), external("sales@company.com")], "local_accounts": people})
    await change(database, "update polls set last_success_at = now()")
    externals, _ = await everyone(database)
    rows = await arrive(database, externals[SUPPORT].id, [MAIL])
    await RouterWorker(database, 5).handle(rows)
    return rows


async def test_an_alarm_and_its_end_are_one_mail_and_one_post_over_a_restart(
    database: Database, database_url: str, webhook: Webhook, tmp_path: Any
) -> None:
    # given a mail that is held, and two processes that watch
    await hold_a_mail(database)
    async with (
        watcher(database_url, tmp_path, alert_webhook=webhook.url) as first,
        watcher(database_url, tmp_path, alert_webhook=webhook.url) as second,
    ):
        for process in (first, second, first):
            await look(process)
        assert await alarms_of(database, JIM) == []  # the problem may end by itself
        # when it lasts
        await later(database, 2)
        for process in (first, second, first):
            await look(process)
        # then the first enabled person gets one mail
        assert await alarms_of(database, JIM) == [
            "[mailgroup] Alarm: 1 mail is on hold: no enabled user shares the external account"
        ]
        assert [(post["event"], post["kind"]) for post in webhook.got] == [("raised", "held")]
    # and a process that is restarted reports nothing again
    await change(database, "delete from leases")
    async with watcher(database_url, tmp_path, alert_webhook=webhook.url) as third:
        await look(third)
        assert len(await alarms_of(database, JIM)) == len(webhook.got) == 1
        # until it is over
        await change(database, "update inbound set state = 'discarded' where state = 'held'")
        await look(third)
        await later(database, 5)
        await look(third)
        await look(third)
    assert [subject.split(":")[0] for subject in await alarms_of(database, JIM)] == [
        "[mailgroup] Alarm",
        "[mailgroup] Over",
    ]
    assert [post["event"] for post in webhook.got] == ["raised", "cleared"]


async def test_a_refused_login_is_reported_to_the_configured_person(
    database: Database, database_url: str, tmp_path: Any
) -> None:
    await apply(database, COMPANY)
    await change(database, "update polls set last_success_at = now(), paused_at = now(), last_error = '[AUTH] no'")
    async with watcher(database_url, tmp_path, alert_to="tom@local.com") as process:
        await look(process)
    assert len(await alarms_of(database, "tom@local.com")) == 2
    assert await alarms_of(database, ALEX) == []


async def test_a_mail_that_is_lost_is_an_alarm_and_a_metric(
    database: Database, database_url: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a delivered mail
    monkeypatch.setattr(monitor, "BOOKS_SECONDS", 0.0)
    monkeypatch.setattr(monitor, "BOOKS_SHARE", 1e9)
    await apply(database, COMPANY)
    await change(database, "update polls set last_success_at = now()")
    externals, _ = await everyone(database)
    rows = await arrive(database, externals[SUPPORT].id, [MAIL])
    await RouterWorker(database, 5).handle(rows)
    await MailboxWorker(database, 5).handle(rows)
    async with watcher(database_url, tmp_path) as process:
        await look(process)
        assert shown(process)["mailgroup_books_difference_messages"] == 0
        # when its row is deleted past the system
        await change(database, "delete from folder_mails")
        await change(database, "delete from inbound")
        await look(process)
        await later(database, 2)
        await look(process)
        assert shown(process)["mailgroup_books_difference_messages"] == 1
    assert "the counts do not add up: 1 mail was fetched, 0 were accounted for" in (await alarms_of(database, ALEX))[0]


def sample(process: Monitor, name: str, **labels: str) -> float | None:
    """Return the value of one of its gauges; None if it is not exported."""
    found = [
        s.value for family in process.metrics.collect() for s in family.samples if (s.name, s.labels) == (name, labels)
    ]
    return found[0] if found else None


async def test_a_process_that_has_just_started_exports_the_state_of_accounts(
    database: Database, database_url: str, tmp_path: Any
) -> None:
    # given an account that was polled long ago and is refused, one that was never polled, and a disabled one
    others = [external("sales@company.com"), external("old@company.com", enabled=False)]
    await apply(database, {"external_accounts": [external(), *others], "local_accounts": [local("Alex")]})
    await change(
        database,
        f"""update polls set last_success_at = '2026-01-02 03:04:05Z', failures = 1, last_error_kind = 'refused',
                last_error = 'no' from external_accounts e where e.id = external_id and e.address = '{SUPPORT}'""",
    )
    await change(database, "update external_accounts set created_at = '2026-01-01 00:00:00Z'")
    await change(
        database,
        """update relays set failures = 1, last_error_kind = 'certificate' from external_accounts e
           where e.id = external_id and e.address = 'sales@company.com'""",
    )
    async with watcher(database_url, tmp_path) as process:
        # when
        await process.check()
        # then
        last = "mailgroup_fetch_last_success_timestamp_seconds"
        assert sample(process, last, external=SUPPORT) == 1767323045
        assert sample(process, last, external="sales@company.com") == 1767225600
        assert sample(process, last, external="old@company.com") is None
        refused = "mailgroup_account_login_refused"
        assert sample(process, refused, external=SUPPORT, direction="fetching", relay="") == 1
        assert sample(process, refused, external=SUPPORT, direction="relaying", relay="127.0.0.1") == 0
        assert sample(process, refused, external="sales@company.com", direction="fetching", relay="") == 0
        # and the pinned certificate
        changed = "mailgroup_account_certificate_changed"
        for account, direction, relay, value in (
            ("sales@company.com", "relaying", "127.0.0.1", 1),
            ("sales@company.com", "fetching", "", 0),
            (SUPPORT, "fetching", "", 0),
        ):
            assert sample(process, changed, external=account, direction=direction, relay=relay) == value
        # and no relay has reached a limit
        assert sample(process, "mailgroup_relay_full", external=SUPPORT, relay="127.0.0.1") == 0
        # and nothing has to be filed at the provider
        assert sample(process, "mailgroup_provider_filings_failing", external=SUPPORT) == 0
        # and without the database no old value is left
        await process._database.close()
        with pytest.raises(Temporary):
            await process._check_or_alert()
        assert shown(process) == {}


async def test_replication_slots_and_the_age_of_ids_are_read_from_postgresql(
    database: Database, database_url: str, postgres: Postgres, tmp_path: Any
) -> None:
    async with (
        watcher(database_url, tmp_path) as process,
        await psycopg.AsyncConnection.connect(postgres.admin_url_of("postgres"), autocommit=True) as operator,
    ):
        await process.check()
        slots = "mailgroup_database_replication_slots"
        before = sample(process, slots, state="inactive")
        age = sample(process, "mailgroup_database_id_age", kind="transactions")
        assert before is not None and age is not None and age >= 0
        assert sample(process, "mailgroup_database_id_age_limit", kind="transactions") == 200_000_000
        await operator.execute("select pg_create_physical_replication_slot('gone', true)")
        try:
            await process.check()
            assert sample(process, slots, state="inactive") == before + 1
            assert sample(process, "mailgroup_database_wal_retained_bytes") is not None
        finally:
            await operator.execute("select pg_drop_replication_slot('gone')")


async def test_late_mail_is_counted_while_it_waits(database: Database, database_url: str, tmp_path: Any) -> None:
    await apply(database, {"external_accounts": [external()], "local_accounts": [local("Alex")]})
    externals, _ = await everyone(database)
    await arrive(database, externals[SUPPORT].id, [MAIL, MAIL])
    await change(
        database,
        """update inbound set created_at = now() - interval '2 minutes' where id = (select min(id) from inbound)""",
    )
    async with watcher(database_url, tmp_path) as process:
        await process.check()
        late = "mailgroup_late_messages"
        assert sample(process, late, objective="readable", window="any") == 1
        assert {sample(process, late, objective="relayed", window=window) for window in WINDOWS} == {0}


def shown(process: Monitor) -> dict[str, float]:
    """Return the values of its gauges."""
    return {sample.name: sample.value for family in process.metrics.collect() for sample in family.samples}


async def test_only_one_process_shows_the_gauges_of_the_system(
    database: Database, database_url: str, tmp_path: Any
) -> None:
    await hold_a_mail(database)
    async with watcher(database_url, tmp_path) as first, watcher(database_url, tmp_path) as second:
        for process in (first, second):
            await look(process)
        assert shown(first)["mailgroup_held_messages"] == 1
        assert set(shown(first)) == {
            "mailgroup_relay_queue_messages",
            "mailgroup_relay_oldest_seconds",
            "mailgroup_held_messages",
            "mailgroup_unstarted_messages",
            "mailgroup_unstarted_oldest_seconds",
            "mailgroup_parked_messages",
            "mailgroup_alarms_raised",
            "mailgroup_books_difference_messages",
            "mailgroup_database_connections",
            "mailgroup_database_id_age",
            "mailgroup_database_id_age_limit",
            "mailgroup_database_replication_slots",
            "mailgroup_database_wal_retained_bytes",
            "mailgroup_database_archive_failing",
            "mailgroup_disk_free_bytes",
            "mailgroup_disk_size_bytes",
            "mailgroup_in_flight_oldest_seconds",
            "mailgroup_late_messages",
            "mailgroup_fetch_last_success_timestamp_seconds",
            "mailgroup_fetch_interval_seconds",
            "mailgroup_account_login_refused",
            "mailgroup_account_paused",
            "mailgroup_account_certificate_changed",
            "mailgroup_relay_full",
            "mailgroup_provider_filings_failing",
        }
        assert shown(second) == {}
        # when the first one ends, the second one takes over
        first._service.stopping.set()
        await first.run()
        await look(second)
        assert shown(second)["mailgroup_held_messages"] == 1
    assert b"mailgroup_held_messages" not in generate_latest(REGISTRY)


async def test_mail_that_waits_a_day_for_its_start_is_an_alarm_with_its_number(
    database: Database, database_url: str, tmp_path: Any
) -> None:
    # given an account on hold with two mails, of which Jim's other account knows nothing
    people = [local("Alex"), local("Jim", "sales@company.com")]
    accounts = [external(hold=True), external("sales@company.com")]
    await apply(database, {"external_accounts": accounts, "local_accounts": people})
    await change(database, "update polls set last_success_at = now()")
    externals, _ = await everyone(database)
    await RouterWorker(database, 5).handle(await arrive(database, externals[SUPPORT].id, [MAIL, MAIL]))
    async with watcher(database_url, tmp_path, alert_to=JIM) as process:
        for hours, alarms in (
            (23, []),
            (25, [f"[mailgroup] Alarm: {SUPPORT}: 2 mails wait for a start, the oldest for 1 d"]),
        ):
            await change(
                database, f"update inbound set state_at = now() - interval '{hours} hours' where state = 'held'"
            )
            await look(process)
            await later(database, 2)
            await look(process)
            assert shown(process)["mailgroup_unstarted_messages"] == 2
            assert shown(process)["mailgroup_held_messages"] == 0
            assert await alarms_of(database, JIM) == alarms


async def test_a_webhook_that_fails_is_retried_and_delays_no_mail(
    database: Database, database_url: str, webhook: Webhook, tmp_path: Any
) -> None:
    webhook.status = 500
    await hold_a_mail(database)
    async with watcher(database_url, tmp_path, alert_webhook=webhook.url) as process:
        await look(process)
        await later(database, 2)
        await look(process)
        assert (len(await alarms_of(database, JIM)), webhook.got) == (1, [])
        webhook.status = 200
        await look(process)
        assert webhook.got == []  # not yet
        await change(database, "update alert_posts set next_try_at = now()")
        await look(process)
        assert len(webhook.got) == 1
        # and one that is no web server at all ends after a day
        webhook.status = 500
        await change(
            database,
            "insert into alert_posts (body, created_at) values ('{\"kind\": \"x\"}', now() - interval '2 days')",
        )
        await look(process)
    async with database.transaction() as connection:
        assert (await (await connection.execute("select count(*) from alert_posts")).fetchone()) == (0,)


@pytest.mark.parametrize("url", ["ftp://x/", "nonsense", "http://example.com:bad/"])
async def test_a_webhook_that_is_no_url_is_logged(database_url: str, tmp_path: Any, url: str) -> None:
    async with watcher(database_url, tmp_path, alert_webhook=url) as process:
        assert "URL is needed" in (await process._send({}) or "")


@pytest.mark.parametrize(
    "url",
    [
        "hush",
        "ftp://hooks.example/hush",
        "http://user:hush@127.0.0.1:1/hush?hush=hush",
        "https://127.0.0.1:1/hush\u00e9",
        "http://127.0.0.1:1/hush hush",
        "https://127.0.0.1:1/hush",
        "http://[hush/",
    ],
)
async def test_the_log_shows_no_part_of_a_webhook_s_address(
    database: Database, database_url: str, tmp_path: Any, url: str
) -> None:
    # given an alarm, and a webhook that cannot be reached
    await hold_a_mail(database)
    with structlog.testing.capture_logs() as logged:
        async with watcher(database_url, tmp_path, alert_webhook=url) as process:
            await look(process)
            await later(database, 2)
            await look(process)
    # then the log says why, without the path and the query, which may be its secret
    [failed] = [line for line in logged if line["event"] == "webhook post failed"]
    assert failed["error"]
    assert "hush" not in str(logged)


async def test_alarms_wait_neither_for_the_books_nor_for_a_failing_search(
    database: Database, database_url: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a problem, books that cannot be read in time, and a disk that cannot be asked
    def fail(_: Settings) -> None:
        raise OSError("stale file handle")

    monkeypatch.setattr(monitor, "READ_SECONDS", 3600.0)
    monkeypatch.setattr(problems, "measure_disks", fail)
    await hold_a_mail(database)
    async with watcher(database_url, tmp_path) as process:
        await process.check()
        async with database.transaction() as connection:
            await connection.execute("lock table folder_mails")
            reading = asyncio.create_task(process.read_books())
            # when
            await later(database, 2)
            await process.check()
            assert not reading.done()
            reading.cancel()
            # and a reading that takes too long ends
            monkeypatch.setattr(monitor, "READ_SECONDS", 0.5)
            with pytest.raises(Temporary, match="no answer within"):
                await process.read_books()
        # then the alarm was sent meanwhile
        assert [subject.partition(": ")[2][:6] for subject in await alarms_of(database, JIM)] == ["1 mail"]


async def test_a_database_outage_is_posted_to_the_webhook_and_its_end_to_both(
    database: Database, database_url: str, webhook: Webhook, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await apply(database, COMPANY)
    await change(database, "update polls set last_success_at = now()")
    monkeypatch.setattr(monitor, "AWAY_SECONDS", 0.0)
    async with watcher("postgresql://127.0.0.1:1/none", tmp_path, alert_webhook=webhook.url) as process:
        monkeypatch.setattr(process._database._pool, "timeout", 0.5)
        for _ in range(2):
            with pytest.raises(Temporary):
                await process._check_or_alert()
        assert [(post["event"], post["kind"]) for post in webhook.got] == [("raised", "database")]
        process._database = database
        await look(process)
    assert [post["event"] for post in webhook.got] == ["raised", "cleared"]
    assert await alarms_of(database, ALEX) == ["[mailgroup] Over: PostgreSQL did not answer for 0 minutes"]
