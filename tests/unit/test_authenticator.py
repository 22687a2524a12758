"""shared/auth/throttle.py, shared/auth/passwords.py and the pure parts of shared/auth/authenticator.py."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence

import pytest

from shared.auth import passwords, throttle
from shared.auth.authenticator import plaintext_allowed
from shared.auth.passwords import HashingPool, Priority
from shared.auth.throttle import BURST, Throttle, network_of
from shared.settings import load

FAST = 0.05


@pytest.fixture
def brakes(monkeypatch: pytest.MonkeyPatch) -> Throttle:
    """A throttle twenty-five times as fast as the real one."""
    monkeypatch.setattr(throttle, "SECONDS_A_TOKEN", FAST)
    return Throttle(time.monotonic)


async def guess(brakes: Throttle, network: str, account: str, seconds: float = 30.0) -> None:
    """One wrong password."""
    await brakes.acquire(network, account, seconds)
    brakes.record_failure(network, account)


async def guess_for(brakes: Throttle, seconds: float, clients: int, network: str, account: str) -> int:
    """Guess over so many connections at once; how many guesses were checked."""
    checked = 0

    async def attack() -> None:
        nonlocal checked
        while True:
            await guess(brakes, network, account)
            checked += 1

    attackers = [asyncio.create_task(attack()) for _ in range(clients)]
    await asyncio.sleep(seconds)
    for attacker in attackers:
        attacker.cancel()
    await asyncio.gather(*attackers, return_exceptions=True)
    return checked


def test_pop3_and_smtp_together_allow_less_than_three_guesses_a_second() -> None:
    seconds = 6

    assert 2 * (BURST + seconds / throttle.SECONDS_A_TOKEN) / seconds < 3


async def test_many_connections_guess_no_faster_than_one(brakes: Throttle) -> None:
    checked = await guess_for(brakes, 1.0, 50, "192.0.2.1", "alex")

    assert checked <= BURST + 1.0 / FAST + 1
    assert checked >= BURST + 5  # an honest client is not locked out either


async def test_guessing_many_accounts_is_no_faster(brakes: Throttle) -> None:
    checked = await asyncio.gather(*(guess_for(brakes, 1.0, 3, "192.0.2.1", f"user{i}") for i in range(10)))

    assert sum(checked) <= BURST + 1.0 / FAST + 1


async def test_guessing_from_many_addresses_is_no_faster(brakes: Throttle) -> None:
    checked = await asyncio.gather(*(guess_for(brakes, 1.0, 2, f"192.0.2.{i}", "alex") for i in range(20)))

    assert sum(checked) <= BURST + 1.0 / FAST + 1


@pytest.mark.parametrize(
    ("network", "account"),
    [
        ("192.0.2.1", "jim"),  # behind the same NAT
        ("198.51.100.7", "alex"),  # the account that is attacked, from elsewhere
        ("198.51.100.7", "jim"),
    ],
)
async def test_an_honest_client_passes_beside_an_attacker(brakes: Throttle, network: str, account: str) -> None:
    attack = asyncio.create_task(guess_for(brakes, 30.0, 50, "192.0.2.1", "alex"))
    await asyncio.sleep(0.3)

    started = time.monotonic()
    await brakes.acquire(network, account, 5.0)
    waited = time.monotonic() - started

    assert waited < 5 * FAST
    attack.cancel()
    await asyncio.gather(attack, return_exceptions=True)


async def test_right_passwords_cost_nothing(brakes: Throttle) -> None:
    started = time.monotonic()
    for number in range(200):
        await brakes.acquire("192.0.2.1", f"user{number}", 1.0)
        brakes.record_success("192.0.2.1", f"user{number}")

    assert time.monotonic() - started < 20  # at the price of a wrong one it would be minutes


async def test_a_login_that_waits_in_vain_takes_no_token(brakes: Throttle) -> None:
    for _ in range(BURST):
        await guess(brakes, "192.0.2.1", "alex")

    with pytest.raises(TimeoutError):
        await brakes.acquire("192.0.2.1", "alex", FAST / 5)

    await brakes.acquire("192.0.2.1", "alex", 3 * FAST)


async def test_a_client_that_disconnects_while_waiting_takes_no_token(brakes: Throttle) -> None:
    for _ in range(BURST):
        await guess(brakes, "192.0.2.1", "alex")
    waiting = [asyncio.create_task(brakes.acquire("192.0.2.1", "alex", 30.0)) for _ in range(50)]
    await asyncio.sleep(0)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)

    await brakes.acquire("192.0.2.1", "alex", 3 * FAST)


@pytest.mark.parametrize(
    ("peer", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_a_client_counts_by_address_or_by_its_ipv6_network(peer: str, network: str) -> None:
    assert network_of(peer) == network


@pytest.mark.parametrize(
    ("peer", "private"),
    [
        ("192.168.1.5", True),
        ("10.1.2.3", True),
        ("172.16.0.1", True),
        ("127.0.0.1", True),
        ("::1", True),
        ("fe80::1%eth0", True),
        ("fd00::1", True),
        ("::ffff:10.0.0.1", True),
        ("169.254.1.1", True),
        ("8.8.8.8", False),
        ("172.32.0.1", False),
        ("192.0.2.1", False),
        ("100.64.0.1", False),
        ("2001:4860:4860::8888", False),
        ("::ffff:8.8.8.8", False),
        ("", False),
        ("nonsense", False),
    ],
)
def test_passwords_in_clear_are_allowed_for_private_addresses_alone(peer: str, private: bool) -> None:
    assert plaintext_allowed(load(allow_plaintext_auth="auto"), peer) is private
    assert plaintext_allowed(load(allow_plaintext_auth="yes"), peer)
    assert not plaintext_allowed(load(allow_plaintext_auth="no"), peer)


def test_a_hash_is_argon2id_with_the_parameters_of_the_design() -> None:
    stored = passwords.hash_password("secret")

    assert stored.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert passwords.matches(stored, "secret") and not passwords.matches(stored, "Secret")
    assert not passwords.matches("secret", "secret")


async def test_an_unknown_user_costs_the_same() -> None:
    pool = passwords.HashingPool()
    stored = passwords.hash_password("secret")
    await pool.matches(None, "x")

    async def seconds(hash_: str | None) -> float:  # processor time of this process alone
        times = []
        for _ in range(5):
            started = time.process_time()
            assert not await pool.matches(hash_, "wrong")
            times.append(time.process_time() - started)
        return min(times)

    known, unknown = await seconds(stored), await seconds(None)

    assert 0.5 < known / unknown < 2
    pool.close()


async def test_checks_of_passwords_do_not_block_the_event_loop() -> None:
    pool = passwords.HashingPool()
    stored = passwords.hash_password("secret")
    checks = asyncio.gather(*(pool.matches(stored, "secret") for _ in range(10)))

    turns = 0
    while not checks.done():
        await asyncio.sleep(0.001)
        turns += 1

    assert all(await checks)
    assert turns > 20  # on the loop, each check would take one turn
    pool.close()


async def order_of_checks(
    monkeypatch: pytest.MonkeyPatch, clients: Sequence[tuple[str, Priority]], leaves: Sequence[str] = ()
) -> list[str]:
    """Return the order in which one thread checks the passwords of clients that arrive during another check."""
    free, checked = threading.Event(), list[str]()

    def check(_: str, password: str) -> bool:
        if password != "the first":
            checked.append(password)
        return free.wait(60)

    monkeypatch.setattr(passwords, "matches", check)
    pool = HashingPool(threads=1)
    tasks = {}
    for name, rank in (("the first", (0,)), *clients):
        tasks[name] = asyncio.create_task(pool.matches(None, name, rank))
        await asyncio.sleep(0)
    for name in leaves:
        tasks[name].cancel()
    free.set()
    await asyncio.gather(*tasks.values(), return_exceptions=True)
    await asyncio.wait_for(pool.matches(None, "the first"), 60)  # no cancelled login has kept the thread
    pool.close()
    return checked


async def test_clients_without_failures_are_checked_first(monkeypatch: pytest.MonkeyPatch) -> None:
    clients = [("failed often", (7, False)), ("failed once", (1, False)), ("leaves", (0, False)), ("new", (0, False))]
    assert await order_of_checks(monkeypatch, clients, leaves=["leaves"]) == ["new", "failed once", "failed often"]


async def test_a_crowd_of_unknown_clients_does_not_delay_a_later_client(monkeypatch: pytest.MonkeyPatch) -> None:
    crowd = [(f"guess {number}", (0, True)) for number in range(150)]
    checked = await order_of_checks(monkeypatch, [*crowd, ("never seen", (0, True))])
    assert checked[0] == "never seen" and len(checked) == 151


async def test_known_clients_and_those_of_the_lan_precede_a_crowd(monkeypatch: pytest.MonkeyPatch) -> None:
    known, lan = ("known", (-1, True)), ("of the LAN", (0, False))
    crowd = [(f"guess {number}", (0, True)) for number in range(150)]
    checked = await order_of_checks(monkeypatch, [lan, known, *crowd])
    assert checked[:3] == ["known", "of the LAN", "guess 149"]


async def test_an_unknown_user_s_password_costs_a_hash_of_the_same_kind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    against = list[str]()

    def check(stored: str, _: str) -> bool:
        against.append(stored)
        return True

    monkeypatch.setattr(passwords, "matches", check)
    pool = HashingPool()
    assert not await pool.matches(None, "secret")
    assert against[0].rsplit("$", 2)[0] == passwords.hash_password("secret").rsplit("$", 2)[0]
    pool.close()


async def in_order(brakes: Throttle, lanes: Sequence[tuple[str, str]]) -> tuple[list[str], list[str]]:
    """Return the networks of clients that get a token at once, and of those that get a later one, in order."""
    served = list[str]()

    async def come(network: str, account: str) -> None:
        await brakes.acquire(network, account, 60)
        served.append(network)

    async def settle() -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    tasks = []
    for lane in lanes:
        tasks.append(asyncio.create_task(come(*lane)))
        await settle()
    at_once, accounts = list(served), dict(lanes)
    for _ in range(2 * len(lanes)):
        for network in served:
            if network in accounts:
                brakes.release(network, accounts.pop(network))
        await settle()
    await asyncio.wait_for(asyncio.gather(*tasks), 60)
    return at_once, served[len(at_once) :]


async def test_guesses_from_elsewhere_leave_a_token_for_a_known_client() -> None:
    # given a known client, and guesses at its account from many addresses; the clock does not advance
    brakes = Throttle(lambda: 0.0)
    brakes.mark_trusted("192.0.2.1", "alex")
    brakes.record_failure("198.51.100.7", "alex")
    crowd = [(f"198.51.100.{number}", "alex") for number in range(10)]
    # when the known client logs in, and then an unknown one
    at_once, later = await in_order(brakes, [*crowd, ("192.0.2.1", "alex"), ("203.0.113.1", "alex")])
    # then the known client does not wait, the unknown one is next, and those that failed are last
    assert at_once == ["198.51.100.0", "192.0.2.1"]
    assert later[0] == "203.0.113.1" and later[-1] == "198.51.100.7" and len(later) == 10


async def test_guesses_from_the_same_address_leave_a_known_client_a_token() -> None:
    brakes = Throttle(lambda: 0.0)
    brakes.mark_trusted("192.0.2.1", "alex")
    await brakes.acquire("192.0.2.1", "jim", 60)
    waiting = [asyncio.create_task(brakes.acquire("192.0.2.1", f"user{number}", 60)) for number in range(10)]
    await asyncio.sleep(0)
    await asyncio.wait_for(brakes.acquire("192.0.2.1", "alex", 60), 60)
    assert not any(task.done() for task in waiting)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_a_known_client_that_fails_counts_as_unknown() -> None:
    brakes = Throttle(lambda: 0.0)
    brakes.mark_trusted("192.0.2.1", "alex")
    assert brakes.priority("192.0.2.1", "alex") == brakes.penalty("192.0.2.1", "alex") == -1
    brakes.record_failure("192.0.2.1", "jim")
    assert brakes.penalty("192.0.2.1", "alex") == -1  # while another client guesses
    brakes.record_failure("192.0.2.1", "alex")
    assert brakes.priority("192.0.2.1", "alex") == 1


def test_guesses_at_many_accounts_from_one_address_add_up() -> None:
    brakes = Throttle(lambda: 0.0)
    for number in range(3):
        brakes.record_failure("192.0.2.1", f"account {number}")
    assert brakes.penalty("192.0.2.1", "another") == 3
    assert brakes.penalty("192.0.2.2", "account 1") == 0
    assert brakes.failures("192.0.2.1", "another") == 0  # an honest client does not wait longer for a token


async def test_a_client_seen_before_precedes_a_crowd_of_unknown_ones(brakes: Throttle) -> None:
    # given a client with an earlier login, and guesses at the account from a hundred addresses
    await brakes.acquire("192.0.2.1", "alex", 10)
    brakes.record_success("192.0.2.1", "alex")
    crowd = [asyncio.create_task(guess(brakes, f"198.51.100.{number}", "alex")) for number in range(100)]
    await asyncio.sleep(FAST)
    # when that client logs in again
    before = sum(task.done() for task in crowd)
    await brakes.acquire("192.0.2.1", "alex", 10)
    # then it is the next
    assert sum(task.done() for task in crowd) - before < 10  # behind the crowd it would wait for a hundred tokens
    for task in crowd:
        task.cancel()
    await asyncio.gather(*crowd, return_exceptions=True)
