"""deploy/machine: `up` in its own process, with a data folder that only root may enter."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from deploy.machine import ports
from deploy.machine.instance import Instance, with_free_ports
from deploy.machine.postgres import USER as POSTGRES_USER
from deploy.machine.servers import prepare
from deploy.machine.supervise import ROOT, leftovers
from shared.data_folder import is_up
from shared.settings import SERVICES, load
from tests.servers import scratch, wait_for

RESTART_SECONDS = 2.0
UP = """
import sys
from pathlib import Path
from deploy.machine.instance import up, with_free_ports
from shared.settings import load
settings = with_free_ports(load(data=Path(sys.argv[1])))
say = lambda line: print(line, flush=True)
sys.exit(up(settings, lambda running: say("READY"), say, ("router", "mailbox")))
"""


class Up:
    """An `up` in its own process, with two of the services."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.log = data.parent / "up.log"
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self.log.open("wb") as log:
            environment = {name: value for name, value in os.environ.items() if not name.startswith("MAILGROUP_")}
            return subprocess.Popen(
                [sys.executable, "-c", UP, str(self.data)],
                stdout=log,
                stderr=log,
                env=environment | {"PYTHONPATH": str(ROOT)},
            )

    def wait_until_ready(self) -> None:
        try:
            until(lambda: "READY" in self.log.read_text() or self.process.poll() is not None, 240)
        finally:
            said = self.log.read_text()
            print(said)
        assert "READY" in said

    def start_again(self) -> None:
        self.process = self._start()

    def run(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.data / "run.json").read_text())
        return found

    def pid(self, name: str) -> int:
        return int(self.run()["pids"].get(name, 0))

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def until(holds: Callable[[], bool], seconds: float) -> float:
    """Return the seconds until the condition was true."""
    started = time.monotonic()
    while not holds():
        assert time.monotonic() - started < seconds, f"not within {seconds:g} s"
        time.sleep(0.02)
    return time.monotonic() - started


@pytest.fixture(scope="module")
def running() -> Iterator[Up]:
    """Run an `up` whose data folder no other user can reach."""
    parent = Path(tempfile.mkdtemp(prefix="mailgroup-test-"))  # mode 0700
    data = parent / "data"
    data.mkdir(mode=0o700)
    up = Up(data)
    up.wait_until_ready()
    yield up
    up.stop()
    for name in ("postgres", "rabbitmq"):
        if (data / name).is_symlink():
            shutil.rmtree((data / name).resolve().parent)
    shutil.rmtree(parent)


def test_run_json_is_readable_by_its_owner_alone_and_names_processes(running: Up) -> None:
    file = running.data / "run.json"
    assert file.stat().st_mode & 0o077 == 0
    assert (running.data / "secret.key").stat().st_mode & 0o077 == 0
    found = running.run()
    assert {"up", "supervisord", "postgres", "rabbitmq", "router", "mailbox"} <= set(found["pids"])
    for pid in found["pids"].values():
        os.kill(pid, 0)
    # and a command without any setting finds the system through it
    settings = load(data=running.data)
    assert settings.database_url == found["settings"]["database_url"]
    assert is_up(running.data)
    metrics = urllib.request.urlopen(found["urls"]["metrics_router"], timeout=5).read()
    assert b"python_info" in metrics or b"process_" in metrics


def test_the_database_s_socket_is_for_its_user_and_root_alone(running: Up) -> None:
    url = running.run()["settings"]["database_url"]
    found = psycopg.conninfo.conninfo_to_dict(url)
    socket_file = Path(str(found["host"])) / f".s.PGSQL.{found['port']}"
    assert socket_file.parent.stat().st_mode & 0o777 == 0o700
    assert socket_file.owner() == socket_file.parent.owner() == POSTGRES_USER
    # even there it asks for the password
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(psycopg.conninfo.make_conninfo(url, password="guessed"))
    # and operators' tools have the port
    psycopg.connect(psycopg.conninfo.make_conninfo(url, host="127.0.0.1")).close()


@pytest.mark.parametrize("name", ["deep" * 40, "a,b", 'with "quotes" 100% & spaces'])
def test_postgresql_is_reached_by_a_socket_wherever_the_data_folder_lies(name: str) -> None:
    with scratch() as parent:
        data = parent / name
        data.mkdir()
        # given a start that was killed
        before = prepare(data, postgres=True, rabbitmq=False).postgres
        assert before is not None
        # when the next one prepares
        servers = prepare(data, postgres=True, rabbitmq=False)
        server = servers.postgres
        assert server is not None
        assert before.sockets == server.sockets or not before.sockets.exists()
        assert (parent in server.sockets.parents) == name.startswith("with")
        assert server.sockets.stat().st_mode & 0o777 == 0o700
        # then the server is there
        process = server.program().start(parent / "log")
        try:
            wait_for(server.answers, process)
        finally:
            process.stop()
        # and the end leaves nothing elsewhere
        servers.tidy()
        assert not server.sockets.exists()


def test_each_part_is_a_descendant_of_up(running: Up) -> None:
    assert Path(f"/proc/{running.pid('router')}/cmdline").read_bytes().endswith(b"python\0-m\0services.router\0")
    parent = running.pid("router")
    while parent not in (running.process.pid, 1):
        parent = int(Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[1])
    assert parent == running.process.pid


@pytest.mark.parametrize("name", ["router", "postgres", "epmd", "rabbitmq"])
def test_every_process_that_dies_is_started_again_any_number_of_times(running: Up, name: str) -> None:
    took = []
    for _ in range(6 if name == "router" else 3):
        old = running.pid(name)
        os.kill(old, signal.SIGKILL)
        took.append(until(lambda old=old: running.pid(name) not in (0, old), 120))  # type: ignore[misc]  # bound here
    assert min(took) < RESTART_SECONDS  # a busy machine delays single ones
    url = running.run()["urls"]["metrics_mailbox"].replace("/metrics", "/readyz")
    until(lambda: answers(url), 60)


def answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except OSError:
        return False
    return True


def test_rabbitmq_comes_back_with_its_folder_deleted(running: Up) -> None:
    # given a node whose folder was deleted
    folder = (running.data / "rabbitmq").resolve()
    old = running.pid("rabbitmq")
    shutil.rmtree(folder)
    # when it dies
    os.kill(old, signal.SIGKILL)
    until(lambda: running.pid("rabbitmq") not in (0, old), 10)
    # then the services find an empty one
    until(lambda: (folder / "mnesia").exists(), 30)
    url = running.run()["urls"]["metrics_router"].replace("/metrics", "/readyz")
    until(lambda: answers(url), 60)


def test_a_second_up_on_the_same_folder_is_refused(running: Up) -> None:
    done = subprocess.run(
        [sys.executable, "-c", UP, str(running.data)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode != 0
    assert "is in use by 'mailgroup up'" in done.stderr


def test_a_killed_up_is_no_obstacle_for_the_next_one(running: Up) -> None:
    # given an up that was killed
    key = (running.data / "secret.key").read_text()
    running.process.kill()
    running.process.wait()
    # then its file is not believed any more
    assert load(data=running.data).database_url is None
    # and the next start, at once, works with the same data
    running.start_again()
    running.wait_until_ready()
    assert (running.data / "secret.key").read_text() == key


def test_it_stops_within_a_minute_and_leaves_nothing_running(running: Up) -> None:
    assert running.stop() == 0
    assert leftovers(running.data) == []
    assert not (running.data / "run.json").exists()
    assert not is_up(running.data)
    # and the log shows the order: services, then RabbitMQ, then PostgreSQL
    log = (running.data / "log" / "supervisord.log").read_text().splitlines()
    stopped = [line.split("stopped: ")[1].split()[0] for line in log[-12:] if "stopped: " in line]
    assert set(stopped[:2]) == {"router", "mailbox"}
    assert stopped[2:4] == ["rabbitmq", "postgres"]


def test_a_taken_mail_port_is_named(tmp_path: Path) -> None:
    (port,) = ports.choose(1, str(tmp_path))
    code = f"""
import sys
from pathlib import Path
from deploy.machine.instance import up
from shared.settings import load
up(load(data=Path(sys.argv[1]), smtp_port={port}), lambda running: None)
"""
    with socket.create_server(("127.0.0.1", port)):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "data")],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
    assert done.returncode != 0
    assert f"MAILGROUP_SMTP_PORT: {port}: taken" in done.stderr


def test_configured_servers_are_used_instead_of_private_ones(
    database_url: str, broker_url: str, tmp_path: Path
) -> None:
    settings = with_free_ports(load(data=tmp_path / "data", database_url=database_url, broker_url=broker_url))
    with Instance(settings, lambda line: None, ("router",)) as instance:
        assert set(instance.pids()) == {"router"}
        # and a part can be stopped and started by name
        instance.stop_program("router")
        assert instance.pids() == {}
        instance.start_program("router")
        until(lambda: answers(instance.urls()["metrics_router"]), 20)
    assert not (tmp_path / "data" / "postgres").exists()
    assert not (tmp_path / "data" / "rabbitmq").exists()


def test_every_service_is_one_that_can_be_started() -> None:
    for name in SERVICES:
        assert (ROOT / "services" / name / "__main__.py").exists(), name
