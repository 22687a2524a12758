"""The running system exposes every metric that other programs use, and a global metric in one service only."""

from __future__ import annotations

import urllib.request

from shared.settings import SERVICES
from tests.system import System, until

PROMISED = [
    "messages_fetched_total",
    "messages_routed_total",
    "messages_delivered_total",
    "messages_submitted_total",
    "messages_relayed_total",
    "fetch_last_success_timestamp_seconds",
    "fetch_errors_total",
    "relay_queue_messages",
    "relay_oldest_seconds",
    "held_messages",
    "unstarted_messages",
    "unstarted_oldest_seconds",
    "parked_messages",
    "books_difference_messages",
    "stage_seconds",
    "imap_sessions",
    "pop3_sessions",
    "smtp_sessions",
    "logins_total",
    "fetch_to_readable_seconds",
    "submit_to_relayed_seconds",
]
ONCE = {
    "relay_queue_messages",
    "relay_oldest_seconds",
    "held_messages",
    "unstarted_messages",
    "unstarted_oldest_seconds",
    "parked_messages",
    "books_difference_messages",
}


FROM_THE_START = {
    "fetcher": [
        'fetch_errors_total{external="support@company.com",kind="refused"}',
        'messages_fetched_total{external="support@company.com"}',
    ],
    "router": ['stage_failures_total{kind="mail",stage="router"}', 'messages_routed_total{rule="5"}'],
    "mailbox": ["messages_delivered_total", "fetch_to_readable_seconds_count"],
    "pop3_out": ['logins_total{result="refused",service="pop3_out"}'],
    "imap_out": ['logins_total{result="ok",service="imap_out"}', "imap_sessions"],
    "smtp_in": ['submissions_refused_total{kind="temporary"}', 'logins_total{result="throttled",service="smtp_in"}'],
    "sender": [
        'relay_errors_total{external="support@company.com",kind="credentials",relay="127.0.0.1"}',
        'messages_relayed_total{result="failed"}',
        "submit_to_relayed_seconds_count",
    ],
    "admin": ['background_failing{work="purge"}', 'purged_total{kind="mails"}', 'http_requests_total{status="500"}'],
}
"""By service, metrics that exist before their first event."""


def page(system: System, service: str) -> str:
    """Return the metrics page of a service."""
    url = f"http://127.0.0.1:{system.settings.metrics_port_of(service)}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        text: str = answer.read().decode()
    return text


def test_counters_exist_before_their_first_event(system: System) -> None:
    system.apply(system.company())
    for service, names in FROM_THE_START.items():
        for name in names:
            until(lambda service=service, name=name: f"mailgroup_{name} " in page(system, service), 60)  # type: ignore[misc]


def shown(system: System) -> dict[str, list[str]]:
    """Return the services that expose each promised metric, by its name."""
    found: dict[str, list[str]] = {name: [] for name in PROMISED}
    for service in SERVICES:
        text = page(system, service)
        for name in PROMISED:
            if f"# HELP mailgroup_{name} " in text:
                found[name].append(service)
    return found


def test_every_promised_metric_is_shown_and_global_ones_by_one_service(system: System) -> None:
    until(lambda: shown(system)["books_difference_messages"])
    found = shown(system)
    assert [name for name, services in found.items() if not services] == []
    assert {name: found[name] for name in ONCE} == {name: ["admin"] for name in ONCE}
