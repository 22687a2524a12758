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
    "pop3_sessions",
    "smtp_sessions",
    "logins_total",
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


def shown(system: System) -> dict[str, list[str]]:
    """Return the services that expose each promised metric, by its name."""
    found: dict[str, list[str]] = {name: [] for name in PROMISED}
    for service in SERVICES:
        url = f"http://127.0.0.1:{system.settings.metrics_port_of(service)}/metrics"
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
        for name in PROMISED:
            if f"# HELP mailgroup_{name} " in text:
                found[name].append(service)
    return found


def test_every_promised_metric_is_shown_and_global_ones_by_one_service(system: System) -> None:
    until(lambda: shown(system)["books_difference_messages"])
    found = shown(system)
    assert [name for name, services in found.items() if not services] == []
    assert {name: found[name] for name in ONCE} == {name: ["admin"] for name in ONCE}
