"""A real Prometheus with the rules of the project, whose times are shortened, and the exporter of PostgreSQL."""

from __future__ import annotations

import json
import re
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from deploy.machine import ports
from deploy.machine.programs import Process, Program
from tests.system import until

RULES = Path(__file__).resolve().parents[2] / "deploy/prometheus"
FOR = "2s"
"""How long each condition has to last here."""
RANGES = {"5m": "15s", "30m": "20s", "1h": "25s", "2h": "30s", "6h": "35s", "10m": "20s", "3d": "45s"}
"""Windows of the rules, and what they are here. A day is 40 s, but not that of the runbooks."""
THRESHOLDS = {
    "(mailgroup_database_wal_retained_bytes) > 1073741824": "(mailgroup_database_wal_retained_bytes) > 33554432",
    "(mailgroup_oauth_token_expiry_timestamp_seconds) > 600": "(mailgroup_oauth_token_expiry_timestamp_seconds) > 10",
}
"""Limits that would take gigabytes or long. All others are as in production."""


def shorten(rules: str) -> str:
    """Return rules with shorter times. Pure."""
    rules = re.sub(r"for: \w+", f"for: {FOR}", rules)
    rules = re.sub(r"\[(\w+)\]", lambda found: f"[{RANGES.get(found[1], found[1])}]", rules)
    rules = re.sub(r"(seconds_\w+(?:{[^}]*})?)\[1d\]", r"\1[40s]", rules)
    for limit, here in THRESHOLDS.items():
        rules = rules.replace(limit, here)
    return rules


def alert_names() -> dict[str, set[str]]:
    """Return the severities of each alert of the project."""
    found: dict[str, set[str]] = {}
    for file in ("rules.yml", "slo.yml"):
        for group in YAML(typ="safe").load((RULES / file).read_text(encoding="utf-8"))["groups"]:
            for rule in group["rules"]:
                if "alert" in rule:
                    found.setdefault(rule["alert"], set()).add(rule["labels"]["severity"])
    return found


class Prometheus:
    """The running server."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def ask(self, path: str, **parameters: str) -> Any:
        """Return the data that the API answers."""
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self.url}{path}?{query}", timeout=30) as answer:
            return json.load(answer).get("data")

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Evaluate an expression now. :raises OSError: it is not valid."""
        return list(self.ask("/api/v1/query", query=expression)["result"])

    def firing(self) -> set[tuple[str, str]]:
        """Return name and severity of the alerts that fire."""
        labels = [each["metric"] for each in self.query('ALERTS{alertstate="firing"}')]
        return {(each["alertname"], each["severity"]) for each in labels}


@contextmanager
def prometheus(folder: Path, targets: Mapping[str, tuple[str, str]], parameters: Sequence[str]) -> Iterator[Prometheus]:
    """Run a server. :param targets: address and path by job. :param parameters: families of the detailed page."""
    folder.mkdir()
    for file in ("rules.yml", "slo.yml"):
        (folder / file).write_text(shorten((RULES / file).read_text(encoding="utf-8")), encoding="utf-8")
    jobs = [
        {
            "job_name": job,
            "metrics_path": path,
            "static_configs": [{"targets": [address]}],
            **({"params": {"family": list(parameters)}} if "detailed" in path else {}),
        }
        for job, (address, path) in targets.items()
    ]
    config = {
        "global": {"scrape_interval": "2s", "scrape_timeout": "2s", "evaluation_interval": "2s"},
        "rule_files": ["rules.yml", "slo.yml"],
        "scrape_configs": jobs,
    }
    (folder / "prometheus.yml").write_text(json.dumps(config), encoding="utf-8")
    [port] = ports.choose(1, str(folder))
    server = Prometheus(port)
    words = (f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/tsdb")
    with program("prometheus", folder, *words, f"--web.listen-address=127.0.0.1:{port}"):
        until(lambda: _answers(server), 120)
        yield server


def _answers(server: Prometheus) -> bool:
    try:
        return bool(server.query("vector(1)"))
    except OSError:
        return False


@contextmanager
def program(name: str, folder: Path, *words: str, **environment: str) -> Iterator[Process]:
    """Run a program of Debian in the foreground."""
    with ExitStack() as stack:
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"} | environment
        process = Program(name, (name, *words), environment, folder, 0, stop_seconds=10).start(folder / f"{name}.log")
        stack.callback(process.stop)
        yield process
