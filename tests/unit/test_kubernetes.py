"""The manifests as kustomize renders them: what refers to each other fits, and the rules of docs/kubernetes.md hold."""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

K8S = Path(__file__).resolve().parents[2] / "deploy/k8s"
OVERLAYS = sorted(folder.name for folder in (K8S / "overlays").iterdir())
Object = dict[str, Any]

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")


@cache
def rendered(overlay: str) -> list[Object]:
    command = ["kubectl", "kustomize", str(K8S / "overlays" / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [document for document in YAML(typ="safe").load_all(done.stdout) if document]


def of_kind(overlay: str, *kinds: str) -> list[Object]:
    return [each for each in rendered(overlay) if each["kind"] in kinds]


def one(overlay: str, kind: str, name: str) -> Object:
    [found] = [each for each in of_kind(overlay, kind) if each["metadata"]["name"] == name]
    return found


def is_service(each: Object) -> bool:
    """Whether `-l app.kubernetes.io/part-of=mailgroup` selects it."""
    return bool(each["metadata"].get("labels", {}).get("app.kubernetes.io/part-of") == "mailgroup")


# ------------------------------------------------------------------------------------------ backup and restore


@pytest.mark.parametrize(("overlay", "name"), [("production", "mailgroup-database"), ("restored", "mailgroup-restored")])
def test_the_database_is_archived_and_backed_up_each_day(overlay: str, name: str) -> None:
    [cluster] = of_kind(overlay, "Cluster")
    [archiver] = [plugin for plugin in cluster["spec"]["plugins"] if plugin["isWALArchiver"]]
    store = one(overlay, "ObjectStore", archiver["parameters"]["barmanObjectName"])
    [schedule] = of_kind(overlay, "ScheduledBackup")
    # when
    six_fields = schedule["spec"]["schedule"].split()
    # then
    assert cluster["metadata"]["name"] == schedule["spec"]["cluster"]["name"] == name
    assert schedule["spec"]["method"] == "plugin"
    assert schedule["spec"]["pluginConfiguration"]["name"] == archiver["name"]
    assert six_fields[3:] == ["*", "*", "*"] and all(field.isdigit() for field in six_fields[:3])
    assert re.fullmatch(r"\d+d", store["spec"]["retentionPolicy"])
    # The plugin's own parameter names the folder: by default the Cluster's name.
    assert "serverName" not in store["spec"]["configuration"] and "serverName" not in archiver["parameters"]


def test_the_pods_of_a_database_and_of_its_restore_reach_the_store() -> None:
    # The operator labels both with the name of their Cluster.
    for overlay in ("production", "restored"):
        policy = one(overlay, "NetworkPolicy", "database-backup")["spec"]
        assert policy["podSelector"] == {"matchExpressions": [{"key": "cnpg.io/cluster", "operator": "Exists"}]}
        assert policy["egress"] == [{"ports": [{"protocol": "TCP", "port": 443}]}]
        assert one(overlay, "ObjectStore", "mailgroup-backup")["spec"]["configuration"]["endpointURL"].startswith("https")


def test_a_restore_reads_the_backups_of_production_and_writes_its_own() -> None:
    production, restored = (of_kind(overlay, "Cluster")[0] for overlay in ("production", "restored"))
    recovery = restored["spec"]["bootstrap"]["recovery"]
    [source] = [each for each in restored["spec"]["externalClusters"] if each["name"] == recovery["source"]]
    assert source["plugin"]["parameters"]["serverName"] == production["metadata"]["name"]
    assert restored["metadata"]["name"] != production["metadata"]["name"]
    assert recovery["database"] == production["spec"]["bootstrap"]["initdb"]["database"]
    assert recovery["owner"] == production["spec"]["bootstrap"]["initdb"]["owner"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", recovery["recoveryTarget"]["targetTime"])
    same = {"imageName", "storage", "walStorage", "resources", "postgresql", "plugins", "inheritedMetadata"}
    assert {key: restored["spec"][key] for key in same} == {key: production["spec"][key] for key in same}


def test_every_pod_of_the_restored_system_uses_the_restored_database() -> None:
    pods = [each["spec"]["template"]["spec"] for each in of_kind("restored", "Deployment", "Job")]
    secrets = [
        volume["secret"]["secretName"] for pod in pods for volume in pod["volumes"] if volume["name"] == "database"
    ]
    assert len(pods) == 8 and secrets == ["mailgroup-restored-app"] * len(pods)


def test_a_job_prepares_the_restored_database_before_any_service() -> None:
    [job] = of_kind("restored", "Job")
    [container] = job["spec"]["template"]["spec"]["containers"]
    assert container["args"] == ["mailgroup", "restore", "--loaded"]
    assert not is_service(job) and all(is_service(each) for each in of_kind("restored", "Deployment"))
    # Its pod has the label, which the network policies of the database select.
    assert job["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/part-of"] == "mailgroup"
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert {"database", "key"} <= mounted
