"""The files of deployment agree with each other and with the code."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from deploy.monitoring.__main__ import BOARDS, stale
from deploy.monitoring.panels import at_once, worst_of_time
from shared.settings import SERVICES, Settings
from tests.alerts.prometheus import shorten
from tests.alerts.troubles import troubles

ROOT = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = YAML(typ="safe").load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
PROMETHEUS = ROOT / "deploy/prometheus"
RULES: list[dict[str, Any]] = [
    rule
    for file in ("rules.yml", "slo.yml")
    for group in YAML(typ="safe").load((PROMETHEUS / file).read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
TESTS = ("rules_test.yml", "slo_test.yml")
ALERTS = [rule for rule in RULES if "alert" in rule]
RUNBOOKS = '{{ range query "mailgroup:runbooks:info" }}{{ .Labels.url }}{{ end }}'


def _promtool(*words: str) -> None:
    done = subprocess.run(["promtool", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def _seconds(time: str) -> int:
    return sum(int(number) * {"s": 1, "m": 60, "h": 3600}[unit] for number, unit in re.findall(r"(\d+)([smh])", time))


def test_dashboards_and_the_operators_rules_are_made_from_their_sources() -> None:
    assert stale() == []


def test_every_service_has_a_container_deployment_dashboard_and_scrape() -> None:
    scraped = YAML(typ="safe").load((ROOT / "deploy/prometheus/prometheus.yml").read_text(encoding="utf-8"))
    # by DNS, which has an address of each replica
    targets = {job["job_name"]: job["dns_sd_configs"] for job in scraped["scrape_configs"] if "dns_sd_configs" in job}
    for name in SERVICES:
        port = Settings().metrics_port_of(name)
        assert COMPOSE["services"][name]["healthcheck"]["test"] == ["CMD", "ready", str(port)]
        assert targets[name] == [{"names": [name], "type": "A", "port": port, "refresh_interval": "15s"}]
        manifest = (ROOT / f"deploy/k8s/base/{name.replace('_', '-')}.yaml").read_text(encoding="utf-8")
        assert f"args: [mailgroup, service, {name}]" in manifest and f"containerPort: {port}" in manifest
        assert f"mailgroup-{name.replace('_', '-')}" in {board.uid for board in BOARDS}


def test_every_pod_migrates_the_database_before_it_starts() -> None:
    base = ROOT / "deploy/k8s/base"
    pod = YAML(typ="safe").load((base / "pod.yaml").read_text(encoding="utf-8"))["spec"]["template"]["spec"]
    [init], [container] = pod["initContainers"], pod["containers"]
    assert init["args"][:2] == ["mailgroup", "migrate"] and init["image"] == container["image"]
    assert init["securityContext"] == container["securityContext"]
    assert {mount["name"] for mount in init["volumeMounts"]} <= {volume["name"] for volume in pod["volumes"]}
    # a Job cannot be changed, so none is applied a second time
    for file in base.glob("*.yaml"):
        assert "kind: Job" not in file.read_text(encoding="utf-8"), file


def test_the_migration_as_a_hook_does_not_wait_for_its_own_installation() -> None:
    file = ROOT / "deploy/k8s/components/migrate-hook/migrate.yaml"
    job = YAML(typ="safe").load(file.read_text(encoding="utf-8"))
    notes = job["metadata"]["annotations"]
    assert notes["argocd.argoproj.io/hook"] == "Sync"
    assert notes["argocd.argoproj.io/hook-delete-policy"] == "BeforeHookCreation"
    assert set(notes["helm.sh/hook"].split(",")) == {"post-install", "pre-upgrade"}
    assert notes["helm.sh/hook-delete-policy"] == "before-hook-creation"


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: f"{alert['alert']}-{alert['labels']['severity']}")
def test_every_alert_has_a_severity_a_page_and_a_test_of_start_and_end(alert: dict[str, Any]) -> None:
    name, severity = alert["alert"], alert["labels"]["severity"]
    assert alert["annotations"]["runbook_url"] == f"{RUNBOOKS}/{name}.md" and alert["annotations"]["summary"]
    page = (ROOT / f"docs/runbooks/{name}.md").read_text(encoding="utf-8")
    assert re.findall(r"^#+ (.+)$", page, re.M) == [name, "Meaning", "Impact", "Diagnosis", "Mitigation"]
    assert severity in ("critical", "warning") or (name, severity) == ("Watchdog", "info")
    looks = [
        [look for look in test["alert_rule_test"] if look["alertname"] == name]
        for file in TESTS
        for test in YAML(typ="safe").load((PROMETHEUS / file).read_text(encoding="utf-8"))["tests"]
        if any(look["alertname"] == name for look in test["alert_rule_test"])
    ]
    assert any(_starts_and_ends(in_one_test, severity) for in_one_test in looks) or (looks and name == "Watchdog")


def _starts_and_ends(looks: list[dict[str, Any]], severity: str) -> bool:
    """Whether the alert fires at some time of a test, and at a later one does not."""
    fires = [
        _seconds(look["eval_time"])
        for look in looks
        if any(alert["exp_labels"]["severity"] == severity for alert in look["exp_alerts"])
    ]
    calm = [_seconds(look["eval_time"]) for look in looks if not look["exp_alerts"]]
    return bool(fires and calm and max(calm) > min(fires))


def test_every_alert_fires_and_clears_as_its_test_says() -> None:
    _promtool("check", "rules", str(PROMETHEUS / "rules.yml"), str(PROMETHEUS / "slo.yml"))
    _promtool("test", "rules", *(str(PROMETHEUS / file) for file in TESTS))


def test_every_alert_is_provoked_on_a_running_system(tmp_path: Path) -> None:
    provoked = {alert for group in troubles() for trouble in group for alert in trouble.alerts}
    assert provoked | {"Watchdog"} == {alert["alert"] for alert in ALERTS}
    for file in ("rules.yml", "slo.yml"):  # with the shorter times
        (tmp_path / file).write_text(shorten((PROMETHEUS / file).read_text(encoding="utf-8")), encoding="utf-8")
    _promtool("check", "rules", str(tmp_path / "rules.yml"), str(tmp_path / "slo.yml"))


def test_no_alert_reads_a_metric_that_ends_with_a_restart() -> None:
    # A counter or gauge with labels that a process sets at an event is missing until then.
    born_later = {"mailgroup_fetch_errors_total", "mailgroup_relay_errors_total", "mailgroup_http_requests_total"}
    for rule in RULES:
        assert not born_later.intersection(re.findall(r"mailgroup_\w+", rule["expr"])), rule


def test_every_variable_of_the_compose_file_is_in_the_example() -> None:
    compose = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    for name, default in re.findall(r"\$\{(MAILGROUP_\w+):-([^}]*)\}", compose):
        assert f"\n{name}={default}\n" in example, name


def test_every_metric_of_rules_dashboards_and_pages_exists_or_is_recorded() -> None:
    code = "".join(
        file.read_text(encoding="utf-8") for folder in ("shared", "services") for file in (ROOT / folder).rglob("*.py")
    )
    known = set(re.findall(r'"(mailgroup_\w+)"', code))
    recorded = {rule["record"] for rule in RULES if "record" in rule}
    readers = [
        *PROMETHEUS.glob("*.yml"),
        *(ROOT / "deploy/grafana/dashboards").glob("*.json"),
        *(ROOT / "docs").rglob("*.md"),
        ROOT / "README.md",
    ]
    unknown = {
        (file.name, name)
        for file in readers
        for name in re.findall(r"[\w:]*\bmailgroup_[\w:]+", file.read_text(encoding="utf-8"))
        if name not in recorded and re.sub("_(bucket|sum|count)$", "", name) not in known
    }
    assert {"mailgroup_stage_seconds", "mailgroup_alarms_raised"} <= known and recorded
    assert unknown == set()


def _panels() -> list[dict[str, Any]]:
    boards = [
        json.loads(file.read_text(encoding="utf-8")) for file in (ROOT / "deploy/grafana/dashboards").glob("*.json")
    ]
    return [panel for board in boards for panel in board["panels"] if panel["type"] != "row"]


def test_every_query_of_the_dashboards_is_promql(tmp_path: Path) -> None:
    queries = [at_once(target["expr"], "5m") for panel in _panels() for target in panel["targets"]]
    rules = [{"record": f"query{number}", "expr": query} for number, query in enumerate(queries)]
    assert len(rules) > 80
    file = tmp_path / "queries.yml"
    file.write_text(json.dumps({"groups": [{"name": "queries", "rules": rules}]}), encoding="utf-8")
    _promtool("check", "rules", "--lint=none", str(file))


@pytest.mark.parametrize("exporter", ["postgres_exporter", "CloudNativePG"])
def test_each_panel_of_postgresql_has_data_of_either_exporter(exporter: str, tmp_path: Path) -> None:
    # given the metrics as each exporter names them (CloudNativePG: config/manager/default-monitoring.yaml)
    counters = ("xact_commit", "xact_rollback", "blks_hit", "blks_read", "tup_inserted", "tup_updated", "tup_deleted")
    names = [f"pg_stat_database_{counter}" for counter in (*counters, "deadlocks")] + ["pg_database_size_bytes"]
    if exporter == "CloudNativePG":
        names = [f"cnpg_{name}" for name in names] + ["cnpg_backends_total", "cnpg_backends_max_tx_duration_seconds"]
    else:
        names += ["pg_stat_activity_count", "pg_stat_activity_max_tx_duration"]
    series = [{"series": f'{name}{{datname="mailgroup"}}', "values": "0+60x20"} for name in names]
    # then each query has a value: 1 a second, or that of this moment
    [board] = [board for board in BOARDS if board.uid == "mailgroup-postgres"]
    queries = [q for row in board.rows.values() for panel in row for q in panel.expressions.values() if "datname" in q]
    assert len(queries) == len(names)
    tests = [
        {
            "expr": at_once(query, "5m"),
            "eval_time": "15m",
            "exp_samples": [
                {"labels": "{}", "value": 60 if query.startswith("60 * ") else 1 if "rate" in query else 900}
            ],
        }
        for query in queries
    ]
    file = tmp_path / "test.yml"
    file.write_text(json.dumps({"tests": [{"interval": "1m", "input_series": series, "promql_expr_test": tests}]}))
    _promtool("test", "rules", str(file))


def test_a_tile_shows_this_moment_and_is_never_green_without_data() -> None:
    tiles = [panel for panel in _panels() if panel["type"] != "timeseries"]
    assert len(tiles) >= 13
    for tile in tiles:
        assert all(target["instant"] and not target["range"] for target in tile["targets"]), tile["title"]
        [missing] = [m["options"] for m in tile["fieldConfig"]["defaults"]["mappings"] if m["type"] == "special"]
        assert missing["match"] == "null+nan" and missing["result"]["color"] != "green"
        if tile["type"] == "stat":
            assert (
                tile["targets"][0]["expr"].endswith(" or vector(NaN)") and tile["options"]["colorMode"] == "background"
            )


def test_panels_of_accounts_show_the_worst_ten() -> None:
    by_account = [t for panel in _panels() for t in panel["targets"] if "{{external}}" in t["legendFormat"]]
    bars, lines = ([t["expr"] for t in by_account if t["instant"] is instant] for instant in (True, False))
    assert bars and all(query.startswith("topk(10, ") for query in bars)
    assert len(lines) >= 5
    for query in lines:
        expression = query[1 : query.index(") and topk(10, ")]
        assert query == worst_of_time(expression)


def test_a_difference_of_the_books_is_red_on_both_sides_of_zero() -> None:
    [tile] = [panel for panel in _panels() if panel["title"] == "Books' difference"]
    steps = [(step["value"], step["color"]) for step in tile["fieldConfig"]["defaults"]["thresholds"]["steps"]]
    assert steps == [(None, "red"), (0, "green"), (1, "red")]


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_a_container_is_confined_and_its_image_has_a_patch_version(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["cap_drop"] == ["ALL"] and "cap_add" not in service
    assert service["security_opt"] == ["no-new-privileges:true"] and "privileged" not in service
    assert service["read_only"] is True and "/tmp" in service["tmpfs"]
    assert 0 < service["pids_limit"] <= 1024 and re.fullmatch(r"\d+[mg]", service["mem_limit"])
    assert service.get("user", "").split(":")[0] != "0"
    # PostgreSQL's patch versions have two numbers.
    assert re.fullmatch(r"postgres:\d+\.\d+|[\w/-]+:v?\d+\.\d+\.\d+(-\w+)?", service["image"])


def test_a_base_image_names_its_release_of_debian() -> None:
    # Another release has another version of PostgreSQL's client tools, or of the exporter.
    files = sorted((ROOT / "deploy").rglob("Dockerfile"))
    images = [
        image
        for file in files
        for image in re.findall(r"^(?:ARG PYTHON_IMAGE=|FROM )([^$\s]+)", file.read_text(), re.M)
    ]
    assert len(images) == len(files) == 2
    assert all(re.fullmatch(r"python:3\.\d+(\.\d+)?-slim-[a-z]+|debian:\d+\.\d+-slim", image) for image in images), (
        images
    )


def test_nothing_names_a_registry() -> None:
    images = [service["image"] for service in COMPOSE["services"].values() if "image" in service]
    assert images and all("." not in image.split("/")[0].split(":")[0] for image in images)
