"""Graphs of the dashboards, as a real Prometheus computes them for a hundred accounts."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator

import pytest

from deploy.machine import ports
from deploy.monitoring.flow import FLOW
from deploy.monitoring.panels import at_once
from tests.alerts.prometheus import Prometheus, program
from tests.system import until

ACCOUNTS = 100
MINUTES = 140
LATE = 1_000
"""Seconds without a poll at the worst minute of the first account; a second more of each further one."""
METRIC = "mailgroup_fetch_last_success_timestamp_seconds"


@pytest.fixture(scope="module")
def until_now() -> int:
    """The last minute of the data, Unix time: an hour ago, as blocks of the last hours are still in memory."""
    return int(time.time()) // 60 * 60 - 3600


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, until_now: int) -> Iterator[Prometheus]:
    """A Prometheus in which every account was polled each minute, and each was late for one minute, in turn."""
    folder = tmp_path_factory.mktemp("prometheus")
    lines = [f"# TYPE {METRIC} gauge"]
    for account in range(ACCOUNTS):
        for minute in range(MINUTES):
            now = until_now - 60 * (MINUTES - 1 - minute)
            age = LATE + account if minute == 20 + account else 30
            lines.append(f'{METRIC}{{external="{account}@company.com"}} {now - age} {now}')
    (folder / "samples").write_text("\n".join([*lines, "# EOF\n"]), encoding="utf-8")
    words = ["promtool", "tsdb", "create-blocks-from", "openmetrics", str(folder / "samples"), str(folder / "tsdb")]
    subprocess.run(words, check=True, capture_output=True)
    (folder / "prometheus.yml").write_text("{}", encoding="utf-8")
    [port] = ports.choose(1, str(folder))
    found = Prometheus(port)

    def answers() -> bool:
        try:
            return bool(found.query("vector(1)"))
        except OSError:
            return False

    options = (f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/tsdb")
    with program("prometheus", folder, *options, f"--web.listen-address=127.0.0.1:{port}"):
        until(answers, 120)
        yield found


def drawn(server: Prometheus, query: str, end: int) -> set[str]:
    """Return the accounts of the lines that a graph of the last two hours has."""
    written = at_once(query, "2h")
    result = server.ask("/api/v1/query_range", query=written, start=str(end - 7200), end=str(end), step="60")["result"]
    return {series["metric"]["external"].partition("@")[0] for series in result}


def test_a_graph_of_a_hundred_accounts_has_ten_lines(server: Prometheus, until_now: int) -> None:
    [panel] = [
        each for row in FLOW.rows.values() for each in row if each.title == "Time since the last successful poll"
    ]
    [query] = panel.expressions.values()
    everything = query[1 : query.index(") and topk(10, ")]
    # each account is among the ten at its worst minute, so a choice at each point would draw all
    assert len(drawn(server, everything, until_now)) == ACCOUNTS
    assert len(drawn(server, f"topk(10, {everything})", until_now)) == ACCOUNTS
    assert drawn(server, query, until_now) == {str(number) for number in range(ACCOUNTS - 10, ACCOUNTS)}
