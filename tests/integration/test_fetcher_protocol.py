"""An account that changes from POP3 to IMAP and back, at a real Dovecot: no mail is lost, none comes twice."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from typing import Any

import pytest

from deploy.machine.dovecot_postfix import DemoProvider
from services.admin.accounts.apply import apply
from services.admin.accounts.file_format import check
from shared.auth.passwords import HashingPool
from shared.store import accounts
from tests.fetcher_harness import FetcherHarness, fetching, mail, polls_well
from tests.polling import until

BEFORE = "Thu, 01 Oct 2020 10:00:00 +0000"
_names = itertools.count()


@pytest.fixture
async def harness(database_url: str) -> AsyncIterator[FetcherHarness]:
    async with fetching(database_url, max_message_bytes=1_000_000) as running:
        yield running


class Mailbox:
    """A mailbox at the provider, and its account, which the console's functions change as people do."""

    def __init__(self, harness: FetcherHarness, provider: DemoProvider) -> None:
        self.address = f"box{next(_names)}@change.test"
        self.id = 0
        self._harness, self._provider = harness, provider
        provider.add_mailbox(self.address, "secret")

    def put(self, *subjects: str, received: str | None = None) -> None:
        for subject in subjects:
            self._provider.put(self.address, mail(subject, received=received))

    async def fetch_by(self, protocol: str, **fields: Any) -> None:
        """Save the account with this protocol; wait for a poll with it."""
        port = self._provider.imap_port if protocol == "imap" else self._provider.pop3_port
        server = {"host": self._provider.host, "port": port, "tls": "none"}
        entry = {"address": self.address, "password": "secret", "smtp": server, "poll_seconds": 1, protocol: server}
        wanted = check({"external_accounts": [entry | fields]})
        async with self._harness.database.transaction() as connection:
            await apply(connection, wanted, self._harness.vault, HashingPool())
            [account] = [each for each in await accounts.load_externals(connection) if each.address == self.address]
        self.id = account.id
        await until(lambda: polls_well(self._harness, self.id))
        await self.poll()

    async def poll(self) -> None:
        state = await self._harness.poll(self.id)
        assert (state.last_error, state.backlog) == (None, 0)

    async def subjects(self) -> list[str]:
        """The subjects of what was fetched, sorted: the order of folders and protocols may differ."""
        return sorted(await self._harness.subjects(self.id))


@pytest.fixture
def box(harness: FetcherHarness, provider: DemoProvider) -> Mailbox:
    return Mailbox(harness, provider)


@pytest.mark.parametrize("history", ["all", "from_now"])
@pytest.mark.parametrize(("first", "second"), [("pop3", "imap"), ("imap", "pop3")])
async def test_a_change_of_the_protocol_loses_and_repeats_nothing(
    harness: FetcherHarness, box: Mailbox, first: str, second: str, history: str
) -> None:
    # given mail from before the first contact, and mail that was fetched by one protocol
    box.put("old a", "old b", received=BEFORE)
    await box.fetch_by(first, history=history)
    box.put("one", "two")
    await box.poll()
    old = ["old a", "old b"] if history == "all" else []
    assert await box.subjects() == sorted([*old, "one", "two"])
    # when mail comes before the account is changed to the other protocol
    box.put("between")
    await box.fetch_by(second, history=history)
    # then that comes, and nothing else
    assert await box.subjects() == sorted([*old, "one", "two", "between"])
    box.put("three")
    await box.poll()
    # and so it is on the way back
    box.put("between again")
    await box.fetch_by(first, history=history)
    every = sorted([*old, "one", "two", "between", "three", "between again"])
    assert await box.subjects() == every
    await box.poll()
    assert await box.subjects() == every
    # and every mail has one row in the ledger
    states = await harness.states(box.id)
    assert states == {"fetched": len(every)} | ({"history": 2} if history == "from_now" else {})


async def test_after_a_change_only_fetched_mail_is_deleted_at_the_provider(
    harness: FetcherHarness, box: Mailbox, provider: DemoProvider
) -> None:
    # given mail from before the first contact, and fetched mail that stays at the provider
    box.put("old", received=BEFORE)
    await box.fetch_by("pop3", history="from_now")
    box.put("one")
    await box.poll()
    # when the account is fetched by IMAP and deletes what was fetched a day ago
    await box.fetch_by("imap", history="from_now", delete_after_days=1)
    box.put("second")
    await box.poll()
    await harness.rows(
        "update uidl_ledger set fetched_at = fetched_at - interval '2 days' where external_id = %s and octets = %s",
        box.id,
        len(mail("one")),
    )
    await box.poll()
    await box.poll()
    # then the mail of that age is gone there, the others stay
    left = sorted(line for each in provider.mail_of(box.address) for line in each.splitlines() if b"Subject" in line)
    assert left == [b"Subject: old", b"Subject: second"]
    assert await box.subjects() == ["one", "second"]


async def test_an_interrupted_deletion_is_done_by_the_other_protocol(
    harness: FetcherHarness, box: Mailbox, provider: DemoProvider
) -> None:
    # given a mail whose deletion by POP3 was committed, and never took effect
    await box.fetch_by("pop3")
    box.put("one")
    await box.poll()
    await harness.rows("update uidl_ledger set state = 'deleting' where external_id = %s", box.id)
    # when the account is fetched by IMAP, and deletes what it has fetched
    await box.fetch_by("imap", delete_after_days=0)

    async def closed() -> bool:
        return await harness.states(box.id) == {"closed": 1}

    # then the mail is known, deleted, and delivered once
    await until(closed)
    assert provider.mail_of(box.address) == [] and await box.subjects() == ["one"]
