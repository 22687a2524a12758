"""The benchmark's arithmetic and its file: ratios of pairs, goals, sections that stay."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench import machine, mails, results
from bench.benchmarks import BENCHMARKS, select_benchmarks
from bench.paired import compared
from bench.processes import Run, cpu_seconds, measured, processor_seconds, tree
from bench.table import COLUMNS, COST_COLUMNS, COSTS, Goal, Line, number, rate_line, spread

BURN = """
import sys, time
def burn():
    began = time.process_time()
    while time.process_time() - began < 0.3:
        pass
"""
"""Counts the process's own clock, so that it uses the same processor time on a slow machine."""
BURNT, TICK = 0.3, 1 / os.sysconf("SC_CLK_TCK")


def test_a_ratio_is_taken_pair_by_pair() -> None:
    line = rate_line("read", [Run(100, 1), Run(300, 1)], [Run(100, 1), Run(100, 1)], Goal("≥", 2), "/s", "C")
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
def test_a_goal_is_met_or_says_how_far_it_is(goal: Goal, figure: float, verdict: str) -> None:
    assert goal.verdict(figure) == verdict


def test_a_goal_with_a_unit_is_about_our_figure_and_not_about_the_ratio() -> None:
    cells = Line("idle", (30.0,), "MiB", Goal("≤", 40, "MiB"), (10.0,), "C").cells()
    assert dict(zip(COLUMNS, cells, strict=True))["verdict"] == "met"


def test_a_generator_that_has_no_time_left_is_pointed_out() -> None:
    runs = [Run(1, 1, cpu=0.4), Run(1, 1, cpu=0.97)]
    assert rate_line("read", runs, [], None).cells()[-1] == "0.97 (the limit?)"


def test_a_side_without_a_generator_counts_for_nothing() -> None:
    assert rate_line("fetch", [Run(1, 1)], [Run(1, 1)], None).cells()[-1] == ""


def test_figures_have_three_digits_that_mean_something() -> None:
    assert [number(value) for value in (12345.6, 45.67, 1.234, 0.0123)] == ["12,346", "45.7", "1.23", "0.0123"]
    assert spread([3.0, 1.0, 2.0]) == "2.00 [1.00..3.00]"


def test_benchmarks_that_were_not_run_keep_their_sections_in_order() -> None:
    line = Line("w", (1.0,), "ms")
    old = results.merge("", {"CPU": "slow"}, {"b": results.section("b", "Bee", "monday", [line])}, ["a", "b"])
    new = results.merge(old, {"CPU": "fast"}, {"a": results.section("a", "Ay", "tuesday", [line])}, ["a", "b"])
    assert list(results.sections(new)) == ["a", "b"]
    assert "monday" in new and "tuesday" in new and "fast" in new and "slow" not in new


def test_a_new_run_replaces_its_section_and_a_removed_benchmark_s_goes() -> None:
    line = Line("w", (1.0,), "ms")
    old = results.merge(
        "", {}, {name: results.section(name, "W", f"old {name}", [line]) for name in ("a", "gone")}, ["a", "gone"]
    )
    new = results.merge(old, {}, {"a": results.section("a", "W", "new a", [line])}, ["a"])
    assert "new a" in new and "old" not in new


def test_what_people_wrote_stays_behind_the_benchmarks() -> None:
    line = Line("w", (1.0,), "ms")
    old = results.merge("", {}, {"a": results.section("a", "W", "old", [line])}, ["a"])
    old += "\n## bounds: What bounds it\n\nThe disk.\n"
    new = results.merge(old, {}, {"b": results.section("b", "W", "new", [line])}, ["a", "b"])
    assert list(results.sections(new)) == ["a", "b", "bounds"]
    assert new.endswith("The disk.\n")


def test_merging_again_changes_nothing() -> None:
    sections = {"a": results.section("a", "W", "now", [Line("w", (1.0,), "ms")])}
    once = results.merge("", {"CPU": "x"}, sections, ["a"])
    assert results.merge(once, {"CPU": "x"}, {}, ["a"]) == once


def test_benchmarks_are_chosen_by_name_or_group_a_wrong_name_fails() -> None:
    assert [work.name for work in select_benchmarks(["relay", "poll"])] == ["poll", "relay"]
    assert {work.group for work in select_benchmarks(["serving"])} == {"serving"}
    assert select_benchmarks([]) == list(BENCHMARKS)
    with pytest.raises(ValueError, match="'relays'"):
        select_benchmarks(["relays"])


@pytest.mark.parametrize("octets", [*range(700, 860), 4096, 10_240, 51_200])
def test_a_mail_has_exactly_its_octets_and_no_line_that_begins_with_a_dot(octets: int) -> None:
    body = mails.mail(octets, octets)
    assert len(body) == octets and body.endswith(b"\r\n")
    assert b"\r\n." not in body and b"\n" not in body.replace(b"\r\n", b"")


def test_mails_of_different_numbers_differ() -> None:
    assert len({mails.mail(4096, number) for number in range(50)}) == 50


@contextmanager
def waiting(code: str) -> Iterator[int]:
    """Run a Python process that executes this code and waits; yield its id."""
    code = f"import subprocess, threading\n{BURN}\nBURN = {BURN!r}\n{code}\nprint(flush=True)\nsys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == b"\n"
        yield process.pid
        process.stdin.close()


def test_the_time_of_a_child_that_has_ended_is_counted() -> None:
    with waiting("subprocess.run([sys.executable, '-c', BURN + 'burn()'], check=True)") as pid:
        assert tree(pid) == [pid]
        assert processor_seconds({"parent": pid})["parent"] >= BURNT - 2 * TICK


def test_a_running_child_s_time_is_counted_once_unless_it_is_left_out() -> None:
    code = BURN + "burn(); print(flush=True); sys.stdin.read()"
    with waiting(
        f"child = subprocess.Popen([sys.executable, '-c', {code!r}], stdout=subprocess.PIPE); child.stdout.readline()"
    ) as pid:
        _, child = tree(pid)
        own, both = cpu_seconds([pid]), processor_seconds({"parent": pid})["parent"]
        assert cpu_seconds([child]) >= BURNT
        assert both == pytest.approx(own + cpu_seconds([child]), abs=TICK)
        assert processor_seconds({"parent": pid}, without=child)["parent"] == pytest.approx(own, abs=TICK)


def test_the_time_of_a_thread_that_has_ended_is_counted() -> None:
    with waiting("thread = threading.Thread(target=burn); thread.start(); thread.join()") as pid:
        assert cpu_seconds([pid]) >= BURNT


def test_own_time_is_read_from_proc_in_ticks() -> None:
    with waiting("burn()") as pid:
        user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        assert cpu_seconds([pid]) == pytest.approx((int(user) + int(system)) * TICK, abs=3 * TICK)


def test_an_ended_process_has_used_no_time() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
        assert processor_seconds({"gone": process.pid}) == {"gone": 0.0}


def test_a_run_s_time_counts_from_before_it_until_the_side_is_quiet() -> None:
    figures = iter([{"a": 1.0}, {"a": 2.0}, {"a": 3.0, "b": 0.5}, {"a": 3.0, "b": 0.5}])
    run = measured(lambda: Run(10, 1.0), lambda: next(figures))
    assert run.processor == {"a": 2.0, "b": 0.5} and next(figures, None) is None


def test_the_time_of_a_program_that_ends_counts_for_the_run() -> None:
    def work() -> Run:
        subprocess.run([sys.executable, "-c", BURN + "burn()"], check=True)
        return Run(1, 1.0)

    run = measured(work, lambda: processor_seconds({"us": os.getpid()}))
    assert run.processor["us"] >= BURNT - 2 * TICK


def test_processor_time_per_mail_and_process_is_beside_the_baselines() -> None:
    ours = [Run(100, 1, processor={"router": 0.1, "postgres": 0.3, "epmd": 0.001, "admin": 0.003})] * 3
    anchor = [Run(10, 1, processor={"mpop": 0.08, "dovecot": 0.0001})] * 3
    line = rate_line("fetch", ours, anchor, None, "mails/s", "mpop")
    assert dict(zip(COST_COLUMNS, line.costs(), strict=True)) == {
        "work": "fetch",
        "mailgroup": "4.04 [4.04..4.04]",
        "its processes": "postgres 3.00, router 1.00, others 0.04",
        "anchor": "8.01 [8.01..8.01]",
        "its programs": "mpop 8.00, dovecot 0.01",
        "ratio": "0.50 [0.50..0.50]",
    }
    assert "| fetch | 4.04" in results.section("a", "W", "now", [line, Line("w", (1.0,), "ms")])


def test_processor_time_that_was_not_measured_is_left_out() -> None:
    line = rate_line("fetch", [Run(1, 1)], [Run(1, 1)], None)
    assert line.costs() == () and COSTS not in results.section("a", "W", "now", [line])


def test_checkouts_are_compared_by_process_with_the_median_of_the_pairs() -> None:
    base = [Run(10, 1, processor={"a": cost, "gone": 0.01}) for cost in (0.1, 0.2, 0.4)]
    ours = [Run(10, 1, processor={"a": cost}) for cost in (0.1, 0.1, 0.1)]
    rows = {name: cells for name, *cells in compared(base, ours)[1:]}
    assert list(rows) == ["all", "a", "gone"]
    assert rows["a"] == ["20.0", "10.0", "0.50 [0.25..1.00]"]
    assert rows["gone"][1] == "0"


def test_a_fsync_takes_time_and_leaves_no_file(tmp_path: Path) -> None:
    assert machine.fsync_seconds(tmp_path) > 0
    assert not list(tmp_path.iterdir())


def test_a_machine_with_a_slow_disk_counts_for_no_goal() -> None:
    assert machine.words(73e-6) == "73 µs"
    assert machine.words(300e-6).startswith("300 µs (no goal")
