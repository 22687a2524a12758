"""Writes RESULTS.md: the machine's facts and a section for each benchmark; those not run keep their sections. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from bench.table import COLUMNS, COST_COLUMNS, COSTS, Line

_HEAD = """\
# Results of `make bench`

mailgroup and the programs that do the same work, on one machine, alternately (A B A B …). *anchor* is the other
program. *ratio* is ours to the anchor's for each pair: median [min..max]. *generator* is the share of one core that the
load generator used. Ratios can be compared between machines, figures cannot. A goal is judged by the median, and counts
on machines whose fsync takes less than 0.1 ms: on others both sides wait for the disk.

Processor time is that of all processes of a side, with their ended children, until the side is quiet again. Load
generator, provider and smtp-sink do not count for any side. The console's search index adds mails some seconds after
their arrival, and counts if this happens during a run.
"""
BOUNDS = "bounds"
"""The section that people write: what bounds the works whose goals are not met. It stays, at the end."""
_SECTION = re.compile(r"^## (\S+): ", re.M)


def section(name: str, title: str, conditions: str, lines: Sequence[Line]) -> str:
    """Return the section of a benchmark. :param conditions: when, how and where it was measured."""
    text = f"## {name}: {title}\n\n{conditions}\n\n{markdown_table(COLUMNS, [line.cells() for line in lines])}\n"
    costs = [cells for line in lines if (cells := line.costs())]
    return f"{text}\n{COSTS}\n\n{markdown_table(COST_COLUMNS, costs)}\n" if costs else text


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (columns, ("---",) * len(columns), *rows))


def sections(text: str) -> dict[str, str]:
    """Return the sections of an existing file, by the name of their benchmark."""
    starts = [(found.group(1), found.start()) for found in _SECTION.finditer(text)]
    ends = [start for _, start in starts[1:]] + [len(text)]
    return {name: text[start:end].rstrip() + "\n" for (name, start), end in zip(starts, ends, strict=False)}


def merge(before: str, facts: Mapping[str, str], new: Mapping[str, str], order: Iterable[str]) -> str:
    """Return the new file. :param before: the old one. :param new: sections by name. :param order: all benchmarks."""
    known = sections(before) | dict(new)
    table = "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in facts.items())])
    return "\n".join([_HEAD, table, "", *(known[name] for name in (*order, BOUNDS) if name in known)])
