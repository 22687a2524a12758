"""After a change of the protocol the forecast knows mails by size and header, by each protocol at a real Dovecot."""

from __future__ import annotations

import pytest

from deploy.machine.dovecot_postfix import DemoProvider
from services.admin.accounts.file_format import check
from services.admin.accounts.maildrop_check import describe_maildrop
from services.admin.accounts.plan import build_external
from services.admin.context import AdminContext
from shared.auth.passwords import HashingPool
from shared.db.database import Database
from shared.settings import Settings
from shared.store import uidl_ledger
from tests import company
from tests.company import apply, arrive, everyone, external


def mail(name: str, body: str = "hello", day: int = 1) -> bytes:
    return (
        f"Received: from a by b; Thu, {day:02} Oct 2026 10:00:00 +0000\r\nMessage-ID: <{name}@x.test>\r\n"
        f"Date: Thu, {day:02} Oct 2026 09:00:00 +0000\r\nSubject: {name}\r\n\r\n{body}\r\n"
    ).encode()


@pytest.mark.parametrize("protocol", ["imap", "pop3"])
async def test_fetched_mails_are_known_and_new_ones_of_their_size_are_new(
    database: Database, database_url: str, provider: DemoProvider, protocol: str
) -> None:
    # given three fetched mails, whose keys are those of the other protocol
    address = f"{protocol}@headers.test"
    server = {"host": provider.host, "port": 1, "tls": "none"}
    entry = external(address, pop3=server, smtp=server)
    await apply(database, {"external_accounts": [entry], "local_accounts": []})
    account = (await everyone(database))[0][address]
    fetched = [mail("one"), mail("two"), mail("six", "another length")]
    await arrive(database, account.id, fetched)
    async with database.transaction() as connection:
        await connection.execute("update polls set first_contact_at = now() where external_id = %s", (account.id,))
        await uidl_ledger.detach_all_uidls(connection, account.id)
    # and at the provider two of them, a third one with another text, and a new one of the same size as the first
    provider.add_mailbox(address, "secret")
    for each in (mail("one"), mail("two"), mail("six", "changed by the server"), mail("new")):
        provider.put(address, each)
    # when the provider is asked
    if protocol == "imap":
        del entry["pop3"]
    port = provider.imap_port if protocol == "imap" else provider.pop3_port
    entry[protocol] = server | {"port": port}
    system = AdminContext(
        Settings(database_url=database_url, secret_key=company.KEY, allow_private_upstream=True),
        database,
        HashingPool(),
    )
    [wanted] = check({"external_accounts": [entry]}).external_accounts
    words = await describe_maildrop(system, build_external(wanted, account, account.password, None, account.id))
    # then it says so before the first poll
    assert (
        "; 2 of them will be delivered, 2 were fetched already by their size and header; 1 are unclear: they" in words
    )
