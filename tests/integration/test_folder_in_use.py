"""Commands on a data folder that is starting, in use, or was left by a killed process. Every command is a process."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from deploy.machine.instance import with_free_ports
from shared.data_folder import LockHolder, find_holder, is_up, locked, require_unused
from shared.errors import Permanent
from shared.settings import Settings
from tests.system import until

ROOT = Path(__file__).resolve().parents[2]


class Command:
    """``mailgroup`` with some words, as a process of its own. Its output grows in ``said`` while it runs."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "services.admin", *words, "--data", str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)} | (_ports(folder) if words == ("up",) else {}),
        )
        self.said = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said += line

    def end(self, seconds: float = 300) -> int:
        """Wait for the end. :return: the exit status."""
        status = self.process.wait(seconds)
        self._reader.join()
        return status

    def stop(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.end()


def _ports(folder: Path) -> dict[str, str]:
    ports = with_free_ports(Settings(data=folder))
    names = ("pop3_port", "pop3s_port", "smtp_port", "submission_port", "smtps_port", "admin_port", "metrics_port")
    return {f"MAILGROUP_{name.upper()}": str(getattr(ports, name)) for name in names}


@pytest.fixture
def folder() -> Iterator[Path]:
    parent = Path(tempfile.mkdtemp(prefix="mailgroup-test-"))
    data = parent / "data"
    data.mkdir()
    yield data
    for name in ("postgres", "rabbitmq", "provider"):
        if (data / name).is_symlink():
            shutil.rmtree((data / name).resolve().parent, ignore_errors=True)
    shutil.rmtree(parent, ignore_errors=True)


def test_while_up_starts_commands_wait_and_no_other_system_starts(folder: Path) -> None:
    # given an up that is starting
    up = Command(folder, "up")
    until(lambda: is_up(folder))
    # when other commands are given at once
    export, migrate = Command(folder, "export"), Command(folder, "migrate")
    others = [Command(folder, *words) for words in (("up",), ("demo",), ("restore", "/none"), ("restore", "--loaded"))]
    try:
        # then those that need the system wait, and say so
        assert export.end() == 0, export.said
        assert f"waiting until 'mailgroup up' (process {up.process.pid}, starting) is ready" in export.said
        assert "external_accounts" in export.said
        assert migrate.end() == 0, migrate.said
        # and those that would disturb it are refused
        for other in others:
            assert other.end() == 1
            assert f"is in use by 'mailgroup up' (process {up.process.pid}, " in other.said, other.said
        # and the system was not disturbed
        status = Command(folder, "status")
        assert status.end() == 0, status.said
        # and up has printed what a person needs first at the top
        until(lambda: "\nadmin " in up.said)
        assert what_was_printed(up) == WHEN_READY
        password = (folder / "admin.password").read_text().strip()
        assert f"\nSign in as admin with the password {password}\n" in up.said
        again = Command(folder, "up")
        assert again.end() == 1 and "is in use by" in again.said
        # and a killed one is no obstacle
        up.process.kill()
        up.end()
        gone = Command(folder, "export")
        assert gone.end() == 1 and "no mailgroup is running" in gone.said
        up = Command(folder, "up")
        until(lambda: (holder := find_holder(folder)) is not None and holder.state == "ready")
        # and a later start names the file of the password, in the same place
        until(lambda: "\nadmin " in up.said)
        assert what_was_printed(up) == WHEN_READY
        assert password not in up.said
        file = folder / "admin.password"
        assert f"\nSign in as admin with the password of the first start, which is in {file}\n" in up.said
    finally:
        assert up.stop() == 0


WHEN_READY = [
    "Console: ",
    "Sign in as admin",
    "Add accounts there",
    "Settings for mail clients",
    "Incoming (POP3)",
    "Outgoing (SMTP)",
    "Data folder: ",
    "Metrics",
    "admin ",
]
"""How lines of ``up`` begin, in this order, once everything is ready."""


def what_was_printed(up: Command) -> list[str]:
    """How the lines behind the progress begin, as far as WHEN_READY names them; the same beginning is named once."""
    _, _, rest = up.said.partition("\nReady after ")
    begun = [start for line in rest.splitlines()[1:] for start in WHEN_READY if line.startswith(start)]
    return list(dict.fromkeys(begun))


def test_a_second_demo_is_refused_and_does_not_break_the_first(folder: Path) -> None:
    first = Command(folder, "demo", "--exit")
    until(lambda: is_up(folder))
    second = Command(folder, "demo", "--exit")
    assert second.end() == 1
    assert f"is in use by 'mailgroup demo' (process {first.process.pid}, " in second.said
    assert "Dovecot" not in second.said
    assert first.end() == 0, first.said
    assert "Every step succeeded." in first.said


@pytest.mark.parametrize("words", [("export",), ("apply", "/dev/null"), ("queue", "list"), ("backup", "/none/x")])
def test_a_start_that_fails_ends_the_wait_with_the_reason(folder: Path, words: tuple[str, ...]) -> None:
    with locked(folder, "up"):
        waiting = Command(folder, *words)
        until(lambda: "waiting until 'mailgroup up'" in waiting.said)
    assert waiting.end() == 1
    assert "has ended before it was ready" in waiting.said and str(folder / "log") in waiting.said


@pytest.mark.parametrize(("state", "shown"), [("stopping", "stopping"), ("at work", "at work")])
def test_no_command_waits_for_a_system_that_will_not_come(folder: Path, state: str, shown: str) -> None:
    with locked(folder, "restore") as set_state:
        set_state(state)  # type: ignore[arg-type]
        asked = Command(folder, "export")
        assert asked.end() == 1
    assert f"'mailgroup restore' (process {os.getpid()}, {shown}) uses this data folder" in asked.said


def test_status_says_that_the_system_is_starting_and_does_not_wait(folder: Path) -> None:
    with locked(folder, "up"):
        asked = Command(folder, "status")
        assert asked.end() == 1
    assert f"'mailgroup up' (process {os.getpid()}, starting)" in asked.said


def test_a_lock_ends_with_its_process_and_takes_the_old_run_file_away(folder: Path) -> None:
    (folder / "run.json").write_text("{}")
    code = "import sys, time; from pathlib import Path; from shared.data_folder import locked\n"
    code += "with locked(Path(sys.argv[1]), 'up') as set_state: set_state('ready'); time.sleep(600)"
    holder = subprocess.Popen([sys.executable, "-c", code, folder], env=os.environ | {"PYTHONPATH": str(ROOT)})
    try:
        until(lambda: find_holder(folder) == LockHolder("up", holder.pid, "ready"))
        assert not (folder / "run.json").exists()
        with pytest.raises(Permanent, match=rf"in use by 'mailgroup up' \(process {holder.pid}, ready\)"):
            require_unused(folder)
    finally:
        with suppress(ProcessLookupError):
            holder.kill()
        holder.wait()
    require_unused(folder)
    with locked(folder, "demo"):
        assert find_holder(folder) == LockHolder("demo", os.getpid(), "starting")
