"""Looks at the whole system for as long as the service runs: metrics of what there is once, and alarms.

One process does it, however many there are: it holds a lease. Alarms go by local delivery to a person, and to the
webhook. While the database is away neither mail nor memory of what was told can be had: the webhook and the log tell.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import structlog
from prometheus_client.core import REGISTRY, GaugeMetricFamily
from prometheus_client.registry import Collector

from services.admin.monitoring import alert_rules, problems, reconciliation
from services.admin.monitoring.alert_rules import AlertEvent
from services.admin.monitoring.problem_kinds import KINDS, Problem
from services.admin.monitoring.problems import SystemFacts
from services.admin.monitoring.reconciliation import AccountBooks
from shared.amqp import publications
from shared.amqp.broker import Publication
from shared.db import leases
from shared.db.database import Connection
from shared.errors import Permanent, Temporary
from shared.model import Alert, Content, Local
from shared.net import http_client
from shared.runtime.process import Service
from shared.runtime.queue_worker import FAILURES
from shared.store import accounts, alerts, blobs, inbound, maillog
from shared.store.alerts import AlertPost
from shared.store.inbound import Arrival

CHECK_SECONDS = 15.0
LEASE, LEASE_SECONDS = "watch", 60.0
READ_SECONDS = 300.0
BOOKS_SECONDS = 60.0
"""Between two thorough looks at the books, or so long that they take no more than BOOKS_SHARE of the time."""
BOOKS_SHARE = 0.002
RETRY_SECONDS = (10.0, 30.0, 120.0, 600.0, 1800.0, 3600.0)
"""Between tries to post to the webhook, the last one for ever."""
POST_DAYS = 1.0
"""Older posts are news no more."""
AWAY_SECONDS = 60.0
"""A database that is away for so long is told."""

log = structlog.get_logger()


class SystemMetrics(Collector):
    """What there is once in the whole system; shown by the process that watches, and by no other.

    facts: without accounts. books: those that are wrong.
    """

    def __init__(self) -> None:
        self.facts: SystemFacts | None = None
        self.books: Sequence[AccountBooks] | None = None
        self.raised: Counter[str] = Counter()

    def clear(self) -> None:
        """Another process watches."""
        self.facts = self.books = None

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """As the metrics page shows them."""
        facts, found = self.facts, self.books
        if facts is not None:
            for name, what, value in (
                ("mailgroup_relay_queue_messages", "Submissions in the relay queue.", facts.relaying),
                ("mailgroup_relay_oldest_seconds", "Age of the oldest of them.", facts.relaying_oldest),
                ("mailgroup_held_messages", "Mails that nobody enabled is there to get.", facts.held),
                ("mailgroup_parked_messages", "Mails that are set apart until somebody decides.", facts.parked),
            ):
                yield GaugeMetricFamily(name, what, value)
            raised = GaugeMetricFamily("mailgroup_alarms_raised", "Alarms that stand.", labels=["kind"])
            for kind in KINDS:
                raised.add_metric([kind], self.raised[kind])
            yield raised
        if found is not None:
            yield GaugeMetricFamily(
                "mailgroup_books_difference_messages",
                "Mails that were fetched and are nowhere, or are there without having been fetched.",
                reconciliation.total_difference(found),
            )


class Monitor:
    """The repeated look."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._database = service.database
        self.metrics = SystemMetrics()
        self._books_due = 0.0
        self._away_since: float | None = None
        self._away_told = False

    async def run(self) -> None:
        """Look until the service is to stop, and let another process go on at once."""
        REGISTRY.register(self.metrics)
        try:
            while True:
                await self._check_or_alert()
                if await self._service.wait_for_stop(CHECK_SECONDS):
                    break
            async with self._database.transaction(5.0) as connection:
                await leases.release_lease(connection, LEASE, self._service.owner)
        except Temporary as error:
            log.warning("lease not given back", reason=str(error))
        finally:
            REGISTRY.unregister(self.metrics)

    async def _check_or_alert(self) -> None:
        try:
            await self.check()
        except Temporary as error:
            log.warning("waiting", stage="watch", reason=str(error))
            await self._database_is_away(str(error))
        except Exception:  # the next look may go well, and nobody else would alarm
            FAILURES.labels("watch", "fault").inc()
            log.exception("watch failed")

    async def check(self) -> None:
        """Look once, tell what is to be told, and post what is due; nothing where another process does.

        :raises Temporary: the database is away.
        """
        async with self._database.transaction() as connection:
            mine = await leases.take_lease(connection, LEASE, self._service.owner, LEASE_SECONDS)
        back = await self._database_is_back()
        if not mine:
            self.metrics.clear()
            return
        async with self._database.snapshot() as connection:
            facts = await problems.load_facts(connection)
        self.metrics.facts = replace(facts, externals=(), polls={}, relays={})  # a thousand accounts are not kept
        await self._read_books()
        found = problems.find_problems(facts, self.metrics.books or ())
        found += await asyncio.to_thread(problems.find_in_disks, self._service.settings)
        found += await asyncio.to_thread(problems.find_in_listeners, self._service.settings)
        await self._alert(found, back)
        await self._post()

    async def _read_books(self) -> None:
        if time.monotonic() < self._books_due:
            return
        began = time.monotonic()
        try:
            async with self._database.snapshot(READ_SECONDS) as connection:
                self.metrics.books = [
                    account
                    for account in await reconciliation.load_accounts(connection, thoroughly=True)
                    if reconciliation.describe_difference(account)
                ]
        except Temporary as error:  # alarms do not wait for it
            log.warning("the books could not be read", reason=str(error))
        now = time.monotonic()
        self._books_due = now + max(BOOKS_SECONDS, (now - began) / BOOKS_SHARE)

    async def _alert(self, found: Sequence[Problem], before: Sequence[AlertEvent]) -> None:
        """Compare with what was known, and tell what changed: state, mails and posts are committed together."""
        async with self._database.transaction() as connection:
            known, now = await alerts.load_alerts(connection)
            step = alert_rules.decide(known, problems.deduplicated(found), now)
            events = [*before, *step.events]
            await alerts.save_alerts(connection, step.saved, step.removed)
            letters = [
                letter
                for what in ("raised", "cleared")
                for letter in alert_rules.split_into_mails([event for event in events if event.what == what])
            ]
            told, announced = await self._deliver(connection, letters, now) if events else ([], [])
            if self._service.settings.alert_webhook:
                await alerts.enqueue_posts(connection, [alert_rules.webhook_body(event, now) for event in events])
        self.metrics.raised = Counter(alarm.kind for alarm in step.saved if alarm.state == "raised")
        for event in events:
            log.warning("alarm", what=event.what, kind=event.alert.kind, subject=event.alert.subject,
                        text=event.alert.text)  # fmt: skip
        maillog.announce(told)
        self._service.broker.publish_behind(announced)

    async def _deliver(
        self, connection: Connection, letters: Iterable[Sequence[AlertEvent]], now: datetime.datetime
    ) -> tuple[list[maillog.MailEvent], list[Publication]]:
        """Put the mails into the mailbox of whom they are for: no provider has a part in it."""
        person = await alert_recipient(connection, self._service.settings.alert_to)
        if person is None:
            log.error("there is no local account that an alarm could go to")
            return [], []
        told: list[maillog.MailEvent] = []
        for letter in letters:
            body, message_id = alert_rules.compose(letter, person.address, now)
            [blob_id] = await blobs.store_blobs(connection, [Content.from_bytes(body)])
            arrival = Arrival("notice", blob_id, message_id=message_id, recipients=((person.id, "an alarm"),))
            [inbound_id] = await inbound.add_inbound(connection, [arrival])
            told.append(maillog.MailEvent("noticed", inbound_id=inbound_id, who=person.address, reply="an alarm"))
        await maillog.record_events(connection, told)
        return told, publications.routed((event.inbound_id or 0, [person.address]) for event in told)

    # ------------------------------------------------------------------------------------------ the webhook

    async def _post(self) -> None:
        """Post what is due, in order; a webhook that does not answer is asked again later."""
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
        """Whether it is done with: posted, or never to be."""
        why = await self._send(post.body)
        if why is None:
            return True
        log.error("alarm not posted", kind=post.body.get("kind"), tries=post.tries + 1, reason=why)
        return post.age > POST_DAYS * 86_400

    async def _send(self, body: object) -> str | None:
        """Why the webhook did not take it; None if it did. The operator named it, so it may be on any host and port."""
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

    async def _database_is_away(self, why: str) -> None:
        now = time.monotonic()
        if self._away_since is None:
            self._away_since = now
        if self._away_told or now - self._away_since < AWAY_SECONDS:
            return
        event = AlertEvent("raised", _no_database(f"PostgreSQL does not answer: {why}"))
        log.error("alarm", what="raised", kind="database", text=event.alert.text)
        refused = await self._send(alert_rules.webhook_body(event, datetime.datetime.now(datetime.UTC)))
        if refused is not None:
            log.error("alarm not posted", kind="database", reason=refused)
        self._away_told = refused is None

    async def _database_is_back(self) -> list[AlertEvent]:
        """What is to be told of the time without it."""
        since = self._away_since
        self._away_since, self._away_told = None, False
        if since is None or time.monotonic() - since < AWAY_SECONDS:
            return []
        minutes = (time.monotonic() - since) / 60
        return [AlertEvent("cleared", _no_database(f"PostgreSQL did not answer for {minutes:.0f} minutes"))]


def _no_database(what: str) -> Alert:
    now = datetime.datetime.now(datetime.UTC)
    return Alert("database", "", "raised", what, 0, now, now)


async def alert_recipient(connection: Connection, alert_to: str | None) -> Local | None:
    """Whom an alarm goes to: the person of that address; where there is none, the first local account."""
    if alert_to:
        person = await accounts.local_by_login(connection, alert_to)
        if person is not None and person.enabled:
            return person
        log.error("MAILGROUP_ALERT_TO is no enabled local account; the first one gets the alarms", alert_to=alert_to)
    return await accounts.first_local(connection)
