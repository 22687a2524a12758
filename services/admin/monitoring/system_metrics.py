"""The metrics that exist once in the whole system; only the process that monitors exports them.

All of them are read from the database, so a restart loses none. Without the database none is exported: an old value
would look like a good one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from prometheus_client import Gauge
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from services.admin.monitoring import reconciliation
from services.admin.monitoring.problem_kinds import KINDS
from services.admin.monitoring.problems import Disk, SystemFacts, is_certificate_changed, is_full
from services.admin.monitoring.reconciliation import AccountBooks
from shared.metrics import WINDOWS
from shared.model import External
from shared.store.polls import PollState
from shared.store.relays import RelayStatus

RUNBOOKS = Gauge("mailgroup_runbooks_info", "1; its label is the folder with the pages of the alerts.", ["url"])

_FETCHING, _RELAYING = "fetching", "relaying"  # label direction


class SystemMetrics(Collector):
    """Exports the facts of the latest check."""

    def __init__(self) -> None:
        self.books: Sequence[AccountBooks] | None = None  # those that have a difference
        self.raised: Counter[str] = Counter()  # raised alerts by kind
        self.disks: Sequence[Disk] = ()
        self._facts: SystemFacts | None = None  # without accounts
        self._accounts: list[GaugeMetricFamily] = []

    def update(self, facts: SystemFacts) -> None:
        """Export these facts. A thousand accounts are not kept, but the figures of each."""
        self._accounts = _account_metrics(facts)
        self._facts = replace(facts, externals=(), polls={}, relays={})

    def clear(self) -> None:
        """Export nothing: another process monitors, or the database is unavailable."""
        self._facts = self.books = None
        self._accounts = []
        self.disks = ()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Return the metrics for the metrics page."""
        if self._facts is not None:
            yield from _system_metrics(self._facts)
            yield from _database_metrics(self._facts)
            yield _by_label("mailgroup_alarms_raised", "Alarms that are raised.", "kind",
                            {kind: self.raised[kind] for kind in KINDS})  # fmt: skip
        yield from self._accounts
        if self.disks:
            for name, what, values in (
                ("mailgroup_disk_free_bytes", "Free octets of a disk.", {str(d.folder): d.free for d in self.disks}),
                ("mailgroup_disk_size_bytes", "Size of a disk.", {str(d.folder): d.total for d in self.disks}),
            ):
                yield _by_label(name, what, "folder", values)
        if self.books is not None:
            yield GaugeMetricFamily(
                "mailgroup_books_difference_messages",
                "Fetched mails that are missing, and mails that were never fetched.",
                reconciliation.total_difference(self.books),
            )


def _by_label(name: str, what: str, label: str, values: Mapping[str, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, what, labels=[label])
    for each, value in values.items():
        family.add_metric([each], value)
    return family


def _system_metrics(facts: SystemFacts) -> Iterator[GaugeMetricFamily]:
    for name, what, value in (
        ("mailgroup_relay_queue_messages", "Submissions in the relay queue.", facts.relaying),
        ("mailgroup_relay_oldest_seconds", "Age of the oldest of them.", facts.relaying_oldest),
        ("mailgroup_held_messages", "Mails on hold: no enabled user shares the account.", facts.held),
        (
            "mailgroup_unstarted_messages",
            "Mails on hold: their account is not started.",
            sum(account.mails for account in facts.unstarted),
        ),
        (
            "mailgroup_unstarted_oldest_seconds",
            "Time that the oldest of them has waited.",
            max((account.oldest for account in facts.unstarted), default=0.0),
        ),
        ("mailgroup_parked_messages", "Mails that need attention (parked).", facts.parked),
    ):
        yield GaugeMetricFamily(name, what, value)
    in_flight = max([0.0, facts.unhanded, *facts.late.values()])
    yield GaugeMetricFamily(
        "mailgroup_in_flight_oldest_seconds", "Age of the oldest mail between two stages inside.", in_flight
    )

    late = GaugeMetricFamily(
        "mailgroup_late_messages",
        "Waiting mails whose time by the objective is over: all, or those for which it ended within a window.",
        labels=["objective", "window"],
    )
    late.add_metric(["readable", "any"], facts.late_in)
    for window, count in zip(WINDOWS, facts.late_out, strict=False):
        late.add_metric(["relayed", window], count)
    yield late


def _database_metrics(facts: SystemFacts) -> Iterator[GaugeMetricFamily]:
    use, server = facts.connections, facts.server
    for name, what, label, values in (
        (
            "mailgroup_database_connections",
            "Connections to PostgreSQL: used, promised (shares of services, others, commands), and their limit.",
            "state",
            {"used": use.used, "promised": use.promised, "limit": use.limit},
        ),
        (
            "mailgroup_database_id_age",
            "Age of the oldest id of PostgreSQL that is not frozen: transactions, multixacts.",
            "kind",
            {"transactions": server.xid_age, "multixacts": server.multixact_age},
        ),
        (
            "mailgroup_database_id_age_limit",
            "Age at which autovacuum has to freeze ids, by the settings of PostgreSQL.",
            "kind",
            {"transactions": server.xid_limit, "multixacts": server.multixact_limit},
        ),
        (
            "mailgroup_database_replication_slots",
            "Replication slots of PostgreSQL, by whether their standby is connected.",
            "state",
            {"active": server.active_slots, "inactive": server.inactive_slots},
        ),
    ):
        yield _by_label(name, what, label, dict(values))
    yield GaugeMetricFamily(
        "mailgroup_database_wal_retained_bytes",
        "Write-ahead log that the slowest replication slot retains.",
        server.wal_retained,
    )
    yield GaugeMetricFamily(
        "mailgroup_database_archive_failing",
        "1: the latest segment of the write-ahead log could not be archived.",
        int(server.archive_failing),
    )


def _account_metrics(facts: SystemFacts) -> list[GaugeMetricFamily]:
    """Return the metrics of the enabled external accounts. A disabled account cannot be late."""
    success = GaugeMetricFamily(
        "mailgroup_fetch_last_success_timestamp_seconds",
        "Time of the last successful poll of an account; before the first one, when it was added.",
        labels=["external"],
    )
    interval = GaugeMetricFamily(
        "mailgroup_fetch_interval_seconds", "Interval of the polls of an account.", labels=["external"]
    )
    labels = ["external", "direction", "relay"]
    refused = GaugeMetricFamily(
        "mailgroup_account_login_refused", "1: the provider refuses the login of an account.", labels=labels
    )
    paused = GaugeMetricFamily(
        "mailgroup_account_paused", "1: an account is paused, one login is tried an hour.", labels=labels
    )
    changed = GaugeMetricFamily(
        "mailgroup_account_certificate_changed",
        "1: the certificate of an account's provider is not the pinned one.",
        labels=labels,
    )
    full = GaugeMetricFamily(
        "mailgroup_relay_full",
        "1: a relay of an account has reached a limit: one that the operator has set, or its own.",
        labels=["external", "relay"],
    )
    unfiled = GaugeMetricFamily(
        "mailgroup_provider_filings_failing",
        "Copies of sent mail and marks of answered mail that could not be made at the provider, and are tried again.",
        labels=["external"],
    )
    for external in facts.externals:
        poll, states = facts.polls.get(external.id), facts.relays.get(external.id, [])
        if not external.enabled or poll is None:
            continue
        success.add_metric([external.address], (poll.last_success_at or poll.added_at).timestamp())
        interval.add_metric([external.address], external.poll_seconds)
        directions: list[tuple[str, str, PollState | RelayStatus]] = [(_FETCHING, "", poll)]
        directions += [(_RELAYING, state.host, state) for state in states]
        for direction, host, state in directions:
            values = [external.address, direction, host]
            refused.add_metric(values, int(_is_refused(external, state)))
            paused.add_metric(values, int(state.paused_at is not None))
            changed.add_metric(values, int(is_certificate_changed(state)))
        for relay in states:
            full.add_metric([external.address, relay.host], int(is_full(relay)))
        trouble = facts.filings.get(external.id)
        unfiled.add_metric([external.address], trouble.count if trouble is not None else 0)
    return [success, interval, refused, paused, changed, full, unfiled]


def _is_refused(external: External, state: PollState | RelayStatus) -> bool:
    """Return whether the latest login was refused. One with an access token is paused without a login."""
    if isinstance(state, PollState):
        by_token = external.oauth is not None
    else:
        by_token = any(external.uses_tokens(relay) for relay in external.relays if relay.position == state.position)
    if by_token:
        return False
    return state.paused_at is not None or (state.failures > 0 and state.last_error_kind == "refused")
