"""The monitor checks the whole system every few seconds: it exports the metrics that exist once, and sends alerts.

One process at a time monitors: the holder of a lease. An alert is a mail, delivered locally to a person, and a post to
the webhook. While the database is unavailable, alerts go to the webhook and the log alone.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import time
from collections import Counter
from collections.abc import Iterable, Sequence

import structlog
from prometheus_client.core import REGISTRY

from services.admin.monitoring import alert_rules, background_work, problems, reconciliation
from services.admin.monitoring.alert_rules import AlertEvent
from services.admin.monitoring.background_work import FAILING, repeat
from services.admin.monitoring.problem_kinds import Problem
from services.admin.monitoring.system_metrics import RUNBOOKS, SystemMetrics
from shared.amqp import publications
from shared.amqp.broker import Publication
from shared.db import leases
from shared.db.database import Connection
from shared.errors import Permanent, Temporary
from shared.model import Alert, Content, Local
from shared.net import http_client
from shared.runtime.process import Service
from shared.settings import Settings
from shared.store import accounts, alerts, blobs, inbound, maillog
from shared.store.alerts import AlertPost
from shared.store.inbound import Arrival

CHECK_SECONDS = 15.0
"""Seconds between two checks, and between two looks at what is due to be posted or compared."""
LEASE, LEASE_SECONDS = "watch", 60.0
"""Name of the lease in the database, and seconds after which another process may take it."""
READ_SECONDS = 300.0
"""Time limit of the statements that read the books: seconds."""
BOOKS_SECONDS = 60.0
"""Seconds between two thorough checks of the books, at least; longer if they take more than BOOKS_SHARE of the time."""
BOOKS_SHARE = 0.002
RETRY_SECONDS = (10.0, 30.0, 120.0, 600.0, 1800.0, 3600.0)
"""Seconds between tries to post to the webhook; the last value repeats."""
POST_DAYS = 1.0
"""Days after which a post that fails is dropped."""
AWAY_SECONDS = 60.0
"""Seconds without the database after which an alert is sent."""

log = structlog.get_logger()


class Monitor:
    """Checks the system repeatedly."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._database = service.database
        self.metrics = SystemMetrics()
        RUNBOOKS.labels(service.settings.runbook_url).set(1)
        self._mine = False  # this process has the lease
        self._books_due = 0.0
        self._away_since: float | None = None
        self._away_reported = False

    async def run(self) -> None:
        """Check until the service is to stop, then return the lease, so another process continues at once."""
        REGISTRY.register(self.metrics)
        stop = self._service.wait_for_stop
        try:
            await asyncio.gather(
                repeat("system check", CHECK_SECONDS, self._check_or_alert, self._database, stop),
                repeat("webhook post", CHECK_SECONDS, self.post, self._database, stop),
                repeat("books check", CHECK_SECONDS, self.read_books, self._database, stop),
            )
            async with self._database.transaction(5.0) as connection:
                await leases.release_lease(connection, LEASE, self._service.owner)
        except Temporary as error:
            log.warning("monitor lease not released", error=str(error))
        finally:
            REGISTRY.unregister(self.metrics)

    async def _check_or_alert(self) -> None:
        try:
            await self.check()
        except Temporary as error:
            self.metrics.clear()
            self._books_due = 0.0
            await self._database_is_away(str(error))
            raise

    async def check(self) -> None:
        """Check once and send alerts; do nothing if another process monitors.

        :raises Temporary: the database is unavailable.
        """
        async with self._database.transaction() as connection:
            self._mine = await leases.take_lease(connection, LEASE, self._service.owner, LEASE_SECONDS)
        back = await self._database_is_back()
        if not self._mine:
            self.metrics.clear()
            return
        async with self._database.snapshot() as connection:
            facts = await problems.load_facts(connection)
        self.metrics.update(facts)
        found = problems.find_problems(facts, self.metrics.books or ())
        found += background_work.find_failures()
        for find in (self._find_in_disks, problems.find_in_services):
            try:
                found += await asyncio.to_thread(find, self._service.settings)
            except Exception:  # the alerts for the other problems are sent all the same
                FAILING.labels("system check").set(1)
                log.exception("system check incomplete")
        await self._alert(found, back)

    def _find_in_disks(self, settings: Settings) -> list[Problem]:
        self.metrics.disks = problems.measure_disks(settings)
        return problems.find_in_disks(self.metrics.disks)

    async def read_books(self) -> None:
        """Compare the books if that is due. It may take minutes, so no alert waits for it.

        :raises Temporary: the database is unavailable, or too slow for it.
        """
        if not self._mine or time.monotonic() < self._books_due:
            return
        began = time.monotonic()
        try:
            async with self._database.snapshot(READ_SECONDS) as connection:
                self.metrics.books = [
                    account
                    for account in await reconciliation.load_accounts(connection, thoroughly=True)
                    if reconciliation.describe_difference(account)
                ]
        finally:
            now = time.monotonic()
            self._books_due = now + max(BOOKS_SECONDS, (now - began) / BOOKS_SHARE)

    async def _alert(self, found: Sequence[Problem], before: Sequence[AlertEvent]) -> None:
        """Compare with the stored alerts, and report the changes: state, mails and posts are committed together."""
        async with self._database.transaction() as connection:
            known, now = await alerts.load_alerts(connection)
            changes = alert_rules.decide(known, problems.deduplicated(found), now)
            events = [*before, *changes.events]
            await alerts.save_alerts(connection, changes.saved, changes.removed)
            mails = [
                mail
                for what in ("raised", "cleared")
                for mail in alert_rules.split_into_mails([event for event in events if event.what == what])
            ]
            delivered, announced = await self._deliver(connection, mails, now) if events else ([], [])
            if self._service.settings.alert_webhook:
                await alerts.enqueue_posts(connection, [alert_rules.webhook_body(event, now) for event in events])
        self.metrics.raised = Counter(alert.kind for alert in changes.saved if alert.state == "raised")
        for event in events:
            log.warning("alert sent", what=event.what, kind=event.alert.kind, subject=event.alert.subject,
                        text=event.alert.text)  # fmt: skip
        maillog.announce(delivered)
        self._service.broker.publish_behind(announced)

    async def _deliver(
        self, connection: Connection, mails: Iterable[Sequence[AlertEvent]], now: datetime.datetime
    ) -> tuple[list[maillog.MailEvent], list[Publication]]:
        """Deliver the mails locally to the person who receives alerts: no provider is involved."""
        person = await alert_recipient(connection, self._service.settings.alert_to)
        if person is None:
            log.error("alert mail not sent, no local account exists")
            return [], []
        events: list[maillog.MailEvent] = []
        for mail in mails:
            language = person.language or self._service.settings.language
            body, message_id = alert_rules.compose(mail, person.address, now, language)
            [blob_id] = await blobs.store_blobs(connection, [Content.from_bytes(body)])
            arrival = Arrival("notice", blob_id, message_id=message_id, recipients=((person.id, "an alarm"),))
            [inbound_id] = await inbound.add_inbound(connection, [arrival])
            events.append(maillog.MailEvent("noticed", inbound_id=inbound_id, who=person.address, reply="an alarm"))
        await maillog.record_events(connection, events)
        return events, publications.routed((event.inbound_id or 0, [person.address]) for event in events)

    # ------------------------------------------------------------------------------------------ the webhook

    async def post(self) -> None:
        """Send the due posts in order, until one fails; a failed post is retried later.

        :raises Temporary: the database is unavailable.
        """
        if not self._mine:
            return
        async with self._database.transaction() as connection:
            due = await alerts.list_due_posts(connection)
        for post in due:
            done = await self._post_one(post)
            async with self._database.transaction() as connection:
                if done:
                    await alerts.delete_post(connection, post.id)
                else:
                    pause = RETRY_SECONDS[min(post.tries, len(RETRY_SECONDS) - 1)]
                    await alerts.postpone_post(connection, post.id, pause)
            if not done:
                return

    async def _post_one(self, post: AlertPost) -> bool:
        """Send one post. :return: whether it is finished: accepted, or too old for another try."""
        refused = await self._send(post.body)
        if refused is None:
            return True
        log.error("webhook post failed", kind=post.body.get("kind"), tries=post.tries + 1, error=refused)
        return post.age > POST_DAYS * 86_400

    async def _send(self, body: object) -> str | None:
        """Post to the webhook. The operator chose it, so any host and port is allowed.

        :return: why the webhook refused the post; None if it accepted.
        """
        url = self._service.settings.alert_webhook
        if not url:
            return None
        try:
            port = http_client.server_of(url).port
            kind = {"Content-Type": "application/json"}
            status, _ = await http_client.post(url, json.dumps(body), kind, allow_private=True, ports=frozenset({port}))
        except (Temporary, Permanent) as error:
            return str(error)
        return None if 200 <= status < 300 else f"HTTP status {status}"

    # ------------------------------------------------------------------------------------------ no database

    async def _database_is_away(self, error: str) -> None:
        now = time.monotonic()
        if self._away_since is None:
            self._away_since = now
        if self._away_reported or now - self._away_since < AWAY_SECONDS:
            return
        event = AlertEvent("raised", _no_database(f"PostgreSQL does not answer: {error}"))
        log.error("alert sent without the database", what="raised", kind="database", text=event.alert.text)
        refused = await self._send(alert_rules.webhook_body(event, datetime.datetime.now(datetime.UTC)))
        if refused is not None:
            log.error("webhook post about the database failed", error=refused)
        self._away_reported = refused is None

    async def _database_is_back(self) -> list[AlertEvent]:
        """Return the event that reports the end of a time without the database, if it was long."""
        since = self._away_since
        self._away_since, self._away_reported = None, False
        if since is None or time.monotonic() - since < AWAY_SECONDS:
            return []
        minutes = (time.monotonic() - since) / 60
        return [AlertEvent("cleared", _no_database(f"PostgreSQL did not answer for {minutes:.0f} minutes"))]


def _no_database(what: str) -> Alert:
    now = datetime.datetime.now(datetime.UTC)
    return Alert("database", "", "raised", what, 0, now, now)


async def alert_recipient(connection: Connection, alert_to: str | None) -> Local | None:
    """Return the person who receives alerts: the local account of this address, else the first local account."""
    if alert_to:
        person = await accounts.local_by_login(connection, alert_to)
        if person is not None and person.enabled:
            return person
        log.error("MAILGROUP_ALERT_TO not usable, alerts go to the first local account", alert_to=alert_to)
    return await accounts.first_local(connection)
