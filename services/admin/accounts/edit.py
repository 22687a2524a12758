"""Changes of single accounts: their fields, or their removal. Commands, pages and REST requests share them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from services.admin.access import audit
from services.admin.access.audit import AuditEntry
from services.admin.accounts import export
from services.admin.accounts.errors import AccountProblem, AccountsError, Kind
from services.admin.accounts.file_format import AccountsFile, check
from services.admin.accounts.plan import NO_PASSWORD
from services.admin.accounts.relay_fields import merge_relays
from shared.db.database import Connection
from shared.errors import Permanent
from shared.model import External, Local
from shared.store import account_changes, accounts

CHANGES_SHOWN = 3
"""Limit of the other user's changes that the error for a later, conflicting change names."""


class ChangedMeanwhile(Permanent):
    """An account is not as it was when a person began to change it.

    lines: what happened to it, for people. version: of its present state; '' if it is removed. entries: the latest
    changes.
    """

    def __init__(self, lines: list[str], version: str, entries: Sequence[AuditEntry] = ()) -> None:
        super().__init__(" ".join(lines))
        self.lines = lines
        self.version = version
        self.entries = entries


async def require_version(connection: Connection, kind: Kind, address: str, version: str) -> None:
    """Allow no other change of accounts until the transaction ends, if this account has this version.

    :param version: by ``export.version_of``. :raises ChangedMeanwhile: it has another one, or is removed.
    """
    await account_changes.lock_for_change(connection)
    account = await _find(connection, kind, address)
    now = "" if account is None else export.version_of(account)
    if now == version:
        return
    entries = await audit.page(connection, search=address, limit=CHANGES_SHOWN)
    lines = [
        f"{address} was {'removed' if account is None else 'changed'} meanwhile, and nothing is saved yet. The latest "
        "changes:",
        *(f"{e.at:%Y-%m-%d %H:%M:%S} UTC, {e.who}: {e.did}{f': {e.detail}' if e.detail else ''}" for e in entries),
    ]
    if account is not None:
        lines.append("Compare, and save again to replace that state by the values below.")
    raise ChangedMeanwhile(lines, now, entries)


async def _find(connection: Connection, kind: Kind, address: str) -> External | Local | None:
    if kind == "external":
        return await accounts.external_by_address(connection, address)
    return await accounts.local_by_login(connection, address)


async def find_stored(connection: Connection, kind: Kind, entry: Mapping[str, Any]) -> External | Local | None:
    """Return the stored account of an entry: that of its address, or else that of ``renamed_from``."""
    for name in ("address", "renamed_from"):
        given = entry.get(name)
        if isinstance(given, str) and (found := await _find(connection, kind, given)) is not None:
            return found
    return None


async def prepare(
    connection: Connection, kind: Kind, address: str, fields: dict[str, Any], new: bool, folder: Path | None = None
) -> AccountsFile:
    """Return the account with these fields changed, as an accounts file for ``apply.apply`` in the same transaction.

    No other change comes between.

    :param fields: as in the accounts file. :param folder: of password files; None: no password file is allowed.
    :raises Permanent: the account exists already (``new``), or does not exist. :raises AccountsError: a field is wrong.
    """
    await account_changes.lock_for_change(connection)
    if new and await _find(connection, kind, address) is not None:
        raise Permanent(f"{address}: this {kind} account is there already; change it with '{kind} set'")
    old = {"address": address} if new else await export.find_entry(connection, kind, address)
    if not new and str(fields.get("address") or address).casefold() != address.casefold():
        old["renamed_from"] = old["address"]
    _replace_protocol(old, fields)
    _replace_tokens(old, fields)
    entry = export.merge(old, fields)
    if kind == "external" and "smtp" in fields:
        entry["smtp"] = merge_relays(address, old.get("smtp"), fields["smtp"])
    if new:
        return check_new_entry(kind, entry, folder)
    for server in ("pop3", "imap"):
        given = fields.get(server)
        if isinstance(given, dict) and "tls" in given and "port" not in given:
            entry[server].pop("port", None)  # the port follows the mode unless it is given
    return check_entry(kind, entry, folder)


def _replace_protocol(old: dict[str, Any], fields: Mapping[str, Any]) -> None:
    """Take the server of the one protocol out of the stored entry if a server of the other one is given: so one command
    changes the protocol."""
    for given, replaced in (("imap", "pop3"), ("pop3", "imap")):
        if fields.get(given) and replaced not in fields:
            old.pop(replaced, None)


def _replace_tokens(old: dict[str, Any], fields: Mapping[str, Any]) -> None:
    """Take the stored way to get access tokens out of the entry if another account's are given instead, or the other
    way round: so one command changes it."""
    given, stored = fields.get("oauth"), old.get("oauth")
    if isinstance(given, dict) and stored and bool(given.get("same_as")) != ("same_as" in stored):
        del old["oauth"]


async def add_name(connection: Connection, address: str, name: str) -> AccountsFile:
    """Return a person with a further name, as an accounts file for ``apply.apply``. Errors as ``prepare``."""
    await account_changes.lock_for_change(connection)
    entry = await export.find_entry(connection, "local", address)
    return await prepare(connection, "local", address, {"aliases": [*entry["aliases"], name]}, new=False)


def check_entry(kind: Kind, entry: dict[str, Any], folder: Path | None = None) -> AccountsFile:
    """Check the entry of one account, without the other accounts. Parameters and errors as ``prepare``."""
    try:
        return check({f"{kind}_accounts": [entry]}, folder=folder)
    except AccountsError as error:
        raise AccountsError([replace(problem, index=None) for problem in error.problems]) from error


def check_new_entry(kind: Kind, entry: dict[str, Any], folder: Path | None = None) -> AccountsFile:
    """Check the entry of one account that command or API add by itself. Its mail is on hold until the operator says
    that everybody is there, unless the entry says otherwise.

    :raises AccountsError: with all mistakes: also no password, or an external account's entry that does not say what
        happens to the mail that is at the provider already.
    """
    address, problems = str(entry.get("address")), []
    if kind == "external" and entry.get("history") is None:
        words = "is missing: all delivers the mail that is at the provider already, from_now leaves it there"
        problems.append(AccountProblem(words, kind, address=address, field=("history",)))
    if not any(entry.get(name) for name in ("password", "password_file", "password_hash", "oauth")):
        problems.append(AccountProblem(NO_PASSWORD, kind, address=address, field=("password",)))
    try:
        checked = check_entry(kind, {"hold": True} | entry if kind == "external" else entry, folder)
    except AccountsError as error:
        raise AccountsError([*problems, *error.problems]) from error
    if problems:
        raise AccountsError(problems)
    return checked


async def check_saved_entry(connection: Connection, kind: Kind, entry: dict[str, Any]) -> AccountsFile:
    """Check the entry of an account that is to be added, or that replaces the stored one; an external account keeps its
    ``history`` if the entry has none. :raises AccountsError: with all mistakes."""
    old = await find_stored(connection, kind, entry)
    if old is None:
        return check_new_entry(kind, entry)
    return check_entry(kind, {"history": old.history} | entry if isinstance(old, External) else entry)


async def remove(connection: Connection, kind: Kind, address: str) -> list[str]:
    """Remove an account; a person's mail is kept for the retention time.

    :return: what was done, a line each. :raises Permanent: no such account, or it is an external one that people share,
        or whose access tokens others use.
    """
    await account_changes.lock_for_change(connection)
    await export.find_entry(connection, kind, address)
    people = await accounts.load_locals(connection)
    everyone = await accounts.load_externals(connection) if kind == "external" else people
    account_id = next(a.id for a in everyone if a.address.casefold() == address.casefold())
    if kind == "external" and (sharers := [p.address for p in people if p.external_id == account_id]):
        raise Permanent(
            f"{address}: is shared by {', '.join(sharers)}; remove them first, or let them share "
            "another one with 'local set ... external=...'"
        )
    if kind == "external" and (users := await accounts.list_token_users(connection, address)):
        raise Permanent(
            f"{address}: its access tokens are used by {', '.join(users)}; remove them first, or give them tokens of "
            "their own with 'external set'"
        )
    if kind == "local":
        await account_changes.lock_folders(connection, [account_id])
    await account_changes.remove_account(connection, kind, account_id)
    kept = "; its mail is kept for the retention time ('local restore' brings it back)" if kind == "local" else ""
    without_delegate = [person.address for person in people if kind == "local" and person.delegate_id == account_id]
    return [
        f"{kind} account {address}: removed{kept}",
        *(f"local account {person}: has no delegate any more" for person in without_delegate),
    ]
