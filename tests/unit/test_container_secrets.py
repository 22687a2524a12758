"""deploy/secrets.sh, the command make-secrets of the image: it makes the key once, and replaces it only when asked."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path

import pytest

from shared.provider.vault import Vault, new_key

SCRIPT = Path(__file__).resolve().parents[2] / "deploy/secrets.sh"
FOLDERS = ("database", "broker", "key", "console", "postgres", "rabbitmq", "grafana")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of the secrets, with the script beside it that uses it instead of /secrets."""
    for name in FOLDERS:
        (tmp_path / name).mkdir()
    (tmp_path / "script").write_text(SCRIPT.read_text(encoding="utf-8").replace("/secrets/", f"{tmp_path}/"))
    return tmp_path


def run(folder: Path, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = ["sh", str(folder / "script"), *words]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)


def keys(folder: Path) -> list[str]:
    return (folder / "key/secret.key").read_text().split()


def test_the_key_is_made_once_and_only_its_owner_reads_it(folder: Path) -> None:
    assert run(folder).returncode == 0
    [key] = keys(folder)
    # when
    assert run(folder).returncode == 0
    # then
    assert keys(folder) == [key] and Vault(key).open(Vault(key).seal("secret")) == "secret"
    assert stat.S_IMODE((folder / "key/secret.key").stat().st_mode) == 0o400


def test_a_new_key_seals_and_the_old_one_opens_until_it_is_dropped(folder: Path) -> None:
    run(folder)
    [old] = keys(folder)
    sealed = Vault(old).seal("secret")
    # when
    assert run(folder, "new-key").returncode == 0
    new, behind = keys(folder)
    assert behind == old != new
    rotated = Vault((folder / "key/secret.key").read_text()).rotate(sealed)
    assert run(folder, "drop-keys").returncode == 0
    # then
    assert keys(folder) == [new] and Vault(new).open(rotated) == "secret"
    assert (folder / "key/secret.key.before").read_text().split() == [new, old]


@pytest.mark.parametrize("separator", ["\n", ",", ", "])
def test_the_key_of_a_backup_replaces_the_one_of_the_first_start(folder: Path, separator: str) -> None:
    run(folder)
    before = keys(folder)
    given = [new_key(), new_key()]
    # when
    assert run(folder, "key", stdin=separator.join(given) + "\n").returncode == 0
    # then
    assert keys(folder) == given and (folder / "key/secret.key.before").read_text().split() == before
    assert run(folder).returncode == 0 and keys(folder) == given  # the next start keeps it


@pytest.mark.parametrize("given", ["", "\n", "no key\n", "PGDMP", f"{'A' * 43}\n"])
def test_what_is_no_key_changes_nothing(folder: Path, given: str) -> None:
    run(folder)
    before = keys(folder)
    done = run(folder, "key", stdin=given)
    assert done.returncode == 1 and "nothing is changed" in done.stderr
    assert keys(folder) == before and not (folder / "key/secret.key.before").exists()


def test_an_unknown_word_is_misuse(folder: Path) -> None:
    done = run(folder, "keys")
    assert done.returncode == 2 and "make-secrets new-key" in done.stderr and not (folder / "key/secret.key").exists()
