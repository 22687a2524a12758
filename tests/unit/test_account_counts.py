"""Counters with a value for each external account."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, generate_latest

from shared.account_counts import AccountCounts


def test_it_shows_what_a_counter_shows() -> None:
    kinds = ("tls", "busy", "internal")
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    counts = AccountCounts("mailgroup_fetch_errors_total", "Failed polls.", kinds)
    ours.register(counts)
    counter = Counter("mailgroup_fetch_errors_total", "Failed polls.", ["external", "kind"], registry=theirs)
    for address in ("a@x.test", 'quo"te@x.test'):
        counts.add_account(address)
        for kind in kinds:
            counter.labels(address, kind)
    for kind in ("busy", "busy", "internal"):
        counts.count("a@x.test", kind)
        counter.labels("a@x.test", kind).inc()
    shown, expected = [
        [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]
        for registry in (ours, theirs)
    ]
    assert shown == expected


def test_an_unknown_kind_is_counted_as_the_last_one() -> None:
    registry = CollectorRegistry()
    counts = AccountCounts("mailgroup_fetch_errors_total", "Failed polls.", ("busy", "internal"))
    registry.register(counts)
    counts.count("a@x.test", "new")
    labels = {"external": "a@x.test", "kind": "internal"}
    assert registry.get_sample_value("mailgroup_fetch_errors_total", labels) == 1


def test_without_kinds_it_shows_what_a_counter_shows() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    counts = AccountCounts("mailgroup_messages_fetched_total", "Mails.")
    ours.register(counts)
    counter = Counter("mailgroup_messages_fetched_total", "Mails.", ["external"], registry=theirs)
    counts.add_account("a@x.test")
    counter.labels("a@x.test")
    counts.count("b@x.test", number=3)
    counter.labels("b@x.test").inc(3)
    shown, expected = [
        [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]
        for registry in (ours, theirs)
    ]
    assert shown == expected
