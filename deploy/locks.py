"""The lock files: every Python package with version and hash, for all platforms, without the address of a registry.

``python -m deploy.locks write`` makes them from pyproject.toml, ``check`` reports whether they still fit it. Both need
uv, which the development lock contains. Each file names the digest of its inputs, so that a check without a network
still detects a changed pyproject.toml.
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
    "requirements-deploy.lock": ["--group", "pyproject.toml:deploy"],  # tools in their own environment
}
_MARK = "# made from pyproject.toml, digest "


def write() -> str | None:
    """Write the files, keeping the versions that still fit. Return the error, or None."""
    for name, options in FILES.items():
        versions, problem = _compile(name, options, (ROOT / name).read_text(encoding="utf-8"))
        # Compiled a second time from the versions alone: uv keeps the hashes of an existing pin, and a pin from a cache
        # of wheels for one machine would lack the other hashes.
        compiled, problem = (versions, problem) if problem else _compile(name, options, "", _pins(versions))
        if problem:
            return problem
        (ROOT / name).write_text(f"{_MARK}{_digest(name)}\n{compiled}", encoding="utf-8")
    return None


def check() -> str | None:
    """Return why the files do not fit pyproject.toml, or None."""
    for name, options in FILES.items():
        first, _, rest = (ROOT / name).read_text(encoding="utf-8").partition("\n")
        if first != f"{_MARK}{_digest(name)}":
            return f"{name} was made from another pyproject.toml; update it with: python -m deploy.locks write"
        compiled, problem = _compile(name, options, (ROOT / name).read_text(encoding="utf-8"))
        if problem:
            print(f"{name}: no registry was reachable, so only the digest of its inputs was compared:\n{problem}")
        elif compiled != rest:
            return f"{name} is not what uv makes of pyproject.toml; update it with: python -m deploy.locks write"
    return None


def _digest(name: str) -> str:
    """Return the digest of the parts of pyproject.toml that the file depends on."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    inputs = [project["project"]["requires-python"], project["project"]["dependencies"]]
    if "--group" in FILES[name]:
        inputs.append(project["dependency-groups"])
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:16]


def _pins(lock: str) -> str:
    """Return the versions of a lock file with their markers, without the hashes."""
    return "\n".join(re.findall(r"^[\w.\-\[\]]+==[\w.+!]+(?: ; [^\\\n]+)?", lock, re.M))


def _compile(name: str, options: list[str], present: str, constraints: str = "") -> tuple[str, str | None]:
    """Compile with uv, keeping versions and hashes of ``present`` that fit. Return the text and the error, or None."""
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
    """Return uv's variables for pip's configured registry and the system's authorities: uv reads neither by itself."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    )
    variables = {"UV_SYSTEM_CERTS": "true"}
    for line in listed.stdout.splitlines():
        name, _, value = line.partition("=")
        if name.endswith(".index-url"):
            variables["UV_DEFAULT_INDEX"] = ast.literal_eval(value)
    return variables


if __name__ == "__main__":
    problem = {"write": write, "check": check}[sys.argv[1]]()
    if problem:
        sys.exit(problem)
