"""services/admin/monitoring/health_client.py: the URLs of the services, and the problems in their metrics."""

from __future__ import annotations

import pytest

from services.admin.monitoring.health_client import certificate_problems, corruption_problems, health_url
from shared.settings import load


@pytest.mark.parametrize(
    ("flags", "url"),
    [
        ({"bind": "192.168.1.1"}, "http://192.168.1.1:9104"),
        ({"bind": "0.0.0.0"}, "http://127.0.0.1:9104"),
        ({"bind": "0.0.0.0", "service_host": "{name}"}, "http://pop3_out:9104"),
        ({"service_host": "{host}.mail"}, "http://pop3-out.mail:9104"),
        ({"service_host": "{name}.mail.example", "metrics_port": 9000}, "http://pop3_out.mail.example:9003"),
    ],
)
def test_a_service_is_checked_on_its_own_host_or_its_bind_address(flags: dict[str, str], url: str) -> None:
    assert health_url(load(**flags), "pop3_out") == url


@pytest.mark.parametrize(
    ("expires", "refused", "problem"),
    [
        ("1.7951328e+09", "0.0", None),  # in 30 days
        ("NaN", "0.0", None),
        ("1.793e+09", "0.0", "its certificate expires in 5 days"),
        ("1.79e+09", "0.0", "its certificate has expired"),
        ("1.7951328e+09", "1.0", "the certificate in its files cannot be used"),
    ],
)
def test_a_certificate_that_expires_or_is_unreadable_is_a_problem(
    expires: str, refused: str, problem: str | None
) -> None:
    metrics = (
        f"# TYPE x gauge\nmailgroup_tls_certificate_expiry_timestamp_seconds {expires}\n"
        f"mailgroup_tls_certificate_refused {refused}\n"
    )
    found = certificate_problems(metrics, 1_792_540_800.0)
    assert [text.startswith(problem) for text in found if problem] == ([True] if problem else [])
    assert len(found) == (1 if problem else 0)


@pytest.mark.parametrize(("ago", "problem"), [(0, True), (3600, True), (3601, False)])
def test_corrupted_data_is_a_problem_for_an_hour_after_it_was_met(ago: float, problem: bool) -> None:
    now = 1_792_540_800.0
    found = corruption_problems(f"mailgroup_database_corrupted_timestamp_seconds {now - ago!r}\n", now)
    assert [text.partition(";")[0] for text in found] == ["PostgreSQL reports corrupted data"] * problem


def test_a_service_that_never_met_corrupted_data_has_no_problem() -> None:
    assert corruption_problems("mailgroup_database_corrupted_timestamp_seconds 0.0\n", 1_792_540_800.0) == []
    assert corruption_problems("", 1_792_540_800.0) == []
