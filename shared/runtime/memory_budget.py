"""A limit for the memory that the sessions of one process use together, and shares of it.

Code that needs memory counts octets before it allocates them, and releases the same number afterwards. Nothing here
allocates anything: a budget is a counter.
"""

from __future__ import annotations

SHARE = 8
"""A session gets at most this fraction (1/8) of the memory that is available, so that some stays for later sessions."""


class MemoryBudget:
    """Counts the memory that is in use.

    :ivar octets: limit of the budget.
    :ivar in_use: octets that are counted; may exceed the limit, because ``add`` checks no limit.
    :ivar whole: the budget that this one is a share of, or itself.
    """

    __slots__ = ("__weakref__", "in_use", "octets", "whole")

    def __init__(self, octets: int, whole: MemoryBudget | None = None) -> None:
        """:param octets: limit of the budget. :param whole: a budget that also counts what this one counts."""
        self.octets = octets
        self.in_use = 0
        self.whole = self if whole is None else whole

    @property
    def available(self) -> int:
        """Octets that are not in use; negative while more is in use than the limit."""
        return self.octets - self.in_use

    def add(self, octets: int) -> None:
        """Count memory without a check, also beyond the limit: it is allocated already, or the caller has checked."""
        self.in_use += octets
        if self.whole is not self:
            self.whole.in_use += octets

    def release(self, octets: int) -> None:
        """Return memory to the budget."""
        self.in_use -= octets
        if self.whole is not self:
            self.whole.in_use -= octets


def session_share(budget: MemoryBudget) -> int:
    """Octets that one session may reserve now. :param budget: of its account."""
    whole = budget.whole  # read for every mail: without the properties it costs half
    of_whole, of_account = (whole.octets - whole.in_use) // SHARE, budget.octets - budget.in_use
    share = of_whole if of_whole < of_account else of_account
    return share if share > 0 else 0


def reserve_share(budget: MemoryBudget, octets: int) -> int:
    """Reserve so many octets, or the session's share if that is less. Returns the reserved octets, perhaps 0."""
    reserved = min(octets, session_share(budget))
    budget.add(reserved)
    return reserved
