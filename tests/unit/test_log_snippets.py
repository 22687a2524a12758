"""The configurations in docs/tracing.md: they can be read, and name the fields and levels that the logs have."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from services.admin.monitoring.log_lines import LEVELS
from shared.runtime.logs import _FIRST

PAGE = (Path(__file__).resolve().parents[2] / "docs/tracing.md").read_text(encoding="utf-8")
FIELDS = {*_FIRST, "trace_id", "error", "traceback", "peer"}
SEVERITIES = {"trace", "debug", "info", "warn", "error", "fatal"}
"""Words that the collector knows without a mapping."""


def block(language: str) -> str:
    [text] = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.M | re.S)
    return str(text)


def test_the_collector_connects_what_it_configures() -> None:
    collector: dict[str, Any] = YAML(typ="safe").load(block("yaml"))
    [pipeline] = collector["service"]["pipelines"].values()
    for kind in ("receivers", "processors", "exporters"):
        assert pipeline[kind] == list(collector[kind])


def test_the_collector_reads_the_fields_and_levels_of_the_logs() -> None:
    collector: dict[str, Any] = YAML(typ="safe").load(block("yaml"))
    parser, *others = collector["receivers"]["filelog"]["operators"]
    mapping = parser["severity"]["mapping"]
    assert set(LEVELS) - SEVERITIES == set(mapping.values()) and set(mapping) <= SEVERITIES
    [statements] = collector["processors"]["transform"]["log_statements"]
    text = "\n".join([*statements["statements"], *statements["conditions"]])
    read = set(re.findall(r'attributes\["(\w+)"\]', text)) | {
        each["from"].split(".")[1] for each in others if "from" in each
    }
    read |= {parser[name]["parse_from"].split(".")[1] for name in ("timestamp", "severity")}
    assert read == FIELDS
    [removed] = re.findall(r"\^\((\S+)\)\$", text)
    assert {*removed.split("|"), "service"} == FIELDS


def test_every_component_of_alloy_exists_and_trace_id_is_no_label() -> None:
    alloy = block("alloy")
    defined = {f"{kind}.{name}" for kind, name in re.findall(r'^([\w.]+) "(\w+)" {$', alloy, re.M)}
    used = set(re.findall(r"((?:loki|discovery)(?:\.\w+){2})\.(?:receiver|targets)", alloy))
    assert used < defined and len(defined) == 4
    assert alloy.count("{") == alloy.count("}")
    [expressions] = re.findall(r"expressions = { (.*) }", alloy)
    assert set(re.findall(r'= "(\w+)"', expressions)) <= FIELDS
    [labels] = re.findall(r"stage\.labels {\n\s+values = { (.*) }", alloy)
    assert "trace_id" not in labels
