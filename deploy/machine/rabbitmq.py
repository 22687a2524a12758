"""A private RabbitMQ node with its own name, port mapper and cookie, on loopback only.

It does not interfere with the system's RabbitMQ: Erlang nodes find each other by the port mapper (epmd), and this node
has its own. The user ``guest`` does not exist; the only user has a random password.
"""

from __future__ import annotations

import socket
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from deploy.machine.programs import PATH, Program, give, identity, write_private
from shared.errors import Permanent, Temporary

USER = "rabbitmq"
_CONTROL_SECONDS = 300.0
"""Timeout of rabbitmqctl: seconds; its Erlang node takes seconds to start, on a busy machine much longer."""
_ASK_SECONDS = 15.0
"""Timeout of a question about the node's health: seconds; an answer takes one, on a busy machine some."""
_SCRIPTS = Path("/usr/lib/rabbitmq/bin")
# The node stores its data in a folder with its name, so the name never changes with the ports.
_NODE = "mailgroup@localhost"
_HAS_LOST_QUEUES = """
    #{names := #{wal := Log}} = ra_system:fetch(quorum_queues),
    Servers = [element(1, amqqueue:get_pid(Q)) || Q <- rabbit_amqqueue:list(),
               amqqueue:get_type(Q) =:= rabbit_quorum_queue],
    HasEnded = fun(Name) -> whereis(Name) =:= undefined end,
    rabbit_alarm:get_alarms() =:= [] andalso lists:any(HasEnded, [Log | Servers])."""
"""Erlang: whether the write-ahead log of the quorum queues or the process of one of them has ended. The node does not
start them again. While it is short of disk or memory (an alarm), a restart would not help."""


@dataclass(frozen=True, slots=True)
class RabbitMQ:
    """A node and its port mapper."""

    folder: Path  # of the node's data; its user must be able to reach it
    ports: tuple[int, int, int]  # AMQP, port mapper, cluster
    password: str = field(repr=False)

    @property
    def url(self) -> str:
        """URL of the default virtual host."""
        return self.url_of("%2F")

    def url_of(self, vhost: str) -> str:
        """Return the URL of a virtual host. :param vhost: percent-encoded."""
        return f"amqp://mailgroup:{self.password}@127.0.0.1:{self.ports[0]}/{vhost}"

    def prepare(self) -> None:
        """Write the configuration. The node creates the user when it first starts on an empty folder.

        :raises Permanent: RabbitMQ is not installed.
        """
        if not (_SCRIPTS / "rabbitmq-server").exists():
            raise Permanent(f"RabbitMQ is not installed: no {_SCRIPTS}/rabbitmq-server; install rabbitmq-server")
        for name in ("log", "mnesia"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        write_private(
            self.folder / "rabbitmq.conf",
            "\n".join(
                (
                    f"listeners.tcp.1 = 127.0.0.1:{self.ports[0]}",
                    "default_user = mailgroup",
                    f"default_pass = {self.password}",
                    "log.console = true",
                    "log.console.level = info",
                    "log.connection.level = error",  # it warns of every client that ends without a farewell
                    "log.file = false",
                    "disk_free_limit.absolute = 64MB",
                    "",
                )
            ),
        )
        write_private(self.folder / "enabled_plugins", "[].\n")
        write_private(self.folder / "environment.conf", "")  # instead of the system's
        give(self.folder, USER)

    def _environment(self) -> dict[str, str]:
        amqp, mapper, cluster = self.ports
        return {
            "PATH": PATH,
            "LANG": "C.UTF-8",
            "HOME": str(self.folder),
            "ERL_EPMD_PORT": str(mapper),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_CRASH_DUMP_SECONDS": "0",
            "RABBITMQ_NODENAME": _NODE,
            "RABBITMQ_NODE_PORT": str(amqp),
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_DIST_PORT": str(cluster),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": str(self.folder / "environment.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"),
            "RABBITMQ_SCHEDULER_BIND_TYPE": "u",  # unbound: other programs use this machine's cores, too
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        }

    def programs(self) -> list[Program]:
        """Return the programs of the port mapper and of the node, in the foreground."""
        # With this variable the script replaces itself by the node, so that signals reach the node itself.
        node = self._environment() | {"RUNNING_UNDER_SYSTEMD": "true"}
        return [
            Program(
                "epmd",
                ("epmd", "-port", str(self.ports[1]), "-address", "127.0.0.1"),
                {"PATH": PATH, "HOME": str(self.folder)},
                self.folder,
                priority=5,
                user=USER,
                stop_seconds=2,
            ),
            Program(
                "rabbitmq",
                (str(_SCRIPTS / "rabbitmq-server"),),
                node,
                self.folder,
                priority=20,
                user=USER,
                stop_seconds=15,
            ),
        ]

    def answers(self) -> bool:
        """Return whether the node speaks AMQP."""
        try:
            with socket.create_connection(("127.0.0.1", self.ports[0]), timeout=2) as connection:
                connection.settimeout(2)
                connection.sendall(b"AMQP\x00\x00\x09\x01")
                return connection.recv(1) == b"\x01"
        except OSError:
            return False

    def has_lost_queues(self) -> bool:
        """Ask the node whether the processes of its queues have ended: it answers, but works only after a restart.

        :raises Temporary: no answer. That says nothing about the queues.
        """
        return self.control("eval", _HAS_LOST_QUEUES, seconds=_ASK_SECONDS).strip() == "true"

    def control(self, *words: str, seconds: float = _CONTROL_SECONDS) -> str:
        """Run rabbitmqctl and return its output.

        :param seconds: timeout. :raises Temporary: it failed, with its message, or did not answer in time.
        """
        low = self.ports[2] + 1
        environment = self._environment() | {
            "RABBITMQ_CTL_DIST_PORT_MIN": str(low),
            "RABBITMQ_CTL_DIST_PORT_MAX": str(low + 20),
        }
        try:
            done = subprocess.run(
                ["setpriv", *identity(USER), str(_SCRIPTS / "rabbitmqctl"), "--quiet", *words],
                cwd=self.folder,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
                timeout=seconds,
            )
        except subprocess.TimeoutExpired as error:
            raise Temporary(f"rabbitmqctl {words[0]}: no answer within {seconds:g} s") from error
        if done.returncode:
            raise Temporary(f"rabbitmqctl {words[0]}: {(done.stderr or done.stdout).strip()}")
        return done.stdout

    def add_vhosts(self, names: list[str]) -> None:
        """Create virtual hosts with all permissions for the user; one call, since rabbitmqctl takes seconds."""
        every = '<<".*">>'
        vhosts = ",".join(f'<<"{name}">>' for name in names)
        self.control(
            "eval",
            (
                f'[begin rabbit_vhost:add(V, <<"mailgroup">>), rabbit_auth_backend_internal:set_permissions('
                f'<<"mailgroup">>, V, {every}, {every}, {every}, <<"mailgroup">>) end || V <- [{vhosts}]].'
            ),
        )
