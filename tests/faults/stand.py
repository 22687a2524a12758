"""The system under test: the driver owns its servers, and each connection between its parts has its own proxy.

PostgreSQL and RabbitMQ keep their data on small disks (tmpfs, which needs root), so that a disk can be full. The driver
can move the clock of the database: the schema ``skewed`` precedes PostgreSQL's own functions in the search path.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from unittest.mock import patch

import psycopg

from deploy.machine import ports
from deploy.machine.dovecot_postfix import DemoProvider
from deploy.machine.folders import make_sockets
from deploy.machine.instance import Instance, with_free_ports
from deploy.machine.postgres import SOCKET, USER, Postgres
from deploy.machine.programs import Process, Program, give
from deploy.machine.rabbitmq import RabbitMQ
from shared.settings import Settings
from tests.company import local
from tests.faults.mails import BY_IMAP, CUSTOMERS, DESK, HELP, SALES, SHARERS, SUPPORT
from tests.faults.proxy import Proxy
from tests.faults.steps import ORDERS, REACHED
from tests.scripted_imap import ScriptedImap
from tests.scripted_pop3 import ScriptedPop3
from tests.scripted_smtp import ScriptedSmtp, scripted_smtp
from tests.system import PASSWORD, System

SENT = "Sent"
"""The folder at the provider that gets copies of what is sent."""
DISK_MIB = {"postgres": 4096, "rabbitmq": 512}

_CLOCK = """
create schema skewed;
create table skewed.clock (ahead interval not null);
insert into skewed.clock values ('0');
create function skewed.now() returns timestamptz stable language sql as
    'select pg_catalog.now() + ahead from skewed.clock';
create function skewed.clock_timestamp() returns timestamptz volatile language sql as
    'select pg_catalog.clock_timestamp() + ahead from skewed.clock';
alter database mailgroup set search_path = public, skewed, pg_catalog;
"""


class Disk:
    """A small disk, and a file that can fill it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    def fill(self, leaving: int = 0) -> None:
        """Fill the disk. :param leaving: octets that stay free."""
        with self._ballast.open("wb", buffering=0) as file:
            for octets in (1 << 24, 1 << 16, 1 << 12):
                with suppress(OSError):
                    while file.write(bytes(octets)) == octets:
                        pass
            file.truncate(file.tell() - leaving)

    def empty(self) -> None:
        """Free the room again."""
        self._ballast.unlink(missing_ok=True)


@contextmanager
def disk(folder: Path, mebibytes: int) -> Iterator[Disk]:
    """Mount a tmpfs of this size on a new folder for the block; needs root."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m,mode=755", "tmpfs", str(folder)], check=True)
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


class Server:
    """A server process that the driver starts and ends. It must be started from the main thread."""

    def __init__(self, program: Program, log: Path) -> None:
        self.program, self._log = program, log
        self._process: Process | None = None

    def start(self) -> None:
        """Start the server, unless it runs."""
        if self._process is None or self._process.child.poll() is not None:
            self._process = self.program.start(self._log)

    async def end(self, number: signal.Signals, seconds: float = 30.0) -> None:
        """End the server by a signal, and by SIGKILL if it still runs after ``seconds``."""
        assert self._process is not None
        self._process.child.send_signal(number)
        with suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(self._process.child.wait, seconds)
        self._process.kill()

    @property
    def pid(self) -> int:
        """Its process id; the server must have been started."""
        assert self._process is not None
        return self._process.child.pid

    @property
    def runs(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.child.poll() is None

    def kill(self) -> None:
        """End the server at once, at the end of a run: its data is not used again."""
        if self._process is not None:
            self._process.kill()

    def stop(self) -> None:
        """Shut the server down, at the end of a run."""
        if self._process is not None:
            self._process.stop()


class Stand:
    """The gateway, its servers and proxies, and its providers: a real one, and scripted ones."""

    deletes_by_imap = True
    """Whether the mail of ``HELP`` and ``DESK`` is deleted at the provider as soon as it is fetched."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.orders, self.reached = folder / "orders", folder / "reached"  # the folders of steps.py
        self.disks: dict[str, Disk] = {}  # by name of the server
        self.servers: dict[str, Server] = {}  # by name
        self.proxies: dict[str, Proxy] = {}  # by name of the target
        self.pop3 = ScriptedPop3()  # with smtp the faulty provider of sales@
        self.smtp = ScriptedSmtp()
        self.imap = ScriptedImap()  # the faulty provider of desk@
        self.postgres: Postgres
        self.rabbitmq: RabbitMQ
        self.provider: DemoProvider
        self.instance: Instance
        self.system: System

    # ------------------------------------------------------------------------------------------ starting

    @contextmanager
    def running(self) -> Iterator[Stand]:
        """Run the servers and the provider of support@ for the block."""
        with ExitStack() as stack:
            self._start_servers(stack)
            self.provider = stack.enter_context(DemoProvider(self.folder / "provider"))
            yield self

    def _start_servers(self, stack: ExitStack) -> None:
        """Start PostgreSQL and RabbitMQ. :param stack: ends them."""
        for name, mebibytes in DISK_MIB.items():
            self.disks[name] = stack.enter_context(disk(self.folder / name, mebibytes))
        port, *three = ports.choose(4, str(self.folder))
        home = self.folder / "postgres" / "cluster"
        home.mkdir()
        give(home, USER)
        words = secrets.token_hex(16), secrets.token_hex(16)
        self.postgres = Postgres(home, make_sockets(home, USER, SOCKET), port, *words)
        self.postgres.prepare()
        self.rabbitmq = RabbitMQ(
            self.folder / "rabbitmq" / "node", (three[0], three[1], three[2]), secrets.token_hex(16)
        )
        self.rabbitmq.prepare()
        mapper, node = self.rabbitmq.programs()
        for program in (self.postgres.program(), mapper, node):
            self.servers[program.name] = self._serve(program, stack)

    def _serve(self, program: Program, stack: ExitStack) -> Server:
        """Start a server. :param stack: ends it."""
        server = Server(program, self.folder / f"{program.name}.log")
        stack.callback(server.stop)
        server.start()
        return server

    async def _servers_answer(self) -> None:
        """Wait until the servers that the gateway needs at its start answer."""
        await self.answering(self.postgres.answers)

    def _broker_ports(self) -> tuple[int, ...]:
        """Return the ports to which the broker's proxy connects."""
        return (self.rabbitmq.ports[0],)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Stand]:
        """Run the proxies, the faulty provider and the gateway with its accounts for the block."""
        async with AsyncExitStack() as stack:
            await self._servers_answer()
            await asyncio.to_thread(self._make_database)  # in a thread: the loop runs the proxy of the standby
            await stack.enter_async_context(self.pop3.running())
            await stack.enter_async_context(self.imap.running())
            self.smtp = await stack.enter_async_context(scripted_smtp())
            targets = {
                "database": (self.postgres.port,),
                "broker": self._broker_ports(),
                "dovecot": (self.provider.pop3_port,),
                "imap": (self.provider.imap_port,),
                "postfix": (self.provider.smtp_port,),
                "pop3": (self.pop3.port,),
                "smtp": (self.smtp.port,),
                "scripted imap": (self.imap.port,),
            }
            taken = itertools.chain.from_iterable(targets.values())
            chosen = ports.choose(len(targets), f"{self.folder} proxies", taken=taken)
            for (name, leads_to), port in zip(targets.items(), chosen, strict=True):
                self.proxies[name] = await stack.enter_async_context(Proxy(port, *leads_to).running())
            settings = Settings(
                data=self.folder / "data",
                allow_private_upstream=True,
                sweep_grace_seconds=2,
                database_url=(
                    f"postgresql://mailgroup:{self.postgres.password}@127.0.0.1:{self.proxies['database'].port}/mailgroup"
                ),
                broker_url=self.rabbitmq.url.replace(f":{self.rabbitmq.ports[0]}/", f":{self.proxies['broker'].port}/"),
            )
            self.instance = Instance(with_free_ports(settings), say=lambda line: print(line, file=sys.stderr))
            with armed(self.orders, self.reached):
                await asyncio.to_thread(self.instance.__enter__)
            stack.push_async_callback(asyncio.to_thread, self.instance.__exit__, None, None, None)
            self.system = System(self.instance, self.provider, self.folder)
            await asyncio.to_thread(self._accounts)
            yield self

    def _make_database(self) -> None:
        self.postgres.create("mailgroup")
        with psycopg.connect(self.postgres.url, autocommit=True) as connection:
            connection.execute(_CLOCK)

    def _accounts(self) -> None:
        for address in CUSTOMERS:
            self.provider.add_mailbox(address, PASSWORD)
        server = {"host": "127.0.0.1", "tls": "none"}
        accounts = []
        for address, pop3, smtp in ((SUPPORT, "dovecot", "postfix"), (SALES, "pop3", "smtp")):
            accounts.append(
                self.system.external(
                    address,
                    pop3=server | {"port": self.proxies[pop3].port},
                    smtp=server | {"port": self.proxies[smtp].port, "connections": 4},
                )
            )
        accounts[1]["delete_after_days"] = 0
        for address in BY_IMAP:
            deletes = address == HELP and self.deletes_by_imap
            accounts.append(
                self.system.external_by_imap(
                    address,
                    sent=SENT,
                    imap={"port": self.proxies["imap"].port},
                    smtp=server | {"port": self.proxies["postfix"].port},
                    delete_after_days=0 if deletes else None,
                )
            )
        desk = self.system.external(
            DESK,
            imap=server | {"port": self.proxies["scripted imap"].port},
            smtp=server | {"port": self.proxies["postfix"].port},
            **({"delete_after_days": 0, "delete_history": True} if self.deletes_by_imap else {}),
        )
        del desk["pop3"]
        accounts.append(desk)
        people = [local(name, account) for account, names in SHARERS.items() for name in names]
        self.system.apply({"external_accounts": accounts, "local_accounts": people})

    # ------------------------------------------------------------------------------------------ accounts and mail

    def ask(self, sql: str, *parameters: object) -> list[tuple[object, ...]]:
        """Execute a statement in the database, without the proxy, and return its rows."""
        with psycopg.connect(self.postgres.url, autocommit=True, connect_timeout=5) as connection:
            cursor = connection.execute(sql.encode(), parameters)
            return cursor.fetchall() if cursor.description else []

    async def answering(self, answers: Callable[[], bool], seconds: float = 90.0) -> None:
        """Wait until a server answers."""
        async with asyncio.timeout(seconds):
            while not await asyncio.to_thread(answers):  # noqa: ASYNC110  # there is no event to wait for
                await asyncio.sleep(0.1)

    def count_at_provider(self, address: str) -> int:
        """Count the mails in the INBOX at the provider; some may be deleted meanwhile."""
        if address == DESK:
            return len(self.imap.mails)
        return len(list(self.provider.maildir(address).glob("[nc]*/*")))

    def filed(self, address: str) -> list[bytes]:
        """Return the copies of sent mail at the provider of an account that is fetched by IMAP."""
        return [path.read_bytes() for path in (self.provider.maildir(address) / f".{SENT}").glob("[nc]*/*")]

    def wipe_broker(self) -> None:
        """Delete all data of the RabbitMQ node, which must not run."""
        mnesia = self.rabbitmq.folder / "mnesia"
        shutil.rmtree(mnesia, ignore_errors=True)
        mnesia.mkdir()
        shutil.chown(mnesia, "rabbitmq", "rabbitmq")

    def kill(self, service: str, number: signal.Signals = signal.SIGKILL) -> bool:
        """Send a signal to a service. :return: False if the service does not run."""
        pid = self.instance.pids().get(service)
        if pid is None:
            return False
        try:
            os.kill(pid, number)
        except OSError as error:
            assert error.errno == errno.ESRCH
            return False
        return True


@contextmanager
def armed(orders: Path, reached: Path) -> Iterator[None]:
    """Let services that are started in the block wrap their steps. Creates both folders of steps.py."""
    orders.mkdir()
    reached.mkdir()
    inject = str(Path(__file__).parent / "inject")
    with patch.dict(os.environ, {"PYTHONPATH": inject, ORDERS: str(orders), REACHED: str(reached)}):
        yield
