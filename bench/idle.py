"""Measures the memory and processor time of the whole system while it only polls."""

from __future__ import annotations

import time

from bench.environment import Environment
from bench.gateway import external, person
from bench.pipeline import fill_source
from bench.processes import cpu_seconds, memory, tree
from bench.table import Goal, Line

SECONDS = 60.0
_SETTLE_SECONDS = 10.0
_POLL_SECONDS = 60
_MEBI = 2**20


def idle(environment: Environment, pairs: int) -> list[Line]:
    """Measure all services after a restart, with the manual's company: two accounts polled every minute, four people.

    There is nothing to compare with, so it is measured once.
    """
    fill_source(environment)
    gateway = environment.gateway
    accounts = ["support@idle.example", "sales@idle.example"]
    people = [person(name, accounts[number // 2]) for number, name in enumerate(("alex", "jim", "kim", "tom"))]
    port = environment.dovecot.port
    gateway.add(
        [external(name, port, poll_seconds=_POLL_SECONDS, login="few", history="from_now") for name in accounts],
        people,
        due_in=0.0,
    )
    gateway.wait_until_idle()
    for service in gateway.services():
        gateway.restart(service)
    time.sleep(_SETTLE_SECONDS)
    with environment.turn():
        services = gateway.services()
        servers = {name: pid for name, pid in gateway.pids().items() if name not in services}
        before = {name: _used(pid) for name, pid in (services | servers).items()}
        time.sleep(SECONDS)
        busy = {name: (_used(pid) - before[name]) / SECONDS for name, pid in (services | servers).items()}
        held = {name: memory(tree(pid)) / _MEBI for name, pid in (services | servers).items()}
    gateway.remove(accounts, [fields["address"] for fields in people])
    names = ", ".join(services)
    return [
        Line(f"memory of {names}", (sum(held[name] for name in services),), "MiB", Goal("≤", 400, "MiB")),
        Line("their share of a core", (sum(busy[name] for name in services) * 100,), "%", Goal("≤", 2, "%")),
        *(
            Line(f"{name}: memory, share of a core {busy[name]:.1%}", (held[name],), "MiB")
            for name in (*services, *servers)
        ),
    ]


def _used(pid: int) -> float:
    return cpu_seconds(tree(pid))
