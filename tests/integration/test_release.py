"""``make release``: it refuses what is not complete, and makes the notes and the bill of materials."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from deploy import check, release
from shared.db.migrations import revisions

ROOT = Path(__file__).resolve().parents[2]
WORKFLOW = (ROOT / ".github/workflows/release.yml").read_text(encoding="utf-8")


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files that a release reads."""
    monkeypatch.setenv("PATH", os.environ["PATH"])  # the tools are put first on it
    for name in (*release._VERSIONS, *release._OWNERS, "CHANGELOG.md", "requirements.lock", release._REVISIONS):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def complete(checkout: Path) -> None:
    """Fill in what the owner has to, and date the section of the changelog."""
    for name, old, new in (
        ("LICENSE", "the mailgroup authors", "Example Ltd"),
        ("SECURITY.md", "**CONTACT**", "security@company.com"),
        ("README.md", "The owner of this repository confirms the licence before the first release.", ""),
        ("CHANGELOG.md", "## [Unreleased] 0.1.0", "## [Unreleased]\n\n## [0.1.0] - 2026-12-31"),
    ):
        file = checkout / name
        text = file.read_text(encoding="utf-8")
        file.write_text(text.replace(old, new), encoding="utf-8")


def test_a_release_names_every_open_field_and_what_else_is_missing(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkout / "pyproject.toml").write_text(
        (checkout / "pyproject.toml").read_text(encoding="utf-8").replace('version = "0.1.0"', 'version = "0.2.0"')
    )
    complete(checkout)
    for name in release._OWNERS:  # open again
        shutil.copy(ROOT / name, checkout / name)
    shutil.copy(ROOT / "CHANGELOG.md", checkout)
    assert release.main(["--tag", "v0.3.0"], checkout) == 1
    problems = [line for line in capsys.readouterr().err.splitlines() if line.startswith("no release: ")]
    assert [re.split("[ :]", line.removeprefix("no release: "))[0] for line in problems] == [
        *("pyproject.toml", "the", "LICENSE", "SECURITY.md", "README.md", "CHANGELOG.md")
    ]
    assert "v0.3.0 is not v0.1.0" in problems[1]


def test_a_release_records_its_last_revision_once(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # given an earlier version, which is kept
    complete(checkout)
    file = checkout / release._REVISIONS
    before = file.read_text(encoding="utf-8")
    older = re.sub(r"^RELEASED(.*?) = \{.*?\}$", r'RELEASED\1 = {"0.0.9": "initial"}', before, flags=re.M | re.S)
    file.write_text(older, encoding="utf-8")
    last = revisions.known_revisions()[-1]
    # when the tag is there already, then the record comes too late
    assert release.main(["--tag", "v0.1.0"], checkout) == 1
    assert "RELEASED has nothing for 0.1.0" in capsys.readouterr().err
    assert file.read_text(encoding="utf-8") == older
    # and before the tag it is written, and nothing else is changed
    assert release.main([], checkout) == 0
    assert release.recorded_revisions(checkout) == {"0.0.9": "initial", "0.1.0": last}
    written = file.read_text(encoding="utf-8")
    assert f'RELEASED: dict[str, str] = {{\n    "0.0.9": "initial",\n    "0.1.0": "{last}",\n}}\n' in written
    assert written.partition("RELEASED")[0] == before.partition("RELEASED")[0]
    assert written.partition('"""The last revision of')[2] == before.partition('"""The last revision of')[2]
    # a second time it stays
    assert release.main(["--tag", "v0.1.0"], checkout) == 0
    assert file.read_text(encoding="utf-8") == written


def test_a_revision_after_the_record_is_refused(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    complete(checkout)
    release.record_revision(checkout, "earlier")
    assert release.main([], checkout) == 1
    assert f"RELEASED has earlier for 0.1.0, and the last revision is {revisions.known_revisions()[-1]}" in (
        capsys.readouterr().err
    )
    assert release.recorded_revisions(checkout)["0.1.0"] == "earlier"


def test_a_complete_checkout_gets_notes_and_a_bill_of_materials(checkout: Path) -> None:
    complete(checkout)
    release.record_revision(checkout, revisions.known_revisions()[-1])
    assert release.main(["--tag", "v0.1.0"], checkout) == 0
    assert (checkout / "dist/notes.md").read_text(encoding="utf-8").startswith("The first version.")
    made = json.loads((checkout / "dist/sbom.cdx.json").read_text(encoding="utf-8"))
    assert (made["bomFormat"], made["specVersion"]) == ("CycloneDX", "1.6")
    assert made["metadata"]["component"]["version"] == release.version(checkout)
    parts = {part["name"]: part for part in made["components"]}
    assert parts["psycopg"]["purl"].startswith("pkg:pypi/psycopg@")
    assert all("SHA-256" in json.dumps(part) for part in parts.values())


def test_a_bill_of_materials_that_lacks_a_package_is_refused(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check.install()
    made: dict[str, list[str]] = {"components": []}

    def writes_nothing(*words: str) -> str:
        Path(words[-1]).write_text(json.dumps(made), encoding="utf-8")
        return ""

    monkeypatch.setattr(release, "run", writes_nothing)
    with pytest.raises(RuntimeError, match=r"differs from requirements\.lock"):
        release.write_sbom(checkout, checkout / "sbom.json")


def test_the_workflow_calls_the_same_scripts_and_pins_what_others_wrote() -> None:
    for step in ("run: .ci/run\n", 'run: make release TAG="$GITHUB_REF_NAME"\n'):
        assert step in WORKFLOW
    uses = re.findall(r"uses: (\S+)", WORKFLOW)
    assert len(uses) >= 7 and all(re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action) for action in uses)
    assert "platforms: linux/amd64,linux/arm64\n" in WORKFLOW
    assert not re.search(r"\w\.(io|com|dev)\b", WORKFLOW)  # no registry's host


def test_the_form_of_the_workflow_is_right_and_a_wrong_word_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", os.environ["PATH"])
    check.install()
    check.check_workflows()
    (tmp_path / ".github/workflows").mkdir(parents=True)
    (tmp_path / ".github/workflows/wrong.yml").write_text(WORKFLOW.replace("runs-on:", "runs_on:"), encoding="utf-8")
    monkeypatch.setattr(check, "ROOT", tmp_path)
    with pytest.raises(RuntimeError, match=r"runs_on|runs-on"):
        check.check_workflows()
