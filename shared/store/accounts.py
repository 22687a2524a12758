"""External and local accounts (manual chapter 4), and all SQL that reads them.

Their tables are external_accounts and local_accounts; shared/store/account_changes.py writes them.

A service reads the accounts where it decides, or compares the version of its cached accounts (``load_version``).
Therefore a change is in force when its commit returns.
"""

from __future__ import annotations

import datetime
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import AsyncCursor

from shared.db.arrays import array_literal
from shared.db.database import Connection, Row
from shared.model import External, ImapServer, Issuer, Local, OAuth, Server
from shared.store import relays

_EXTERNAL = f"""select id, address, enabled, login, password, pop3_host, pop3_port, pop3_tls, pop3_tls_fingerprint,
    {relays.OF_ACCOUNT}, poll_seconds, history, delete_after_days, delete_history, reply_to_author, aliases, oauth,
    answer_notes, hold, imap_host, imap_port, imap_tls, imap_tls_fingerprint, imap_folders, reply_tag,
    imap_answered, imap_sent
    from external_accounts"""
_LOCAL = """select id, address, enabled, password_hash, user_name, aliases, addresses, external_id, delegate_id,
    former_names, weak_password, junk, language from local_accounts"""


def _external(row: Row) -> External:
    external_id, address, enabled, login, password, *pop3 = row[:9]
    sent_by, poll, history, days, old, reply, aliases, oauth, notes, hold = row[9:19]
    imap_host, imap_port, imap_tls, imap_fingerprint, folders, reply_tag, answered, sent = row[19:]
    imap = None
    if imap_host is not None:
        imap = ImapServer(imap_host, imap_port, imap_tls, imap_fingerprint, tuple(folders), answered, sent)
    return External(
        external_id,
        address,
        enabled,
        login,
        bytes(password),
        Server(*pop3) if imap is None else None,
        relays.read_relays(sent_by),
        poll,
        history,
        days,
        old,
        reply,
        tuple(aliases),
        None if oauth is None else _oauth(oauth),
        notes,
        hold,
        imap,
        reply_tag,
    )


def _oauth(stored: Mapping[str, Any]) -> OAuth:
    """Read the column oauth. Code from before there was more than one grant wrote three fields."""
    return OAuth(
        stored["name"],
        Issuer(**stored["issuer"]),
        stored["client_id"],
        stored.get("grant", "authorization"),
        stored.get("tenant"),
        stored.get("same_as"),
    )


def _local(row: Row) -> Local:
    local_id, address, enabled, password_hash, user_name, aliases, addresses, external_id, delegate_id = row[:9]
    former, weak, junk, language = row[9:]
    return Local(
        local_id,
        address,
        enabled,
        password_hash,
        user_name,
        tuple(aliases),
        tuple(addresses),
        external_id,
        delegate_id,
        tuple(former),
        weak,
        junk,
        language,
    )


VERSION = "(select version::text from accounts_version)"
"""SQL: the version of all accounts, which every change renews."""


async def load_version(connection: Connection) -> str:
    """Return the version of all accounts, which every change renews. Read it before the accounts that it describes."""
    cursor = await connection.execute("select version::text from accounts_version")
    row = await cursor.fetchone()
    assert row is not None, "the table accounts_version has one row"
    return str(row[0])


async def load_externals(
    connection: Connection, ids: Sequence[int] | None = None, known: Mapping[int, External] | None = None
) -> list[External]:
    """Load the external accounts that are not removed, ordered by address; only these ids, if any are given.

    :param known: accounts of the caller by id. An unchanged one is returned as the same object.
    """
    result = []
    async for row in await _rows(connection, _EXTERNAL, ids):
        external = _external(row)
        before = known.get(external.id) if known else None
        result.append(before if before is not None and before == external else external)
    return result


async def list_external_addresses(connection: Connection) -> list[str]:
    """List the addresses of the external accounts that are not removed."""
    cursor = await connection.execute("select address from external_accounts where removed_at is null")
    return [str(row[0]) for row in await cursor.fetchall()]


async def load_locals(
    connection: Connection, ids: Sequence[int] | None = None, known: Mapping[int, Local] | None = None
) -> list[Local]:
    """Load the local accounts that are not removed, ordered by address; only these ids, if any are given.

    :param known: accounts of the caller by id. An unchanged one is returned as the same object: ten thousand accounts
        would otherwise be in memory twice.
    """
    result = []
    async for row in await _rows(connection, _LOCAL, ids):
        local = _local(row)
        before = known.get(local.id) if known else None
        result.append(before if before == local else local)
    return result


async def _rows(connection: Connection, select: str, ids: Sequence[int] | None) -> AsyncCursor[Row]:
    """Run one of two statements: a single one for both cases would be planned at each call, or read every account."""
    if ids is None:
        cursor = await connection.execute(f"{select} where removed_at is null order by address")
    else:
        cursor = await connection.execute(
            f"{select} where removed_at is null and id = any(%s::bigint[]) order by address", (array_literal(ids),)
        )
    return cursor


PAGE = 50
"""Accounts on a page."""


async def page_of_externals(
    connection: Connection, after: str = "", search: str = "", limit: int = PAGE
) -> list[External]:
    """List the external accounts after this address, ordered by address; ``search`` filters by substring."""
    cursor = await connection.execute(
        f"""{_EXTERNAL} where removed_at is null and lower(address) > lower(%(after)s)
                and (%(search)s = '' or strpos(lower(address), lower(%(search)s)) > 0)
            order by lower(address) limit %(limit)s""",
        {"after": after, "search": search, "limit": limit},
    )
    return [_external(row) for row in await cursor.fetchall()]


async def page_of_locals(
    connection: Connection, after: str = "", search: str = "", external_id: int | None = None, limit: int = PAGE
) -> list[Local]:
    """As ``page_of_externals``; only sharers of an external account, if one is given. Also searches user names."""
    cursor = await connection.execute(
        f"""{_LOCAL} where removed_at is null and lower(address) > lower(%(after)s)
                and (%(search)s = '' or strpos(lower(address || ' ' || user_name), lower(%(search)s)) > 0)
                and (%(external)s::bigint is null or external_id = %(external)s)
            order by lower(address) limit %(limit)s""",
        {"after": after, "search": search, "external": external_id, "limit": limit},
    )
    return [_local(row) for row in await cursor.fetchall()]


async def external_by_address(connection: Connection, address: str) -> External | None:
    """Find the external account of this address, in any case of letters."""
    cursor = await connection.execute(
        f"{_EXTERNAL} where removed_at is null and lower(address) = lower(%s)", (address,)
    )
    row = await cursor.fetchone()
    return None if row is None else _external(row)


async def list_token_users(connection: Connection, address: str) -> list[str]:
    """List the addresses of the external accounts that use the access tokens of this one (``oauth.same_as``)."""
    cursor = await connection.execute(
        """select address from external_accounts where removed_at is null and lower(oauth ->> 'same_as') = lower(%s)
           order by address""",
        (address,),
    )
    return [str(row[0]) for row in await cursor.fetchall()]


async def count_accounts(connection: Connection) -> tuple[int, int]:
    """Count the external and the local accounts."""
    cursor = await connection.execute(
        """select (select count(*) from external_accounts where removed_at is null),
                  (select count(*) from local_accounts where removed_at is null)"""
    )
    row = await cursor.fetchone()
    return (0, 0) if row is None else (int(row[0]), int(row[1]))


async def count_weak_passwords(connection: Connection) -> int:
    """Count the local accounts whose password had too few characters when it was set."""
    cursor = await connection.execute("select count(*) from local_accounts where removed_at is null and weak_password")
    row = await cursor.fetchone()
    return 0 if row is None else int(row[0])


async def count_sharers(connection: Connection, external_ids: Sequence[int]) -> dict[int, int]:
    """Count the local accounts that share each of these external accounts."""
    cursor = await connection.execute(
        """select external_id, count(*) from local_accounts where removed_at is null and external_id = any(%s)
           group by external_id""",
        (list(external_ids),),
    )
    return {int(row[0]): int(row[1]) for row in await cursor.fetchall()}


async def removed_locals(connection: Connection, limit: int = PAGE) -> list[tuple[Local, datetime.datetime]]:
    """List the removed local accounts that still have a mailbox, with the time of removal; the latest first."""
    cursor = await connection.execute(
        f"""{_LOCAL.replace(" from local_accounts", ", removed_at from local_accounts")} l
            where removed_at is not null and exists (select from folders f where f.local_id = l.id)
            order by removed_at desc limit %s""",
        (limit,),
    )
    return [(_local(row[:-1]), row[-1]) for row in await cursor.fetchall()]


async def load_sharers(connection: Connection, external_ids: Sequence[int]) -> dict[int, list[Local]]:
    """Load the sharers of each external account, enabled or not, ordered by address."""
    cursor = await connection.execute(
        f"{_LOCAL} where removed_at is null and external_id = any(%s) order by address", (list(external_ids),)
    )
    sharers: dict[int, list[Local]] = {external_id: [] for external_id in external_ids}
    for row in await cursor.fetchall():
        local = _local(row)
        sharers[local.external_id].append(local)
    return sharers


async def list_languages(connection: Connection, external_id: int, default: str) -> list[str]:
    """List the languages of the people who share an external account, that of most people first; at least one.

    :param default: of people who have chosen none.
    """
    cursor = await connection.execute(
        """select coalesce(language, %s) as chosen from local_accounts
           where external_id = %s and enabled and removed_at is null group by chosen order by count(*) desc, chosen""",
        (default, external_id),
    )
    return [str(row[0]) for row in await cursor.fetchall()] or [default]


@dataclass(frozen=True, slots=True)
class AbsentDelegate:
    """A delegate who gets no mail, and the person who named this delegate."""

    person: str  # address
    away: bool  # the person is disabled: the delegate should get the mail now
    delegate: str  # address
    why: str  # for people: what became of the delegate
    others: int  # enabled people who share the person's external account and get the mail instead

    @property
    def text(self) -> str:
        """What this means for mail, for people."""
        to = "goes to everyone who shares the account" if self.others else "stays on hold"
        when = "" if self.away else "while this account is disabled, "
        return f"the delegate {self.delegate} {self.why}: {when}mail with this person's name {to}"


async def load_absent_delegates(connection: Connection, local_ids: Sequence[int] | None = None) -> list[AbsentDelegate]:
    """Load the delegates who are removed, disabled or share another account by now; of these people, or of all."""
    cursor = await connection.execute(
        """select p.address, not p.enabled, d.address,
                  case when d.removed_at is not null then 'is removed' when not d.enabled then 'is disabled'
                       else 'shares another account' end,
                  (select count(*) from local_accounts o
                   where o.external_id = p.external_id and o.enabled and o.removed_at is null)
           from local_accounts p join local_accounts d on d.id = p.delegate_id
           where p.removed_at is null and (%(ids)s::bigint[] is null or p.id = any(%(ids)s::bigint[]))
             and (d.removed_at is not null or not d.enabled or d.external_id <> p.external_id)
           order by p.address""",
        {"ids": None if local_ids is None else list(local_ids)},
    )
    return [AbsentDelegate(*row) for row in await cursor.fetchall()]


async def first_local(connection: Connection) -> Local | None:
    """Return the enabled local account that was created first."""
    cursor = await connection.execute(f"{_LOCAL} where removed_at is null and enabled order by id limit 1")
    row = await cursor.fetchone()
    return None if row is None else _local(row)


async def local_domains(connection: Connection) -> list[str]:
    """Return the domains of all local addresses, in lower case, sorted."""
    cursor = await connection.execute(
        """select distinct lower(substring(address from '[^@]*$')) as domain
           from (select unnest(address || addresses) from local_accounts where removed_at is null) as every (address)
           order by domain"""
    )
    return [row[0] for row in await cursor.fetchall()]


async def local_by_login(connection: Connection, address: str) -> Local | None:
    """Find the local account that logs in with this address (main or further), in any case of letters."""
    return (await locals_by_login(connection, [address])).get(address)


async def locals_by_login(connection: Connection, addresses: Sequence[str]) -> dict[str, Local]:
    """As ``local_by_login`` for several addresses. The keys are the given addresses that belong to an account."""
    return {asked: local for asked, (local, _) in (await load_logins(connection, addresses, "null")).items()}


async def load_logins(connection: Connection, addresses: Sequence[str], more: str) -> dict[str, tuple[Local, Any]]:
    """As ``locals_by_login``, each with one more value. :param more: an SQL expression about the account ``l``."""
    cursor = await connection.execute(
        f"""select g.asked, {more}, l.* from unnest(%s::text[]) g (asked), lateral (
                {_LOCAL} where removed_at is null and lower(address) = lower(g.asked)
                union all
                {_LOCAL} where removed_at is null and addresses <> '{{}}'
                    and lower_all(addresses) @> array[lower(g.asked)]
                limit 1) l""",
        (list(addresses),),
    )
    return {str(row[0]): (_local(row[2:]), row[1]) for row in await cursor.fetchall()}


@dataclass(frozen=True, slots=True)
class AddressHolder:
    """A person who has some addresses, or had them."""

    local: Local
    addresses: tuple[str, ...]
    gone: float | None  # seconds since the account was removed or the address was given up; None: it is held now


async def locals_by_address(connection: Connection, addresses: Collection[str], since: float) -> list[AddressHolder]:
    """Find who has one of these addresses (main or further), or had it within the last ``since`` seconds; in any case
    of letters."""
    cursor = await connection.execute(
        f"""{_LOCAL.replace(" from", ", extract(epoch from now() - removed_at)::float8, null::text from")}
            where (removed_at is null or removed_at > now() - make_interval(secs => %(since)s))
                and (lower(address) = any(%(a)s)
                     or exists (select from unnest(addresses) x where lower(x) = any(%(a)s)))
            union all
            select l.*, extract(epoch from now() - f.given_up_at)::float8, f.address
            from former_addresses f, lateral ({_LOCAL} where id = f.local_id) l
            where lower(f.address) = any(%(a)s) and f.given_up_at > now() - make_interval(secs => %(since)s)""",
        {"a": [address.lower() for address in addresses], "since": since},
    )
    return [_holder(row) for row in await cursor.fetchall()]


def _holder(row: Row) -> AddressHolder:
    gone, former = row[-2:]
    local = _local(row[:-2])
    return AddressHolder(local, (local.address, *local.addresses) if former is None else (former,), gone)


async def valid_logins(connection: Connection, logins: Collection[tuple[int, str]]) -> set[tuple[int, str]]:
    """Return the logins (account id, password hash) whose account still exists, is enabled and has this password."""
    cursor = await connection.execute(
        """select l.id, l.password_hash
           from unnest(%s::bigint[], %s::text[]) as g (id, password_hash)
           join local_accounts l on l.id = g.id and l.password_hash = g.password_hash
           where l.enabled and l.removed_at is null""",
        ([local_id for local_id, _ in logins], [password_hash for _, password_hash in logins]),
    )
    return {(int(row[0]), str(row[1])) for row in await cursor.fetchall()}


LOCK_ENABLED = """select id, external_id, password_hash from local_accounts
    where id = any(%s::bigint[]) and enabled and removed_at is null order by id for share skip locked"""
"""SQL: lock those of these local accounts that are enabled, as a part of a larger statement. An account that is being
changed now is left out: one change must not delay the mail of all others."""
