"""shared/db/migrations against a real PostgreSQL: several processes, a second revision, unknown revisions."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from typer.testing import CliRunner, Result

from deploy.machine import backups
from deploy.machine.instance import Instance, with_free_ports
from deploy.machine.postgres import Postgres
from services.admin.cli.app import app
from shared.db.database import Database
from shared.db.migrations import revisions
from shared.db.migrations.migrate import migrate, pending
from shared.errors import Permanent, Temporary
from shared.model import External, ImapServer, Relay, Server
from shared.provider.vault import new_key
from shared.settings import Settings
from shared.store import account_changes, accounts
from tests import servers

LATEST = revisions.known_revisions()[-1]
SECOND = f"""from shared.db.migrations.sql_file import upgrade_with

revision = "second"
down_revision = "{LATEST}"

upgrade = upgrade_with(__file__)
"""
REFUSAL = (
    "the database is at revision 0017, which this version does not know "
    f"(it knows: {', '.join(revisions.known_revisions())}): it was made before the "
    "first release; run 'mailgroup export' with the version that made it, then start with a new data folder or an "
    "empty database and apply the exported accounts"
)


@pytest.fixture
def empty(postgres: Postgres) -> Iterator[str]:
    """The URL of an empty database."""
    postgres.create("empty")
    yield postgres.url_of("empty")
    postgres.drop("empty")


@pytest.fixture
def old(postgres: Postgres) -> Iterator[str]:
    """The URL of a database that a version before the first release made."""
    postgres.create("old")
    set_revision(postgres.url_of("old"), "0017")
    yield postgres.url_of("old")
    postgres.drop("old")


def set_revision(url: str, revision: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("create table if not exists alembic_version (version_num varchar(32) not null)")
        connection.execute("delete from alembic_version")
        connection.execute("insert into alembic_version (version_num) values (%s)", (revision,))


def revision_of(url: str) -> str:
    with psycopg.connect(url) as connection:
        row = connection.execute("select version_num from alembic_version").fetchone()
    assert row is not None
    return str(row[0])


def test_several_that_migrate_at_once_apply_each_revision_once(empty: str) -> None:
    # given a database without tables
    due = pending(empty)
    assert due == revisions.known_revisions()
    # when four processes start together
    with ThreadPoolExecutor(4) as pool:
        applied = list(pool.map(migrate, [empty] * 4))
    # then one of them did all the work
    assert sorted(applied) == [[], [], [], due]
    assert pending(empty) == []
    assert migrate(empty) == []


def test_a_second_revision_is_applied_on_top_of_the_first(
    empty: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a database that this version made
    migrate(empty)
    # when a version with one more revision starts
    folder = tmp_path / "100% new"
    shutil.copytree(revisions.FOLDER, folder)
    (folder / "versions" / "second.py").write_text(SECOND)
    (folder / "versions" / "second.sql").write_text(
        "create table seconds (percent text default '%s :x');\ninsert into seconds default values;\n"
    )
    monkeypatch.setattr(revisions, "FOLDER", folder)
    # then it applies that one alone
    assert revisions.known_revisions()[-2:] == [LATEST, "second"]
    assert pending(empty) == ["second"]
    assert migrate(empty) == ["second"]
    assert pending(empty) == migrate(empty) == []
    with psycopg.connect(empty) as connection:
        assert connection.execute("select percent from seconds").fetchall() == [("%s :x",)]
    # and the version before works with it, as it only added something
    monkeypatch.undo()
    assert pending(empty) == migrate(empty) == []
    assert revision_of(empty) == "second"


def test_a_second_revision_that_fails_leaves_the_database_as_it_was(
    empty: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate(empty)
    shutil.copytree(revisions.FOLDER, tmp_path / "new")
    (tmp_path / "new" / "versions" / "second.py").write_text(SECOND)
    (tmp_path / "new" / "versions" / "second.sql").write_text("create table seconds ();\nselect 1 / 0;\n")
    monkeypatch.setattr(revisions, "FOLDER", tmp_path / "new")

    with pytest.raises(Permanent, match="division by zero"):
        migrate(empty)

    assert revision_of(empty) == LATEST
    with psycopg.connect(empty) as connection:
        assert connection.execute("select to_regclass('seconds')").fetchone() == (None,)


def test_each_file_of_a_revision_has_its_name() -> None:
    for file in (revisions.FOLDER / "versions").glob("*.py"):
        assert f'\nrevision = "{file.stem}"\n' in file.read_text()
        assert file.with_suffix(".sql").exists()


def test_a_database_newer_than_the_code_is_left_alone(empty: str) -> None:
    migrate(empty)
    with psycopg.connect(empty) as connection:  # the code of "between" is the oldest that works with it
        connection.execute("update alembic_version set version_num = 'later', oldest_revision = 'between'")
    with pytest.raises(Permanent, match=r"revision later.*a newer version made it"):
        migrate(empty)
    with pytest.raises(Permanent, match="revision later"):
        asyncio.run(revisions.check_revision(empty))
    assert revision_of(empty) == "later"


CONTRACTION = SECOND + '\ncontracts = "0.2.0"\n'
THIRD = CONTRACTION.replace('"second"', '"third"').replace(f'"{LATEST}"', '"second"')


def test_a_contracting_revision_refuses_code_before_the_version_it_names(
    empty: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given version 0.1.0, version 0.2.0 with the second revision, and a third revision that contracts
    migrate(empty)
    first, second, third = revisions.FOLDER, tmp_path / "0.2.0", tmp_path / "0.3.0"
    for folder, before in ((second, first), (third, second)):
        shutil.copytree(before, folder)
    for folder in (second, third):
        (folder / "versions" / "second.py").write_text(SECOND)
        (folder / "versions" / "second.sql").write_text("alter table local_accounts add column shoe int;\n")
    (third / "versions" / "third.py").write_text(THIRD)
    (third / "versions" / "third.sql").write_text("alter table local_accounts drop column user_name;\n")
    monkeypatch.setitem(revisions.RELEASED, "0.1.0", LATEST)
    monkeypatch.setitem(revisions.RELEASED, "0.2.0", "second")

    def usable_by(folder: Path) -> bool:
        monkeypatch.setattr(revisions, "FOLDER", folder)
        with psycopg.connect(empty) as connection:
            row = connection.execute(revisions.SCHEMA_QUERY.encode()).fetchone()
        assert row is not None
        return revisions.is_usable(*row)

    # then new code is not ready before the migration, and old code is ready after one that expands
    assert [usable_by(folder) for folder in (first, second, third)] == [True, False, False]
    monkeypatch.setattr(revisions, "FOLDER", second)
    assert migrate(empty) == ["second"]
    assert [usable_by(folder) for folder in (first, second, third)] == [True, True, False]
    # and after the contraction the version that it names is ready, and the one before is not
    monkeypatch.setattr(revisions, "FOLDER", third)
    assert migrate(empty) == ["third"]
    assert [usable_by(folder) for folder in (first, second, third)] == [False, True, True]
    monkeypatch.setattr(revisions, "FOLDER", first)
    with pytest.raises(Permanent, match="a newer version made it"):
        migrate(empty)


def test_revisions_that_are_no_chain_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(revisions.FOLDER, tmp_path / "new")
    (tmp_path / "new" / "versions" / "stray.py").write_text(SECOND.replace(f'"{LATEST}"', '"nowhere"'))
    monkeypatch.setattr(revisions, "FOLDER", tmp_path / "new")
    with pytest.raises(Permanent, match="no revision nowhere"):
        revisions.known_revisions()


def test_a_server_that_does_not_answer_is_a_temporary_failure() -> None:
    with pytest.raises(Temporary, match="Connection refused"):
        migrate("postgresql://127.0.0.1:1/nowhere", seconds=0.1)


def test_the_command_leaves_a_schema_that_only_grew_as_it_is(empty: str, tmp_path: Path) -> None:
    def run(url: str, *words: str) -> Result:
        where = {"MAILGROUP_DATABASE_URL": url, "MAILGROUP_DATA": str(tmp_path), "COLUMNS": "200"}
        return CliRunner(env=where).invoke(app, ["migrate", *words])

    done = run(empty)
    assert done.exit_code == 0 and f"applied: {', '.join(revisions.known_revisions())}" in " ".join(done.stdout.split())
    set_revision(empty, "later")
    done = run(empty)
    assert done.exit_code == 0 and "works with the schema of the database; nothing to do" in done.stdout
    assert revision_of(empty) == "later"
    # and it waits for the server no longer than the command says
    done = run("postgresql://127.0.0.1:1/nowhere", "--wait", "0")
    assert done.exit_code == 1 and "Connection refused" in done.stderr


# ------------------------------------------------------------------------------------------------ unknown revisions


@pytest.mark.parametrize("command", ["migrate", "apply"])
def test_a_command_refuses_a_database_at_an_unknown_revision(command: str, old: str, tmp_path: Path) -> None:
    words = [command]
    if command == "apply":
        file = tmp_path / "accounts.yaml"
        file.write_text("external_accounts: []\nlocal_accounts: []\n")
        words.append(str(file))
    done = CliRunner(env={"MAILGROUP_DATABASE_URL": old, "MAILGROUP_DATA": str(tmp_path)}).invoke(app, words)
    assert done.exit_code == 1
    assert REFUSAL in " ".join(done.stderr.split())
    assert revision_of(old) == "0017"


def test_up_refuses_a_database_at_an_unknown_revision(old: str, tmp_path: Path) -> None:
    settings = with_free_ports(
        Settings(database_url=old, broker_url="amqp://127.0.0.1:1/", secret_key=new_key(), data=tmp_path / "data")
    )
    with pytest.raises(Permanent) as refused, Instance(settings, lambda line: None, ()):
        pass
    assert str(refused.value) == REFUSAL
    assert revision_of(old) == "0017"


def test_restore_refuses_a_backup_at_an_unknown_revision(old: str, empty: str, tmp_path: Path) -> None:
    file = tmp_path / "backup"
    backups.write(file, old, None, "2026-11-05T12:00:00.000Z")
    where = {"MAILGROUP_DATABASE_URL": empty, "MAILGROUP_DATA": str(tmp_path / "data")}
    done = CliRunner(env=where).invoke(app, ["restore", str(file)])
    assert done.exit_code == 1
    assert REFUSAL in " ".join(done.stderr.split())
    assert revision_of(empty) == "0017"


# ------------------------------------------------------------------------------------------------ external_imap


def test_code_from_before_imap_works_on_beside_accounts_fetched_by_it(
    empty: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a database of the version before with an account
    (tmp_path / "old" / "versions").mkdir(parents=True)
    for file in revisions.FOLDER.rglob("*.*"):
        if file.parent == revisions.FOLDER or file.stem == "initial":
            shutil.copy(file, tmp_path / "old" / file.relative_to(revisions.FOLDER))
    monkeypatch.setattr(revisions, "FOLDER", tmp_path / "old")
    migrate(empty)
    add = """insert into external_accounts (address, login, password, pop3_host, pop3_port, pop3_tls, smtp_host,
             smtp_port, smtp_tls, smtp_auth, smtp_connections, poll_seconds, history, delete_history, reply_to_author)
             values (%s, 'x', '', 'pop3.company.com', 995, 'implicit', 'h', 25, 'none', true, 1, 60, 'all', false, true)
             returning id"""
    with psycopg.connect(empty) as connection:
        connection.execute(add, ("first@company.com",))
    # when this version migrates it, and fetches that account by IMAP
    monkeypatch.undo()
    assert migrate(empty)[0] == "external_imap"
    imap = ImapServer("imap.company.com", 993, "implicit", folders=("INBOX", "Junk"))

    async def by_imap(database: Database) -> External:
        async with database.transaction() as connection:
            [account] = await accounts.load_externals(connection)
            assert account.pop3 == Server("pop3.company.com", 995, "implicit")
            await account_changes.save_external(connection, replace(account, pop3=None, imap=imap))
            [account] = await accounts.load_externals(connection)
        return account

    async def changed() -> External:
        async with servers.opened(empty) as database:
            return await by_imap(database)

    assert asyncio.run(changed()).imap == imap
    # then code of the version before adds accounts, changes other fields, and reads a host that never resolves
    with psycopg.connect(empty) as connection:
        connection.execute(add, ("second@company.com",))
        connection.execute("update external_accounts set enabled = false")
        found = connection.execute("select pop3_host, imap_host from external_accounts order by address").fetchall()
    assert found == [("imap.invalid", "imap.company.com"), ("pop3.company.com", None)]
    # and an account that it gives a POP3 server is fetched by POP3
    with psycopg.connect(empty) as connection:
        connection.execute("update external_accounts set pop3_host = 'pop.example' where imap_host is not null")
        left = connection.execute("select * from external_accounts where num_nonnulls(imap_host, imap_folders) > 0")
        assert left.fetchall() == []


@pytest.mark.parametrize(
    "columns",
    [
        "imap_host = 'h'",
        "imap_host = 'h', imap_port = 993, imap_tls = 'implicit', imap_folders = '{INBOX}'",
        "pop3_host = 'imap.invalid', imap_host = 'h', imap_port = 993, imap_tls = 'implicit', imap_folders = '{}'",
        "imap_folders = '{INBOX}'",
    ],
    ids=["a part", "both", "no folder", "no host"],
)
def test_an_account_with_half_a_server_or_two_is_not_inserted(empty: str, columns: str) -> None:
    migrate(empty)
    given = dict(part.split(" = ") for part in columns.split(", "))
    values = {"pop3_host": "'p'"} | given
    with psycopg.connect(empty) as connection, pytest.raises(psycopg.errors.CheckViolation):
        connection.execute(
            f"""insert into external_accounts (address, login, password, pop3_port, pop3_tls, smtp_host, smtp_port,
                smtp_tls, smtp_auth, smtp_connections, poll_seconds, history, delete_history, reply_to_author,
                {", ".join(values)}) values ('a@b.c', 'x', '', 995, 'implicit', 'h', 25, 'none', true, 1, 60, 'all',
                false, true, {", ".join(values.values())})""".encode()
        )


# ------------------------------------------------------------------------------------------------ relays


def test_code_from_before_relays_works_on_beside_accounts_with_several(
    empty: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a database of the version before, with an account that failed to send and learnt a size
    before = revisions.known_revisions()[: revisions.known_revisions().index("relays")]
    (tmp_path / "old" / "versions").mkdir(parents=True)
    for file in revisions.FOLDER.rglob("*.*"):
        if file.parent == revisions.FOLDER or file.stem in before:
            shutil.copy(file, tmp_path / "old" / file.relative_to(revisions.FOLDER))
    monkeypatch.setattr(revisions, "FOLDER", tmp_path / "old")
    migrate(empty)
    add = """insert into external_accounts (address, login, password, pop3_host, pop3_port, pop3_tls, smtp_host,
             smtp_port, smtp_tls, smtp_auth, smtp_connections, smtp_size, poll_seconds, history, delete_history,
             reply_to_author)
             values (%s, 'x', '', 'h', 995, 'implicit', 'smtp.company.com', 25, 'none', true, 3, 5000, 60, 'all', false,
             true) returning id"""
    with psycopg.connect(empty) as connection:
        row = connection.execute(add, ("first@company.com",)).fetchone()
        assert row is not None
        connection.execute("insert into relay_status (external_id, failures, last_error) values (%s, 2, 'no')", row)
    # when this version migrates it, then server, state and size are there
    monkeypatch.undo()
    assert migrate(empty)[0] == "relays"
    with psycopg.connect(empty) as connection:
        found = connection.execute("select position, place, connections, failures, last_error, size from relays")
        assert found.fetchall() == [(0, "smtp.company.com:25", 3, 2, "no", 5000)]

    async def with_two(database: Database) -> External:
        own = Relay(Server("smtp.two.example", 465, "implicit"), login="ours", password=b"sealed")
        async with database.transaction() as connection:
            [account] = await accounts.load_externals(connection)
            await account_changes.save_external(connection, replace(account, relays=(own, account.relay)))
            [account] = await accounts.load_externals(connection)
        return account

    async def changed() -> External:
        async with servers.opened(empty) as database:
            return await with_two(database)

    # when the account has a server with a login of its own first, then old code finds a host that never resolves
    account = asyncio.run(changed())
    assert [(relay.place, relay.password) for relay in account.relays] == [
        ("smtp.two.example:465 ours", b"sealed"),
        ("smtp.company.com:25", None),
    ]
    with psycopg.connect(empty) as connection:
        assert connection.execute("select smtp_host from external_accounts").fetchall() == [("relays.invalid",)]
        # and when old code adds an account, or changes other fields, both are well
        connection.execute(add, ("second@company.com",))
        connection.execute("update external_accounts set enabled = false")
        places = "select place, login, password from relays order by external_id, position"
        assert connection.execute(places).fetchall() == [
            ("smtp.two.example:465 ours", "ours", b"sealed"),
            ("smtp.company.com:25", None, None),
            ("smtp.company.com:25", None, None),
        ]
        # and a server that it gives replaces the first one, without the other login
        connection.execute("update external_accounts set smtp_host = 'smtp.new.example'")
        found = connection.execute("select host, login, password from relays where position = 0")
        assert set(found.fetchall()) == {("smtp.new.example", None, None)}
        # and each change ends what is being sent
        versions = "select min(smtp_version) from external_accounts"
        was = connection.execute(versions).fetchone()
        connection.execute("update relays set auth = false")
        assert connection.execute(versions).fetchone() != was
