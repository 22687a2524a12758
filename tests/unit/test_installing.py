"""deploy/machine/installing.py: the files of the service, and the order of the steps of an upgrade."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deploy.machine import installing
from deploy.machine.installing import Machine
from services.admin.cli.app import app
from shared.data_folder import locked
from shared.errors import Permanent


@pytest.fixture
def ran() -> list[str]:
    return []


@pytest.fixture
def machine(tmp_path: Path, ran: list[str]) -> Machine:
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    return Machine(tmp_path, lambda command: ran.append(" ".join(command)))


def _install(machine: Machine, data: str = "srv/mail") -> list[str]:
    said: list[str] = []
    installing.install(machine.root / data, True, machine, said.append)
    return said


def test_the_service_runs_a_copy_as_its_own_user_and_starts_after_a_boot(machine: Machine, ran: list[str]) -> None:
    _install(machine)

    release = (machine.releases / "current").resolve()
    assert (release / "mailgroup").stat().st_mode & 0o111
    assert (release / "services/fetcher/__main__.py").exists() and (release / "requirements.lock").exists()
    assert (release / "LICENSE").exists()
    assert "User=mailgroup" in machine.unit.read_text() and "up --lan" in machine.unit.read_text()
    assert machine.settings.stat().st_mode & 0o777 == 0o600
    assert ran[-3:] == [
        "systemctl enable mailgroup.service",
        "systemctl daemon-reload",
        "systemctl restart mailgroup.service",
    ]


def test_the_unit_file_is_accepted_by_systemd(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not installed")
    text = installing.unit(tmp_path, lan=True).replace("/opt/mailgroup/current/mailgroup", "/bin/true")
    file = tmp_path / "mailgroup.service"
    file.write_text(text, encoding="utf-8")

    done = subprocess.run(["systemd-analyze", "verify", str(file)], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")


def test_a_service_is_not_installed_over_another_one(machine: Machine) -> None:
    _install(machine)
    with pytest.raises(Permanent, match="upgrade"):
        _install(machine)


def test_a_data_folder_that_systemd_would_misread_is_refused(machine: Machine) -> None:
    with pytest.raises(Permanent, match=r"--data: .*my mail"):
        _install(machine, "srv/my mail")
    assert not machine.unit.exists()


def test_settings_that_were_written_by_hand_stay(machine: Machine) -> None:
    machine.settings.parent.mkdir(parents=True)
    machine.settings.write_text("MAILGROUP_BIND=10.0.0.7\n", encoding="utf-8")
    _install(machine)
    assert machine.settings.read_text(encoding="utf-8") == "MAILGROUP_BIND=10.0.0.7\n"


def _new_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installing, "_version", lambda: "9.9.9")


def test_an_upgrade_makes_a_backup_first_and_keeps_the_version_before(
    machine: Machine, ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _install(machine)
    before = (machine.releases / "current").resolve()
    _new_version(monkeypatch)
    seen: list[Path] = []

    def backup(data: Path) -> Path:
        seen.extend([data, (machine.releases / "current").resolve()])
        return data / "a-backup"

    said: list[str] = []
    installing.upgrade(machine, backup, said.append)

    assert seen == [machine.root / "srv/mail", before]
    assert (machine.releases / "current").resolve().name.startswith("9.9.9-") and before.exists()
    assert ran[-1] == "systemctl restart mailgroup.service"
    assert "a-backup" in said[-1] and str(before) in said[-1]
    # and the rollback runs as the user that owns the files
    assert f"runuser -u mailgroup -- {machine.releases}/current/mailgroup restore" in said[-1]
    assert f"--replace --data {machine.root / 'srv/mail'}" in said[-1]


def test_an_upgrade_whose_backup_fails_changes_nothing(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    _install(machine)
    before = (machine.releases / "current").resolve()
    _new_version(monkeypatch)

    def backup(data: Path) -> Path:
        raise Permanent("the disk is full")

    with pytest.raises(Permanent, match="the disk is full"):
        installing.upgrade(machine, backup, lambda _: None)
    assert (machine.releases / "current").resolve() == before


def test_an_upgrade_to_the_running_version_does_nothing(machine: Machine, ran: list[str]) -> None:
    _install(machine)
    ran.clear()

    def backup(data: Path) -> Path:
        raise AssertionError("no backup is needed")

    installing.upgrade(machine, backup, lambda _: None)
    assert ran == []


def test_an_upgrade_without_a_service_says_what_to_do(machine: Machine) -> None:
    with pytest.raises(Permanent, match="no service is installed"):
        installing.upgrade(machine, lambda data: data, lambda _: None)


def test_a_program_that_fails_is_named_with_its_output(machine: Machine) -> None:
    def run(command: Sequence[str]) -> None:
        installing.run(["sh", "-c", "echo no such group >&2; exit 3"])

    with pytest.raises(Permanent, match="no such group"):
        _install(Machine(machine.root, run))


def test_a_data_folder_in_use_is_not_taken_over(machine: Machine, ran: list[str]) -> None:
    data = machine.root / "srv/mail"
    data.mkdir(parents=True)
    with locked(data, "up"), pytest.raises(Permanent, match=re.escape(str(data))):
        _install(machine)
    assert (machine.unit.exists(), ran) == (False, [])


@pytest.mark.parametrize("words", [["install-service"], ["upgrade"]])
def test_a_user_without_root_is_told_so(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 1
    assert f"{words[0]}: needs root: it creates a user and a systemd service" in done.output


def test_an_upgrade_of_another_data_folder_is_refused(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    _install(machine)
    monkeypatch.setattr(installing, "Machine", lambda: machine)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    done = CliRunner().invoke(app, ["upgrade", "--data", "/srv/other"])
    assert done.exit_code == 1
    said = " ".join(done.output.split())
    assert f"--data: /srv/other: the installed service has its data in {machine.root / 'srv/mail'}" in said
