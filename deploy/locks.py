"""The lock files: every Python package with version and hash, for all platforms, without the address of a registry.

``python -m deploy.locks write`` makes them from pyproject.toml, ``check`` tells whether they still fit it. Needs uv,
which the development lock holds. Each file names the digest of what it was made from, so that a check without a network
still notices a changed pyproject.toml.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILES = {
    "requirements.lock": ["pyproject.toml"],
    "requirements-dev.lock": ["pyproject.toml", "--group", "dev"],
    "requirements-fuzz.lock": ["pyproject.toml", "--group", "fuzz"],
    "requirements-deploy.lock": ["--group", "pyproject.toml:deploy"],  # tools in an environment of their own
}
_MARK = "# made from pyproject.toml, digest "


def write() -> str | None:
    """Make the files, keeping the versions that still fit. What went wrong, or None."""
    for name, options in FILES.items():
        versions, problem = _compile(name, options, (ROOT / name).read_text(encoding="utf-8"))
        # Once more from nothing but those versions: uv keeps the hashes of a pin that it finds; where they came from
        # a cache of wheels for one machine, the others would be missing.
        compiled, problem = (versions, problem) if problem else _compile(name, options, "", _pins(versions))
        if problem:
            return problem
        (ROOT / name).write_text(f"{_MARK}{_digest(name)}\n{compiled}", encoding="utf-8")
    return None


def check() -> str | None:
    """Why the files do not fit pyproject.toml, or None."""
    for name, options in FILES.items():
        first, _, rest = (ROOT / name).read_text(encoding="utf-8").partition("\n")
        if first != f"{_MARK}{_digest(name)}":
            return f"{name} was made from another pyproject.toml; make it anew with: python -m deploy.locks write"
        compiled, problem = _compile(name, options, (ROOT / name).read_text(encoding="utf-8"))
        if problem:
            print(f"{name}: no registry could be asked, so only the digest of its inputs was compared:\n{problem}")
        elif compiled != rest:
            return f"{name} is not what uv makes of pyproject.toml; make it anew with: python -m deploy.locks write"
    return None


def _digest(name: str) -> str:
    """Of all in pyproject.toml that the file depends on."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    inputs = [project["project"]["requires-python"], project["project"]["dependencies"]]
    if "--group" in FILES[name]:
        inputs.append(project["dependency-groups"])
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:16]


def _pins(lock: str) -> str:
    """The versions of a lock file with what each is for, without their hashes."""
    return "\n".join(re.findall(r"^[\w.\-\[\]]+==[\w.+!]+(?: ; [^\\\n]+)?", lock, re.M))


def _compile(name: str, options: list[str], present: str, constraints: str = "") -> tuple[str, str | None]:
    """What uv makes of pyproject.toml, with the versions and hashes of ``present`` where they fit; what went wrong."""
    with tempfile.TemporaryDirectory() as folder:
        draft, limits = Path(folder, name), Path(folder, "constraints")
        if present:
            draft.write_text(present, encoding="utf-8")
        limits.write_text(constraints, encoding="utf-8")
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "uv",
                "pip",
                "compile",
                "--quiet",
                "--universal",
                "--python-version",
                "3.11",
                "--generate-hashes",
                "--no-emit-index-url",
                "--no-header",
                "--no-annotate",
                "--constraints",
                str(limits),
                *options,
                "-o",
                str(draft),
            ],
            cwd=ROOT,
            env=_index() | os.environ,
            capture_output=True,
            text=True,
            check=False,
        )
        return (draft.read_text(encoding="utf-8"), None) if done.returncode == 0 else ("", done.stderr.strip())


def _index() -> dict[str, str]:
    """The registry that pip is configured to use, and the machine's authorities: uv asks for neither by itself."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    )
    found = {"UV_SYSTEM_CERTS": "true"}
    for line in listed.stdout.splitlines():
        name, _, value = line.partition("=")
        if name.endswith(".index-url"):
            found["UV_DEFAULT_INDEX"] = ast.literal_eval(value)
    return found


if __name__ == "__main__":
    problem = {"write": write, "check": check}[sys.argv[1]]()
    if problem:
        sys.exit(problem)
