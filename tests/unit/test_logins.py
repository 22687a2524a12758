"""shared/throttle.py, shared/passwords.py and the pure parts of shared/logins.py."""

from __future__ import annotations

import asyncio
import time

import pytest

from shared import passwords, throttle
from shared.logins import plaintext_allowed
from shared.passwords import Pool
from shared.settings import load
from shared.throttle import BURST, Throttle, network_of

FAST = 0.05


@pytest.fixture
def brakes(monkeypatch: pytest.MonkeyPatch) -> Throttle:
    """A throttle twenty-five times as fast as the real one."""
    monkeypatch.setattr(throttle, "SECONDS_A_TOKEN", FAST)
    return Throttle(time.monotonic)


async def guess(brakes: Throttle, network: str, account: str, seconds: float = 30.0) -> None:
    """One wrong password."""
    await brakes.enter(network, account, seconds)
    brakes.fail(network, account)


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
    assert checked >= BURST + 5  # nobody is locked out either


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
    await brakes.enter(network, account, 5.0)
    waited = time.monotonic() - started

    assert waited < 5 * FAST
    attack.cancel()
    await asyncio.gather(attack, return_exceptions=True)


async def test_right_passwords_cost_nothing(brakes: Throttle) -> None:
    started = time.monotonic()
    for number in range(200):
        await brakes.enter("192.0.2.1", f"user{number}", 1.0)
        brakes.succeed("192.0.2.1", f"user{number}")

    assert time.monotonic() - started < 20  # at the price of a wrong one it would be minutes


async def test_who_waits_in_vain_takes_nothing(brakes: Throttle) -> None:
    for _ in range(BURST):
        await guess(brakes, "192.0.2.1", "alex")

    with pytest.raises(TimeoutError):
        await brakes.enter("192.0.2.1", "alex", FAST / 5)

    await brakes.enter("192.0.2.1", "alex", 3 * FAST)


async def test_a_client_that_goes_away_while_waiting_takes_nothing(brakes: Throttle) -> None:
    for _ in range(BURST):
        await guess(brakes, "192.0.2.1", "alex")
    waiting = [asyncio.create_task(brakes.enter("192.0.2.1", "alex", 30.0)) for _ in range(50)]
    await asyncio.sleep(0)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)

    await brakes.enter("192.0.2.1", "alex", 3 * FAST)


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
def test_passwords_in_clear_are_for_private_addresses(peer: str, private: bool) -> None:
    assert plaintext_allowed(load(allow_plaintext_auth="auto"), peer) is private
    assert plaintext_allowed(load(allow_plaintext_auth="yes"), peer)
    assert not plaintext_allowed(load(allow_plaintext_auth="no"), peer)


def test_a_hash_is_argon2id_with_the_parameters_of_the_design() -> None:
    stored = passwords.hash_password("secret")

    assert stored.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert passwords.matches(stored, "secret") and not passwords.matches(stored, "Secret")
    assert not passwords.matches("secret", "secret")


async def test_an_unknown_user_costs_the_same() -> None:
    pool = passwords.Pool()
    stored = passwords.hash_password("secret")
    await pool.matches(None, "x")

    async def seconds(hash_: str | None) -> float:
        times = []
        for _ in range(5):
            started = time.perf_counter()
            assert not await pool.matches(hash_, "wrong")
            times.append(time.perf_counter() - started)
        return min(times)

    known, unknown = await seconds(stored), await seconds(None)

    assert 0.5 < known / unknown < 2
    pool.close()


async def test_checks_do_not_hold_up_the_loop() -> None:
    pool = passwords.Pool()
    stored = passwords.hash_password("secret")
    checks = asyncio.gather(*(pool.matches(stored, "secret") for _ in range(10)))

    turns = 0
    while not checks.done():
        await asyncio.sleep(0.001)
        turns += 1

    assert all(await checks)
    assert turns > 20  # on the loop, each check would take one turn
    pool.close()


async def test_who_has_not_failed_is_checked_before_those_who_have() -> None:
    # given a pool that is busy, with guesses from many addresses waiting
    pool, done = Pool(threads=1), list[str]()

    async def check(name: str, rank: int) -> None:
        await pool.matches(None, name, rank)
        done.append(name)

    tasks = [asyncio.create_task(check(f"guess {number}", 1)) for number in range(5)]
    await asyncio.sleep(0)
    # when an honest client comes, and one of the guessers leaves
    tasks.append(asyncio.create_task(check("honest", 0)))
    await asyncio.sleep(0)
    tasks[4].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    # then it waits for the one that is being checked, at most
    assert done.index("honest") <= 1 and len(done) == 5
    await asyncio.wait_for(pool.matches(None, "later"), 10)
    pool.close()


def test_guesses_at_many_accounts_from_one_address_add_up() -> None:
    brakes = Throttle(lambda: 0.0)
    for number in range(3):
        brakes.fail("192.0.2.1", f"account {number}")
    assert brakes.suspicion("192.0.2.1", "another") == 3
    assert brakes.suspicion("192.0.2.2", "account 1") == 0
    assert brakes.failures("192.0.2.1", "another") == 0  # who is honest beside it waits no longer for a token


async def test_who_came_in_from_there_before_goes_before_a_crowd_of_strangers(brakes: Throttle) -> None:
    # given somebody who was here before, and guesses at the account from a hundred addresses
    await brakes.enter("192.0.2.1", "alex", 10)
    brakes.succeed("192.0.2.1", "alex")
    crowd = [asyncio.create_task(guess(brakes, f"198.51.100.{number}", "alex")) for number in range(100)]
    await asyncio.sleep(FAST)
    # when the one comes again
    started = time.monotonic()
    await brakes.enter("192.0.2.1", "alex", 10)
    # then it is the next
    assert time.monotonic() - started < 10 * FAST  # behind the crowd it would wait for a hundred tokens
    for task in crowd:
        task.cancel()
    await asyncio.gather(*crowd, return_exceptions=True)
