"""The rules for revisions after the first one, read from their SQL: old code works on, and no lock lasts long.

Only known forms of statements are allowed. EXPANDING ones leave everything in place that the code of the version before
uses. CONTRACTING ones need the declaration ``contracts = "VERSION"`` in the revision's Python file: a released version
that no longer uses what the revision takes away. All others may hold a lock for long, and are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from shared.db.migrations.statements import split

_NAME = r'[\w."]+'
_CONSTANT = r"(?:'[^']*'|-?\d+(?:\.\d+)?|true|false|null|now\(\)|current_timestamp|array\[\])(?:::[\w\[\]]+)?"
_TYPE = r"(?!\w*serial)\w+(?: varying| precision)?(?:\(\d+(?:, ?\d+)?\))?(?: with(?:out)? time zone)?(?:\[\])?"
_KEPT_WHOLE = r"(?!.* references (?!.* on delete (?:cascade|set null)))"
"""A new reference to an old table must not refuse the deletions of old code."""

_NEW_COLUMN = re.compile(
    rf"add (?!constraint )(?:column )?(?:if not exists )?{_NAME} {_TYPE}"
    rf"(?P<rest>(?: (?:not )?null| default {_CONSTANT}| check \(.*\))*)",
    re.I,
)
_NEW_TABLE = re.compile(rf"create table (?:if not exists )?({_NAME})", re.I)
_ON_TABLE = re.compile(
    rf"(?:create (?:unique )?index (?:if not exists )?{_NAME} on|insert into|alter table) ({_NAME})",
    re.I,
)

_CHANGED = re.compile(rf"(?:alter table|create trigger .* on|drop trigger .* on) ({_NAME})", re.I | re.S)
"""Statements that lock a table until the end of the transaction. A second table would be locked while mail waits for
the first one, perhaps with a lock on the second."""

EXPANDING = (
    rf"create table {_KEPT_WHOLE}(?!.* partition of ).*",
    r"create (?:sequence|view|type|function|trigger|aggregate|domain) .*",
    r"comment on .*",
    rf"alter table {_NAME} add constraint {_NAME} foreign key .* on delete (?:cascade|set null) not valid",
)
ONLINE = (
    r"create index concurrently if not exists .*",
    rf"alter table {_NAME} validate constraint {_NAME}",
    rf"alter table {_NAME} drop constraint if exists \w+_fkey",  # code before it keeps to the references, too
    r"(?:update|delete from|insert into|with) .* limit \d+\b.*",
)
"""Statements that run outside of a transaction: ``upgrade_online_with``."""
CONTRACTING = (
    r"drop (?:table|view|sequence|type|function|trigger|aggregate|domain) .*",
    rf"alter table {_NAME} drop (?:column|constraint) .*",
    rf"alter table {_NAME} rename .*",
    rf"alter table {_NAME} alter (?:column )?{_NAME} (?:set not null|(?:drop|set) default.*|(?:set data )?type .*)",
    rf"alter table {_NAME} add constraint .* not valid",
    r"create or replace (?:function|view|trigger) .*",
    rf"alter (?:function|view|sequence|type|index) {_NAME} .*",
)
ONLINE_CONTRACTING = (
    r"create unique index concurrently if not exists .*",
    r"drop index concurrently if exists .*",
)


def find_violations(sql: str, *, online: bool, contracts: bool) -> list[str]:
    """Return the statements of a revision that break the rules, each with the reason.

    :param online: the revision is loaded by ``upgrade_online_with``. :param contracts: it is declared as contracting.
    """
    statements = split(sql)
    made = {found[1] for found in map(_NEW_TABLE.match, statements) if found}
    found = [
        f"{reason}: {statement}"
        for statement in statements
        if (reason := _find_reason(statement, made, online=online, contracts=contracts))
    ]
    changed = {locked[1] for locked in map(_CHANGED.match, statements) if locked} - made
    if not online and len(changed) > 1:
        found.append(f"it may wait for mail that waits for it: {', '.join(sorted(changed))} need a revision each")
    return found


def _find_reason(statement: str, made: set[str], *, online: bool, contracts: bool) -> str | None:
    table = _ON_TABLE.match(statement)
    if not online and table and table[1] in made:  # nobody uses a new table yet
        return None
    if _matches(statement, ONLINE if online else EXPANDING) or (not online and _only_adds_columns(statement)):
        return None
    if _matches(statement, ONLINE_CONTRACTING if online else CONTRACTING):
        return None if contracts else "the version before may still use it"
    return "it may hold a lock for long, or is no known form"


def _matches(statement: str, forms: Iterable[str]) -> bool:
    return any(re.fullmatch(form, statement, re.IGNORECASE | re.DOTALL) for form in forms)


def _only_adds_columns(statement: str) -> bool:
    """Return whether a statement adds columns alone that old code need not write, without writing the table again."""
    found = re.fullmatch(
        rf"alter table (?:if exists )?(?:only )?{_NAME} (add .*)", statement, re.IGNORECASE | re.DOTALL
    )
    if found is None:
        return False
    columns = re.split(r", (?=add )", found[1])
    return all(_is_optional(column) for column in columns)


def _is_optional(column: str) -> bool:
    found = _NEW_COLUMN.fullmatch(column)
    if found is None:
        return False
    rest = found["rest"].lower()
    return "not null" not in rest or ("default" in rest and "default null" not in rest)
