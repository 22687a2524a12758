"""A counter for Prometheus with a value for each external account.

``prometheus_client.Counter`` keeps some objects for each set of labels: 0.7 kB each, and 6 kB for the nine kinds of
errors of an account, which is a third of what an account in IDLE takes otherwise.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector


class AccountCounts(Collector):
    """A metric with the label external, and maybe kind. Of a known account, every kind has a value."""

    def __init__(self, name: str, documentation: str, kinds: Sequence[str] = ()) -> None:
        """:param name: of the metric, with ``_total``. :param kinds: the values of the label kind; () for no such
        label."""
        self._name = name
        self._documentation = documentation
        self._kinds = tuple(kinds)
        self._counts: dict[str, array[int]] = {}  # by address of the external account: one for each kind

    def add_account(self, address: str) -> None:
        """Give every kind of this account a value."""
        if address not in self._counts:
            self._counts[address] = array("Q", bytes(max(1, len(self._kinds)) * array("Q").itemsize))

    def count(self, address: str, kind: str = "", number: int = 1) -> None:
        """Count something of an account.

        :param kind: one of the kinds; any other counts as the last of them. '' if there are none.
        """
        self.add_account(address)
        self._counts[address][self._kinds.index(kind) if kind in self._kinds else -1] += number

    def describe(self) -> Iterable[CounterMetricFamily]:
        """Return the metric without values."""
        labels = ["external", *(["kind"] if self._kinds else [])]
        return [CounterMetricFamily(self._name, self._documentation, labels=labels)]

    def collect(self) -> Iterable[CounterMetricFamily]:
        """Return the metric with its values."""
        [metric] = self.describe()
        for address, counts in list(self._counts.items()):
            if not self._kinds:
                metric.add_metric([address], counts[0])
            for kind, value in zip(self._kinds, counts, strict=False):
                metric.add_metric([address, kind], value)
        return [metric]
