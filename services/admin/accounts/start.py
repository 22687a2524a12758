"""The start of an external account: its mail stays on hold until the operator says that everybody is there."""

from __future__ import annotations

from dataclasses import replace

from services.admin.access import audit
from services.admin.formatting import counted_for_record
from shared.db.database import Connection
from shared.errors import Permanent
from shared.model import External, Local
from shared.store import account_changes, accounts, inbound, inbound_admin

NOBODY_SHARES = "no enabled user shares it yet; add the people first, then start it"
"""Why an account is not started: the person who is added first would get all mail."""


async def start(connection: Connection, address: str, who: str) -> list[str]:
    """Release the mail of an account that is on hold, for all who share it; record it in the audit.

    :return: what was done, a line each; nothing if the account is started already.
    :raises Permanent: there is no such account, or no enabled user shares it: the first one would get all mail.
    """
    await account_changes.lock_for_change(connection)
    external = await accounts.external_by_address(connection, address)
    if external is None:
        raise Permanent(f"{address}: there is no such external account")
    if not external.hold:
        return []
    await account_changes.save_external(connection, replace(external, hold=False))
    line = await release(connection, external)
    await audit.record_change(connection, who, "started external account", external.address, line)
    return [line]


async def people_of(connection: Connection, external: External) -> list[Local]:
    """Return the people who get the mail of an account when it is started: its enabled sharers, by address."""
    return [
        person for person in (await accounts.load_sharers(connection, [external.id]))[external.id] if person.enabled
    ]


async def release(connection: Connection, external: External) -> str:
    """Release the mail of an account that was on hold until now, for all who share it.

    :return: what was done, in English. :raises Permanent: as ``start``; the caller has to roll back.
    """
    people = await people_of(connection, external)
    if not people:
        raise Permanent(f"{external.address}: {NOBODY_SHARES}")
    mails = await inbound_admin.count_held(connection, external.id)
    await inbound.release_held(connection, [external.id])
    sharers = counted_for_record(len(people), "person")
    on_hold = counted_for_record(mails, "mail on hold", ("is", "are"))
    return f"external account {external.address}: started for {sharers}; {on_hold} routed now"
