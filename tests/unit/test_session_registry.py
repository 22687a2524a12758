"""shared/auth/session_registry.py: limits of connections and sessions, and the end of sessions of changed accounts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from prometheus_client import Gauge

from shared.auth.session_registry import SessionRegistry
from shared.errors import Temporary
from shared.model import Local
from shared.settings import Settings
from shared.store import accounts
from tests.polling import until

ALEX = Local(1, "alex@local.com", True, "hash", "Alex", (), (), 1, None)
KIM = Local(2, "kim@local.com", True, "other hash", "Kim", (), (), 1, None)


class Connection:
    """A connection without a socket."""

    def __init__(self, peer: str = "192.0.2.1") -> None:
        self.peer = peer
        self.account: Local | None = None
        self.ended = 0

    def on_account_changed(self) -> None:
        self.ended += 1


@pytest.fixture
def registry() -> SessionRegistry[Connection]:
    settings = Settings(max_connections_per_address=2, max_connections_per_account=2)
    return SessionRegistry("test", Gauge("open_connections", "For the test.", registry=None), settings, 3)


def test_connections_are_limited_per_network_and_in_all(registry: SessionRegistry[Connection]) -> None:
    here = [Connection() for _ in range(3)]
    assert [registry.admit(each) for each in here] == [True, True, False]
    assert registry.admit(Connection("198.51.100.7")) and not registry.admit(Connection("203.0.113.9"))
    assert registry._gauge._value.get() == 3
    registry.remove(here[0])
    assert registry.admit(here[2])


def test_clients_of_one_ipv6_network_count_together(registry: SessionRegistry[Connection]) -> None:
    assert [registry.admit(Connection(f"2001:db8::{number}")) for number in (1, 2, 3)] == [True, True, False]
    assert registry.admit(Connection("2001:db8:0:1::1"))


def test_sessions_are_limited_per_account_a_new_login_replaces_the_first(
    registry: SessionRegistry[Connection],
) -> None:
    first, second, third = (Connection(f"192.0.2.{number}") for number in (1, 2, 3))
    for each in (first, second, third):
        assert registry.admit(each)
    assert registry.register_session(first, ALEX) and registry.register_session(second, ALEX)
    assert registry.register_session(first, ALEX)
    assert not registry.register_session(third, ALEX) and registry.register_session(third, KIM)
    registry.remove(first)
    assert registry.register_session(third, ALEX)
    registry.remove(second)
    registry.remove(third)
    assert not registry._by_account and not registry._by_network and registry._gauge._value.get() == 0


def test_a_login_that_ends_after_its_connection_is_no_session(registry: SessionRegistry[Connection]) -> None:
    gone = Connection()
    assert registry.admit(gone)
    registry.remove(gone)
    assert not registry.register_session(gone, ALEX)
    assert not registry._by_account and not registry._accounts


async def test_checks_of_the_logins_go_on_after_any_failure(
    registry: SessionRegistry[Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Answers:
        """A database of which the first answers are no logins."""

        @asynccontextmanager
        async def transaction(self, seconds: float) -> AsyncIterator[None]:
            yield

    failures: list[Exception] = [Temporary("the database is away"), ValueError("a defect")]

    async def valid_logins(connection: object, logins: set[tuple[int, str]]) -> set[tuple[int, str]]:
        if failures:
            raise failures.pop()
        return set()

    monkeypatch.setattr(accounts, "valid_logins", valid_logins)
    alex = Connection()
    alex.account = ALEX
    assert registry.admit(alex)
    checks = asyncio.create_task(registry.end_invalid_sessions(cast(Any, Answers()), 0.01))
    await until(lambda: alex.ended)
    assert not failures and not checks.done()
    checks.cancel()


def test_closed_is_set_while_no_connection_is_open(registry: SessionRegistry[Connection]) -> None:
    first, second = Connection(), Connection()
    assert registry.closed.is_set()
    assert registry.admit(first) and registry.admit(second)
    registry.remove(first)
    assert not registry.closed.is_set()
    registry.remove(second)
    assert registry.closed.is_set()


def test_only_sessions_with_an_invalid_login_end(registry: SessionRegistry[Connection]) -> None:
    alex, kim, nobody = (Connection(f"192.0.2.{number}") for number in (1, 2, 3))
    alex.account, kim.account = ALEX, KIM
    for each in (alex, kim, nobody):
        assert registry.admit(each)
    assert registry.logins() == {(1, "hash"), (2, "other hash")}
    registry.end_sessions({(1, "hash"), (2, "another hash")})
    assert [each.ended for each in (alex, kim, nobody)] == [1, 0, 0]
