"""Connections to PostgreSQL: when too few are free, and whether a deployment has room for all of its replicas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from services.admin.monitoring.problem_kinds import KINDS
from services.admin.monitoring.problems import find_in_connections
from shared.db.connection_budget import RESERVED, ConnectionUse, describe_shortage
from shared.settings import SERVICES, Settings

K8S = Path(__file__).resolve().parents[2] / "deploy/k8s"
SHARE = Settings.model_fields["database_connections"].default


@pytest.mark.parametrize(("used", "problem"), [(0, False), (80, False), (81, True), (100, True)])
def test_less_than_a_fifth_of_free_connections_is_a_problem(used: int, problem: bool) -> None:
    found = find_in_connections(ConnectionUse(used, 100))
    assert [(each.kind, each.text) for each in found] == (
        [("connections", f"PostgreSQL: {used} of 100 connections are used")] if problem else []
    )
    assert "connections" in KINDS


def test_services_that_may_open_more_than_is_allowed_are_a_problem() -> None:
    # given sixteen services, as they fitted when they started
    def found(limit: int, others: int = 0) -> list[str]:
        return [each.text for each in find_in_connections(ConnectionUse(30, limit, 16 * SHARE, 16, others))]

    assert found(101) == []
    # when the limit is lowered, or other programs use more
    assert found(100) == [
        "PostgreSQL: 16 services may open 96 connections and other programs use 0; with 5 for commands that is more "
        "than the limit, 100"
    ]
    assert len(found(101, others=1)) == 1


def load(file: Path) -> list[dict[str, Any]]:
    return [document for document in YAML(typ="safe").load_all(file.read_text(encoding="utf-8")) if document]


def test_postgresql_has_room_for_every_replica_that_may_be_started() -> None:
    scaled = load(K8S / "components/autoscaling/load.yaml") + load(K8S / "components/autoscaling/queues.yaml")
    replicas = sum(
        found
        for document in scaled
        if (found := document["spec"].get("maxReplicas") or document["spec"].get("maxReplicaCount"))
    )
    fixed = 2 * len({"fetcher", "admin"})
    [cluster] = [d for d in load(K8S / "components/cloudnative-pg/cluster.yaml") if d["kind"] == "Cluster"]
    limit = int(cluster["spec"]["postgresql"]["parameters"]["max_connections"]) - 3
    processes = replicas + fixed
    assert processes == 74
    # each of them twice during a rolling update would be too many: one more of each service is what it starts
    use = ConnectionUse(0, limit, SHARE * (processes + len(SERVICES) - 1), processes, others=5)
    assert describe_shortage(use, SHARE) is None


def test_compose_and_one_node_have_room_for_two_of_each_service() -> None:
    compose = YAML(typ="safe").load((K8S.parents[1] / "docker-compose.yml").read_text(encoding="utf-8"))
    [node] = [d for d in load(K8S / "components/postgres/postgres.yaml") if d["kind"] == "StatefulSet"]
    for words in (
        compose["services"]["postgres"]["command"],
        node["spec"]["template"]["spec"]["containers"][0]["args"],
    ):
        [limit] = [int(word.partition("=")[2]) for word in words if word.startswith("max_connections=")]
        assert 2 * len(SERVICES) * SHARE + RESERVED + 3 + 5 <= limit  # 5: metrics, and what others use
    # and PostgreSQL's default is enough for one of each, while each in turn is replaced
    assert (len(SERVICES) + 1) * SHARE + RESERVED + 3 + 5 <= 100
