"""The JSON schemas of the operators' kinds (deploy/k8s/schemas): made from the operators' CRDs, and the check by them.

``python -m deploy.operator_schemas FOLDER`` writes the schemas from the CRDs in the YAML files of a folder.
Descriptions, the status and large parts that we do not use are left out, and a field that the CRD does not have is
refused. RabbitMQ's schema is written by hand.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

FOLDER = Path(__file__).resolve().parent / "k8s/schemas"
KINDS = frozenset(
    {
        *("Backup", "Cluster", "ObjectStore", "ScheduledBackup"),  # CloudNativePG and its plugin for backups
        *("Certificate", "ExternalSecret", "ScaledObject", "TriggerAuthentication"),
        *("PodMonitor", "PrometheusRule", "ScrapeConfig"),
    }
)
"""Kinds whose schema is made from a CRD."""
_WORDS = frozenset(
    {
        *("type", "required", "enum", "pattern", "minimum", "maximum", "oneOf", "anyOf", "allOf", "not"),
        *("minItems", "maxItems", "minLength", "maxLength"),
    }
)
"""Words of a schema that are kept as they are."""
_OPEN = frozenset(
    {
        *("additionalPodAffinity", "additionalPodAntiAffinity", "env", "envFrom", "nodeAffinity", "securityContext"),
        *(
            "ephemeralVolumeSource",
            "projectedVolumeTemplate",
            "pvcTemplate",
            "tolerations",
            "topologySpreadConstraints",
        ),
    }
)
"""Fields whose value is a large type of Kubernetes itself: any value is accepted."""
_DISCOVERIES = frozenset({"dnsSDConfigs", "kubernetesSDConfigs"})
"""Kept fields of a ScrapeConfig's 20 ``…SDConfigs``, which are 100 KB together."""


def schema(crd_schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON schema of a kind from the ``openAPIV3Schema`` of a version of its CRD."""
    made = _lean(crd_schema)
    made["properties"].pop("status", None)
    made["properties"]["metadata"] = {"type": "object"}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made}


def _lean(part: Mapping[str, Any]) -> dict[str, Any]:
    if part.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    made = {word: value for word, value in part.items() if word in _WORDS}
    if "pattern" in made:  # Go allows a flag everywhere, Python at the start only
        made["pattern"] = made["pattern"].replace("^(?i)", "(?i)^")
    if "properties" in part:
        made["properties"] = {
            name: {} if name in _OPEN else _lean(below)
            for name, below in part["properties"].items()
            if not name.endswith("SDConfigs") or name in _DISCOVERIES
        }
        if not part.get("x-kubernetes-preserve-unknown-fields"):
            made["additionalProperties"] = False
    for word in ("items", "additionalProperties"):
        if isinstance(part.get(word), Mapping):
            made[word] = _lean(part[word])
    if part.get("nullable") and "type" in made:
        made["type"] = [made["type"], "null"]
    return made


def file_of(document: Mapping[str, Any]) -> Path:
    """Return the schema's file of an object of an operator, such as ``postgresql.cnpg.io-v1-cluster.json``."""
    return FOLDER / f"{document['apiVersion'].replace('/', '-')}-{document['kind'].lower()}.json"


def by_schema(
    placed: Iterable[tuple[str, dict[str, Any]]],
) -> dict[Path, list[tuple[str, dict[str, Any]]]]:
    """Return objects, each with its place, by the file of their schema. :raises RuntimeError: a kind has no schema."""
    found = defaultdict(list)
    for place, document in placed:
        found[file_of(document)].append((place, document))
    if missing := [file.name for file in found if not file.exists()]:
        raise RuntimeError(f"no schema in deploy/k8s/schemas: {', '.join(missing)}; see the README there")
    return found


def write(folder: Path) -> None:
    """Write the schemas of all CRDs of KINDS in the YAML files of a folder, in every version that a cluster serves."""
    for path in sorted(folder.glob("*.yaml")):
        for crd in YAML(typ="safe").load_all(path.read_text(encoding="utf-8")):
            names = crd["spec"]["names"] if crd else {}
            if names.get("kind") not in KINDS:
                continue
            for version in crd["spec"]["versions"]:
                if version["served"]:
                    about = {"apiVersion": f"{crd['spec']['group']}/{version['name']}", "kind": names["kind"]}
                    text = json.dumps(schema(version["schema"]["openAPIV3Schema"]), separators=(",", ":"))
                    file_of(about).write_text(text.replace('"properties":', '\n"properties":') + "\n", encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
