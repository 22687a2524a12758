"""deploy/words.py: the refused words that it finds, and the texts that it accepts."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy import words


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It begins anew.", [(1, "anew")]),
        ("\nWHOEVER asks,\nor a Stranger", [(2, "whoever"), (3, "stranger")]),
        ("    # the transport is let go\n    # of at once", [(1, "let go of")]),
        ("what it has in\n  hand", [(1, "in hand")]),
        ("-- a loop goes\n-- round", [(1, "goes round")]),
        ("a hand, in handy form; strangely renewed", []),
        ("_configure_anew, at_hand", []),
    ],
)
def test_whole_words_are_found_in_any_case_and_across_lines(text: str, found: list[tuple[int, str]]) -> None:
    assert list(words.refused(text)) == found


def test_places_are_printed_with_a_better_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.py", "docs/b.md", "c.sql", "d.html", "e.txt", "CHANGELOG.md", "deploy/words.py", ".venv/x/f.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("once\nat hand\n", encoding="utf-8")
    assert words.main(tmp_path) == 1
    printed = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in printed] == ["a.py", "c.sql", "d.html", "docs/b.md"]
    assert printed[0] == "a.py:2: 'at hand': write cached, loaded, available"


def test_a_clean_tree_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("again\n", encoding="utf-8")
    assert words.main(tmp_path) == 0
