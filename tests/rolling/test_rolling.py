"""The short form of ``make rolling``: two replicas of the mail services are replaced while clients work."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from services.pop3_out.replies import STOPPING
from shared.db.migrations import revisions
from tests.faults.books import Findings
from tests.revision_rules import find_violations
from tests.rolling.clients import Tally, judge_pop3, judge_smtp
from tests.rolling.run import SHORT, Result, drive, is_clean, pod_timing
from tests.rolling.versions import copy_with_wider_tables


@pytest.mark.timeout(1800)
def test_a_rolling_upgrade_under_load_fails_no_command() -> None:
    result = drive(SHORT)
    assert is_clean(result, SHORT), "\n".join(result.lines())
    assert result.mails and result.submissions


def test_the_migration_of_the_new_version_only_adds(database_url: str, tmp_path: Path) -> None:
    statements = copy_with_wider_tables(tmp_path, database_url, revisions.known_revisions()[-1])
    assert len(statements) > 30
    assert [find_violations(sql, online=False, contracts=False) for sql in statements] == [[]] * len(statements)


def test_a_pod_leaves_its_service_before_it_is_stopped() -> None:
    timing = pod_timing()
    assert timing.propagation < timing.pre_stop
    # preStop, the longest transaction, and the end of the process
    assert timing.grace >= timing.pre_stop + 60


@pytest.mark.parametrize(
    ("reply", "outcome"),
    [
        (b"+OK 3 mails\r\n", ""),
        (STOPPING, "told"),
        (b"-ERR [SYS/TEMP] the mailbox is not available now, try again later\r\n", "temporary"),
        (b"-ERR [IN-USE] too many sessions of this account\r\n", "temporary"),
        (b"-ERR [AUTH] wrong name or password\r\n", "permanent"),
    ],
)
def test_replies_of_pop3_are_judged(reply: bytes, outcome: str) -> None:
    assert judge_pop3(reply) == outcome


@pytest.mark.parametrize(
    ("reply", "outcome"),
    [
        (b"250 2.0.0 Queued as 7\r\n", ""),
        (b"354 End data with <CR><LF>.<CR><LF>\r\n", ""),
        (b"421 4.3.2 The server is shutting down\r\n", "told"),
        (b"451 4.3.0 Try again later\r\n", "temporary"),
        (b"421 4.7.0 Too many connections\r\n", "temporary"),
        (b"550 5.1.1 No such user\r\n", "permanent"),
    ],
)
def test_replies_of_smtp_are_judged(reply: bytes, outcome: str) -> None:
    assert judge_smtp(reply) == outcome


@pytest.mark.parametrize(
    ("replicas", "outcome", "outage", "clean"),
    [
        (2, "told", 0.0, True),
        (2, "refused", 0.0, False),
        (2, "broken", 0.0, False),
        (2, "temporary", 0.0, False),
        (1, "refused", 9.0, True),
        (1, "refused", 11.0, False),
        (1, "temporary", 0.0, True),
        (1, "permanent", 0.0, False),
    ],
)
def test_a_run_is_judged_by_what_clients_noticed(replicas: int, outcome: str, outage: float, clean: bool) -> None:
    result = Result(pop3=Tally(sessions=5), smtp=Tally(sessions=5))
    plan = replace(SHORT, replicas=replicas)
    assert is_clean(result, plan)
    result.smtp.ends[outcome] += 1
    result.smtp.longest_outage = outage
    assert is_clean(result, plan) is clean
    assert not is_clean(replace(result, unclean=1), plan)
    assert not is_clean(replace(result, providers=Findings(lost=Counter({("a", "b"): 1}))), plan)
