"""A console for all tests of a file, on their own database, and signed-in browsers."""

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
    """The URL of the console."""
    with console.running(store) as found:
        yield found


@pytest.fixture(scope="module")
def browser(url: str) -> Browser:
    """A browser of an administrator."""
    return console.signed_in(url)


@pytest.fixture
def observer(url: str) -> Browser:
    """A browser of an observer, who reads and changes nothing."""
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
    """Creates the accounts of the manual's company."""
    await console.make(store)
