"""When an owner counts as gone."""

from __future__ import annotations

from shared.db.liveness import LOOKS, Absentees


def test_an_owner_is_gone_after_several_looks_in_a_row() -> None:
    absentees = Absentees()
    for _ in range(LOOKS - 1):
        assert absentees.gone(["sender@one:7:ab"]) == []
    assert absentees.gone(["sender@one:7:ab"]) == ["sender@one:7:ab"]


def test_an_owner_that_is_back_for_a_moment_is_not_gone() -> None:
    absentees = Absentees()
    for _ in range(LOOKS - 1):
        absentees.gone(["one", "two"])
    assert absentees.gone(["two"]) == ["two"]
    assert absentees.gone(["one", "two"]) == ["two"]
