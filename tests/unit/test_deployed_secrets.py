"""Compose and Kubernetes give each service the secrets that it needs, and no others."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from shared.settings import SECRET_READERS, SERVICES, Settings, readers_of

ROOT = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = YAML(typ="safe").load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
BASE = ROOT / "deploy/k8s/base"
SECRETS = ("database_url", "broker_url", *SECRET_READERS)
COMPOSE_VOLUMES = {
    "database_url": "database_secret",
    "broker_url": "broker_secret",
    "secret_key": "secrets",
    "admin_password": "console_secret",
}
K8S_SECRETS = {
    "database_url": "mailgroup-database-app/uri",
    "broker_url": "mailgroup-broker-default-user/connection_string",
    "secret_key": "mailgroup-app/secret.key",
    "admin_password": "mailgroup-app/admin.password",
}


def named(environment: set[str]) -> set[str]:
    """The secrets that these variables name."""
    variables = {name.removeprefix("MAILGROUP_").removesuffix("_FILE").lower() for name in environment}
    return variables & set(SECRETS)


def needed(name: str) -> set[str]:
    return {secret for secret in SECRETS if name in readers_of(secret)}


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_has_its_own_secrets_and_no_others(name: str) -> None:
    service = COMPOSE["services"][name]
    assert named(set(service["environment"])) == needed(name)
    volumes = set(service["volumes"]) - {"postgres:/data/postgres:ro"}  # admin measures its space and reads no file
    assert name == "admin" or volumes == set(service["volumes"])
    mounted = {volume.split(":")[0] for volume in volumes} - {"data", "processes"}
    assert mounted == {COMPOSE_VOLUMES[secret] for secret in needed(name) if secret in COMPOSE_VOLUMES}


def load(file: Path) -> list[dict[str, Any]]:
    return [document for document in YAML(typ="safe").load_all(file.read_text(encoding="utf-8")) if document]


def deployment(name: str) -> list[dict[str, Any]]:
    """The pod of a service: its own part, and those that kustomize merges into it."""
    dashed = name.replace("_", "-")
    parts = [document for document in load(BASE / f"{dashed}.yaml") if document["kind"] == "Deployment"]
    [kustomization] = load(BASE / "kustomization.yaml")
    for patch in kustomization["patches"]:
        if re.fullmatch(patch["target"].get("name", ".*"), dashed):
            parts += load(BASE / patch["path"])
    return [part["spec"]["template"]["spec"] for part in parts]


@pytest.mark.parametrize("name", SERVICES)
def test_a_pod_has_its_own_secrets_and_no_others(name: str) -> None:
    environment, mounted = set[str](), set[str]()
    for pod in deployment(name):
        for container in pod["containers"]:
            environment |= {variable["name"] for variable in container.get("env", ())}
        for volume in pod.get("volumes", ()):
            secret = volume.get("secret", {})
            items = [f"/{item['key']}" for item in secret.get("items", ())] or [""]
            mounted |= {f"{secret.get('secretName')}{item}" for item in items}
    [settings] = load(BASE / "settings.yaml")
    # the webhook of alarms is set by an overlay, and each service drops what is not its own
    assert named(environment | set(settings["data"])) == needed(name) - {"alert_webhook"}
    # The certificate has files of its own, and the other volumes are no secrets.
    assert mounted - {"mailgroup-tls", "None"} == {
        K8S_SECRETS[secret] for secret in needed(name) if secret in K8S_SECRETS
    }


def test_a_service_drops_the_secrets_of_others_that_it_was_given() -> None:
    given = Settings(**dict.fromkeys(SECRETS, "x"))  # type: ignore[arg-type]  # each of them is a text
    for name in SERVICES:
        own = given.of_service(name)
        assert {secret for secret in SECRETS if getattr(own, secret) is not None} == needed(name)
    assert needed("pop3_out") == needed("router") == {"database_url", "broker_url"}


def test_the_script_for_the_role_is_the_same_in_both_deployments() -> None:
    [script] = [
        document["data"]["create_role.sh"]
        for document in load(ROOT / "deploy/k8s/components/postgres/postgres.yaml")
        if document["kind"] == "ConfigMap"
    ]
    assert script == (ROOT / "deploy/postgres/create_role.sh").read_text(encoding="utf-8")
