"""Status and a metric show the used connections to PostgreSQL, and each service stays within its share."""

from __future__ import annotations

import re
import urllib.request

import psycopg

from shared.settings import SERVICES
from tests.system import System, until


class Reader:
    """Reads a metrics page; "" until the monitor has checked the system."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __call__(self) -> str:
        with urllib.request.urlopen(self._url, timeout=5) as answer:
            text = str(answer.read().decode())
        return text if "mailgroup_database_connections{" in text else ""


def test_status_and_a_metric_show_the_used_connections(system: System) -> None:
    found = system.json("status")["database"]
    assert len(SERVICES) <= found["connections"] < found["connections_limit"] == 197
    assert re.search(r"Connections\s+Limit", system.run("status").stdout)
    page = until(Reader(system.instance.urls()["metrics_admin"]))
    assert f'mailgroup_database_connections{{state="limit"}} {found["connections_limit"]:.1f}' in page


def test_each_service_shows_its_share_and_stays_within_it(system: System) -> None:
    system.apply(system.company())
    for number in range(20):
        system.submit(
            "alex@local.com", ["jim@local.com"], f"From: alex@local.com\r\nSubject: {number}\r\n\r\n".encode()
        )
    until(lambda: len(system.mails("jim@local.com")) == 20)
    with psycopg.connect(str(system.settings.database_url)) as connection:
        rows = connection.execute(
            "select split_part(application_name, '/', 1), split_part(application_name, '/', 2)::int, count(*) "
            "from pg_stat_activity where application_name like 'mailgroup-%/%/%' group by 1, 2"
        ).fetchall()
    assert {str(name) for name, _, _ in rows} == {f"mailgroup-{name}" for name in SERVICES}
    assert all(count <= share == system.settings.database_connections for _, share, count in rows), rows
