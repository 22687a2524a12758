"""All benchmarks, in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench import (
    fanout,
    idle,
    imap_idle,
    imap_provider,
    imap_serving,
    latency,
    pipeline,
    relay,
    scaling,
    serving,
    submission,
)
from bench.environment import Environment
from bench.table import Line


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One benchmark."""

    name: str  # on the command line
    group: str  # a name for several benchmarks
    title: str
    run: Callable[[Environment, int], list[Line]]  # with the number of pairs


BENCHMARKS: Sequence[Benchmark] = (
    Benchmark("retr", "serving", "POP3 RETR, every mail read for the first time", serving.retr),
    Benchmark(
        "retr-large", "serving", "POP3 RETR of large mails, every mail read for the first time", serving.retr_large
    ),
    Benchmark("poll", "serving", "POP3 polls with nothing new, of known clients", serving.poll),
    Benchmark(
        "poll-large", "serving", "POP3 polls of a large mailbox with nothing new, of a known client", serving.poll_large
    ),
    Benchmark("idle-sessions", "serving", "memory of idle POP3 sessions (PSS)", serving.idle_sessions),
    Benchmark("imap-poll", "imap-serving", "IMAP polls with nothing new, of known clients", imap_serving.poll),
    Benchmark("imap-resync", "imap-serving", "QRESYNC of a large mailbox with nothing new", imap_serving.resync),
    Benchmark("imap-overview", "imap-serving", "envelopes, structures and flags by IMAP", imap_serving.overview),
    Benchmark("imap-read", "imap-serving", "IMAP FETCH of mails", imap_serving.read),
    Benchmark("imap-read-large", "imap-serving", "IMAP FETCH of large mails", imap_serving.read_large),
    Benchmark("imap-append", "imap-serving", "IMAP APPEND, durable", imap_serving.append),
    Benchmark("imap-store", "imap-serving", "IMAP STORE of single mails", imap_serving.store),
    Benchmark("imap-search", "imap-serving", "IMAP SEARCH of subjects and bodies", imap_serving.search),
    Benchmark("imap-arrival", "imap-serving", "from the provider to IDLE, on an idle system", imap_idle.arrival),
    Benchmark("imap-idle", "imap-serving", "memory of IMAP sessions in IDLE (PSS)", imap_idle.idle_sessions),
    Benchmark("submission", "smtp", "SMTP submission with AUTH, durable", submission.submission),
    Benchmark("pipeline", "pipeline", "from the provider's maildrop to readable by POP3", pipeline.pipeline),
    Benchmark("imap", "pipeline", "from the provider's mailbox by IMAP to readable by POP3", imap_provider.throughput),
    Benchmark("relay", "smtp", "relaying to the provider", relay.relay),
    Benchmark("latency", "latency", "latency on an idle system", latency.latency),
    Benchmark("news", "latency", "news of an IMAP mailbox", imap_provider.news),
    Benchmark("idle-accounts", "idle", "accounts that wait for news", imap_provider.idle_accounts),
    Benchmark("sharers", "pipeline", "a mail to many", fanout.sharers),
    Benchmark("growth", "growth", "what a store that has grown costs", scaling.growth),
    Benchmark("idle", "idle", "the whole system with nothing to do", idle.idle),
)


def select_benchmarks(names: Sequence[str]) -> list[Benchmark]:
    """Return the benchmarks of these names or groups; all if there are no names. :raises ValueError: unknown name."""
    for name in names:
        if not any(name in (each.name, each.group) for each in BENCHMARKS):
            raise ValueError(f"there is no benchmark {name!r}; there are {', '.join(each.name for each in BENCHMARKS)}")
    return [each for each in BENCHMARKS if not names or each.name in names or each.group in names]
