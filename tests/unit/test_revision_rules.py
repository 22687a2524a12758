"""Revisions only add to the schema, or say which released version has stopped using what they take away."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shared.db.migrations import revisions
from shared.db.migrations.statements import split
from tests.revision_rules import find_violations

ROOT = Path(__file__).resolve().parents[2]
LATER = revisions.known_revisions()[1:]


def contracts(revision: str) -> str | None:
    """The released version that a revision names."""
    text = (revisions.FOLDER / "versions" / f"{revision}.py").read_text(encoding="utf-8")
    found = re.search(r'^contracts = "(.+)"$', text, re.M)
    return found[1] if found else None


def violations(revision: str) -> list[str]:
    """The statements of a revision that break the rules."""
    file = revisions.FOLDER / "versions" / revision
    online = "upgrade_online_with(__file__)" in file.with_suffix(".py").read_text(encoding="utf-8")
    sql = file.with_suffix(".sql").read_text(encoding="utf-8")
    return find_violations(sql, online=online, contracts=contracts(revision) is not None)


def test_every_revision_keeps_the_rules() -> None:
    assert {revision: found for revision in LATER if (found := violations(revision))} == {}
    assert violations("initial") != []  # the rules are for changes of what is there


def test_a_contraction_names_a_released_version_before_it() -> None:
    released = revisions.RELEASED.values()
    for number, revision in enumerate(LATER, start=1):
        version, before = contracts(revision), revisions.known_revisions()[:number]
        if version == revisions.UNRELEASED:  # no version was released before it
            assert not [each for each in before if each in released], revision
        else:
            assert version is None or revisions.RELEASED[version] in before, revision


def test_every_released_version_has_its_revision() -> None:
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^## \[(\d+\.\d+\.\d+)\]", changes, re.M)) == revisions.RELEASED.keys()
    assert set(revisions.RELEASED.values()) <= set(revisions.known_revisions())


EXPANDING = """
create table shoes (id bigint primary key, inbound_id bigint references inbound on delete cascade, size int not null);
create index shoes_size on shoes (size);
insert into shoes select id, id, 1 from inbound;
alter table inbound add column shoe int;
alter table inbound add column shoe text not null default 'a;b', add column laces boolean not null default false;
alter table inbound add shoe numeric(10, 2) default 0;
alter table inbound add column shoes text[] not null default '{}';
alter table inbound add column worn_at timestamptz not null default now();
alter table inbound add column shoe text check (shoe in ('left', 'right'));
alter table inbound add constraint wearer foreign key (shoe) references local_accounts on delete set null not valid;
create function copy_shoe() returns trigger language plpgsql as $$ begin new.a := new.b; return new; end $$;
create trigger copy before insert or update on inbound for each row execute function copy_shoe();
comment on table inbound is 'shoes';
"""
ONLINE = """
create index concurrently if not exists inbound_shoe on inbound (shoe);
update inbound set shoe = 1 where id in (select id from inbound where shoe is null order by id limit 1000);
with some as (select id from inbound where shoe is null limit 500) update inbound set shoe = 1 from some where true;
alter table inbound validate constraint wearer;
alter table inbound drop constraint if exists inbound_shoe_fkey;
"""
CONTRACTING = """
alter table inbound rename column shoe to boot;
alter table inbound rename to people;
alter table inbound drop column shoe;
alter table inbound drop constraint shoe_check;
alter table inbound alter column shoe set not null;
alter table inbound alter shoe type bigint;
alter table inbound alter column shoe set data type bigint using shoe::bigint;
alter table inbound alter column shoe drop default;
alter table inbound add constraint worn check (shoe > 0) not valid;
drop table shoes;
drop function copy_shoe();
drop trigger copy on inbound;
create or replace function copy_shoe() returns trigger language plpgsql as $$ begin return new; end $$;
"""
CONTRACTING_ONLINE = """
create unique index concurrently if not exists inbound_shoe on inbound (shoe);
drop index concurrently if exists inbound_shoe;
"""
REFUSED = """
alter table inbound add column shoe int not null;
alter table inbound add column shoe int not null default null;
alter table inbound add column shoe int, add column boot int not null;
alter table inbound add column shoe int, drop column boot;
alter table inbound add column shoe int unique;
alter table inbound add column shoe bigint references inbound on delete cascade;
alter table inbound add column shoe uuid default gen_random_uuid();
alter table inbound add column shoe timestamptz default clock_timestamp();
alter table inbound add column shoe bigint generated always as identity;
alter table inbound add column shoe text generated always as (user_name || 'x') stored;
alter table inbound add column shoe bigserial;
alter table inbound add constraint worn check (shoe > 0);
alter table inbound add primary key (shoe);
create table shoes (inbound_id bigint references inbound);
create index inbound_shoe on inbound (shoe);
create unique index inbound_shoe on inbound (shoe);
create index concurrently inbound_shoe on inbound (shoe);
update inbound set shoe = 1;
delete from inbound where shoe is null;
insert into inbound select * from inbound;
do $$ begin drop table inbound; end $$;
lock table inbound;
truncate inbound;
vacuum full inbound;
cluster inbound;
reindex table inbound;
"""
REFUSED_ONLINE = """
update inbound set shoe = 1 where shoe is null;
create index concurrently inbound_shoe on inbound (shoe);
create index inbound_shoe on inbound (shoe);
alter table inbound add column shoe int;
"""


@pytest.mark.parametrize(("sql", "online"), [(EXPANDING, False), (ONLINE, True)], ids=["sql", "online"])
def test_statements_that_add_something_are_allowed(sql: str, online: bool) -> None:
    assert find_violations(sql, online=online, contracts=False) == []


@pytest.mark.parametrize(("sql", "online"), [(CONTRACTING, False), (CONTRACTING_ONLINE, True)], ids=["sql", "online"])
def test_statements_that_take_something_away_need_a_declaration(sql: str, online: bool) -> None:
    found = find_violations(sql, online=online, contracts=False)
    assert found == [f"the version before may still use it: {statement}" for statement in split(sql)]
    assert find_violations(sql, online=online, contracts=True) == []


@pytest.mark.parametrize("contracts", [False, True])
@pytest.mark.parametrize(("sql", "online"), [(REFUSED, False), (REFUSED_ONLINE, True)], ids=["sql", "online"])
def test_statements_that_may_lock_for_long_are_refused(sql: str, online: bool, contracts: bool) -> None:
    found = find_violations(sql, online=online, contracts=contracts)
    assert [violation.partition(": ")[2] for violation in found] == split(sql)


def test_a_revision_changes_one_old_table() -> None:
    sql = (
        "create table shoes (id int); alter table shoes add size int not null; alter table inbound add column shoe int;"
    )
    assert find_violations(sql, online=False, contracts=False) == []
    [violation] = find_violations(f"{sql} alter table local_accounts add shoe int", online=False, contracts=False)
    assert violation.endswith("inbound, local_accounts need a revision each")


def test_sql_is_split_at_the_ends_of_statements() -> None:
    sql = "select 1; -- a; b\n select ';''' , \"a;\" /* ; */ ;\n create function f() as $x$ a; $$ b; $x$;\n\n select -1"
    assert split(sql) == ["select 1", "select ';''' , \"a;\"", "create function f() as $x$ a; $$ b; $x$", "select -1"]
