"""All works, in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench import fanout, idle, latency, pipeline, relay, scaling, serving, submission
from bench.environment import Stand
from bench.table import Line


@dataclass(frozen=True, slots=True)
class Work:
    """name: on the command line. group: a name for several. run: with the number of pairs."""

    name: str
    group: str
    title: str
    run: Callable[[Stand, int], list[Line]]


WORKS: Sequence[Work] = (
    Work("retr", "serving", "POP3 RETR, every mail read for the first time", serving.retr),
    Work("retr-large", "serving", "POP3 RETR of large mails, every mail read for the first time", serving.retr_large),
    Work("poll", "serving", "POP3 polls with nothing new, of known clients", serving.poll),
    Work(
        "poll-large", "serving", "POP3 polls of a large mailbox with nothing new, of a known client", serving.poll_large
    ),
    Work("idle-sessions", "serving", "memory of idle POP3 sessions (PSS)", serving.idle_sessions),
    Work("submission", "smtp", "SMTP submission with AUTH, durable", submission.submission),
    Work("pipeline", "pipeline", "from the provider's maildrop to readable by POP3", pipeline.pipeline),
    Work("relay", "smtp", "relaying to the provider", relay.relay),
    Work("latency", "latency", "latency on an idle system", latency.latency),
    Work("sharers", "pipeline", "a mail to many", fanout.sharers),
    Work("growth", "growth", "what a store that has grown costs", scaling.growth),
    Work("idle", "idle", "the whole system with nothing to do", idle.idle),
)


def chosen(names: Sequence[str]) -> list[Work]:
    """The works of these names or groups; all for none. :raises ValueError: there is no such one."""
    for name in names:
        if not any(name in (work.name, work.group) for work in WORKS):
            raise ValueError(f"there is no work {name!r}; there are {', '.join(work.name for work in WORKS)}")
    return [work for work in WORKS if not names or work.name in names or work.group in names]
