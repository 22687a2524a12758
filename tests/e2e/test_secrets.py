"""Each service gets only the secrets that it needs, and uses the database as a role that is no superuser."""

from __future__ import annotations

import stat
from pathlib import Path

import psycopg
import pytest

from shared.settings import SECRET_READERS, SERVICES
from tests.system import System

SECRETS = ("database_url", "broker_url", *SECRET_READERS)


def environment(pid: int) -> str:
    return Path(f"/proc/{pid}/environ").read_bytes().decode()


def value(system: System, secret: str) -> str:
    return str(getattr(system.settings, secret) or "")


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_its_own_secrets_and_no_others(system: System, name: str) -> None:
    text = environment(system.instance.pids()[name])
    held = {secret for secret in SECRETS if value(system, secret) and value(system, secret) in text}
    wanted = {secret for secret in SECRETS if value(system, secret) and name in SECRET_READERS.get(secret, SERVICES)}
    assert held == wanted and {"database_url"} <= held


def test_servers_and_their_supervisor_have_no_secret_of_a_service(system: System) -> None:
    pids = system.instance.pids()
    for pid in (_parent(pids["router"]), *(pids[name] for name in ("postgres", "epmd", "rabbitmq"))):
        text = environment(pid)
        assert not [secret for secret in SECRETS if value(system, secret) and value(system, secret) in text]


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_files_with_secrets_are_for_their_owner_alone(system: System) -> None:
    data = system.settings.data
    files = [data / "run.json", data / "servers.json", data / "secret.key", *(data / "environment").iterdir()]
    assert len(files) == 3 + len(SERVICES)
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert value(system, "database_url") not in (data / "supervisord.conf").read_text()


def test_the_services_role_in_the_database_is_no_superuser(system: System) -> None:
    with psycopg.connect(value(system, "database_url")) as connection:
        found = connection.execute(
            """select rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls, r.oid = d.datdba
               from pg_roles r, pg_database d where rolname = current_user and datname = current_database()"""
        ).fetchone()
    assert found == (False, False, False, False, False, True)
