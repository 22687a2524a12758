"""A limit for the memory that the sessions of one process use together, and shares of it.

Code that needs memory counts octets before it allocates them, and releases the same number afterwards. Nothing here
allocates anything: a budget is a counter.
"""

from __future__ import annotations


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
