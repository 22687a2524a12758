"""The fetcher against a real PostgreSQL and a real Dovecot: mails fetched, left and deleted, and failures."""

from __future__ import annotations

import asyncio
import email
import email.policy
import itertools
from collections.abc import AsyncIterator, Callable

import pytest

from deploy.machine.dovecot_postfix import DemoProvider
from services.fetcher import committer, scheduler
from shared.amqp.payloads import FetchedItem, read_payload
from shared.db.database import Connection
from shared.model import LedgerEntry
from shared.store import polls, uidl_ledger
from tests.fetcher_harness import FetcherHarness, fails, fetching, has, is_quiet, mail, polls_well
from tests.polling import until

_names = itertools.count(1)


@pytest.fixture
async def harness(database_url: str) -> AsyncIterator[FetcherHarness]:
    async with fetching(database_url) as running:
        yield running


@pytest.fixture
def box(provider: DemoProvider) -> str:
    """A fresh mailbox at the provider, password 'secret'."""
    address = f"box{next(_names)}@fetch.test"
    provider.add_mailbox(address, "secret")
    return address


def lying(provider: DemoProvider, address: str) -> int:
    return len(provider.mail_of(address))


# ---------------------------------------------------------------------------------------------- fetching


@pytest.mark.parametrize("tls", ["none", "starttls", "implicit"])
async def test_mail_is_fetched_once_in_each_tls_mode_and_stays_upstream(
    harness: FetcherHarness, provider: DemoProvider, box: str, tls: str
) -> None:
    # given two mails, one with a dot line and a Message-ID
    provider.put(box, mail("one", ".\r\n..dots"))
    provider.put(box, b"Message-ID: <a@b>\r\n" + mail("two"))
    # when the account is polled twice
    account = await harness.add(
        box,
        provider.pop3s_port if tls == "implicit" else provider.pop3_port,
        pop3_tls=tls,
        pop3_tls_fingerprint=None if tls == "none" else provider.fingerprint,
    )
    await until(lambda: polls_well(harness, account))
    polled = await harness.poll(account)
    # then each is here once, byte for byte, and still there
    assert await harness.bodies(account) == [mail("one", ".\r\n..dots"), b"Message-ID: <a@b>\r\n" + mail("two")]
    assert await harness.states(account) == {"fetched": 2}
    assert lying(provider, box) == 2
    assert (polled.last_error, polled.backlog, polled.failures) == (None, 0, 0)
    # and both were published to the router, after the commit
    [publication] = harness.published
    assert publication.key == f"fetched.{box}"
    assert [(row,) for row in read_payload(FetchedItem, publication.body).ids] == await harness.rows(
        "select id from inbound order by id"
    )
    assert await harness.rows("select message_id from inbound order by id") == [(None,), ("a@b",)]
    assert await harness.rows("select event, external from maillog order by id") == [("fetched", box)] * 2


async def test_new_mail_arrives_within_a_poll_interval(
    harness: FetcherHarness, provider: DemoProvider, box: str
) -> None:
    account = await harness.add(box, provider.pop3_port)
    await until(lambda: polls_well(harness, account))
    provider.put(box, mail("new"))
    async with asyncio.timeout(4):
        await until(lambda: has(harness, account, 1))
    assert await harness.subjects(account) == ["new"]


async def test_from_now_leaves_existing_mail_and_fetches_new_mail(
    harness: FetcherHarness, provider: DemoProvider, box: str
) -> None:
    provider.put(box, mail("old"))
    account = await harness.add(box, provider.pop3_port, history="from_now", delete_after_days=0)
    await until(lambda: polls_well(harness, account))
    provider.put(box, mail("new"))
    await harness.poll(account)
    await harness.poll(account)
    assert await harness.subjects(account) == ["new"]
    assert lying(provider, box) == 1
    assert b"Subject: old" in provider.mail_of(box)[0]
    # when history is wanted after all, it is fetched, and never deleted
    await harness.rows("update external_accounts set history = 'all' where id = %s", account)
    await harness.poll(account)
    await harness.poll(account)
    assert await harness.subjects(account) == ["new", "old"]
    assert lying(provider, box) == 1


# ---------------------------------------------------------------------------------------------- deleting


async def test_delete_at_once_spares_mail_of_the_first_contact(
    harness: FetcherHarness, provider: DemoProvider, box: str
) -> None:
    provider.put(box, mail("old"))
    account = await harness.add(box, provider.pop3_port, delete_after_days=0)
    await until(lambda: has(harness, account, 1))
    provider.put(box, mail("new"))
    await until(lambda: has(harness, account, 2))
    await until(lambda: _is(lambda: lying(provider, box) == 1))
    await harness.poll(account)
    await harness.poll(account)  # the first may have been the end of the one that deleted
    assert await harness.states(account) == {"fetched": 1, "closed": 1}
    assert b"Subject: old" in provider.mail_of(box)[0]


async def _is(condition: Callable[[], bool]) -> bool:
    return condition()


async def test_delete_history_deletes_mail_of_the_first_contact_too(
    harness: FetcherHarness, provider: DemoProvider, box: str
) -> None:
    provider.put(box, mail("old"))
    account = await harness.add(box, provider.pop3_port, delete_after_days=0, delete_history=True)
    await until(lambda: _is(lambda: lying(provider, box) == 0))
    assert await harness.subjects(account) == ["old"]


async def test_delete_after_days_deletes_when_the_days_are_over(
    harness: FetcherHarness, provider: DemoProvider, box: str
) -> None:
    account = await harness.add(box, provider.pop3_port, delete_after_days=7)
    await until(lambda: polls_well(harness, account))
    provider.put(box, mail("one"))
    provider.put(box, mail("two"))
    await until(lambda: has(harness, account, 2))
    await harness.rows("update uidl_ledger set fetched_at = now() - interval '6 days 23 hours'")
    await harness.poll(account)
    assert lying(provider, box) == 2
    await harness.rows(
        "update uidl_ledger set fetched_at = now() - interval '7 days 1 minute' where uidl = "
        "(select min(uidl) from uidl_ledger)"
    )
    await harness.poll(account)
    await harness.poll(account)
    assert lying(provider, box) == 1
    assert await harness.states(account) == {"fetched": 1, "closed": 1}


async def test_nothing_is_deleted_upstream_when_the_commit_fails(
    harness: FetcherHarness, provider: DemoProvider, box: str
) -> None:
    account = await harness.add(box, provider.pop3_port, delete_after_days=0)
    await until(lambda: polls_well(harness, account))
    # given a database that refuses every ledger row in a way that is not the mail's fault
    await harness.rows("alter table uidl_ledger rename to elsewhere")
    provider.put(box, mail("new"))
    await until(lambda: fails(harness, account))
    assert lying(provider, box) == 1
    # when it is well again, the mail arrives
    await harness.rows("alter table elsewhere rename to uidl_ledger")
    await until(lambda: has(harness, account, 1))
    assert await harness.subjects(account) == ["new"]


# ---------------------------------------------------------------------------------------------- renumbering


def renumber(provider: DemoProvider, box: str) -> None:
    """Make Dovecot give every mail a new UIDL."""
    folder = provider.folder / "mail" / box
    for file in folder.iterdir():
        if file.name.startswith("dovecot"):
            file.unlink()
    for place in ("new", "cur"):
        for file in (folder / place).iterdir():  # the UID order follows the names
            file.rename(folder / "new" / f"9{file.name.split(':')[0]}")


async def test_renumbered_mail_is_not_delivered_again_but_both_of_two_twins_are(
    harness: FetcherHarness, provider: DemoProvider, box: str
) -> None:
    provider.put(box, mail("twin"))
    provider.put(box, mail("twin"))
    provider.put(box, mail("one"))
    account = await harness.add(box, provider.pop3_port)
    await until(lambda: has(harness, account, 3))
    await until(lambda: polls_well(harness, account))
    before = {key for (key,) in await harness.rows("select uidl from uidl_ledger")}
    # when every UIDL changes, and a third twin arrives
    provider.put(box, mail("twin"))
    await asyncio.to_thread(renumber, provider, box)
    await until(lambda: has(harness, account, 4))
    await harness.poll(account)
    # then only the third twin is new
    assert sorted(await harness.subjects(account)) == ["one", "twin", "twin", "twin"]
    assert await harness.states(account) == {"fetched": 4}
    assert not before & {key for (key,) in await harness.rows("select uidl from uidl_ledger")}
    assert len(await harness.rows("select 1 from maillog where event = 'renumbered'")) == 3


async def test_after_a_wholesale_renumbering_history_stays_history(
    harness: FetcherHarness, provider: DemoProvider, box: str
) -> None:
    for number in range(3):
        provider.put(box, mail(f"old{number}", received="Mon, 1 Jan 2024 10:00:00 +0000"))
    account = await harness.add(box, provider.pop3_port, history="from_now")
    await until(lambda: polls_well(harness, account))
    provider.put(box, mail("new", received="Mon, 1 Jan 2074 10:00:00 +0000"))
    await asyncio.to_thread(renumber, provider, box)
    await harness.poll(account)
    await harness.poll(account)
    assert await harness.subjects(account) == ["new"]
    assert await harness.states(account) == {"history": 3, "fetched": 1}


# ---------------------------------------------------------------------------------------------- what goes wrong


async def test_a_wrong_password_pauses_the_account_until_it_is_changed(
    harness: FetcherHarness, provider: DemoProvider, box: str
) -> None:
    account = await harness.add(box, provider.pop3_port, password=harness.vault.seal("wrong"))
    await until(lambda: fails(harness, account))
    # given Dovecot says [AUTH], one refusal is enough
    [[paused, kind, text, wait]] = await harness.rows(
        """select paused_at is not null, last_error_kind, last_error,
                  extract(epoch from next_poll_at - now())::int from polls"""
    )
    assert (paused, kind) == (True, "refused")
    assert f"127.0.0.1:{provider.pop3_port}: the login was refused; check login name and password" in text
    assert 3500 < wait <= 3600
    # when the password is corrected, it is polled at once
    provider.put(box, mail("one"))
    await harness.rows("update external_accounts set password = %s", harness.vault.seal("secret"))
    polled = await harness.poll(account)
    assert (polled.paused_at, polled.last_error) == (None, None)
    assert await harness.subjects(account) == ["one"]


async def test_bad_servers_are_classified_and_delay_no_other_account(
    harness: FetcherHarness, provider: DemoProvider, box: str
) -> None:
    # given an account without a server, one with an untrusted certificate, one that hangs, and a good one
    hanging = await asyncio.start_server(lambda reader, writer: asyncio.sleep(3600), "127.0.0.1", 0)
    nobody = await harness.add("nobody@fetch.test", 1)
    untrusted = await harness.add("untrusted@fetch.test", provider.pop3s_port, pop3_tls="implicit")
    await harness.add("hanging@fetch.test", hanging.sockets[0].getsockname()[1])
    await asyncio.sleep(0.5)
    provider.put(box, mail("one"))
    good = await harness.add(box, provider.pop3_port)
    # then the good one gets its mail at once
    async with asyncio.timeout(5):
        await until(lambda: has(harness, good, 1))
    await until(lambda: fails(harness, nobody))
    await until(lambda: fails(harness, untrusted))
    errors = {
        id_: (kind, text)
        for id_, kind, text in await harness.rows("select external_id, last_error_kind, last_error from polls")
    }
    assert errors[nobody] == ("unreachable", "127.0.0.1:1: connection refused; check host and port")
    assert errors[untrusted][0] == "tls"
    assert "the certificate is not trusted" in errors[untrusted][1]
    hanging.close()


async def test_many_accounts_of_a_server_that_hangs_leave_places_for_others(
    harness: FetcherHarness, provider: DemoProvider, box: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "MAX_POLLS", 3)
    monkeypatch.setattr(scheduler, "MAX_POLLS_OF_SERVER", 2)
    connected = 0

    async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connected
        connected += 1
        await asyncio.sleep(3600)

    # given more accounts at a server that hangs than there are places
    hanging = await asyncio.start_server(accept, "127.0.0.1", 0)
    for number in range(4):
        await harness.add(f"hanging{number}@fetch.test", hanging.sockets[0].getsockname()[1])
    await until(lambda: connected == 2)
    # when another account is added
    provider.put(box, mail("one"))
    good = await harness.add(box, provider.pop3_port)
    # then it is polled beside them, and the others wait
    await until(lambda: has(harness, good, 1))
    [(leased,)] = await harness.rows("select count(*) from polls where owner is not null and external_id <> %s", good)
    assert leased <= 2
    hanging.close()


async def test_private_hosts_are_not_polled_without_permission(
    database_url: str, provider: DemoProvider, box: str
) -> None:
    async with fetching(database_url, allow_private_upstream=False) as harness:
        account = await harness.add(box, provider.pop3_port)
        await until(lambda: fails(harness, account))
        assert (await harness.rows("select last_error_kind from polls")) == [("policy",)]


async def test_twenty_accounts_are_fetched_at_once(harness: FetcherHarness, provider: DemoProvider) -> None:
    boxes = [f"many{number}@fetch.test" for number in range(20)]
    for address in boxes:
        provider.add_mailbox(address, "secret")
        for number in range(5):
            provider.put(address, mail(f"{address} {number}"))
    accounts = [await harness.add(address, provider.pop3_port) for address in boxes]
    await until(lambda: _count(harness, 100))
    for address, account in zip(boxes, accounts, strict=True):
        assert sorted(await harness.subjects(account)) == [f"{address} {number}" for number in range(5)]


async def _count(harness: FetcherHarness, count: int) -> bool:
    [[found]] = await harness.rows("select count(*) from inbound where source = 'fetched'")
    return int(found) >= count


async def test_a_notice_is_in_each_language_of_those_who_share_the_account(
    database_url: str, provider: DemoProvider, box: str
) -> None:
    # given people of whom two read German, one chose nothing, and one who reads English is disabled
    async with fetching(database_url, max_message_bytes=20_000, language="de") as harness:
        account = await harness.add(box, provider.pop3_port)
        people = (("ann", "en", True), ("bob", "de", True), ("cat", None, True), ("dan", "fr", False))
        for name, language, enabled in people:
            await harness.rows(
                """insert into local_accounts (address, enabled, password_hash, user_name, external_id, language)
                   values (%s, %s, '', %s, %s, %s) returning id""",
                f"{name}@local.com",
                enabled,
                name,
                account,
                language,
            )
        # when a mail to them is too large
        provider.put(box, mail("large", "y\r\n" * 20_000))
        await harness.poll(account)
        await harness.poll(account)
        # then they get one notice with both texts
        [[notice]] = await harness.rows(
            "select m.head from inbound i join blobs m on m.id = i.blob_id where i.source = 'notice'"
        )
        text = email.message_from_bytes(bytes(notice), policy=email.policy.default)
        assert text["Content-Language"] == "de, en"
        assert text["Subject"] == "Mail nicht abgerufen / Mail not fetched: large"
        assert "sie ist größer als die erlaubten 20000 Byte." in text.get_content()
        assert "it is larger than the 20000 octets that are allowed." in text.get_content()


async def test_a_mail_that_is_too_large_stays_and_recipients_get_a_notice(
    database_url: str, provider: DemoProvider, box: str
) -> None:
    async with fetching(database_url, max_message_bytes=20_000) as harness:
        provider.put(box, mail("small"))
        provider.put(box, b'Cc: "Jim" <x@fetch.test>\r\n' + mail("large", "y\r\n" * 20_000))
        provider.put(box, mail("after"))
        account = await harness.add(box, provider.pop3_port, delete_after_days=0, delete_history=True)
        await until(lambda: has(harness, account, 2))
        await harness.poll(account)
        await harness.poll(account)
        assert sorted(await harness.subjects(account)) == ["after", "small"]
        assert lying(provider, box) == 1
        [[notice, reply]] = await harness.rows(
            """select m.head, e.reply from inbound i join blobs m on m.id = i.blob_id
               join maillog e on e.inbound_id = i.id where i.source = 'notice' and e.event = 'skipped'"""
        )
        text = bytes(notice).decode()
        assert "Subject: Mail not fetched: large\r\n" in text
        assert 'Cc: "Jim" <x@fetch.test>\r\n' in text and "To: x@fetch.test\r\n" in text
        assert "From: ann@customer.test" in text
        assert "20000 octets" in reply
        # and it is fetched once the limit has grown
    async with fetching(database_url) as harness:
        await harness.rows("update external_accounts set password = %s", harness.vault.seal("secret"))
        await harness.poll(account)
        assert sorted(await harness.subjects(account)) == ["after", "large", "small"]


async def test_a_mail_that_the_database_refuses_is_skipped_others_arrive(
    harness: FetcherHarness, provider: DemoProvider, box: str
) -> None:
    await harness.rows("alter table inbound add check (message_id <> 'refuse@me')")
    provider.put(box, mail("one"))
    provider.put(box, b"Message-ID: <refuse@me>\r\n" + mail("bad"))
    provider.put(box, mail("two"))
    account = await harness.add(box, provider.pop3_port)
    await until(lambda: has(harness, account, 2))
    await until(lambda: polls_well(harness, account))
    assert sorted(await harness.subjects(account)) == ["one", "two"]
    [[reason]] = await harness.rows("select reason from uidl_ledger where state = 'skipped'")
    assert "it could not be stored" in reason
    # when the third try fails, its recipients get a notice
    await harness.poll(account)
    await harness.poll(account)
    assert len(await harness.rows("select 1 from inbound where source = 'notice'")) == 1


async def test_a_mail_that_takes_too_long_to_store_is_skipped_others_arrive(
    harness: FetcherHarness, provider: DemoProvider, box: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a mail in the middle of eight whose row takes the database five minutes, again and again
    monkeypatch.setattr(committer, "BATCH_SECONDS", 4.0)
    monkeypatch.setattr(committer, "MAIL_SECONDS", 4.0)
    await harness.rows(
        """create function wait() returns trigger language plpgsql as $$ begin
               if new.message_id = 'slow@me' then perform pg_sleep(300); end if; return new; end $$"""
    )
    await harness.rows("create trigger wait before insert on inbound for each row execute function wait()")
    for number in range(8):
        provider.put(box, (b"Message-ID: <slow@me>\r\n" if number == 3 else b"") + mail(f"m{number}"))
    account = await harness.add(box, provider.pop3_port)
    # then the others arrive once each, and the mail is shown as not fetched
    await until(lambda: has(harness, account, 7), 120)
    await until(lambda: polls_well(harness, account), 120)
    assert sorted(await harness.subjects(account)) == [f"m{number}" for number in range(8) if number != 3]
    assert await harness.rows("select reason from uidl_ledger where state = 'skipped'") == [
        ("it could not be stored within 4 s",)
    ]
    # and once the database stores it in time, it arrives
    await harness.rows("drop trigger wait on inbound")
    await harness.rows("update uidl_ledger set next_try_at = now() where state = 'skipped'")
    await harness.poll(account)
    assert "m3" in await harness.subjects(account)


async def test_a_stop_releases_the_account_at_once(database_url: str, provider: DemoProvider, box: str) -> None:
    async with fetching(database_url) as harness:
        account = await harness.add(box, provider.pop3_port)
        await until(lambda: polls_well(harness, account))
    async with fetching(database_url) as again:
        assert await again.rows("select count(*) from polls where lease_expires > now() + interval '14 seconds'")
        await again.rows("update external_accounts set password = %s", again.vault.seal("secret"))
        await again.poll(account)


async def test_many_sessions_fetch_a_big_mailbox_once(
    harness: FetcherHarness, provider: DemoProvider, box: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.fetcher.fetch_session.SESSION_SECONDS", 0.0)
    for number in range(1201):
        provider.put(box, mail(f"m{number}"))
    account = await harness.add(box, provider.pop3_port)
    await until(lambda: has(harness, account, 1201), 60)
    await harness.poll(account)
    assert sorted(await harness.subjects(account)) == sorted(f"m{number}" for number in range(1201))


# ---------------------------------------------------------------------------------------------- quiet maildrops


async def test_a_list_with_nothing_to_do_is_not_compared_again(
    harness: FetcherHarness, provider: DemoProvider, box: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a maildrop of which everything is fetched
    account = await harness.add(box, provider.pop3_port)
    provider.put(box, mail("one"))
    await until(lambda: has(harness, account, 1))
    await until(lambda: is_quiet(harness, account))
    # when it is polled again, then the ledger is left alone
    reads: list[int] = []
    known = uidl_ledger.load_entries

    async def counted(connection: Connection, external_id: int) -> list[LedgerEntry]:
        reads.append(external_id)
        return await known(connection, external_id)

    monkeypatch.setattr(uidl_ledger, "load_entries", counted)
    await harness.polled(account)
    assert reads == []
    # and a new mail is found as ever
    provider.put(box, mail("two"))
    await until(lambda: has(harness, account, 2))
    assert reads and await harness.states(account) == {"fetched": 2}


async def test_a_list_that_is_unchanged_after_our_deletion_is_compared(
    harness: FetcherHarness, provider: DemoProvider, box: str
) -> None:
    # given a quiet, empty maildrop
    account = await harness.add(box, provider.pop3_port, delete_after_days=0)
    await until(lambda: is_quiet(harness, account))
    # when a mail arrives, is fetched and deleted at once: the list is empty again
    provider.put(box, mail("one"))
    await until(lambda: has(harness, account, 1))

    async def closed() -> bool:
        return await harness.states(account) == {"closed": 1}

    # then the ledger records it
    await until(closed)
    assert lying(provider, box) == 0


async def test_the_maildrop_of_a_moved_account_is_compared_again(
    harness: FetcherHarness, provider: DemoProvider, box: str
) -> None:
    account = await harness.add(box, provider.pop3_port)
    await until(lambda: is_quiet(harness, account))
    async with harness.database.transaction() as connection:
        await polls.forget_maildrop(connection, account)
    await harness.polled(account)
    [[met]] = await harness.rows("select first_contact_at is not null from polls where external_id = %s", account)
    assert met
