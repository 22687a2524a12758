"""Checks an external account for new mail at once, before its interval has passed."""

from __future__ import annotations

import asyncio
import datetime

from services.admin.access import audit
from shared.db.database import Connection, Database
from shared.errors import Permanent
from shared.store import accounts, polls
from shared.store.polls import PollState

WAIT_SECONDS = 3.0
"""Time that a user waits for the end of a check before the answer is that it is under way: seconds."""
_LOOK_SECONDS = 0.1
"""Pause between two looks at the state of the check: seconds."""


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


async def load_due_time(connection: Connection, external_id: int) -> datetime.datetime | None:
    """Return when the account is due; None: it was removed."""
    state = (await polls.load_poll_states(connection, [external_id])).get(external_id)
    return state.next_poll_at if state else None


async def wait_for_check(database: Database, external_id: int, due: datetime.datetime | None) -> PollState | None:
    """Wait until a requested check has ended, for ``WAIT_SECONDS`` at most.

    :param due: ``load_due_time`` in the transaction of the request.
    :return: the state after it; its ``last_error`` is None if it was successful. None: it is still under way.
    """
    for _ in range(round(WAIT_SECONDS / _LOOK_SECONDS)):
        async with database.statement() as connection:
            state = (await polls.load_poll_states(connection, [external_id])).get(external_id)
        # The outcome of the check moves the due time; an earlier check that ends now leaves it.
        if state is None or state.next_poll_at != due:
            return state
        await asyncio.sleep(_LOOK_SECONDS)
    return None
