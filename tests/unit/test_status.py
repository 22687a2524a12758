"""services/admin/status.py: where the services are asked."""

from __future__ import annotations

import pytest

from services.admin.status import health_url
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
def test_a_service_is_asked_on_its_own_host_or_where_it_binds(flags: dict[str, str], url: str) -> None:
    assert health_url(load(**flags), "pop3_out") == url
