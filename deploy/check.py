"""Offline checks of the deployment files with public tools: ``make deploy-check``.

    ./mailgroup deploy-check

The tools, kubectl too, come from requirements-deploy.lock into .venv/deploy, and from Debian's packages (promtool:
prometheus). Debian has no compose plugin of docker: if it is missing, its check is reported as skipped. The exit status
is 1 if a check fails.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from deploy.monitoring.__main__ import stale
from deploy.operator_schemas import by_schema

ROOT = Path(__file__).resolve().parents[1]
_TOOLS = ROOT / ".venv/deploy"
_LOCK = ROOT / "requirements-deploy.lock"
_RULES = ROOT / "deploy/prometheus"
_K8S = ROOT / "deploy/k8s"
_VERSIONS = ("1.30", "1.37")
_SKIPPED = {
    "CKV_K8S_15": "imagePullPolicy Always: tags are fixed, and a cluster may have no registry",
    "CKV_K8S_43": "an overlay sets the image digests at a release",
    "CKV_K8S_11": "CPU limits throttle queue workers; memory is limited",
    "CKV2_K8S_6": "pods without a NetworkPolicy: a default one covers all",
    "CKV_K8S_38": "tokens of ServiceAccounts are off in the pods and in the accounts",
    "CKV_DOCKER_2": "one image runs several services: their health checks are in compose and in probes",
    "CKV_DOCKER_7": "an ARG has the base image's tag",
}
"""Skipped rules of checkov, with the reason."""
_HOOK = {
    "argocd.argoproj.io/hook": "Sync",
    "argocd.argoproj.io/hook-delete-policy": "BeforeHookCreation",
    "helm.sh/hook": "post-install,pre-upgrade",
    "helm.sh/hook-delete-policy": "before-hook-creation",
}
"""The annotations of the component migrate-hook. PreSync and pre-install would wait for a database that the same
installation has yet to create."""
_RESTORED = "overlays/restored"
"""Applied once, with a Job that prepares the restored database."""

_FROM = {
    "docker": "docs.docker.com/engine/install",
    "promtool": "Debian's package prometheus",
}
"""Sources of the tools that the lock file does not contain."""


class Missing(Exception):
    """A tool is not installed."""


def run(*command: str, stdin: str | None = None) -> str:
    """Run a tool and return its output. :raises Missing: it is not installed. :raises RuntimeError: it found errors."""
    if shutil.which(command[0]) is None:
        raise Missing(f"{command[0]} is not installed, see {_FROM.get(command[0], command[0])}")
    done = subprocess.run(command, cwd=ROOT, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError((done.stdout + done.stderr).strip()[-3000:])
    return done.stdout


def tool(name: str) -> str:
    """Return the path of a tool of the lock file."""
    return str(_TOOLS / "bin" / name)


def install() -> None:
    """Install the lock file into .venv/deploy, unless that is up to date, and put its tools first on the path."""
    stamp = _TOOLS / "installed"
    lock = _LOCK.read_text(encoding="utf-8")
    with (_TOOLS.parent / "deploy.lock").open("w") as one_at_a_time:
        fcntl.flock(one_at_a_time, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.read_text(encoding="utf-8") != lock:
            print("installing the tools of requirements-deploy.lock into .venv/deploy", flush=True)
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(_TOOLS)], check=True)
            words = ["-m", "pip", "install", "-q", "--no-deps", "--require-hashes", "-r", str(_LOCK)]
            subprocess.run([tool("python"), *words], check=True)
            stamp.write_text(lock, encoding="utf-8")
    os.environ["PATH"] = f"{_TOOLS / 'bin'}:{os.environ['PATH']}"


# ------------------------------------------------------------------------------------------ the checks


def check_yaml() -> None:
    """Every YAML file is well-formed, without duplicate keys."""
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
    """Dockerfiles, by hadolint. DL3008 (versions of Debian's packages) is skipped: Debian keeps one version of each."""
    files = [str(path) for path in sorted((ROOT / "deploy").rglob("Dockerfile"))]
    run(tool("hadolint"), "--ignore", "DL3008", "--failure-threshold", "warning", *files)


def overlays() -> list[str]:
    """Return the folders of deploy/k8s that kustomize renders: base, overlays, examples."""
    files = sorted(_K8S.rglob("kustomization.yaml"))
    return [str(file.parent.relative_to(_K8S)) for file in files if "kind: Component" not in file.read_text("utf-8")]


def rendered(name: str) -> str:
    """Return what kustomize makes of a folder of deploy/k8s. :raises RuntimeError: it is wrong."""
    return run("kubectl", "kustomize", str(_K8S / name))


def objects(name: str) -> list[dict[str, Any]]:
    """Return the objects of a folder of deploy/k8s."""
    return [document for document in YAML(typ="safe").load_all(rendered(name)) if document]


def check_kubernetes() -> None:
    """Every overlay renders, and each object fits the schema of its kind in the oldest and newest version."""
    for name in overlays():
        text = "\n---\n".join(json.dumps(document) for document in objects(name) if _is_of_kubernetes(document))
        for version in _VERSIONS:
            run(tool("kubernetes-validate"), "--kubernetes-version", version, "--strict", "-", stdin=text)


def check_operators() -> None:
    """Each object of an operator fits the schema of its kind in deploy/k8s/schemas."""
    found = [(name, document) for name in overlays() for document in objects(name) if not _is_of_kubernetes(document)]
    wrong = []
    for schema, placed in by_schema(found).items():
        folder = _empty_folder("objects")
        files = []
        for name, document in placed:
            file = folder / name.replace("/", "-") / f"{document['metadata']['name']}.json"
            file.parent.mkdir(exist_ok=True)
            file.write_text(json.dumps(document), encoding="utf-8")
            files.append(str(file))
        try:
            run(tool("check-jsonschema"), "--regex-variant", "python", "--schemafile", str(schema), *files)
        except RuntimeError as error:
            wrong.append(str(error))
    if wrong:
        raise RuntimeError("\n".join(wrong))


def check_migration() -> None:
    """A second apply changes no Job, every pod migrates before it starts, and the hook's annotations are rendered."""
    for name in overlays():
        documents = objects(name)
        jobs = [document["metadata"]["name"] for document in documents if document["kind"] == "Job"]
        if jobs and name != _RESTORED:
            raise RuntimeError(f"{name}: a Job cannot be changed by a second apply: {', '.join(jobs)}")
        for document in documents:
            if document["kind"] == "Deployment":
                _check_init(name, document)
    rendered = YAML(typ="safe").load_all(_rendered_with_hook())
    [job] = [document for document in rendered if document["kind"] == "Job"]
    if job["metadata"]["annotations"] != _HOOK:
        raise RuntimeError(f"migrate-hook: {job['metadata']['annotations']} instead of {_HOOK}")


def _check_init(name: str, deployment: dict[str, Any]) -> None:
    pod = deployment["spec"]["template"]["spec"]
    [container], init = pod["containers"], pod.get("initContainers", [])
    if not container["image"].startswith("mailgroup:"):
        return  # another program, as the proxy of an example
    if [(each["args"][:2], each["image"]) for each in init] != [(["mailgroup", "migrate"], container["image"])]:
        raise RuntimeError(f"{name}: {deployment['metadata']['name']} does not migrate before it starts")


def _rendered_with_hook() -> str:
    """Render the overlay production with the component migrate-hook, as an overlay of an installation does it."""
    with tempfile.TemporaryDirectory() as folder:
        there = os.path.relpath(ROOT / "deploy/k8s", os.path.realpath(folder))
        lines = [f"resources: [{there}/overlays/production]", f"components: [{there}/components/migrate-hook]"]
        (Path(folder) / "kustomization.yaml").write_text("\n".join(lines), encoding="utf-8")
        return run("kubectl", "kustomize", folder)


def _is_of_kubernetes(document: dict[str, Any]) -> bool:
    """Return whether a kind belongs to Kubernetes, not to an operator."""
    group = str(document["apiVersion"]).rpartition("/")[0]
    return "." not in group or group.endswith(".k8s.io")


def _empty_folder(name: str) -> Path:
    folder = _TOOLS / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def check_security() -> None:
    """Rendered manifests and Dockerfiles, by checkov."""
    skip = ",".join(_SKIPPED)
    folder = _empty_folder("rendered")
    for name in overlays():
        (folder / f"{name.replace('/', '-')}.yaml").write_text(rendered(name), encoding="utf-8")
    words = ["--skip-check", skip, "--skip-download", "--compact", "--quiet"]
    run(tool("checkov"), "-d", str(folder), "--framework", "kubernetes", *words)
    run(tool("checkov"), "-d", str(ROOT / "deploy"), "--framework", "dockerfile", *words)


def check_rules() -> None:
    """Prometheus' configuration, rules and tests of the rules, by promtool."""
    run("promtool", "check", "config", "--syntax-only", str(_RULES / "prometheus.yml"))
    run("promtool", "check", "rules", str(_RULES / "rules.yml"), str(_RULES / "slo.yml"))
    run("promtool", "test", "rules", str(_RULES / "rules_test.yml"), str(_RULES / "slo_test.yml"))


def check_workflows() -> None:
    """Workflows of GitHub, by their schema."""
    files = [str(path) for path in sorted((ROOT / ".github/workflows").glob("*.yml"))]
    run(tool("check-jsonschema"), "--builtin-schema", "vendor.github-workflows", *files)


def check_made_files() -> None:
    """Dashboards and the operator's rules are up to date with their sources."""
    if files := stale():
        raise RuntimeError(f"{', '.join(map(str, files))}: update them with: python -m deploy.monitoring write")


CHECKS: Sequence[Callable[[], None]] = (
    check_yaml,
    check_compose,
    check_dockerfiles,
    check_kubernetes,
    check_operators,
    check_migration,
    check_security,
    check_rules,
    check_workflows,
    check_made_files,
)


def main() -> int:
    """Run all checks and return the exit status."""
    install()
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
