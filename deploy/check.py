"""Offline checks of the deployment files with public tools: ``make deploy-check``.

    ./mailgroup deploy-check

The tools come from requirements-deploy.lock into .venv/deploy, and from Debian's packages (promtool: prometheus).
Debian has neither kubectl nor the compose plugin of docker in a version of these years: where they are missing, what
they would check is named as skipped. Exit status 1 if a check fails.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from deploy.monitoring.__main__ import stale

ROOT = Path(__file__).resolve().parents[1]
_TOOLS = ROOT / ".venv/deploy"
_LOCK = ROOT / "requirements-deploy.lock"
_RULES = ROOT / "deploy/prometheus"
_K8S = ("base", "overlays/small", "overlays/production")
_VERSIONS = ("1.30", "1.37")
_SKIPPED = {
    "CKV_K8S_15": "imagePullPolicy Always: tags are fixed, and a cluster may have no registry",
    "CKV_K8S_43": "image digests are set by whoever releases, in an overlay",
    "CKV_K8S_11": "limits of processors throttle workers of queues; memory is limited",
    "CKV2_K8S_6": "pods without a NetworkPolicy: a default one covers all",
    "CKV_K8S_38": "tokens of ServiceAccounts are off in the pods and in the accounts",
    "CKV_DOCKER_2": "one image runs several services: their health checks are in compose and in probes",
    "CKV_DOCKER_7": "the base image's tag stands in an ARG",
}
"""Rules of checkov that are left out, with the reason."""


_FROM = {
    "docker": "docs.docker.com/engine/install",
    "kubectl": "kubernetes.io/docs/tasks/tools",
    "promtool": "Debian's package prometheus",
}
"""Where tools come from that the lock file does not bring."""


class Missing(Exception):
    """A tool is not here."""


def run(*command: str, stdin: str | None = None) -> str:
    """What a tool printed. :raises Missing: it is not installed. :raises RuntimeError: it found something."""
    if shutil.which(command[0]) is None:
        raise Missing(f"{command[0]} is not installed, see {_FROM.get(command[0], command[0])}")
    done = subprocess.run(command, cwd=ROOT, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError((done.stdout + done.stderr).strip()[-3000:])
    return done.stdout


def tool(name: str) -> str:
    """A tool of the lock file, by its path."""
    return str(_TOOLS / "bin" / name)


def install() -> None:
    """Make .venv/deploy what the lock file says."""
    stamp = _TOOLS / "installed"
    wanted = _LOCK.read_text(encoding="utf-8")
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return
    print("installing the tools of requirements-deploy.lock into .venv/deploy", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(_TOOLS)], check=True)
    words = ["-m", "pip", "install", "-q", "--no-deps", "--require-hashes", "-r", str(_LOCK)]
    subprocess.run([tool("python"), *words], check=True)
    stamp.write_text(wanted, encoding="utf-8")


# ------------------------------------------------------------------------------------------ the checks


def check_yaml() -> None:
    """Every YAML file is well-formed, and no key is there twice."""
    files = [str(path) for path in _yaml_files()]
    run(tool("yamllint"), "-f", "parsable", "-d", "{rules: {key-duplicates: enable}}", *files)


def _yaml_files() -> Iterator[Path]:
    yield ROOT / "docker-compose.yml"
    yield from sorted((ROOT / "deploy").rglob("*.y*ml"))


def check_compose() -> None:
    """docker-compose.yml with every profile, as Docker reads it."""
    try:
        run("docker", "compose", "version")
    except RuntimeError as error:
        raise Missing(f"docker has no compose plugin, see {_FROM['docker']}") from error
    run("docker", "compose", "--profile", "*", "config", "--quiet")


def check_dockerfiles() -> None:
    """By hadolint; DL3008 (versions of Debian's packages) is left out: Debian keeps one version of each."""
    files = [str(path) for path in sorted((ROOT / "deploy").rglob("Dockerfile"))]
    run(tool("hadolint"), "--ignore", "DL3008", "--failure-threshold", "warning", *files)


def _rendered(name: str) -> str:
    return run("kubectl", "kustomize", str(ROOT / "deploy/k8s" / name))


def check_kubernetes() -> None:
    """Every overlay is rendered, and each object fits the schema of its kind in the oldest and newest version."""
    for name in _K8S:
        objects = [found for found in YAML(typ="safe").load_all(_rendered(name)) if found]
        core = [found for found in objects if _is_of_kubernetes(found)]
        text = "\n---\n".join(json.dumps(found) for found in core)
        for version in _VERSIONS:
            run(tool("kubernetes-validate"), "--kubernetes-version", version, "--strict", "-", stdin=text)


def _is_of_kubernetes(found: dict[str, Any]) -> bool:
    """Not one of an operator's kinds, whose schemas are in the cluster."""
    group = str(found["apiVersion"]).rpartition("/")[0]
    return "." not in group or group.endswith(".k8s.io")


def check_security() -> None:
    """By checkov, on the rendered manifests and the Dockerfiles."""
    skip = ",".join(_SKIPPED)
    folder = _TOOLS / "rendered"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name in _K8S:
        (folder / f"{name.replace('/', '-')}.yaml").write_text(_rendered(name), encoding="utf-8")
    words = ["--skip-check", skip, "--skip-download", "--compact", "--quiet"]
    run(tool("checkov"), "-d", str(folder), "--framework", "kubernetes", *words)
    run(tool("checkov"), "-d", str(ROOT / "deploy"), "--framework", "dockerfile", *words)


def check_rules() -> None:
    """Prometheus' configuration and rules, and the tests of the rules, by promtool; each alert has its page."""
    run("promtool", "check", "config", "--syntax-only", str(_RULES / "prometheus.yml"))
    run("promtool", "check", "rules", str(_RULES / "rules.yml"))
    run("promtool", "test", "rules", str(_RULES / "rules_test.yml"))


def check_made_files() -> None:
    """Dashboards and the operator's rules are what is made from their sources."""
    if files := stale():
        raise RuntimeError(f"{', '.join(map(str, files))}: make them anew with: python -m deploy.monitoring write")


CHECKS: Sequence[Callable[[], None]] = (
    check_yaml,
    check_compose,
    check_dockerfiles,
    check_kubernetes,
    check_security,
    check_rules,
    check_made_files,
)


def main() -> int:
    """All checks; the exit status."""
    install()
    os.environ["PATH"] = f"{_TOOLS / 'bin'}:{os.environ['PATH']}"
    failed = 0
    for check in CHECKS:
        what = (check.__doc__ or "").splitlines()[0]
        try:
            check()
        except Missing as error:
            print(f"skipped  {what} ({error})", flush=True)
        except RuntimeError as error:
            failed += 1
            print(f"FAILED   {what}\n{error}", flush=True)
        else:
            print(f"passed   {what}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
