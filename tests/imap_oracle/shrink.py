"""Shortens a stream that fails. Pure, but for the test that it is given."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from tests.imap_oracle.streams import Step


async def shrink(
    steps: Sequence[Step], fails: Callable[[Sequence[Step]], Awaitable[bool]], most_runs: int = 200
) -> list[Step]:
    """Return the shortest part of a stream, in its order, that was found to fail.

    Removes ever smaller pieces as long as the rest fails (delta debugging). :param most_runs: of the test.
    """
    kept = list(steps)
    size = max(len(kept) // 2, 1)
    runs = 0
    while runs < most_runs:
        shorter = False
        start = 0
        while start < len(kept) and runs < most_runs:
            rest = kept[:start] + kept[start + size :]
            runs += 1
            if rest and await fails(rest):
                kept, shorter = rest, True
            else:
                start += size
        if size == 1 and not shorter:
            break
        size = max(size // 2, 1)
    return kept
