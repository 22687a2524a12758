"""``make graph`` draws packages as they import each other, and sees a circle behind a detour."""

from __future__ import annotations

from pathlib import Path

import grimp
import pytest

from deploy import graph

FILES = {
    "__init__.py": "",
    "store/__init__.py": "",
    "store/mails.py": "from drawn import model\n",
    "runtime/__init__.py": "from drawn.runtime import worker\n",
    "runtime/worker.py": "from drawn.store import mails\nfrom drawn.runtime import health\n",
    "runtime/health.py": "",
    "model.py": "",
    "admin/__init__.py": "",
    "admin/context.py": "",
    "admin/cli/__init__.py": "",
    "admin/cli/app.py": "from drawn.admin.web import pages\n",
    "admin/web/__init__.py": "",
    "admin/web/pages.py": "import drawn.admin.context\n",
}


def drawn(folder: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, str]) -> list[tuple[str, bool]]:
    """The lines for these files and more."""
    for name, text in (FILES | more).items():
        file = folder / "drawn" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))
    found = grimp.build_graph("drawn", cache_dir=None)
    return [(" ".join(line.split()), one_way) for line, one_way in graph.lines(found, ("drawn",))]


def test_a_line_for_each_package_says_what_it_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert drawn(tmp_path, monkeypatch, {}) == [
        ("drawn.admin.cli one way: drawn.admin.web", True),
        ("drawn.admin.context one way: imports none", True),
        ("drawn.admin.web one way: drawn.admin.context", True),
        ("drawn.model one way: imports none", True),
        ("drawn.runtime one way: drawn.store", True),
        ("drawn.store one way: drawn.model", True),
    ]


def test_a_cycle_through_a_third_package_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = dict(drawn(tmp_path, monkeypatch, {"model.py": "from drawn.runtime import health\n"}))
    assert not found["drawn.runtime in a circle with drawn.store: drawn.store"]
    assert not found["drawn.store in a circle with drawn.model: drawn.model"]
    assert found["drawn.admin.cli one way: drawn.admin.web"]


def test_the_packages_of_this_project_import_one_way() -> None:
    assert graph.main() == 0
