"""Provokes every alert on a running system and waits until it is over: ``python -m tests.alerts.drive``.

The rules are those of deploy/prometheus with shorter times (``prometheus.py``). Time that mails or accounts have waited
is set in their rows. The queries of the dashboards are evaluated, too. The exit status is 1 if an alert does not fire,
does not clear, or is provoked by nothing here, or if a query is refused.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from deploy.monitoring.panels import at_once
from tests.alerts.prometheus import Prometheus, alert_names
from tests.alerts.stand import Stand, stand
from tests.alerts.troubles import Trouble, troubles

FIRE_SECONDS, CLEAR_SECONDS = 300.0, 420.0
"""Limits of the wait for alerts, and for their end: seconds; the service admin reads most states every 15 s."""
DASHBOARDS = Path(__file__).resolve().parents[2] / "deploy/grafana/dashboards"


def main() -> int:
    """Run all. :return: the exit status."""
    severities = alert_names()
    groups = troubles()
    provoked = {alert for group in groups for trouble in group for alert in trouble.alerts}
    missing = set(severities) - provoked - {"Watchdog"}
    failures = [f"{name} is provoked by nothing" for name in sorted(missing)]
    others = {(name, severity) for name in severities for severity in severities[name]} - {("Watchdog", "info")}
    with stand() as (here, server):
        _wait(server, {("Watchdog", "info")}, others, FIRE_SECONDS, failures)  # the start of the system is over
        failures += refused_queries(server)
        for group in groups:
            alerts = {name for trouble in group for name in trouble.alerts}
            _run(here, server, group, {each for each in others if each[0] in alerts}, failures)
        _wait(server, set(), others, CLEAR_SECONDS, failures)
    print(*failures, sep="\n")
    print("FAILED" if failures else f"passed: {len(provoked) + 1} alerts fired and cleared")
    return 1 if failures else 0


def _run(
    here: Stand, server: Prometheus, group: list[Trouble], expected: set[tuple[str, str]], failures: list[str]
) -> None:
    """Begin the troubles of a group, wait for their alerts, end them, and wait until the alerts are over."""
    before = server.firing() & expected
    failures += [f"{name} ({severity}) fires before its trouble" for name, severity in sorted(before)]
    for trouble in group:
        print(f"begins: {', '.join(trouble.alerts)}", flush=True)
        trouble.begin(here)
    _wait(server, expected, set(), FIRE_SECONDS, failures)
    for trouble in group:
        trouble.end(here)
    _wait(server, set(), expected, CLEAR_SECONDS, failures)


def _wait(
    server: Prometheus,
    wanted: set[tuple[str, str]],
    unwanted: set[tuple[str, str]],
    seconds: float,
    failures: list[str],
) -> None:
    """Wait until all wanted alerts have fired, each at some time, and no unwanted one fires."""
    began = time.monotonic()
    wanted = set(wanted)
    while True:
        firing = server.firing()
        for name, severity in sorted(wanted & firing):
            print(f"fires after {time.monotonic() - began:.0f} s: {name} ({severity})", flush=True)
        wanted -= firing
        left = unwanted & firing
        if not wanted and not left:
            print(f"clear after {time.monotonic() - began:.0f} s", flush=True)
            return
        if time.monotonic() - began > seconds:
            failures += [f"{name} ({severity}) did not fire" for name, severity in sorted(wanted)]
            failures += [f"{name} ({severity}) did not clear" for name, severity in sorted(left)]
            print(*failures, sep="\n", flush=True)
            return
        time.sleep(1)


def refused_queries(server: Prometheus) -> list[str]:
    """Return the queries of the dashboards that a real Prometheus refuses."""
    found = []
    for file in sorted(DASHBOARDS.glob("*.json")):
        for panel in json.loads(file.read_text(encoding="utf-8"))["panels"]:
            for target in panel.get("targets", ()):
                try:
                    server.query(at_once(target["expr"], "1m"))
                except OSError as error:
                    found.append(f"{file.name}: {panel['title']}: {error}")
    return found


if __name__ == "__main__":
    sys.exit(main())
