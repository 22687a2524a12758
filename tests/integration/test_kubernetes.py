"""The manifests as kustomize renders them: what refers to each other fits, and the rules of docs/kubernetes.md hold."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from deploy import check
from shared.db.connection_budget import RESERVED
from shared.runtime.served_listener import MAX_CONNECTIONS
from shared.settings import SERVICES, Settings

K8S = Path(__file__).resolve().parents[2] / "deploy/k8s"
OVERLAYS = sorted(folder.name for folder in (K8S / "overlays").iterdir())
EXAMPLES = sorted(f"examples/{folder.name}" for folder in (K8S / "examples").iterdir())
DOORS = {
    "imap-out": ("mail-imap", {"imap": 143, "imaps": 993}),
    "pop3-out": ("mail-pop3", {"pop3": 110, "pop3s": 995}),
    "smtp-in": ("mail-smtp", {"smtp": 25, "submission": 587, "smtps": 465}),
}
"""The services of mail clients: Service of type LoadBalancer, and its ports by the names that pods give them."""
MEBI = 2**20
Object = dict[str, Any]


@pytest.fixture(scope="module", autouse=True)
def tools() -> Iterator[None]:
    """The tools of `make deploy-check`, kubectl among them; the path is as before afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", "/usr/bin:/bin")
        check.install()
        yield


@cache
def rendered(overlay: str) -> list[Object]:
    """The objects of an overlay; of an example, if its folder is part of the name."""
    return kustomize(K8S / overlay if "/" in overlay else K8S / "overlays" / overlay)


def kustomize(folder: Path) -> list[Object]:
    """The objects that a kustomization makes."""
    done = subprocess.run(
        [check.tool("kubectl"), "kustomize", str(folder)], capture_output=True, text=True, check=False
    )
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


@pytest.mark.parametrize(
    ("overlay", "name"), [("production", "mailgroup-database"), ("restored", "mailgroup-restored")]
)
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
        assert one(overlay, "ObjectStore", "mailgroup-backup")["spec"]["configuration"]["endpointURL"].startswith(
            "https"
        )


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
    assert len(pods) == len(SERVICES) + 1 and secrets == ["mailgroup-restored-app"] * len(pods)


def test_a_job_prepares_the_restored_database_before_any_service() -> None:
    [job] = of_kind("restored", "Job")
    [container] = job["spec"]["template"]["spec"]["containers"]
    assert container["args"] == ["mailgroup", "restore", "--loaded"]
    assert not is_service(job) and all(is_service(each) for each in of_kind("restored", "Deployment"))
    # Its pod has the label, which the network policies of the database select.
    assert job["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/part-of"] == "mailgroup"
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert {"database", "key"} <= mounted


def test_the_overlay_that_the_page_writes_restores_the_readers_own_system(tmp_path: Path) -> None:
    # given an overlay of the reader's on production, with another image and store
    for folder in ("base", "components", "overlays"):
        shutil.copytree(K8S / folder, tmp_path / "deploy/k8s" / folder)
    shutil.copytree(K8S.parent / "grafana", tmp_path / "deploy/grafana")
    mine = tmp_path / "deploy/k8s/overlays/mine"
    mine.mkdir()
    store = "{op: replace, path: /spec/configuration/endpointURL, value: https://store.company.com}"
    (mine / "kustomization.yaml").write_text(
        "resources: [../production]\nimages:\n  - {name: mailgroup, newName: REGISTRY/mailgroup, newTag: 0.1.0}\n"
        f"patches:\n  - target: {{kind: ObjectStore}}\n    patch: |\n      - {store}\n"
    )
    # when the page's block is run, without its last commands
    page = (K8S.parents[1] / "docs/kubernetes.md").read_text(encoding="utf-8")
    [block] = re.findall(r"^```\n(mkdir -p \S+/mine-restored\n.*?^END\n)", page, re.M | re.S)
    subprocess.run(["bash", "-euc", block], cwd=tmp_path, check=True)
    objects = kustomize(tmp_path / "deploy/k8s/overlays/mine-restored")
    # then
    pods = [each["spec"]["template"]["spec"] for each in objects if each["kind"] in ("Deployment", "Job")]
    [cluster] = [each["spec"] for each in objects if each["kind"] == "Cluster"]
    [kept] = [each["spec"]["configuration"] for each in objects if each["kind"] == "ObjectStore"]
    assert {container["image"] for pod in pods for container in pod["containers"]} == {"REGISTRY/mailgroup:0.1.0"}
    assert cluster["bootstrap"]["recovery"]["recoveryTarget"]["targetTime"] == "2026-03-01T08:30:00Z"
    assert kept["endpointURL"] == "https://store.company.com"
    assert [each["metadata"]["name"] for each in objects if each["kind"] == "Job"] == ["restore"]


# ------------------------------------------------------------------------------------------ every overlay


def templates(overlay: str) -> list[Object]:
    return [each["spec"]["template"] for each in of_kind(overlay, "Deployment", "StatefulSet", "Job")]


@pytest.mark.parametrize("overlay", [*OVERLAYS, *EXAMPLES])
def test_every_image_has_a_patch_version(overlay: str) -> None:
    pods = [pod["spec"] for pod in templates(overlay)]
    images = [each["image"] for pod in pods for each in (*pod["containers"], *pod.get("initContainers", ()))]
    images += [each["spec"]["imageName"] for each in of_kind(overlay, "Cluster")]
    images += [each["spec"]["image"] for each in of_kind(overlay, "RabbitmqCluster")]
    # PostgreSQL's patch versions have two numbers.
    versions = r"(cloudnative-pg/postgresql|postgres):\d+\.\d+(-[\w-]+)?|[\w/-]+:v?\d+\.\d+\.\d+(-\w+)?"
    assert len(images) >= 10 and [image for image in images if not re.fullmatch(versions, image)] == []


@pytest.mark.parametrize("overlay", [*OVERLAYS, *EXAMPLES])
def test_replicas_are_spread_over_zones_and_over_nodes(overlay: str) -> None:
    pods = [each["spec"]["template"] for each in of_kind(overlay, "Deployment")]
    assert len(pods) >= len(SERVICES)
    for pod in pods:
        spread = pod["spec"]["topologySpreadConstraints"]
        assert [each["topologyKey"] for each in spread] == ["topology.kubernetes.io/zone", "kubernetes.io/hostname"]
        for each in spread:
            assert each["labelSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    for broker in of_kind(overlay, "RabbitmqCluster"):
        pod = broker["spec"]["override"]["statefulSet"]["spec"]["template"]["spec"]
        assert pod["topologySpreadConstraints"][0]["topologyKey"] == "topology.kubernetes.io/zone"


@pytest.mark.parametrize("overlay", [*OVERLAYS, *EXAMPLES])
def test_a_drain_takes_one_pod_of_a_service_or_of_the_broker(overlay: str) -> None:
    budgets = [each["spec"] for each in of_kind(overlay, "PodDisruptionBudget")]
    labels = [each["spec"]["template"]["metadata"]["labels"] for each in of_kind(overlay, "Deployment")]
    labels += [{"app.kubernetes.io/name": name} for name in ("rabbitmq", "mailgroup-broker") if broker(overlay) == name]
    assert len(labels) >= len(SERVICES) + 1
    for each in labels:
        [budget] = [one for one in budgets if one["selector"]["matchLabels"].items() <= each.items()]
        assert budget["maxUnavailable"] == 1


def broker(overlay: str) -> str:
    """The label of the broker's pods: the operator's is the name of the cluster."""
    [found] = of_kind(overlay, "RabbitmqCluster") or [
        each for each in of_kind(overlay, "StatefulSet") if each["metadata"]["name"] == "rabbitmq"
    ]
    return str(found["metadata"]["name"])


@pytest.mark.parametrize("overlay", [*OVERLAYS, *EXAMPLES])
def test_a_secret_is_mounted_by_its_keys(overlay: str) -> None:
    for pod in templates(overlay):
        for volume in pod["spec"].get("volumes", ()):
            secret = volume.get("secret", {})
            assert secret.get("items") or secret.get("secretName") in (None, "mailgroup-tls"), volume


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_postgresql_allows_the_connections_of_all_replicas(overlay: str) -> None:
    most = {each["metadata"]["name"]: each["spec"].get("replicas", 1) for each in of_kind(overlay, "Deployment")}
    for scaler in of_kind(overlay, "HorizontalPodAutoscaler", "ScaledObject"):
        spec = scaler["spec"]
        most[spec["scaleTargetRef"]["name"]] = spec.get("maxReplicas") or spec["maxReplicaCount"]
    surge = sum(each["spec"]["strategy"]["rollingUpdate"]["maxSurge"] for each in of_kind(overlay, "Deployment"))
    allowed = [int(each["spec"]["postgresql"]["parameters"]["max_connections"]) for each in of_kind(overlay, "Cluster")]
    allowed += [
        int(word.partition("=")[2])
        for each in of_kind(overlay, "StatefulSet")
        for word in each["spec"]["template"]["spec"]["containers"][0].get("args", ())
        if word.startswith("max_connections=")
    ]
    # when
    needed = (sum(most.values()) + surge) * Settings().database_connections
    # then: 3 are for superusers, 5 for its metrics and those of others
    assert set(most) == {name.replace("_", "-") for name in SERVICES}
    assert len(allowed) == 1 and needed + RESERVED + 3 + 5 <= allowed[0]


# ------------------------------------------------------------------------------------------ an external store


def test_an_external_store_has_the_secrets_that_no_operator_creates() -> None:
    secrets = of_kind("examples/external-secrets", "ExternalSecret")
    created = {each["spec"]["target"]["name"]: each["spec"] for each in secrets}
    assert set(created) == {"mailgroup-app", "mailgroup-backup"}
    assert {data["secretKey"] for data in created["mailgroup-app"]["data"]} == {"secret.key", "admin.password"}
    keys = one("production", "ObjectStore", "mailgroup-backup")["spec"]["configuration"]["s3Credentials"].values()
    assert {(key["name"], key["key"]) for key in keys} == {
        ("mailgroup-backup", data["secretKey"]) for data in created["mailgroup-backup"]["data"]
    }
    assert {spec["target"]["creationPolicy"] for spec in created.values()} == {"Orphan"}  # the key outlives the object


# ------------------------------------------------------------------------------------------ mail clients


def container_ports(overlay: str, name: str) -> dict[str, int]:
    """The ports of a Deployment's container, by name."""
    [container] = one(overlay, "Deployment", name)["spec"]["template"]["spec"]["containers"]
    return {port["name"]: port["containerPort"] for port in container["ports"]}


def published(overlay: str, name: str) -> dict[str, int]:
    """The ports of a Service, by the name of the pod's port."""
    return {port["targetPort"]: port["port"] for port in one(overlay, "Service", name)["spec"]["ports"]}


def allowed(overlay: str, policy: str) -> list[object]:
    """The ports that a NetworkPolicy lets in."""
    return [port["port"] for rule in one(overlay, "NetworkPolicy", policy)["spec"]["ingress"] for port in rule["ports"]]


def test_the_services_of_mail_clients_are_all_that_serve_them() -> None:
    public = {each["metadata"]["name"] for each in of_kind("small", "Service") if each["spec"].get("type")}
    assert public == {service for service, _ in DOORS.values()}


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("name", DOORS)
def test_clients_reach_each_port_of_a_mail_service_on_its_usual_number(overlay: str, name: str) -> None:
    service, ports = DOORS[name]
    kind = one(overlay, "Service", service)["spec"]
    assert published(overlay, service) == ports
    assert (kind["type"], kind["externalTrafficPolicy"]) == ("LoadBalancer", "Local")
    assert kind["selector"] == {"app.kubernetes.io/name": name}
    assert ports.keys() <= container_ports(overlay, name).keys()
    assert allowed(overlay, f"{name.split('-')[0]}-clients") == list(ports)


@pytest.mark.parametrize("name", DOORS)
def test_every_mail_service_scales_by_its_load(name: str) -> None:
    [scaler] = [
        each["spec"]
        for each in of_kind("production", "HorizontalPodAutoscaler")
        if each["spec"]["scaleTargetRef"]["name"] == name
    ]
    assert scaler["minReplicas"] == 2
    assert "cpu" in {metric["resource"]["name"] for metric in scaler["metrics"]}


def test_the_memory_of_imap_out_follows_from_what_was_measured() -> None:
    # given the memory at rest, of a session in IDLE, and of work beside 200 of them: octets
    page = (K8S.parents[1] / "bench/SIZING_IMAP.md").read_text(encoding="utf-8")
    [rest] = [float(figure) * MEBI for figure in re.findall(r"^\| at rest \| ([\d.]+) MiB \|$", page, re.M)]
    [each] = [float(figure) * 1e3 for figure in re.findall(r"^\| a session in IDLE .* \| ([\d.]+) kB \|$", page, re.M)]
    highest = [float(figure) * MEBI for figure in re.findall(r"^\| at most, 200 .* \| ([\d.]+) MiB \|$", page, re.M)]
    work = max(highest) - rest - 200 * each
    # when, then: a process with as many sessions as it accepts has room for the work of others beside them
    [container] = one("production", "Deployment", "imap-out")["spec"]["template"]["spec"]["containers"]
    full = rest + MAX_CONNECTIONS * each
    assert octets(container["resources"]["limits"]["memory"]) > full + 2 * work
    assert octets(container["resources"]["requests"]["memory"]) > rest + work
    # and a further replica is started before a process refuses connections
    [scaler] = [each["spec"] for each in of_kind("production", "HorizontalPodAutoscaler") if is_named(each, "imap-out")]
    [target] = [metric["resource"]["target"] for metric in scaler["metrics"] if metric["resource"]["name"] == "memory"]
    assert rest + work < octets(target["averageValue"]) < rest + 0.8 * MAX_CONNECTIONS * each


def octets(quantity: str) -> int:
    """The octets of a quantity of Kubernetes in MiB."""
    assert quantity.endswith("Mi")
    return int(quantity.removesuffix("Mi")) * MEBI


def is_named(each: Object, name: str) -> bool:
    return bool(each["metadata"]["name"] == name)


def test_prometheus_and_status_reach_the_metrics_of_every_service() -> None:
    [rule] = one("production", "NetworkPolicy", "status")["spec"]["egress"]
    [reachable] = rule["ports"]
    for name in SERVICES:
        port = Settings().metrics_port_of(name)
        pod = one("production", "Deployment", name.replace("_", "-"))["spec"]["template"]
        assert reachable["port"] <= port <= reachable["endPort"], name
        assert container_ports("production", name.replace("_", "-"))["metrics"] == port
        assert pod["metadata"]["annotations"] == {"prometheus.io/scrape": "true", "prometheus.io/port": str(port)}
    assert allowed("production", "metrics") == ["metrics"]


def test_one_name_passes_every_port_through_the_proxy_alone() -> None:
    example = "examples/one-name"
    [config] = [each for each in of_kind(example, "ConfigMap") if "haproxy.cfg" in each.get("data", {})]
    sections = r"^listen (\w+)\n +bind :::(\d+) v4v6\n.*?server \w+ ([\w-]+):(\d+)$"
    found = re.findall(sections, config["data"]["haproxy.cfg"], re.M | re.S)
    inner = container_ports(example, "mail-proxy")
    egress = {
        rule["to"][0]["podSelector"]["matchLabels"]["app.kubernetes.io/name"]: [port["port"] for port in rule["ports"]]
        for rule in one(example, "NetworkPolicy", "mail-proxy")["spec"]["egress"]
    }
    [names] = [each["spec"]["dnsNames"] for each in of_kind(example, "Certificate")]
    settings = one(example, "ConfigMap", "mailgroup")["data"]
    # then
    wanted = {port: (service, number) for service, ports in DOORS.values() for port, number in ports.items()}
    assert {name: (service, int(number)) for name, _, service, number in found} == wanted
    assert {name: int(number) for name, number, _, _ in found} == {name: inner[name] for name in wanted}
    assert published(example, "mail") == {name: number for name, (_, number) in wanted.items()}
    assert allowed(example, "mail-proxy") == list(wanted)
    for name, (service, ports) in DOORS.items():
        assert egress[name] == [container_ports(example, name)[port] for port in ports]
        assert one(example, "Service", service)["spec"]["type"] == "ClusterIP"
        [rule] = one(example, "NetworkPolicy", f"{name.split('-')[0]}-clients")["spec"]["ingress"]
        assert rule["from"] == [{"podSelector": {"matchLabels": {"app.kubernetes.io/name": "mail-proxy"}}}]
    assert names == [settings["MAILGROUP_MAIL_HOST"]] and settings["MAILGROUP_PROXY_FROM"]


def test_three_names_have_a_certificate_for_each_host_that_clients_use() -> None:
    example = "examples/three-names"
    settings = one(example, "ConfigMap", "mailgroup")["data"]
    [names] = [each["spec"]["dnsNames"] for each in of_kind(example, "Certificate")]
    hosts = [settings[f"MAILGROUP_{name}_HOST"] for name in ("IMAP", "MAIL", "SMTP")]
    assert len(set(names)) == 3 and set(names) == set(hosts)
    for (service, _), host in zip(DOORS.values(), hosts, strict=True):
        notes = one(example, "Service", service)["metadata"]["annotations"]
        assert notes["external-dns.alpha.kubernetes.io/hostname"] == host


def with_ipv6(overlay: str, folder: Path) -> list[Object]:
    """The objects of an overlay with the component ipv6."""
    there = os.path.relpath(K8S, folder.resolve())
    lines = [f"resources: [{there}/overlays/{overlay}]", f"components: [{there}/components/ipv6]"]
    (folder / "kustomization.yaml").write_text("\n".join(lines), encoding="utf-8")
    return kustomize(folder)


def named(objects: list[Object], kind: str, name: str) -> Object:
    [found] = [each for each in objects if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


@pytest.mark.parametrize("overlay", ["small", "production"])
def test_in_a_cluster_with_ipv6_alone_every_service_listens_on_it(overlay: str, tmp_path: Path) -> None:
    objects = with_ipv6(overlay, tmp_path)
    settings = named(objects, "ConfigMap", "mailgroup")["data"]
    assert settings["MAILGROUP_BIND"] == settings["MAILGROUP_ADMIN_BIND"] == "::"
    for service, _ in DOORS.values():
        assert named(objects, "Service", service)["spec"]["ipFamilyPolicy"] == "PreferDualStack"


def test_in_a_cluster_with_ipv6_alone_the_nodes_of_the_broker_use_it(tmp_path: Path) -> None:
    # given the broker's configuration without it
    [before] = of_kind("production", "RabbitmqCluster")
    single = one("small", "ConfigMap", "rabbitmq")["data"]["20-mailgroup.conf"]
    (tmp_path / "production").mkdir()
    (tmp_path / "small").mkdir()
    # when
    cluster = named(with_ipv6("production", tmp_path / "production"), "RabbitmqCluster", "mailgroup-broker")
    objects = with_ipv6("small", tmp_path / "small")
    config = named(objects, "ConfigMap", "rabbitmq")["data"]
    [container] = named(objects, "StatefulSet", "rabbitmq")["spec"]["template"]["spec"]["containers"]
    # then it listens on IPv6 in addition, and its nodes find each other by it
    rabbitmq = cluster["spec"]["rabbitmq"]
    pages = {"prometheus.tcp.ip = ::", "management.tcp.ip = ::"}
    told = set(before["spec"]["rabbitmq"]["additionalConfig"].splitlines())
    assert set(rabbitmq["additionalConfig"].splitlines()) == told | pages
    assert set(config["20-mailgroup.conf"].splitlines()) == {*single.splitlines(), "prometheus.tcp.ip = ::"}
    assert rabbitmq["erlangInetConfig"] == config["erl_inetrc"]
    environment = {each["name"]: each.get("value", "") for each in container["env"]}
    for name in ("SERVER_ADDITIONAL_ERL_ARGS", "CTL_ERL_ARGS"):
        assert f"{environment[f'RABBITMQ_{name}']}" in rabbitmq["envConfig"]
        assert "-proto_dist inet6_tcp" in environment[f"RABBITMQ_{name}"]
    assert "/etc/rabbitmq/erl_inetrc" in {mount["mountPath"] for mount in container["volumeMounts"]}
