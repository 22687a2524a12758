"""Which cached states of folders are known to be current: a command that needs no later one sends no query.

A hint (folder_watch.py) ends what is known of a person's folders. It may be lost, so time ends it, too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

CURRENT_SECONDS = 1.0
"""How long a state counts as current: seconds. Commands that RFC 3501 lets report what other sessions do, but does not
oblige to, may miss for so long what another process has committed if its hint is lost."""
MAX_PEOPLE = 10_000
"""People whose folders are known; beyond the limit all are asked for again."""


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """A query for folders of a person, or a change of them, from its beginning on."""

    local_id: int
    began: float  # monotonic seconds
    known: dict[int, float]  # by folder: when the look that found it current began


class CurrentFolders:
    """The folders whose cached state is current."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """:param clock: monotonic seconds."""
        self._clock = clock
        self._known: dict[int, dict[int, float]] = {}  # by local id; a hint removes the inner dict

    def begin(self, local_id: int) -> Look:
        """Begin a query, or a change. To be called before it is sent."""
        if len(self._known) > MAX_PEOPLE:
            self._known.clear()
        return Look(local_id, self._clock(), self._known.setdefault(local_id, {}))

    def record(self, look: Look, folder_id: int) -> None:
        """Record that the cached state of a folder is at least that of the query. A hint since its beginning counts."""
        look.known[folder_id] = look.began

    def hint(self, local_ids: Collection[int]) -> None:
        """Forget the folders of these people: one of them has changed."""
        for local_id in local_ids:
            self._known.pop(local_id, None)

    def hint_own(self, look: Look, folder_id: int | None) -> None:
        """Forget the folders of a person after an own change, but the one whose cached state has this change.

        :param look: began before the change. :param folder_id: None: no state has it.
        """
        no_other = self._known.get(look.local_id) is look.known
        self.hint((look.local_id,))
        if no_other and folder_id is not None:
            self._known[look.local_id] = {folder_id: look.began}

    def is_current(self, local_id: int, folder_id: int) -> bool:
        """Whether the cached state of a folder is current, as far as this process can know."""
        known = self._known.get(local_id, {}).get(folder_id)
        return known is not None and self._clock() - known < CURRENT_SECONDS
