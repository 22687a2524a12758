"""The benchmark's arithmetic and its file: ratios of pairs, goals, sections that stay."""

from __future__ import annotations

import pytest

from bench import mails, results
from bench.benchmarks import BENCHMARKS, chosen
from bench.processes import Run
from bench.table import COLUMNS, Goal, Line, number, of_runs, spread


def test_a_ratio_is_taken_pair_by_pair() -> None:
    line = of_runs("read", [Run(100, 1), Run(300, 1)], [Run(100, 1), Run(100, 1)], Goal("≥", 2), "/s", "C")
    assert line.ratios == [1, 3]
    assert dict(zip(COLUMNS, line.cells(), strict=True))["ratio"] == "2.00 [1.00..3.00]"


@pytest.mark.parametrize(
    ("goal", "figure", "verdict"),
    [
        (Goal("≥", 2), 2.0, "met"),
        (Goal("≥", 2), 1.0, "50% of it"),
        (Goal("≤", 0.2), 0.1, "met"),
        (Goal("≤", 0.2), 0.3, "1.50 of it"),
        (Goal("≤", 5, "ms"), 0.0, "met"),
    ],
)
def test_a_goal_is_met_or_tells_how_far_it_is(goal: Goal, figure: float, verdict: str) -> None:
    assert goal.verdict(figure) == verdict


def test_a_goal_with_a_unit_is_about_our_figure_and_not_about_the_ratio() -> None:
    cells = Line("idle", (30.0,), "MiB", Goal("≤", 40, "MiB"), (10.0,), "C").cells()
    assert dict(zip(COLUMNS, cells, strict=True))["verdict"] == "met"


def test_a_generator_that_has_no_time_left_is_pointed_out() -> None:
    runs = [Run(1, 1, cpu=0.4), Run(1, 1, cpu=0.97)]
    assert of_runs("read", runs, [], None).cells()[-1] == "0.97 (the limit?)"


def test_a_side_without_a_generator_counts_for_nothing() -> None:
    assert of_runs("fetch", [Run(1, 1)], [Run(1, 1)], None).cells()[-1] == ""


def test_figures_have_three_digits_that_mean_something() -> None:
    assert [number(value) for value in (12345.6, 45.67, 1.234, 0.0123)] == ["12,346", "45.7", "1.23", "0.0123"]
    assert spread([3.0, 1.0, 2.0]) == "2.00 [1.00..3.00]"


def test_works_that_were_not_run_keep_their_sections_in_the_order_of_all_works() -> None:
    line = Line("w", (1.0,), "ms")
    old = results.merge("", {"CPU": "slow"}, {"b": results.section("b", "Bee", "monday", [line])}, ["a", "b"])
    new = results.merge(old, {"CPU": "fast"}, {"a": results.section("a", "Ay", "tuesday", [line])}, ["a", "b"])
    assert list(results.sections(new)) == ["a", "b"]
    assert "monday" in new and "tuesday" in new and "fast" in new and "slow" not in new


def test_a_work_that_is_run_again_replaces_its_section_and_one_that_is_gone_leaves() -> None:
    line = Line("w", (1.0,), "ms")
    old = results.merge(
        "", {}, {name: results.section(name, "W", f"old {name}", [line]) for name in ("a", "gone")}, ["a", "gone"]
    )
    new = results.merge(old, {}, {"a": results.section("a", "W", "new a", [line])}, ["a"])
    assert "new a" in new and "old" not in new


def test_merging_again_changes_nothing() -> None:
    sections = {"a": results.section("a", "W", "now", [Line("w", (1.0,), "ms")])}
    once = results.merge("", {"CPU": "x"}, sections, ["a"])
    assert results.merge(once, {"CPU": "x"}, {}, ["a"]) == once


def test_works_are_chosen_by_name_or_group_and_a_wrong_name_is_told() -> None:
    assert [work.name for work in chosen(["relay", "poll"])] == ["poll", "relay"]
    assert {work.group for work in chosen(["serving"])} == {"serving"}
    assert chosen([]) == list(BENCHMARKS)
    with pytest.raises(ValueError, match="'relays'"):
        chosen(["relays"])


@pytest.mark.parametrize("octets", [*range(700, 860), 4096, 10_240, 51_200])
def test_a_mail_has_exactly_its_octets_and_no_line_that_begins_with_a_dot(octets: int) -> None:
    body = mails.mail(octets, octets)
    assert len(body) == octets and body.endswith(b"\r\n")
    assert b"\r\n." not in body and b"\n" not in body.replace(b"\r\n", b"")


def test_mails_of_different_numbers_differ() -> None:
    assert len({mails.mail(4096, number) for number in range(50)}) == 50
