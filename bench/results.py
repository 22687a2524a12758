"""RESULTS.md: the machine's facts, then a section a work. What was not run again keeps its section. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from bench.table import COLUMNS, Line

_HEAD = """\
# Results of `make bench`

mailgroup beside the programs that do the same work, on one machine, in turn (A B A B …). *ratio* is ours to the
anchor's, pair by pair: median [least..most]. *generator* is the share of one core that the load generator used.
Ratios can be compared between machines, figures cannot; a goal is judged by the median.
"""
_SECTION = re.compile(r"^## (\S+): ", re.M)


def section(name: str, title: str, told: str, lines: Sequence[Line]) -> str:
    """One work's section. :param told: when, how and where it was measured."""
    rows = [COLUMNS, ("---",) * len(COLUMNS), *(line.cells() for line in lines)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"## {name}: {title}\n\n{told}\n\n{table}\n"


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
