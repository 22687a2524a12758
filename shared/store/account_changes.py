"""Changes of external and local accounts, and all SQL that writes them (tables external_accounts, local_accounts).

It owns these tables together with shared/store/accounts.py, which reads them. A trigger gives each change a new version
of the accounts, which all services compare.
"""

from __future__ import annotations

import datetime
from collections.abc import Collection
from dataclasses import asdict
from typing import Literal

from psycopg.types.json import Jsonb

from shared.db.database import Connection
from shared.errors import Permanent
from shared.model import External, Local, Server
from shared.store import relays
from shared.store.accounts import load_externals, load_locals


async def lock_for_change(connection: Connection) -> None:
    """Allow one change of accounts at a time, so that checked conditions still hold at its commit."""
    await connection.execute("select pg_advisory_xact_lock(hashtext('mailgroup accounts'))")


async def lock_folders(connection: Connection, local_ids: Collection[int]) -> None:
    """Lock all folders of these accounts, in the order of all writers, before the accounts are disabled or removed.

    A delivery locks them, too, and checks the accounts then: it is done before the change, or sees it.
    """
    await connection.execute(
        "select from folders where local_id = any(%s) order by id for update", (sorted(local_ids),)
    )


# ---------------------------------------------------------------------------------------------- external accounts

NO_POP3 = Server("imap.invalid", 995, "implicit")
"""Stored as the POP3 server of an account that is fetched by IMAP: code before the revision ``external_imap`` reads no
other column, and the name never resolves (RFC 6761), so that code reports an unknown host and sends no password."""
NO_SMTP = Server("relays.invalid", 465, "implicit")
"""Stored as the SMTP server of an account whose first relay has a login of its own: code before the revision ``relays``
reads no other column, and sends the account's password nowhere."""


async def save_external(connection: Connection, external: External) -> int:
    """Insert (id 0) or update an external account with its relays. :return: its id."""
    pop3, imap = external.pop3 or NO_POP3, external.imap
    smtp = external.smtp if external.relay.login is None else NO_SMTP
    await relays.lock_relays(connection, external.id)
    values = {
        "id": external.id,
        "address": external.address,
        "enabled": external.enabled,
        "login": external.login,
        "password": external.password,
        "pop3_host": pop3.host,
        "pop3_port": pop3.port,
        "pop3_tls": pop3.tls,
        "pop3_tls_fingerprint": pop3.tls_fingerprint,
        "imap_host": imap and imap.host,
        "imap_port": imap and imap.port,
        "imap_tls": imap and imap.tls,
        "imap_tls_fingerprint": imap and imap.tls_fingerprint,
        "imap_folders": imap and list(imap.folders),
        "imap_answered": imap is not None and imap.answered,
        "imap_sent": imap and imap.sent,
        "smtp_host": smtp.host,
        "smtp_port": smtp.port,
        "smtp_tls": smtp.tls,
        "smtp_tls_fingerprint": smtp.tls_fingerprint,
        "smtp_auth": external.relay.auth,
        "smtp_connections": external.relay.connections,
        "poll_seconds": external.poll_seconds,
        "history": external.history,
        "delete_after_days": external.delete_after_days,
        "delete_history": external.delete_history,
        "reply_to_author": external.reply_to_author,
        "answer_notes": external.answer_notes,
        "reply_tag": external.reply_tag,
        "hold": external.hold,
        "aliases": list(external.aliases),
        "oauth": None if external.oauth is None else Jsonb(asdict(external.oauth)),
    }
    external_id = await _save(connection, "external_accounts", values)
    await relays.save_relays(connection, external_id, external.relays)
    return external_id


async def follow_address(connection: Connection, old: str, new: str) -> None:
    """Let the accounts and relays that use the access tokens of an external account name it by its new address."""
    await connection.execute(
        """update external_accounts set oauth = jsonb_set(oauth, '{same_as}', to_jsonb(%s::text))
           where lower(oauth ->> 'same_as') = lower(%s)""",
        (new, old),
    )
    await relays.follow_address(connection, old, new)


async def save_password(connection: Connection, external_id: int, password: bytes) -> None:
    """Store another sealed form of an external account's password."""
    await connection.execute("update external_accounts set password = %s where id = %s", (password, external_id))


async def lock_external(connection: Connection, external_id: int) -> None:
    """Lock the row of an external account, to find out whether the database accepts changes now.

    :raises psycopg.Error: it does not; ``Database`` makes it Temporary.
    """
    await connection.execute("select from external_accounts where id = %s for no key update", (external_id,))


async def replace_password(connection: Connection, external_id: int, old: bytes, new: bytes) -> bool:
    """Store ``new`` if ``old`` is still stored. :return: whether it was."""
    cursor = await connection.execute(
        "update external_accounts set password = %s where id = %s and password = %s", (new, external_id, old)
    )
    return cursor.rowcount == 1


async def restore_external(connection: Connection, address: str) -> External | None:
    """Restore the latest removed external account of this address, with its ledger. None: there is none."""
    ids = await _restore_row(connection, "external", address)
    return (await load_externals(connection, ids))[0] if ids else None


# ---------------------------------------------------------------------------------------------- local accounts


async def save_local(connection: Connection, local: Local) -> int:
    """Insert (id 0) or update a local account. :return: its id."""
    return await _save(
        connection,
        "local_accounts",
        {
            "id": local.id,
            "address": local.address,
            "enabled": local.enabled,
            "password_hash": local.password_hash,
            "weak_password": local.weak_password,
            "user_name": local.user_name,
            "aliases": list(local.aliases),
            "addresses": list(local.addresses),
            "external_id": local.external_id,
            "delegate_id": local.delegate_id,
            "former_names": list(local.former_names),
            "junk": local.junk,
            "language": local.language,
        },
    )


async def replace_password_hash(connection: Connection, local_id: int, old: str, new: str) -> bool:
    """Store ``new``, of a password that is not weak, if ``old`` is still stored. :return: whether it was."""
    cursor = await connection.execute(
        """update local_accounts set password_hash = %s, weak_password = false
           where id = %s and password_hash = %s and enabled and removed_at is null""",
        (new, local_id, old),
    )
    return cursor.rowcount == 1


async def save_language(connection: Connection, local_id: int, language: str | None) -> None:
    """Store the language that a person chose. :param language: None: the setting LANGUAGE applies."""
    await connection.execute(
        "update local_accounts set language = %s where id = %s and removed_at is null", (language, local_id)
    )


async def restore_local(connection: Connection, address: str) -> Local | None:
    """Restore the latest removed local account of this address, as it was. None: there is none."""
    ids = await _restore_row(connection, "local", address)
    return (await load_locals(connection, ids))[0] if ids else None


# ---------------------------------------------------------------------------------------------- both


async def _restore_row(connection: Connection, kind: Literal["external", "local"], address: str) -> list[int]:
    """Clear the removal of the latest removed account of this address. :return: its id, or nothing."""
    cursor = await connection.execute(
        f"""update {kind}_accounts set removed_at = null where id = (
                select id from {kind}_accounts where lower(address) = lower(%s) and removed_at is not null
                order by removed_at desc limit 1) returning id""".encode(),
        (address,),
    )
    return [int(row[0]) for row in await cursor.fetchall()]


async def _save(connection: Connection, table: str, values: dict[str, object]) -> int:
    columns = [name for name in values if name != "id"]
    if values["id"] == 0:
        statement = f"""insert into {table} ({", ".join(columns)})
            values ({", ".join(f"%({name})s" for name in columns)}) returning id"""
    else:
        statement = f"""update {table} set {", ".join(f"{name} = %({name})s" for name in columns)}
            where id = %(id)s and removed_at is null returning id"""
    cursor = await connection.execute(statement.encode(), values)
    row = await cursor.fetchone()
    if row is None:
        raise Permanent(f"{table}: row {values['id']} does not exist")
    return int(row[0])


async def remove_account(connection: Connection, kind: Literal["external", "local"], account_id: int) -> None:
    """Hide an account; its mail is kept for the retention time. For a local account: after ``lock_folders``.

    Whose delegate it was keep it as such, and are reported (``accounts.load_absent_delegates``).
    """
    await connection.execute(f"update {kind}_accounts set removed_at = now() where id = %s".encode(), (account_id,))


async def forget_delegate(connection: Connection, delegate_id: int, external_id: int) -> None:
    """Make this person the delegate only of people who share this external account."""
    await connection.execute(
        "update local_accounts set delegate_id = null where delegate_id = %s and external_id <> %s",
        (delegate_id, external_id),
    )


async def list_removed_locals(connection: Connection, before: datetime.datetime) -> list[int]:
    """List the local accounts that were removed before this time."""
    cursor = await connection.execute("select id from local_accounts where removed_at < %s order by id", (before,))
    return [int(row[0]) for row in await cursor.fetchall()]


async def erase_secrets(connection: Connection, before: datetime.datetime) -> int:
    """Erase the passwords of accounts that were removed before this time. A restored external account needs its
    password again.

    :return: the number of accounts.
    """
    cursor = await connection.execute(
        """select 1 from external_accounts where removed_at < %(before)s and password <> ''
           union all select 1 from local_accounts where removed_at < %(before)s and password_hash <> ''""",
        {"before": before},
    )
    count = len(await cursor.fetchall())
    if count:  # each update renews the version, so that all services read the accounts again
        cursor = await connection.execute("select id from external_accounts where removed_at < %s", (before,))
        await relays.erase_passwords(connection, [int(row[0]) for row in await cursor.fetchall()])
        await connection.execute("update external_accounts set password = '' where removed_at < %s", (before,))
        await connection.execute("update local_accounts set password_hash = '' where removed_at < %s", (before,))
    return count


async def renew_version(connection: Connection) -> None:
    """Change the version of the accounts after a restore: cached accounts are from another state."""
    await connection.execute("update accounts_version set version = gen_random_uuid()")
