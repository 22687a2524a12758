"""The files of deployment agree with each other and with the code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from deploy.monitoring.__main__ import BOARDS, stale
from shared.settings import SERVICES, Settings

ROOT = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = YAML(typ="safe").load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
RULES: dict[str, Any] = YAML(typ="safe").load((ROOT / "deploy/prometheus/rules.yml").read_text(encoding="utf-8"))


def _alerts() -> list[dict[str, Any]]:
    return [rule for group in RULES["groups"] for rule in group["rules"] if "alert" in rule]


def test_dashboards_and_the_operators_rules_are_made_from_their_sources() -> None:
    assert stale() == []


def test_every_service_has_a_container_deployment_dashboard_and_scrape() -> None:
    scraped = YAML(typ="safe").load((ROOT / "deploy/prometheus/prometheus.yml").read_text(encoding="utf-8"))
    targets = {job["job_name"]: job["static_configs"][0]["targets"] for job in scraped["scrape_configs"]}
    for name in SERVICES:
        port = Settings().metrics_port_of(name)
        assert COMPOSE["services"][name]["healthcheck"]["test"] == ["CMD", "ready", str(port)]
        assert targets[name] == [f"{name}:{port}"]
        manifest = (ROOT / f"deploy/k8s/base/{name.replace('_', '-')}.yaml").read_text(encoding="utf-8")
        assert f"args: [mailgroup, service, {name}]" in manifest and f"containerPort: {port}" in manifest
        assert f"mailgroup-{name.replace('_', '-')}" in {board.uid for board in BOARDS}


@pytest.mark.parametrize("alert", _alerts(), ids=lambda alert: alert["alert"])
def test_every_alert_has_a_severity_a_page_with_its_four_parts_and_a_test(alert: dict[str, Any]) -> None:
    page = (ROOT / alert["annotations"]["runbook_url"]).read_text(encoding="utf-8")
    assert re.findall(r"^#+ (.+)$", page, re.M) == [alert["alert"], "Meaning", "Impact", "Diagnosis", "Mitigation"]
    assert alert["labels"]["severity"] in ("critical", "warning") and alert["annotations"]["summary"]
    tests = (ROOT / "deploy/prometheus/rules_test.yml").read_text(encoding="utf-8")
    assert f"runbook_url: {alert['annotations']['runbook_url']}" in tests


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
    recorded = {rule["record"] for group in RULES["groups"] for rule in group["rules"] if "record" in rule}
    readers = [
        *(ROOT / "deploy/prometheus").glob("*.yml"),
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


def test_nothing_names_a_registry() -> None:
    images = [service["image"] for service in COMPOSE["services"].values() if "image" in service]
    assert images and all("." not in image.split("/")[0].split(":")[0] for image in images)
