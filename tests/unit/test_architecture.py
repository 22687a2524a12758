"""ARCHITECTURE.md names every service, queue, table and shared module, and nothing that is gone; unique class names."""

from __future__ import annotations

import ast
import re
import tomllib
from collections import defaultdict
from pathlib import Path

import pytest

from shared.amqp import topology
from shared.settings import SERVICES

ROOT = Path(__file__).resolve().parent.parent.parent
TEXT = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
SCHEMA = "".join(
    file.read_text(encoding="utf-8") for file in (ROOT / "shared" / "db" / "migrations" / "versions").glob("*.sql")
)
DROPPED = re.findall(r"^drop table (\w+)", SCHEMA, re.M)
TABLES = [table for table in re.findall(r"^create table (\w+)", SCHEMA, re.M) if table not in DROPPED]
MODULES = sorted(
    file.relative_to(ROOT / "shared").with_suffix("").as_posix()
    for file in (ROOT / "shared").rglob("*.py")
    if file.stem not in ("__init__", "env") and file.parent.name != "versions"
)


@pytest.mark.parametrize("name", [*SERVICES, *(queue.name for queue in topology.QUEUES), *TABLES])
def test_it_names_every_service_queue_and_table(name: str) -> None:
    assert re.search(rf"\b{re.escape(name)}\b", TEXT)


@pytest.mark.parametrize("module", MODULES)
def test_it_names_every_shared_module(module: str) -> None:
    folder, _, name = module.rpartition("/")
    package = folder.partition("/")[0]
    row = next(row for row in TEXT.splitlines() if row.startswith(f"| `shared/{package}/")) if package else TEXT
    assert re.search(rf"\b{name}(\.py)?`", row), f"shared/{module}.py is in no room"


def test_a_table_is_written_by_the_owners_that_the_page_names_alone() -> None:
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| [^|]+ \|$", TEXT, re.M)
    owners = {
        table: re.findall(r"`([\w/]+\.py)`", owner)
        for tables, owner in rows
        for table in re.findall(r"`(\w+)`", tables)
    }
    written = {
        (table, str(file.relative_to(ROOT)))
        for folder in ("shared", "services", "deploy")
        for file in (ROOT / folder).rglob("*.py")
        for table in re.findall(r"\b(?:insert into|update|delete from)\s+(\w+)\b", file.read_text(encoding="utf-8"))
        if table in TABLES
    }
    assert {table for table, _ in written} > {"inbound", "submissions", "polls", "relays", "audit"}
    assert {(table, file) for table, file in written if file not in owners[table]} == set()


def test_every_file_that_it_names_is_there() -> None:
    named = set(re.findall(r"`((?:shared|services|deploy|tests|bench)/[\w./]+\.py)`", TEXT))
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("service", SERVICES)
def test_every_service_says_what_it_does(service: str) -> None:
    text = (ROOT / "services" / service / "__init__.py").read_text(encoding="utf-8")
    for paragraph in ("Summary:", "Consumes:", "Publishes:", "Tables:", "Security:", "On failure:"):
        assert paragraph in text, f"services/{service}/__init__.py has no paragraph {paragraph}"


def test_no_paragraph_is_longer_than_six_lines_of_120_characters() -> None:
    blocks = re.split(r"\n\s*\n", re.sub(r"```.*?```", "", TEXT, flags=re.S))
    items = [item for block in blocks for item in re.split(r"\n(?=- |\d\. )", block) if not item.startswith("|")]
    assert [item for item in items if item.count("\n") >= 6] == []
    assert [line for item in items for line in item.splitlines() if len(line) > 120] == []


def test_no_two_public_classes_of_the_product_have_the_same_name() -> None:
    places = defaultdict(list)
    for folder in ("shared", "services", "deploy"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    places[node.name].append(f"{file.relative_to(ROOT)}:{node.lineno}")
    assert len(places) > 200
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_every_contract_of_layers_is_exhaustive() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    layered = [contract for contract in contracts if contract["type"] == "layers"]
    assert {container for contract in layered for container in contract["containers"]} == {"shared", "services.admin"}
    assert [contract["name"] for contract in layered if not contract["exhaustive"]] == []
