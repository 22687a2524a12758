"""shared/db/liveness.py: when an owner counts as dead."""

from __future__ import annotations

from shared.db.liveness import CHECKS, DeadOwnerDetector


def test_an_owner_is_dead_after_several_consecutive_checks() -> None:
    detector = DeadOwnerDetector()
    for _ in range(CHECKS - 1):
        assert detector.dead(["sender@one:7:ab"]) == []
    assert detector.dead(["sender@one:7:ab"]) == ["sender@one:7:ab"]


def test_an_owner_that_is_back_for_a_moment_is_not_dead() -> None:
    detector = DeadOwnerDetector()
    for _ in range(CHECKS - 1):
        detector.dead(["one", "two"])
    assert detector.dead(["two"]) == ["two"]
    assert detector.dead(["one", "two"]) == ["two"]
