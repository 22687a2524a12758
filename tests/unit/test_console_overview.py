"""The first page of the console: the link of each problem, and the scale of the chart."""

from __future__ import annotations

import pytest

from services.admin.web.charts import scale_end
from services.admin.web.overview import link_problem

SUPPORT = "support@company.com"


@pytest.mark.parametrize(
    ("problem", "said", "path"),
    [
        ("2 mails are held: nobody shares it (held list)", "2 mails are held: nobody shares it", "/queue"),
        ("1 mail is parked after failing here (parked list)", "1 mail is parked after failing here", "/queue"),
        (
            f"{SUPPORT}: 3 mails could not be fetched and stay at the provider (external skipped {SUPPORT})",
            f"{SUPPORT}: 3 mails could not be fetched and stay at the provider",
            f"/external/{SUPPORT}",
        ),
        (
            f"{SUPPORT}: fetching: nobody has authorized it; run: mailgroup external authorize {SUPPORT} "
            "(paused: one try an hour)",
            f"{SUPPORT}: fetching: nobody has authorized it (paused: one try an hour)",
            f"/external/{SUPPORT}",
        ),
        (
            "alex@local.com: is disabled, and the delegate jim@local.com is disabled: mail stays on hold",
            "alex@local.com: is disabled, and the delegate jim@local.com is disabled: mail stays on hold",
            "/local/alex@local.com",
        ),
        ("gone@company.com: not checked yet", "gone@company.com: not checked yet", ""),
        ("queue router: nobody consumes it", "queue router: nobody consumes it", ""),
    ],
)
def test_a_problem_links_to_the_page_with_its_details(problem: str, said: str, path: str) -> None:
    assert link_problem(problem, {SUPPORT}) == (said, path)


@pytest.mark.parametrize(("most", "end"), [(0, 4), (4, 4), (5, 10), (11, 20), (21, 50), (99, 100), (101, 200)])
def test_the_chart_s_scale_has_whole_numbers(most: int, end: int) -> None:
    assert scale_end(most) == end
