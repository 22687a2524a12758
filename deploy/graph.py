"""``make graph``: the packages of shared/ and services/, their imports, and import cycles.

One line a package. The exit status is 1 if a package imports, directly or through others, one that imports it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import grimp

ROOTS = ("shared", "services")


def packages(graph: grimp.ImportGraph, roots: tuple[str, ...] = ROOTS) -> list[str]:
    """Return the children of the roots. A child with several packages is replaced by these."""
    children: list[str] = []
    for child in sorted(child for root in roots for child in graph.find_children(root)):
        below = sorted(graph.find_children(child))
        divided = sum(bool(graph.find_children(each)) for each in below) > 1
        children += below if divided else [child]
    return children


def lines(graph: grimp.ImportGraph, roots: tuple[str, ...] = ROOTS) -> Iterator[tuple[str, bool]]:
    """Yield a line for each package, and whether it is in no cycle. Changes the graph."""
    named = packages(graph, roots)
    for package in named:
        if graph.find_children(package):
            graph.squash_module(package)
    width = max(map(len, named))
    for package in named:
        imported = sorted(set(named) & graph.find_modules_directly_imported_by(package) - {package})
        back = [each for each in imported if graph.chain_exists(importer=each, imported=package)]
        verdict = f"in a circle with {', '.join(back)}" if back else "one way"
        yield f"{package:{width}}  {verdict}: {', '.join(imported) or 'imports none'}", not back


def main() -> int:
    """Print the lines and return the exit status."""
    status = 0
    for line, one_way in lines(grimp.build_graph(*ROOTS, cache_dir=None)):
        print(line)
        status |= not one_way
    return status


if __name__ == "__main__":
    sys.exit(main())
