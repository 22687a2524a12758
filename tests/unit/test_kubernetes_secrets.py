"""deploy/k8s/secrets.sh, with a kubectl that stores Secrets in a folder: no existing Secret is ever replaced."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from base64 import urlsafe_b64decode
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

SCRIPT = Path(__file__).resolve().parents[2] / "deploy/k8s/secrets.sh"
SMALL = {
    "mailgroup-app",
    "mailgroup-database-app",
    "mailgroup-database-admin",
    "mailgroup-broker-default-user",
    "mailgroup-tls",
}
KUBECTL = """\
#!/bin/sh
# get secret NAME and create, as the API server does them: create refuses a name that exists.
set -eu
[ -d "$STORE" ] || { echo 'The connection to the server was refused' >&2; exit 1; }
case "$*" in
  "--namespace mailgroup get secret "*" --ignore-not-found --output name") [ ! -e "$STORE/$5" ] || echo "secret/$5" ;;
  "create --filename -")
    cat >"$STORE/.new"
    name=$(sed -n 's/^metadata: {name: \\([a-z-]*\\), namespace: mailgroup}$/\\1/p' "$STORE/.new")
    [ ! -e "$STORE/$name" ] || { echo AlreadyExists >&2; exit 1; }
    mv "$STORE/.new" "$STORE/$name" ;;
  *) echo "unknown: $*" >&2; exit 9 ;;
esac
"""

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = tmp_path / "bin/kubectl"
    program.parent.mkdir()
    program.write_text(KUBECTL)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    store = tmp_path / "store"
    store.mkdir()
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("STORE", str(store))
    return store


def run(overlay: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(SCRIPT), overlay], capture_output=True, text=True, check=False)


def fields(file: Path) -> dict[str, str]:
    document: dict[str, Any] = YAML(typ="safe").load(file.read_text())
    assert document["kind"] == "Secret"
    return dict(document["stringData"])


def contents(store: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in store.iterdir()}


def test_every_secret_is_created_with_values_that_fit_each_other(store: Path) -> None:
    done = run("small")
    assert done.returncode == 0, done.stderr
    assert set(contents(store)) == SMALL
    assert len(urlsafe_b64decode(fields(store / "mailgroup-app")["secret.key"])) == 32
    for name in ("mailgroup-database-app", "mailgroup-broker-default-user"):
        secret = fields(store / name)
        url = secret.get("uri") or secret["connection_string"]
        assert f"://mailgroup:{secret['password']}@" in url
    assert fields(store / "mailgroup-tls")["tls.key"].startswith("-----BEGIN PRIVATE KEY-----")


def test_production_gets_the_keys_only(store: Path) -> None:
    assert run("production").returncode == 0
    assert set(contents(store)) == {"mailgroup-app"}


def test_a_second_run_replaces_nothing_and_names_what_exists(store: Path) -> None:
    run("small")
    before = contents(store)
    # when
    done = run("small")
    # then
    assert done.returncode == 1 and contents(store) == before
    assert all(f"the Secret {name} exists" in done.stderr and "not replaced" in done.stderr for name in SMALL)


def test_what_an_interrupted_run_left_out_is_created(store: Path) -> None:
    run("production")
    key = contents(store)
    # when
    done = run("small")
    # then
    assert done.returncode == 1 and "Not replaced: mailgroup-app\n" in done.stderr
    assert set(contents(store)) == SMALL and contents(store)["mailgroup-app"] == key["mailgroup-app"]


def test_without_a_cluster_nothing_is_created_and_the_script_fails(store: Path) -> None:
    store.rmdir()
    done = run("small")
    assert done.returncode == 1 and "refused" in done.stderr and "created" not in done.stdout


def test_an_unknown_overlay_is_misuse(store: Path) -> None:
    done = run("large")
    assert done.returncode == 2 and "deploy/k8s/secrets.sh small" in done.stderr and contents(store) == {}
