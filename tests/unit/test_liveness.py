"""shared/runtime/liveness.py: what proves that a process has ended."""

from __future__ import annotations

import errno
import fcntl
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.runtime.liveness import find_dead, forget_dead, hold_process_lock

OWNER = "sender@one:7:ab"
_HOLDS = """
import sys, time
from pathlib import Path
from shared.runtime.liveness import hold_process_lock
with hold_process_lock(Path(sys.argv[1]), sys.argv[2]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def process(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of OWNER."""
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDS, str(tmp_path), OWNER], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_process_is_dead_once_it_is_killed_and_not_before(tmp_path: Path, process: subprocess.Popen[str]) -> None:
    assert find_dead(tmp_path, "sender") == []
    process.send_signal(signal.SIGSTOP)  # a stopped process may still continue
    assert find_dead(tmp_path, "sender") == []
    process.kill()
    process.wait()
    assert find_dead(tmp_path, "sender") == [OWNER]


def test_a_process_of_another_service_is_none_of_ours(tmp_path: Path, process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    assert find_dead(tmp_path, "fetcher") == []


def test_a_dead_process_is_forgotten_when_its_claims_are_recovered(tmp_path: Path) -> None:
    with hold_process_lock(tmp_path / "new", OWNER):
        assert find_dead(tmp_path / "new", "sender") == []
    assert find_dead(tmp_path / "new", "sender") == [OWNER]
    forget_dead(tmp_path / "new", [OWNER, "sender@unknown"])
    assert find_dead(tmp_path / "new", "sender") == []


def test_a_process_without_a_folder_works_and_proves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with hold_process_lock(tmp_path / "file" / "folder", OWNER):
        pass
    assert find_dead(tmp_path / "file" / "folder", "sender") == []


def test_two_checks_at_once_both_see_that_a_process_is_dead(tmp_path: Path) -> None:
    with hold_process_lock(tmp_path, OWNER):
        pass
    with (tmp_path / OWNER).open(encoding="ascii") as other_check:
        fcntl.flock(other_check, fcntl.LOCK_SH)
        assert find_dead(tmp_path, "sender") == [OWNER]


def test_a_process_that_starts_is_not_taken_for_a_dead_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, found = fcntl.flock, []

    def check_before_lock(file: int, operation: int) -> None:
        if operation == fcntl.LOCK_EX:  # another process looks between the creation of the file and its lock
            found.append(find_dead(tmp_path, "sender"))
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", check_before_lock)
    with hold_process_lock(tmp_path, OWNER):
        assert find_dead(tmp_path, "sender") == []
    assert found == [[]]
    assert find_dead(tmp_path, "sender") == [OWNER]


def test_a_process_starts_on_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with hold_process_lock(tmp_path, OWNER):
        assert find_dead(tmp_path, "sender") == []
    monkeypatch.undo()
    assert find_dead(tmp_path, "sender") == []
    assert list(tmp_path.iterdir()) == []


def test_a_free_lock_of_another_kernel_proves_nothing(tmp_path: Path) -> None:
    # given a network folder that shows the locks of another machine as free
    with hold_process_lock(tmp_path, OWNER):
        pass
    (tmp_path / OWNER).write_text("5e1e9f0c-0000-4000-8000-000000000000\n", encoding="ascii")
    assert find_dead(tmp_path, "sender") == []
