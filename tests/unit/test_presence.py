"""When an owner counts as gone."""

from __future__ import annotations

from shared.db.liveness import CHECKS, DeadOwnerDetector


def test_an_owner_is_gone_after_several_looks_in_a_row() -> None:
    absentees = DeadOwnerDetector()
    for _ in range(CHECKS - 1):
        assert absentees.dead(["sender@one:7:ab"]) == []
    assert absentees.dead(["sender@one:7:ab"]) == ["sender@one:7:ab"]


def test_an_owner_that_is_back_for_a_moment_is_not_gone() -> None:
    absentees = DeadOwnerDetector()
    for _ in range(CHECKS - 1):
        absentees.dead(["one", "two"])
    assert absentees.dead(["two"]) == ["two"]
    assert absentees.dead(["one", "two"]) == ["two"]
