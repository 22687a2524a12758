"""The manual's company (4.3) for tests: accounts in a database without a provider behind them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from services.admin.accounts.apply import apply as apply_accounts
from services.admin.accounts.errors import AccountsError
from services.admin.accounts.file_format import check
from shared.auth.passwords import HashingPool
from shared.db.database import Database
from shared.languages.translation import in_language
from shared.mime import headers
from shared.model import Content, External, Local
from shared.provider.vault import Vault, new_key
from shared.store import accounts, blobs, inbound, uidl_ledger
from shared.store.inbound import Arrival

SUPPORT, SALES = "support@company.com", "sales@company.com"
KEY = new_key()
# argon2id of "secret": hashing it again for every account of every test would take most of their time.
HASH = "$argon2id$v=19$m=19456,t=2,p=1$Ma+5Liag4+oEtQMoa2SkzQ$pmAWR+H8XdP0iRY3X6DmH4xsNJFztvhJaILg1T/1jm0"


def english_only(error: AccountsError) -> list[str]:
    """Return what an error says in English also to a reader of German."""
    said = [problem.said for problem in error.problems]
    with in_language("de"):
        return [words for words, problem in zip(said, error.problems, strict=True) if problem.said == words]


def external(address: str = SUPPORT, **fields: Any) -> dict[str, Any]:
    """An external account as in the accounts file."""
    server = {"host": "127.0.0.1", "port": 1, "tls": "none"}
    return {"address": address, "password": "secret", "pop3": server, "smtp": server, "history": "all"} | fields


def by_imap(server: Any, **fields: Any) -> dict[str, Any]:
    """An external account that is fetched by IMAP, as in the accounts file. :param server: its field ``imap``."""
    entry = external(imap=server, **fields)
    del entry["pop3"]
    return entry


def local(name: str, external: str = SUPPORT, **fields: Any) -> dict[str, Any]:
    """A local account as in the accounts file; its password is ``secret``."""
    return {
        "address": f"{name.lower()}@local.com",
        "user_name": name,
        "external": external,
        "password_hash": HASH,
    } | fields


COMPANY = {
    "external_accounts": [external(SUPPORT), external(SALES)],
    "local_accounts": [local("Alex"), local("Jim"), local("Kim", SALES), local("Tom", SALES)],
}


async def apply(database: Database, document: dict[str, Any], prune: bool = False) -> list[str]:
    """Make the accounts what the document says; the lines that ``apply`` prints."""
    async with database.transaction() as connection:
        outcome = await apply_accounts(connection, check(document), Vault(KEY), HashingPool(), prune)
    return outcome.lines


async def everyone(database: Database) -> tuple[dict[str, External], dict[str, Local]]:
    """External accounts by address, local accounts by user name."""
    async with database.transaction() as connection:
        return (
            {account.address: account for account in await accounts.load_externals(connection)},
            {person.user_name: person for person in await accounts.load_locals(connection)},
        )


async def arrive(database: Database, external_id: int, mails: Sequence[bytes]) -> list[int]:
    """Mails as the fetcher commits them; their ids."""
    contents = [Content.from_bytes(mail) for mail in mails]
    async with database.transaction() as connection:
        stored = await blobs.store_blobs(connection, contents)
        message_ids = [(headers.values(mail, "message-id") or [b""])[0].strip(b" <>").decode() for mail in mails]
        ids = await inbound.add_inbound(
            connection,
            [
                Arrival("fetched", blob_id, external_id, message_id or None)
                for blob_id, message_id in zip(stored, message_ids, strict=True)
            ],
        )
        await uidl_ledger.record_fetched(
            connection,
            external_id,
            [
                uidl_ledger.FetchedNow(None, f"uidl{id_}", content.octets, content.sha256, id_, False)
                for id_, content in zip(ids, contents, strict=True)
            ],
        )
    return ids


async def mailbox_of(database: Database, address: str) -> list[bytes]:
    """The mails in an INBOX, in its order."""
    async with database.transaction() as connection:
        cursor = await connection.execute(
            """select m.head from folder_mails r join blobs m on m.id = r.blob_id
               join folders f on f.id = r.folder_id and f.special_use = 'inbox'
               join local_accounts l on l.id = f.local_id
               where lower(l.address) = lower(%s) and r.expunged_at is null and l.removed_at is null
               order by r.uid""",
            (address,),
        )
        return [bytes(row[0]) for row in await cursor.fetchall()]
