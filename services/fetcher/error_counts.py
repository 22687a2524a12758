"""Counts failed polls by account and kind for Prometheus.

``prometheus_client.Counter`` keeps some objects for each set of labels: 6 kB for the nine kinds of an account, half of
what an account in IDLE takes otherwise.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector


class ErrorCounts(Collector):
    """The metric ``mailgroup_fetch_errors_total`` with the labels external and kind; of a known account, every kind
    has a value."""

    def __init__(self, kinds: Sequence[str]) -> None:
        """:param kinds: the values of the label kind."""
        self._kinds = tuple(kinds)
        self._counts: dict[str, array[int]] = {}  # by address of the external account: one for each kind

    def add_account(self, address: str) -> None:
        """Give every kind of this account a value."""
        if address not in self._counts:
            self._counts[address] = array("I", bytes(len(self._kinds) * array("I").itemsize))

    def count(self, address: str, kind: str) -> None:
        """Count a failed poll. :param kind: one of the kinds; any other counts as the last of them."""
        self.add_account(address)
        self._counts[address][self._kinds.index(kind) if kind in self._kinds else -1] += 1

    def describe(self) -> Iterable[CounterMetricFamily]:
        """Return the metric without values."""
        return [CounterMetricFamily("mailgroup_fetch_errors_total", "Failed polls.", labels=["external", "kind"])]

    def collect(self) -> Iterable[CounterMetricFamily]:
        """Return the metric with its values."""
        [metric] = self.describe()
        for address, counts in list(self._counts.items()):
            for kind, value in zip(self._kinds, counts, strict=True):
                metric.add_metric([address, kind], value)
        return [metric]
