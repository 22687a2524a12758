"""The version is the same in every place that shows it."""

from __future__ import annotations

import shutil
import subprocess
import tomllib
from pathlib import Path

from typer.testing import CliRunner

from services.admin.cli.app import app
from shared import __version__

ROOT = Path(__file__).resolve().parents[2]


def test_pyproject_and_the_image_have_the_version_of_the_code() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == __version__
    assert f"image: mailgroup:{__version__}\n" in (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    kustomization = (ROOT / "deploy/k8s/base/kustomization.yaml").read_text(encoding="utf-8")
    assert f"newTag: {__version__}\n" in kustomization


def test_the_command_prints_it() -> None:
    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.stdout) == (0, f"mailgroup {__version__}\n")


def test_a_checkout_prints_it_before_anything_is_installed(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    shutil.copy(ROOT / "mailgroup", tmp_path)
    shutil.copy(ROOT / "shared/__init__.py", tmp_path / "shared")
    done = subprocess.run([tmp_path / "mailgroup", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"mailgroup {__version__}\n"
    assert {file.name for file in tmp_path.iterdir()} == {"mailgroup", "shared"}
