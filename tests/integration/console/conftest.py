"""A console for all tests of a file, on a database of their own, and who looks at it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from shared.db.database import Database
from tests import console, servers
from tests.console import Browser


@pytest.fixture(scope="module")
def store(databases: servers.Databases) -> Iterator[str]:
    """The database."""
    with databases.fresh() as url:
        yield url


@pytest.fixture(scope="module")
def url(store: str) -> Iterator[str]:
    """Where the console is."""
    with console.running(store) as found:
        yield found


@pytest.fixture(scope="module")
def browser(url: str) -> Browser:
    """An administrator."""
    return console.signed_in(url)


@pytest.fixture
def observer(url: str) -> Browser:
    """Somebody who may look and change nothing."""
    word = "watches-only"
    console.signed_in(url).post("/users", {"do": "add", "name": "watcher", "role": "observer", "password": word})
    return console.signed_in(url, "watcher", word)


@pytest.fixture
async def database(store: str) -> AsyncIterator[Database]:
    """The database, opened for a test."""
    async with servers.opened(store) as opened:
        yield opened


@pytest.fixture
async def people(store: str) -> None:
    """The manual's company is there."""
    await console.make(store)
