"""Checks an external account for new mail at once, before its interval has passed."""

from __future__ import annotations

from services.admin.access import audit
from shared.db.database import Connection
from shared.errors import Permanent
from shared.store import accounts, polls


async def request_check(connection: Connection, address: str, who: str) -> str:
    """Make an account due at once, also after failures; record it in the audit.

    :return: the line for people. :raises Permanent: there is no such account, or it is disabled.
    """
    external = await accounts.external_by_address(connection, address)
    if external is None:
        raise Permanent(f"{address}: there is no such external account")
    if not external.enabled:
        raise Permanent(f"{external.address}: is disabled, so it is not checked; enable it first")
    await polls.poll_now(connection, external.id)
    await audit.record_change(connection, who, "requested a check", external.address)
    return f"external account {external.address}: is being checked for new mail"
