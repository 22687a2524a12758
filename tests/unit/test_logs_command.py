"""``mailgroup logs``: the files of all services in one, rotated and written meanwhile, and a pipe."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder with an empty folder of logs."""
    (tmp_path / "log").mkdir()
    return tmp_path


def entry(second: int, service: str, event: str, **fields: Any) -> str:
    at = f"2026-12-01T13:00:{second:02}.000000Z"
    return json.dumps({"timestamp": at, "level": "info", "event": event, "service": service} | fields) + "\n"


def write(data: Path, name: str, *lines: str) -> None:
    with (data / "log" / name).open("a", encoding="utf-8") as file:
        file.writelines(lines)


def start(*words: str, stdin: int | None = subprocess.DEVNULL) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAILGROUP_")}
    return subprocess.Popen(
        [sys.executable, "-m", "services.admin", "logs", *words],
        cwd=ROOT, env=environment, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A shell that runs the tests in the background ignores Ctrl-C, and its children inherit that.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def run(*words: str) -> tuple[int, str, str]:
    child = start(*words)
    out, err = child.communicate(timeout=120)
    return child.returncode, out, err


def events(out: str) -> list[str]:
    """The service and the event of each line."""
    return [" ".join(line[33:].split()[:2]) for line in out.splitlines()]


def test_the_lines_of_all_services_come_by_time(data: Path) -> None:
    write(data, "router.log.1", entry(1, "router", "first"))
    write(data, "router.log", entry(3, "router", "third"), "a crash\n", entry(6, "router", "sixth"))
    write(data, "fetcher.log", entry(2, "fetcher", "second"), entry(5, "fetcher", "fifth"))
    status, out, err = run("--data", str(data))
    assert (status, err) == (0, "")
    assert events(out) == [
        *("router first", "fetcher second", "router third", "router a", "fetcher fifth", "router sixth"),
    ]
    assert events(run("router", "--lines", "3", "--data", str(data))[1]) == ["router third", "router a", "router sixth"]
    rows = [json.loads(line) for line in run("fetcher", "--json", "--data", str(data))[1].splitlines()]
    assert [row["event"] for row in rows] == ["second", "fifth"]


def test_a_mail_and_a_level_select_lines_of_old_files_too(data: Path) -> None:
    write(data, "router.log.2", entry(1, "router", "routed", inbound_id=7))
    write(data, "router.log", *(entry(2, "router", "noise", inbound_id=number + 100) for number in range(300)))
    write(data, "sender.log", entry(3, "sender", "relayed", submission_id=7, level="warning"))
    assert events(run("--mail", "7", "--data", str(data))[1]) == ["router routed", "sender relayed"]
    assert events(run("--level", "warning", "--data", str(data))[1]) == ["sender relayed"]


def test_the_latest_lines_are_read_from_the_end_of_large_files(data: Path) -> None:
    write(data, "router.log", *(entry(1, "router", f"e{number}", text="x" * 200) for number in range(2000)))
    assert events(run("--lines", "500", "--data", str(data))[1]) == [f"router e{n}" for n in range(1500, 2000)]
    assert len(run("--data", str(data))[1].splitlines()) == 200


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ((), 1, "there is no log of a service"),
        (("nonsense",), 2, "there are fetcher"),
        (("--level", "loud"), 2, "is one of debug"),
    ],
)
def test_a_log_that_is_not_there_and_wrong_words_are_named(
    data: Path, words: tuple[str, ...], status: int, said: str
) -> None:
    code, _, err = run(*words, "--data", str(data))
    assert (code, said in err) == (status, True), err


def reader(child: subprocess.Popen[str]) -> Iterator[str]:
    assert child.stdout is not None
    for text in child.stdout:
        yield events(text)[0]


def test_follow_prints_new_lines_once_through_a_rotation(data: Path) -> None:
    # given a log whose last line is not complete yet
    write(data, "router.log", entry(1, "router", "first"), entry(2, "router", "second")[:30])
    child = start("--follow", "--data", str(data))
    try:
        shown = reader(child)
        assert next(shown) == "router first"
        # when it is completed, the file is rotated, and a new one begins
        write(data, "router.log", entry(2, "router", "second")[30:])
        assert next(shown) == "router second"
        write(data, "router.log", entry(3, "router", "third"))
        (data / "log/router.log").rename(data / "log/router.log.1")
        write(data, "router.log", entry(4, "router", "fourth"))
        # then each line came once
        assert [next(shown), next(shown)] == ["router third", "router fourth"]
    finally:
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=60)
    assert (child.returncode, err) == (0, "")


def test_a_pipe_is_sorted_or_followed(data: Path) -> None:
    child = start("-", stdin=subprocess.PIPE)
    out, err = child.communicate(
        entry(2, "router", "later") + entry(1, "fetcher", "earlier") + "LOG:  PostgreSQL\n", timeout=60
    )
    assert (child.returncode, events(out)[0], err) == (0, "fetcher earlier", "")
    assert sorted(events(out)) == ["LOG: PostgreSQL", "fetcher earlier", "router later"]
    child = start("-", "--follow", stdin=subprocess.PIPE)
    assert child.stdin is not None
    child.stdin.write(entry(2, "router", "at once"))
    child.stdin.flush()
    assert next(reader(child)) == "router at"  # before the pipe has ended
    child.communicate(timeout=60)
    assert child.returncode == 0
