"""The shell blocks of README.md and docs/ are run as they are written, page by page, each page in one shell.

Docker and a cluster are not here: ``stand_ins`` renders overlays with the real kubectl, and runs what would run in a
container on the system of the test. Blocks that cannot run at all are in NOT_RUN; tests/unit/test_shell_blocks.py
checks the words of every block.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from deploy import check
from deploy.machine.postgres import Postgres
from services.admin.accounts.export import as_yaml
from shared.db.migrations.migrate import migrate
from tests import servers
from tests.shell_blocks import PAGES, ROOT, Block, blocks
from tests.system import System, until
from tests.unit.test_shell_blocks import NOT_RUN

MAIL = (
    b"From: Anna <anna@customer.example>\r\nTo: support@company.com\r\nSubject: The printer smokes\r\n"
    b"Message-ID: <20141105.4711@customer.example>\r\n\r\nIt does.\r\n"
)


def to_run(page: Path) -> list[Block]:
    return [block for block in blocks(page) if block.name not in NOT_RUN]


@pytest.fixture(scope="module")
def containers() -> Iterator[Postgres]:
    """PostgreSQL as in the containers: the role mailgroup with a migrated database."""
    with servers.postgres() as server:
        with psycopg.connect(server.admin_url_of("postgres"), autocommit=True) as connection:
            connection.execute(f"create role mailgroup login password '{server.password}'")
            connection.execute("create database mailgroup owner mailgroup")
        migrate(server.url)
        yield server


@pytest.fixture(scope="module")
def mail(gateway: System) -> int:
    """The id of the mail that the pages look for, delivered to the manual's company."""
    gateway.empty()
    gateway.apply(gateway.company())
    gateway.provider.put("support@company.com", MAIL)
    until(lambda: gateway.who_has("The printer smokes", ["alex@local.com", "jim@local.com"]) != [])
    return int(gateway.json("trace", "20141105.4711@customer.example")[0]["id"])


@pytest.fixture
def environment(
    containers: Postgres, gateway: System, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    """The variables of the shell: the stand-ins come first on the path."""
    monkeypatch.setenv("PATH", os.environ["PATH"])  # put back after the test
    check.install()
    admin = conninfo_to_dict(containers.admin_url_of("postgres"))
    passwords = tmp_path / "pgpass"
    passwords.write_text(f"*:*:*:postgres:{containers.admin_password}\n*:*:*:mailgroup:{containers.password}\n")
    passwords.chmod(0o600)
    return {
        "PATH": f"{ROOT / 'tests/e2e/stand_ins'}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "LANG": "C.UTF-8",
        "CHECKOUT": str(ROOT),
        "PYTHON": sys.executable,
        "KUBECTL": check.tool("kubectl"),
        "MAILGROUP_DATA": str(gateway.settings.data),
        "MAILGROUP_ALLOW_PRIVATE_UPSTREAM": "yes",
        "CONTAINERS_DATABASE_URL": containers.url,
        "CONTAINERS_DATA": str(tmp_path / "containers"),
        "PGHOST": str(admin["host"]),
        "PGPORT": str(admin["port"]),
        "PGPASSFILE": str(passwords),
    }


@pytest.fixture
def clone(gateway: System, tmp_path: Path) -> Path:
    """What a block of a page finds in its folder: the deployment files, an accounts file, a mail."""
    folder = tmp_path / "mailgroup"
    shutil.copytree(ROOT / "deploy", folder / "deploy", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "docker-compose.yml", folder)
    (folder / "mailgroup").symlink_to(ROOT / "tests/e2e/stand_ins/mailgroup")
    (folder / "accounts.yaml").write_text(as_yaml(gateway.company()), encoding="utf-8")
    (folder / "mail.eml").write_bytes(MAIL)
    return folder


@pytest.mark.parametrize("page", [page for page in PAGES if to_run(page)], ids=lambda page: str(page.relative_to(ROOT)))
def test_every_shell_block_of_a_page_runs(
    page: Path, gateway: System, mail: int, clone: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    token = gateway.json("tokens", "create", f"for {page.name}")["token"]
    script = "set -eu\nset -o pipefail\n"
    for block in to_run(page):
        script += f"echo '== line {block.line}' >&2\n{block.text}\n"
    for written, here in (
        ("mail.company.com:995", f"127.0.0.1:{gateway.settings.pop3s_port}"),
        ("127.0.0.1:9107", f"127.0.0.1:{gateway.settings.metrics_port_of('admin')}"),
        ("127.0.0.1:8080", f"127.0.0.1:{gateway.settings.admin_port}"),
        ("/srv/mailgroup", str(gateway.settings.data)),
        ("/srv/new", str(tmp_path / "new")),
        ("/backup/", f"{tmp_path}/"),
    ):
        script = script.replace(written, here)
    script = re.sub(r"(?<=--mail )42\b", str(mail), script)
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=clone,
        env=environment | {"TOKEN": token},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{page.name}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
