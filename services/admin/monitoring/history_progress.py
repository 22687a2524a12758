"""How much of the mail that was at a provider at the first contact is fetched."""

from __future__ import annotations

from typing import Any

from shared.db.database import Connection
from shared.model import External
from shared.store import polls, uidl_ledger


async def load_history_progress(connection: Connection, external: External) -> dict[str, Any]:
    """Return the progress of an external account, in the form of ``external history --json``.

    total: None before the first contact. wanted: the account fetches this mail. done: nothing is left to fetch.
    """
    wanted = external.history == "all"
    state = (await polls.load_poll_states(connection, [external.id])).get(external.id)
    if state is None or state.first_contact_at is None:
        return {"wanted": wanted, "fetched": 0, "total": None, "done": not wanted}
    fetched, total = await uidl_ledger.count_history(connection, external.id)
    return {"wanted": wanted, "fetched": fetched, "total": total, "done": not wanted or fetched == total}
