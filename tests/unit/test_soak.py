"""bench/soak.py: the growth of a process."""

from __future__ import annotations

import pytest

from bench.soak import MIB, Sample, draw, grows, report


def samples(octets: list[float], files: list[int]) -> list[Sample]:
    return [Sample(10.0 * n, int(o * MIB), f) for n, (o, f) in enumerate(zip(octets, files, strict=True))]


@pytest.mark.parametrize(
    ("octets", "files", "expected"),
    [
        ([50.0] * 40, [20] * 40, False),
        ([40.0] * 10 + [60.0] * 30, [20] * 40, False),  # it warms up in the first quarter
        ([50.0 + n / 2 for n in range(40)], [20] * 40, True),
        ([50.0] * 40, list(range(40)), True),
        ([50.0, 90.0] * 20, [20, 60] * 20, False),
    ],
)
def test_a_process_grows_if_it_has_more_at_the_end_than_when_it_was_warm(
    octets: list[float], files: list[int], expected: bool
) -> None:
    assert grows(samples(octets, files)) is expected


def test_the_page_names_what_grows_and_the_picture_has_a_line_a_process() -> None:
    found = {
        "router": samples([50.0] * 40, [20] * 40),
        "sender": samples([50.0 + n for n in range(40)], [20] * 40),
        "postgres": samples([50.0 + n for n in range(40)], [20] * 40),
    }
    text = report(found, ["words"])
    assert "| router | 50.0 MiB | 50.0 MiB | 20 | 20 | flat |" in text
    assert text.count("**grows**") == 1 and "not judged" in text
    assert draw(found).count("<polyline") == 6
