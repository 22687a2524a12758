"""Fixtures for all tests. A server is started when the first test asks for it and stopped with the session."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import structlog

from deploy.machine.dovecot_postfix import DemoProvider
from deploy.machine.postgres import Postgres
from deploy.machine.rabbitmq import RabbitMQ
from shared.db.database import Database
from shared.languages import translation
from tests import servers
from tests.marked_language import write_marked_language

# A slow machine is no fault: how long a single example takes says nothing while another test has the core.
hypothesis.settings.register_profile("mailgroup", deadline=None)
hypothesis.settings.load_profile("mailgroup")

_configure = structlog.configure


def _configure_anew(*given: Any, **wanted: Any) -> None:
    """Loggers that are kept after their first use would not hear that a later test listens to the log."""
    _configure(*given, **wanted | {"cache_logger_on_first_use": False})


structlog.configure = _configure_anew
_AT_THE_START = structlog.get_config()


@pytest.fixture(autouse=True)
def log_as_at_the_start() -> None:
    """A command that runs in this process, for a test or a fixture, silences the log; each test is to hear it again."""
    structlog.configure(**_AT_THE_START)


@pytest.fixture
def marked_language(tmp_path: Path) -> Iterator[None]:
    """Pages and mails may be in Esperanto, the language of ``tests/marked_language.py``."""
    write_marked_language(tmp_path)
    translation.use_folder(tmp_path)
    yield
    translation.use_folder(translation.HERE)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """The PostgreSQL of the session."""
    with servers.postgres() as server:
        yield server


@pytest.fixture(scope="session")
def databases(postgres: Postgres) -> servers.Databases:
    """Where fresh databases come from."""
    return servers.Databases(postgres)


@pytest.fixture
def database_url(databases: servers.Databases) -> Iterator[str]:
    """The URL of a fresh, migrated database."""
    with databases.fresh() as url:
        yield url


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A fresh, migrated database, opened."""
    async with servers.opened(database_url) as opened:
        yield opened


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[RabbitMQ]:
    """The RabbitMQ of the session."""
    with servers.rabbitmq() as server:
        yield server


@pytest.fixture(scope="session")
def vhosts(rabbitmq: RabbitMQ) -> servers.Vhosts:
    """Where fresh virtual hosts come from."""
    return servers.Vhosts(rabbitmq)


@pytest.fixture
def broker_url(vhosts: servers.Vhosts) -> str:
    """The URL of a fresh virtual host without exchanges and queues of ours."""
    return vhosts.fresh()


@pytest.fixture(scope="session")
def provider() -> Iterator[DemoProvider]:
    """The provider of the session, without mailboxes: a test adds its own, under addresses that no other test uses."""
    with servers.scratch() as folder, DemoProvider(folder) as running:
        yield running
