"""``python -m deploy.monitoring write`` or ``check``."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from deploy.monitoring import objectives
from deploy.monitoring.flow import FLOW
from deploy.monitoring.panels import dashboard
from deploy.monitoring.servers import POSTGRES, RABBITMQ
from deploy.monitoring.services import SERVICES

BOARDS = [FLOW, *SERVICES, RABBITMQ, POSTGRES]
ROOT = Path(__file__).resolve().parents[2]
_RULES = ROOT / "deploy/prometheus/rules.yml"
_OBJECTIVES = ROOT / "deploy/prometheus/slo.yml"
_OPERATOR_RULES = ROOT / "deploy/k8s/components/monitoring/rules.yaml"
_DASHBOARDS = ROOT / "deploy/grafana/dashboards"
_CONFIG_MAPS = ROOT / "deploy/grafana/kustomization.yaml"


def files() -> dict[Path, str]:
    """Every file that is generated, with its required content."""
    made = {
        _DASHBOARDS / f"{board.uid}.json": json.dumps(dashboard(board), indent=1, ensure_ascii=False) + "\n"
        for board in BOARDS
    }
    written = YAML(typ="safe").load(_RULES.read_text(encoding="utf-8"))
    rule = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "mailgroup"},
        "spec": {"groups": written["groups"] + objectives.rules()["groups"]},
    }
    made[_CONFIG_MAPS] = _yaml("deploy/monitoring", _config_maps())
    made[_OBJECTIVES] = _yaml("deploy/monitoring/objectives.py", objectives.rules())
    made[_OPERATOR_RULES] = _yaml("deploy/prometheus/rules.yml and deploy/monitoring/objectives.py", rule)
    return made


def _config_maps() -> dict[str, Any]:
    """Return the kustomization that makes a ConfigMap of each dashboard, with the label for Grafana's sidecar."""
    return {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        # An apply replaces a changed dashboard. With a hash in its name, the sidecar would load the old one, too.
        "generatorOptions": {"disableNameSuffixHash": True, "labels": {"grafana_dashboard": "1"}},
        "configMapGenerator": [
            {"name": f"dashboard-{board.uid}", "files": [f"dashboards/{board.uid}.json"]} for board in BOARDS
        ],
    }


def _yaml(source: str, content: Any) -> str:
    yaml, text = YAML(), io.StringIO()
    yaml.width = 1000
    yaml.default_flow_style = False
    yaml.representer.ignore_aliases = lambda _: True
    yaml.dump(content, text)
    return f"# Made from {source} by: python -m deploy.monitoring write\n{text.getvalue()}"


def stale() -> list[Path]:
    """Return the files that are missing or different, and dashboards that no board generates any more."""
    made = files()
    wrong = [path for path, text in made.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    return wrong + [path for path in _DASHBOARDS.glob("*.json") if path not in made]


def main(words: list[str]) -> str | None:
    """Write or check the files. :return: the error, or None."""
    match words:
        case ["write"]:
            for path, text in files().items():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
        case ["check"]:
            if names := [str(path.relative_to(ROOT)) for path in stale()]:
                return f"out of date: {', '.join(names)}; write them with: python -m deploy.monitoring write"
        case _:
            return "usage: python -m deploy.monitoring write|check"
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
