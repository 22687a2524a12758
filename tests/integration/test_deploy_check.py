"""``make deploy-check`` finds wrong fields of the overlays, with the tools of its lock file."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from deploy import check

ROOT = Path(__file__).resolve().parents[2]
WRONG = (
    ("cloudnative-pg/cluster.yaml", "instances: 3", "instance: 3"),
    ("rabbitmq-operator/cluster.yaml", "additionalPlugins:", "extraPlugins:"),
    ("cert-manager/certificate.yaml", "dnsNames:", "dnsName:"),
    ("autoscaling/queues.yaml", "minReplicaCount: 2", "minReplicaCount: two"),
    ("monitoring/pods.yaml", "podMetricsEndpoints:", "podMetricEndpoints:"),
    ("rabbitmq-operator/monitor.yaml", "dnsSDConfigs:", "dnsConfigs:"),
)
"""Each: a file of a component, right words in it, and wrong ones."""


@pytest.fixture
def production(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of deploy/k8s with base, components and the overlay ``production``, which the checks read."""
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # put back after the test
    check.install()
    folder = tmp_path / "k8s"
    for part in ("base", "components", "overlays/production"):
        shutil.copytree(ROOT / "deploy/k8s" / part, folder / part)
    shutil.copytree(ROOT / "deploy/grafana", tmp_path / "grafana")
    monkeypatch.setattr(check, "_K8S", folder)
    return folder


def replace(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_the_overlay_passes_and_wrong_fields_of_operators_fail(production: Path) -> None:
    check.check_operators()
    for component, right, wrong in WRONG:
        replace(production / "components" / component, right, wrong)
    with pytest.raises(RuntimeError) as refused:
        check.check_operators()
    for _, _, wrong in WRONG:
        assert f"'{re.findall('[A-Za-z]+', wrong)[-1]}'" in str(refused.value), wrong


def test_an_operators_kind_without_a_schema_fails(production: Path) -> None:
    replace(production / "components/cert-manager/certificate.yaml", "kind: Certificate", "kind: Certificates")
    with pytest.raises(RuntimeError, match=r"no schema .* cert-manager\.io-v1-certificates\.json"):
        check.check_operators()


def test_a_wrong_field_of_kubernetes_itself_fails(production: Path) -> None:
    replace(production / "base/mail-services.yaml", "externalTrafficPolicy: Local", "externalTrafficPolice: Local")
    with pytest.raises(RuntimeError, match="externalTrafficPolice"):
        check.check_kubernetes()


def test_the_overlay_brings_every_dashboard_to_grafanas_sidecar(production: Path) -> None:
    boards = {path.name: path.read_text("utf-8") for path in (ROOT / "deploy/grafana/dashboards").glob("*.json")}
    found: dict[str, str] = {}
    for each in check.objects("overlays/production"):
        if each["kind"] == "ConfigMap" and each["metadata"].get("labels") == {"grafana_dashboard": "1"}:
            assert len(json.dumps(each)) < 256 * 1024  # the longest annotation, in which `kubectl apply` keeps it
            found |= each["data"]
    assert found == boards and len(boards) >= 10


@pytest.mark.parametrize(
    ("example", "balancers"), [("one-name", ["mail"]), ("three-names", ["mail-imap", "mail-pop3", "mail-smtp"])]
)
def test_an_example_has_the_load_balancers_that_it_names(
    example: str, balancers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", os.environ["PATH"])
    check.install()
    objects = {(each["kind"], each["metadata"]["name"]): each for each in check.objects(f"examples/{example}")}
    services = {name: each["spec"] for (kind, name), each in objects.items() if kind == "Service"}
    assert [name for name, spec in services.items() if spec.get("type") == "LoadBalancer"] == balancers
    # each port of a load balancer is a named port of the pods that it selects
    for name in balancers:
        [pod] = [
            each["spec"]["template"]["spec"]
            for (kind, _), each in objects.items()
            if kind == "Deployment" and each["spec"]["selector"]["matchLabels"] == services[name]["selector"]
        ]
        ports = {port["name"] for container in pod["containers"] for port in container["ports"]}
        assert {port["targetPort"] for port in services[name]["ports"]} <= ports
    # the certificate has the names of the load balancers
    names = objects["Certificate", "mail"]["spec"]["dnsNames"]
    assert len(names) == len(balancers)
    # the console shows these names, not the address under which an administrator reaches it
    shown = objects["ConfigMap", "mailgroup"]["data"]
    settings = ("MAILGROUP_MAIL_HOST", "MAILGROUP_IMAP_HOST", "MAILGROUP_SMTP_HOST")
    assert [shown[name] for name in settings if name in shown] == names
    # only the proxy may connect to a service that believes its header
    for protocol in ("imap", "pop3", "smtp"):
        policy = objects["NetworkPolicy", f"{protocol}-clients"]["spec"]["ingress"][0]
        assert ("MAILGROUP_PROXY_FROM" in shown) == ("from" in policy) == (example == "one-name")


def test_the_checks_of_a_change_include_the_deployment_files() -> None:
    assert "\nstep ./mailgroup deploy-check\n" in (ROOT / ".ci/run").read_text(encoding="utf-8")
