"""services/smtp_in/receive_memory.py: memory for incoming mails, with a share for each account."""

from __future__ import annotations

import asyncio
import random

import pytest

from services.smtp_in.receive_memory import (
    ACCOUNT_OCTETS,
    LIMIT_OCTETS,
    SMALL_OCTETS,
    STEP_OCTETS,
    MailMemory,
    ReceiveMemory,
)

MIB = 1024 * 1024
LARGEST = 50 * MIB


def fill(mail: MailMemory, octets: int) -> int:
    """Grow a mail step by step, as it arrives, until it has so many octets or finds no room; returns its octets."""
    while mail.octets < octets and mail.try_grow(min(octets, mail.octets + STEP_OCTETS)):
        pass
    return mail.octets


def test_a_mail_reserves_what_has_arrived_and_not_more_than_a_step() -> None:
    memory = ReceiveMemory(LARGEST)
    mail = memory.open(1)
    assert memory.in_use == 0
    for octets, reserved in ((1000, 1000), (1000, 1000), (5000, 5000), (STEP_OCTETS + 1, 2 * STEP_OCTETS)):
        assert mail.try_grow(octets) and memory.in_use == reserved
    mail.close()
    mail.close()
    assert memory.in_use == 0 and not memory._by_account


def test_an_honest_large_mail_passes_while_a_user_holds_ten_slow_ones() -> None:
    memory = ReceiveMemory(LARGEST)
    held = sum(fill(memory.open(1), LARGEST) for _ in range(10))
    assert held <= LARGEST + ACCOUNT_OCTETS + STEP_OCTETS < LIMIT_OCTETS // 3
    assert fill(memory.open(2), LARGEST) == LARGEST


def test_small_mails_pass_while_many_accounts_hold_large_ones() -> None:
    memory = ReceiveMemory(LARGEST)
    for account in range(10):
        for _ in range(3):
            fill(memory.open(account), LARGEST)
    assert fill(memory.open(99), SMALL_OCTETS) == SMALL_OCTETS
    assert memory.in_use <= LIMIT_OCTETS


def test_a_mail_of_the_largest_size_passes_whatever_the_limit_is() -> None:
    memory = ReceiveMemory(LARGEST, limit_octets=1)
    assert fill(memory.open(1), LARGEST) == LARGEST


async def receive(memory: ReceiveMemory, account: int, octets: int, finished: list[int], number: int) -> None:
    mail = memory.open(account)
    try:
        while mail.octets < octets:
            assert await mail.grow(min(octets, mail.octets + STEP_OCTETS), 600)
            await asyncio.sleep(0)
        finished.append(number)
    finally:
        mail.close()


@pytest.mark.parametrize(("accounts", "limit"), [(1, 120), (1, 384), (3, 120), (3, 300), (12, 120)])
async def test_large_mails_at_once_never_block_each_other_for_good(accounts: int, limit: int) -> None:
    # given room for a part of them, or for the share of their account
    memory = ReceiveMemory(LARGEST, limit_octets=limit * MIB)
    finished: list[int] = []

    async with asyncio.timeout(300):
        await asyncio.gather(*(receive(memory, n % accounts, LARGEST, finished, n) for n in range(12)))

    assert sorted(finished) == list(range(12))
    assert memory.in_use == memory._shared_in_use == 0 and memory._lane_mail is None and not memory._waiting


async def test_the_first_mail_that_waits_gets_the_lane() -> None:
    memory = ReceiveMemory(LARGEST, limit_octets=1)
    first, second = memory.open(1), memory.open(2)
    assert fill(first, 10 * MIB) == 10 * MIB  # in the lane
    waiting = [asyncio.create_task(mail.grow(2 * MIB, 600)) for mail in (second, memory.open(3))]
    await asyncio.sleep(0)
    assert fill(first, LARGEST) == LARGEST and not waiting[0].done()
    first.close()
    assert await waiting[0]
    await asyncio.sleep(0)
    assert not waiting[1].done()
    second.close()
    assert await waiting[1]


async def test_a_wait_that_ends_without_room_reserves_nothing() -> None:
    memory = ReceiveMemory(LARGEST, limit_octets=1)
    first, second, third = memory.open(1), memory.open(2), memory.open(3)
    fill(first, LARGEST)
    assert not await second.grow(2 * MIB, 0.01)
    # also when it is cancelled at the moment in which memory is released
    late = asyncio.create_task(third.grow(2 * MIB, 600))
    await asyncio.sleep(0)
    first.close()
    late.cancel()
    await asyncio.gather(late, return_exceptions=True)
    for mail in (second, third):
        mail.close()
    assert memory.in_use == memory._shared_in_use == 0 and memory._lane_mail is None and not memory._waiting


async def test_whatever_order_mails_come_in_the_counts_are_right() -> None:
    noise = random.Random(1)
    memory = ReceiveMemory(8 * MIB, limit_octets=64 * MIB)
    open_mails: list[MailMemory] = []
    for _ in range(5000):
        if open_mails and noise.random() < 0.3:
            open_mails.pop(noise.randrange(len(open_mails))).close()
        elif noise.random() < 0.3:
            open_mails.append(memory.open(noise.randrange(4)))
        elif open_mails:
            mail = noise.choice(open_mails)
            mail.try_grow(min(8 * MIB, mail.octets + noise.randrange(2 * MIB)))
        assert memory.in_use == sum(mail.octets for mail in open_mails) <= 64 * MIB
        assert memory._shared_in_use == sum(mail.shared_octets for mail in open_mails)
