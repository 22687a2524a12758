"""RESULTS.md: the machine's facts, then a section a work. What was not run again keeps its section. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from bench.table import COLUMNS, COST_COLUMNS, COSTS, Line

_HEAD = """\
# Results of `make bench`

mailgroup beside the programs that do the same work, on one machine, in turn (A B A B …). *ratio* is ours to the
anchor's, pair by pair: median [least..most]. *generator* is the share of one core that the load generator used.
Ratios can be compared between machines, figures cannot; a goal is judged by the median, and counts on machines whose
fsync takes less than 0.1 ms: where it takes longer, both sides wait for the disk.

Processor time is that of all processes of a side, with their children that ended, until the side is quiet again.
The other end of the work counts for none: load generator, provider, smtp-sink. The console's catalogue takes mails in
some seconds after they came, and counts where that falls into a run.
"""
_SECTION = re.compile(r"^## (\S+): ", re.M)


def section(name: str, title: str, told: str, lines: Sequence[Line]) -> str:
    """One work's section. :param told: when, how and where it was measured."""
    text = f"## {name}: {title}\n\n{told}\n\n{_table(COLUMNS, [line.cells() for line in lines])}\n"
    costs = [cells for line in lines if (cells := line.costs())]
    return f"{text}\n{COSTS}\n\n{_table(COST_COLUMNS, costs)}\n" if costs else text


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (columns, ("---",) * len(columns), *rows))


def sections(text: str) -> dict[str, str]:
    """The sections of a file of before, by the name of their work."""
    starts = [(found.group(1), found.start()) for found in _SECTION.finditer(text)]
    ends = [start for _, start in starts[1:]] + [len(text)]
    return {name: text[start:end].rstrip() + "\n" for (name, start), end in zip(starts, ends, strict=False)}


def merge(before: str, facts: Mapping[str, str], new: Mapping[str, str], order: Iterable[str]) -> str:
    """The whole file. :param before: it, as it was. :param new: sections by name. :param order: names of all works."""
    known = sections(before) | dict(new)
    table = "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in facts.items())])
    return "\n".join([_HEAD, table, "", *(known[name] for name in order if name in known)])
