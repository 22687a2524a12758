"""Functions that the requests on external and on local accounts share: find, save and remove an account."""

from __future__ import annotations

from typing import Any

from services.admin.access import audit
from services.admin.access.users import CurrentUser
from services.admin.accounts import edit
from services.admin.accounts.errors import Kind
from services.admin.accounts.passwords import require_strong
from services.admin.web.page_context import NotFound, PageContext
from shared.db.database import Connection
from shared.model import External, Local
from shared.store import accounts


async def require_external(connection: Connection, address: str) -> External:
    """Load an external account. :raises NotFound: it does not exist."""
    external = await accounts.external_by_address(connection, PageContext.storable(address))
    if external is None:
        raise NotFound(f"{address}: there is no such external account")
    return external


async def require_local(connection: Connection, address: str) -> Local:
    """Load a local account. :raises NotFound: it does not exist."""
    person = await accounts.local_by_login(connection, PageContext.storable(address))
    if person is None:
        raise NotFound(f"{address}: there is no such local account")
    return person


async def save_account(
    context: PageContext, user: CurrentUser, kind: Kind, entry: dict[str, Any], if_match: str | None
) -> dict[str, list[str]]:
    """Save the entry of one account. :param if_match: of the request; None: any version of the account.

    :raises ChangedMeanwhile: the account has another version. :raises AccountsError: a field is wrong.
    """
    async with context.system.database.transaction() as connection:
        requested = await edit.check_saved_entry(connection, kind, entry)
        require_strong(requested)
        if if_match is not None:
            version = if_match.strip().removeprefix("W/").strip('"')
            stored = await edit.find_stored(connection, kind, entry)
            await edit.require_version(connection, kind, stored.address if stored else entry["address"], version)
        outcome = await context.apply(connection, requested, user)
    return {"changed": outcome.lines}


async def remove_account(context: PageContext, user: CurrentUser, kind: Kind, address: str) -> dict[str, list[str]]:
    """Remove an account. :raises NotFound: it does not exist. :raises Permanent: as ``edit.remove``."""
    async with context.system.database.transaction() as connection:
        if kind == "external":
            await require_external(connection, address)
        else:
            await require_local(connection, address)
        lines = await edit.remove(connection, kind, address)
        await audit.record_change(connection, user.name, f"removed {kind} account", address)
    return {"changed": lines}
