"""The offline part of a release: ``make release``.

    python -m deploy.release [--tag v0.1.0]

It checks that the version is the same everywhere (and that of the tag), that CHANGELOG.md has a dated section for it,
and that the owner has filled in what only the owner knows. It writes the notes of the release and a bill of materials
(SBOM, CycloneDX 1.6, checked by its schema) into dist/, and records the version's last revision of the database in
``RELEASED``, which is committed before the tag. The exit status is 1 if anything is missing, and all of it is named.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deploy.check import install, run, tool
from shared.db.migrations.revisions import known_revisions

ROOT = Path(__file__).resolve().parents[1]
_VERSIONS = {
    "shared/__init__.py": r'^__version__ = "(.+)"$',
    "pyproject.toml": r'^version = "(.+)"$',
    "docker-compose.yml": r"^  image: mailgroup:(\S+)$",
    "deploy/k8s/base/kustomization.yaml": r"^    newTag: (\S+)$",
}
"""Files with the version, and the pattern of its line. The first one is the source."""
_OWNERS = {
    "LICENSE": (r"the mailgroup authors", "the name of the copyright holder"),
    "SECURITY.md": (r"\*\*CONTACT\*\*", "an address for reports of vulnerabilities"),
    "README.md": (r"confirms the licence before the first release", "the confirmation of the licence"),
}
"""Files with a field for the owner of the repository: the pattern of the open field, and what belongs there."""
_REVISIONS = "shared/db/migrations/revisions.py"
_RELEASED = re.compile(r"^(RELEASED: dict\[str, str\] = )(\{.*?\})$", re.M | re.S)
"""The dictionary in this file, from a version to its last revision."""


def version(root: Path) -> str:
    """Return the version of the code."""
    return _versions(root)["shared/__init__.py"]


def _versions(root: Path) -> dict[str, str]:
    found = {}
    for name, pattern in _VERSIONS.items():
        match = re.search(pattern, (root / name).read_text(encoding="utf-8"), re.M)
        found[name] = match[1] if match else "none"
    return found


def version_problems(root: Path, tag: str | None) -> Iterator[str]:
    """Yield the files whose version is another one, and the tag if it is."""
    wanted = version(root)
    for name, found in _versions(root).items():
        if found != wanted:
            yield f"{name}: version {found}, and {wanted} in shared/__init__.py"
    if tag is not None and tag != f"v{wanted}":
        yield f"the tag {tag} is not v{wanted}, the version in shared/__init__.py"


def notes(root: Path) -> str | None:
    """Return the text of the version's section of CHANGELOG.md, or None: there is none with a date."""
    text = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    heading = rf"^## \[{re.escape(version(root))}\] - \d{{4}}-\d\d-\d\d$"
    match = re.search(rf"{heading}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    return match[1].strip() + "\n" if match and match[1].strip() else None


def recorded_revisions(root: Path) -> dict[str, str]:
    """Return ``RELEASED`` as it is in the file, by version. :raises RuntimeError: it is not there."""
    match = _RELEASED.search((root / _REVISIONS).read_text(encoding="utf-8"))
    if match is None:
        raise RuntimeError(f"{_REVISIONS}: no dictionary RELEASED")
    found: dict[str, str] = ast.literal_eval(match[2])
    return found


def record_revision(root: Path, revision: str) -> None:
    """Write the last revision of the version into ``RELEASED``; the versions before stay first."""
    recorded = recorded_revisions(root) | {version(root): revision}
    lines = "".join(f'    "{release}": "{last}",\n' for release, last in recorded.items())
    file = root / _REVISIONS
    text = file.read_text(encoding="utf-8")
    file.write_text(_RELEASED.sub(lambda found: f"{found[1]}{{\n{lines}}}", text, count=1), encoding="utf-8")


def open_fields(root: Path) -> Iterator[str]:
    """Yield the fields that only the owner of the repository can fill in, and that are still open."""
    for name, (pattern, what) in _OWNERS.items():
        if re.search(pattern, (root / name).read_text(encoding="utf-8")):
            yield f"{name}: the owner of the repository fills in {what}"


def write_sbom(root: Path, file: Path) -> None:
    """Write the bill of materials of the packages in the image, with their hashes. :raises RuntimeError: not valid."""
    run(
        *(tool("cyclonedx-py"), "requirements", str(root / "requirements.lock")),
        *("--pyproject", str(root / "pyproject.toml"), "--mc-type", "application", "--output-reproducible"),
        *("--schema-version", "1.6", "--output-format", "JSON", "--validate", "-o", str(file)),
    )
    made: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    pinned = set(re.findall(r"^([\w.-]+)(?:\[[^]]*\])?==([^ ;\\]+)", (root / "requirements.lock").read_text(), re.M))
    listed = {(part["name"], part["version"]) for part in made["components"]}
    if pinned != listed or not pinned:
        raise RuntimeError(f"{file.name} differs from requirements.lock: {sorted(pinned ^ listed)}")


def _revision_problems(root: Path, *, write: bool) -> Iterator[str]:
    """Yield what is wrong with the recorded revision of the version. :param write: record it if it is missing."""
    last = known_revisions()[-1]
    recorded = recorded_revisions(root).get(version(root))
    if recorded is None and write:
        record_revision(root, last)
        print(f"wrote the revision {last} of {version(root)} into {root / _REVISIONS}: commit it", flush=True)
    elif recorded != last:
        yield f"{_REVISIONS}: RELEASED has {recorded or 'nothing'} for {version(root)}, and the last revision is {last}"


def main(words: list[str], root: Path = ROOT) -> int:
    """Make the files in dist/, print all that is missing, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m deploy.release")
    parser.add_argument("--tag", help="the tag that is released, as v0.1.0")
    tag = parser.parse_args(words).tag
    folder = root / "dist"
    folder.mkdir(exist_ok=True)
    install()
    write_sbom(root, folder / "sbom.cdx.json")
    print(f"wrote {folder / 'sbom.cdx.json'}", flush=True)
    problems = [*version_problems(root, tag), *open_fields(root)]
    if text := notes(root):
        (folder / "notes.md").write_text(text, encoding="utf-8")
        print(f"wrote {folder / 'notes.md'}", flush=True)
        problems += _revision_problems(root, write=tag is None and not problems)
    else:
        problems.append(f"CHANGELOG.md: no section `## [{version(root)}] - DATE`")
    for problem in problems:
        print(f"no release: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
