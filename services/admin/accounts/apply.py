"""Changes of accounts: plan (pure comparison with the stored accounts), then execute in one transaction, then check.

Every way to change an account (``apply``, ``external``, ``local``, console, REST) ends here: all have the same rules.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from services.admin.accounts import start, tag_probe
from services.admin.accounts.applied_passwords import Progress, hash_passwords
from services.admin.accounts.change_lines import ChangeLine, FieldChange, describe_change
from services.admin.accounts.conflicts import find_conflicts
from services.admin.accounts.errors import AccountProblem, AccountsError, Kind
from services.admin.accounts.field_problems import show_value
from services.admin.accounts.file_format import AccountsFile, ExternalFields, LocalFields, SmtpFields
from services.admin.accounts.passwords import is_weak
from services.admin.accounts.plan import (
    AccountsPlan,
    build_external,
    build_local,
    build_oauth,
    changed_hosts,
    find_secret_problems,
    find_stored_relay,
    keeps_client,
    plan_changes,
)
from services.admin.formatting import counted_for_record
from shared.auth.passwords import HashingPool
from shared.db.database import Connection
from shared.errors import Permanent
from shared.mime.display_names import normalise
from shared.model import External, Local, OAuth
from shared.provider.credentials import Grant
from shared.provider.vault import Vault
from shared.store import (
    account_changes,
    accounts,
    folders,
    inbound,
    last_logins,
    polls,
    provider_filings,
    relays,
    reply_tags,
    uidl_ledger,
)

_FETCHING = ("enabled", "login", "password", "oauth", "pop3", "imap", "history", "delete_after_days", "delete_history")
"""Fields that decide what is fetched from the provider and deleted there."""
FILE_SECONDS = 600.0
"""Limit of the transaction in which the console applies a file: seconds; ten thousand accounts take minutes."""


@dataclass(slots=True)
class ApplyResult:
    """The result of a change."""

    changes: list[ChangeLine] = field(default_factory=list)
    contacts: list[External] = field(default_factory=list)  # external accounts that are fetched in another way now
    weak: int = 0  # local accounts whose given password is weak

    @property
    def lines(self) -> list[str]:
        """What was changed, with the field names of the accounts file: for programs and the audit."""
        return [str(change) for change in self.changes]

    @property
    def lines_on_page(self) -> list[str]:
        """What was changed, with the labels of the console's page."""
        return [change.on_page for change in self.changes]


async def apply(
    connection: Connection,
    wanted: AccountsFile,
    vault: Vault,
    passwords: HashingPool,
    prune: bool = False,
    progress: Progress = lambda done, total: None,
) -> ApplyResult:
    """Make the stored accounts what the file says, in the caller's transaction.

    :param prune: remove the accounts that the file does not name. :param progress: counts the passwords.
    :raises AccountsError: the file breaks a rule; the caller has to roll back.
    """
    await account_changes.lock_for_change(connection)
    externals, people = await accounts.load_externals(connection), await accounts.load_locals(connection)
    plan = await asyncio.to_thread(plan_changes, wanted, externals, people, prune)  # long for ten thousand accounts
    if problems := [*await _find_tag_problems(connection, plan), *await _find_junk_problems(connection, plan)]:
        raise AccountsError(wanted.locate(problems))
    # Before the first write: hashing is slow, and written rows are locked for the fetcher and the sender, too.
    hashes = await hash_passwords(connection, plan.save_locals, passwords, progress)
    execution = _Execution(connection, vault, externals, people)
    execution.result.weak = sum(entry.password is not None and is_weak(entry.password) for entry, _ in plan.save_locals)
    absent = await accounts.load_absent_delegates(connection)
    await execution.run(plan, hashes)
    await transfer_former_names(connection)
    for external in execution.started:
        execution.result.changes.append(ChangeLine(await _release(connection, external, wanted)))
    execution.result.changes += [
        ChangeLine(f"local account {each.person}: {each.text}")
        for each in await accounts.load_absent_delegates(connection)
        if each.away and each not in absent
    ]
    released = await inbound.release_held(connection, [external.id for external in execution.externals.values()])
    if released:
        execution.result.changes.append(
            ChangeLine(f"{counted_for_record(len(released), 'mail on hold', ('is', 'are'))} routed again")
        )
    return execution.result


async def _find_tag_problems(connection: Connection, plan: AccountsPlan) -> list[AccountProblem]:
    """Return why accounts of the plan may have no reply tags."""
    problems = []
    for entry, old in plan.save_externals:
        if entry.reply_tag:
            new = build_external(entry, old, b"", build_oauth(entry), old.id if old else 0)
            other = old is not None and is_other_maildrop(old, new)
            problems.append(await tag_probe.find_problem(connection, old, new, other))
    return [problem for problem in problems if problem is not None]


async def _find_junk_problems(connection: Connection, plan: AccountsPlan) -> list[AccountProblem]:
    """Return why people of the plan may not get junk mail into a folder from now on: they would not see it."""
    switched_on = {old.id: entry for entry, old in plan.save_locals if old is not None and entry.junk > old.junk}
    if not switched_on:
        return []
    alone = await last_logins.list_pop3_alone(connection, list(switched_on))
    words = (
        "cannot be switched on: this person logs in by POP3 alone, which shows no folder but INBOX, and would not see "
        f"junk mail; possible after a login by IMAP, which counts for {last_logins.IMAP_DAYS} days"
    )
    return [
        AccountProblem(words, "local", address=entry.address, field=("junk",))
        for local_id, entry in switched_on.items()
        if local_id in alone
    ]


async def _release(connection: Connection, external: External, wanted: AccountsFile) -> str:
    """Release the mail of an account that is started by its field ``hold``. Parameters and errors as ``apply``."""
    try:
        return await start.release(connection, external)
    except Permanent as error:
        problem = AccountProblem(
            start.NOBODY_SHARES, "external", address=external.address, field=("hold",), value=show_value(external.hold)
        )
        raise AccountsError(wanted.locate([problem])) from error


class _Execution:
    """The writes of a plan. ``externals`` and ``people`` are the accounts by address, as they are stored by now.

    started: the accounts whose mail was on hold until now.
    """

    def __init__(
        self, connection: Connection, vault: Vault, externals: Sequence[External], people: Sequence[Local]
    ) -> None:
        self.result = ApplyResult()
        self.externals = {external.address.casefold(): external for external in externals}
        self.people = {person.address.casefold(): person for person in people}
        self.started: list[External] = []
        self._connection = connection
        self._vault = vault

    async def run(self, plan: AccountsPlan, hashes: Sequence[str]) -> None:
        """Execute all steps. :param hashes: the password hash of each local account that is saved."""
        leaving = [person.id for person in plan.remove_locals]
        leaving += [old.id for fields, old in plan.save_locals if old is not None and old.enabled > fields.enabled]
        await account_changes.lock_folders(self._connection, leaving)
        for entry, stored in plan.save_externals:
            await self._save_external(entry, stored)
        for person in plan.remove_locals:
            await account_changes.remove_account(self._connection, "local", person.id)
            del self.people[person.address.casefold()]
            self._add(
                f"local account {person.address}: removed; its mail is kept for the retention time ('local restore' "
                "brings it back)"
            )
        for (fields, old), password_hash in zip(plan.save_locals, hashes, strict=True):
            await self._save_local(fields, old, password_hash)
        for external in plan.remove_externals:
            await account_changes.remove_account(self._connection, "external", external.id)
            del self.externals[external.address.casefold()]
            self._add(f"external account {external.address}: removed")
        for fields, _ in plan.save_locals:
            await self._save_delegate(fields)

    async def _save_external(self, wanted: ExternalFields, old: External | None) -> None:
        # A removed account that is added again keeps its ledger: no mail is delivered twice, and held mail is found.
        before = old or await account_changes.restore_external(self._connection, wanted.address)
        new = external_of(wanted, old, self._vault, before.id if before else 0)
        if old is None and before is not None and wanted.hold is None:
            new = replace(new, hold=before.hold)
        if new == old:
            return
        new = replace(new, id=await account_changes.save_external(self._connection, new))
        if old is not None and old.address.casefold() != new.address.casefold():
            del self.externals[old.address.casefold()]
            await account_changes.follow_address(self._connection, old.address, new.address)
        self.externals[wanted.address.casefold()] = new
        if before is not None and before.hold and not new.hold:
            self.started.append(new)
        # The change may have corrected the login or the server: try both directions now.
        await polls.poll_now(self._connection, new.id)
        if before is not None and before.protocol != new.protocol:
            await uidl_ledger.detach_all_uidls(self._connection, new.id)
        if before is not None and is_other_maildrop(before, new):
            await polls.forget_maildrop(self._connection, new.id)
            await reply_tags.forget_probe(self._connection, new.id)
        await relays.unpause(self._connection, new.id)
        await provider_filings.retry_account(self._connection, new.id)
        self.result.changes.append(describe_change(old, new))
        if old is None or any(getattr(old, name) != getattr(new, name) for name in _FETCHING):
            self.result.contacts.append(new)

    async def _save_local(self, wanted: LocalFields, old: Local | None, password_hash: str) -> None:
        external = self.externals[wanted.external.casefold()]
        new = build_local(wanted, old, external.id, password_hash)
        if new == old:
            return
        new = replace(new, id=await account_changes.save_local(self._connection, new))
        if old is not None and old.address.casefold() != new.address.casefold():
            del self.people[old.address.casefold()]
        self.people[wanted.address.casefold()] = new
        if old is None:
            await folders.create_standard_folders(self._connection, new.id)
        self.result.changes.append(describe_change(old, new, external.address))

    async def _save_delegate(self, wanted: LocalFields) -> None:
        """Store the delegate after all accounts are stored, since it may be a new account."""
        person = self.people[wanted.address.casefold()]
        delegate = None if wanted.delegate is None else self.people[wanted.delegate.casefold()]
        new = replace(person, delegate_id=delegate.id if delegate else None)
        if new != person:
            await account_changes.save_local(self._connection, new)
            self.people[wanted.address.casefold()] = new
            before = next((each.address for each in self.people.values() if each.id == person.delegate_id), "none")
            change = FieldChange("delegate", before, delegate.address if delegate else "none")
            self.result.changes.append(ChangeLine(f"local account {new.address}: changed", "local", (change,)))

    def _add(self, words: str) -> None:
        self.result.changes.append(ChangeLine(words))


def is_other_maildrop(old: External, new: External) -> bool:
    """Return whether a changed account points at another maildrop, so that the first contact is repeated. Pure.

    With another host or login it does. With another protocol and the same login it is the same maildrop, on a host of
    another name as a rule: its mails have other keys then, as after a renumbering, and the fetcher knows them by their
    bytes, or by their age. If the first contact were repeated, mail that came since the last poll would be history, and
    ``from_now`` would never deliver it. The same holds for a login that is another address of the same mailbox, as when
    the account's address is changed.
    """
    own = {address.casefold() for each in (old, new) for address in (each.address, *each.aliases)}
    same_login = old.login == new.login or {old.login.casefold(), new.login.casefold()} <= own
    return not same_login or (old.protocol == new.protocol and old.incoming.host != new.incoming.host)


async def check_conflicts(connection: Connection, kind: Kind, address: str) -> None:
    """Check all accounts after one was changed without ``apply``. :raises AccountsError: together they break a rule."""
    externals, people = await accounts.load_externals(connection), await accounts.load_locals(connection)
    problems = await asyncio.to_thread(find_conflicts, externals, people, {(kind, address.casefold())})
    if problems:
        raise AccountsError(problems)


def external_of(wanted: ExternalFields, old: External | None, vault: Vault, account_id: int) -> External:
    """Return the external account with these fields.

    :param old: as it is stored; a secret that is not given is taken from there. :param account_id: 0 for a new account.
    :raises AccountsError: there is no secret, or the stored one is for another server.
    """
    oauth = build_oauth(wanted)
    if problems := find_secret_problems(wanted, old):
        raise AccountsError(problems)
    relay_secrets = [_relay_secret(relay, old, vault) for relay in wanted.relays]
    return build_external(wanted, old, _secret(wanted, oauth, old, vault), oauth, account_id, relay_secrets)


def _relay_secret(wanted: SmtpFields, old: External | None, vault: Vault) -> bytes:
    """Return the sealed password of a relay with a login of its own, the stored one if nothing changes."""
    stored = find_stored_relay(wanted, old)
    kept = None if stored is None else stored.password
    if wanted.login is None or wanted.oauth is not None or wanted.password is None:
        return kept or b""
    return kept if kept and _same_password(vault, kept, wanted.password) else vault.seal(wanted.password)


def _secret(wanted: ExternalFields, oauth: OAuth | None, old: External | None, vault: Vault) -> bytes:
    """Return the sealed secret, the stored one if nothing changes.

    An authorization is for the client, issuer and servers of its time: with another one a person has to authorize the
    account again, as a password has to be given again. The secret or key of the client is for the token endpoint alone,
    and is kept as long as both are the same.
    """
    if oauth is None or wanted.oauth is None:
        if wanted.password is not None and (old is None or not _same_password(vault, old.password, wanted.password)):
            return vault.seal(wanted.password)
        assert old is not None
        return old.password
    stored = _grant(vault, old.password) if old is not None and old.oauth is not None else None
    grant = Grant()
    if stored is not None and old is not None and old.oauth is not None:
        if old.oauth == oauth and not changed_hosts(wanted, old):
            grant = stored
        elif keeps_client(oauth, old.oauth):
            grant = Grant(client_secret=stored.client_secret, client_key=stored.client_key)
    if wanted.oauth.client_secret is not None:
        grant = replace(grant, client_secret=wanted.oauth.client_secret, client_key="")
    elif wanted.oauth.client_key is not None:
        grant = replace(grant, client_secret="", client_key=wanted.oauth.client_key)
    return old.password if old is not None and grant == stored else grant.seal(vault)


def _grant(vault: Vault, sealed: bytes) -> Grant | None:
    try:
        return Grant.open(vault, sealed)
    except Permanent:  # sealed under a lost key: the account has to be authorized again
        return None


def _same_password(vault: Vault, sealed: bytes, password: str) -> bool:
    try:
        return vault.open(sealed) == password
    except Exception:  # sealed under a lost key: the new password replaces it
        return False


async def transfer_former_names(connection: Connection) -> None:
    """Remove the former names that another sharer of the same external account uses now."""
    everyone = await accounts.load_locals(connection)
    owners = {(p.external_id, normalise(name)): p.id for p in everyone for name in (p.user_name, *p.aliases)}
    for person in everyone:
        kept = tuple(
            name
            for name in person.former_names
            if owners.get((person.external_id, normalise(name)), person.id) == person.id
        )
        if kept != person.former_names:
            await account_changes.save_local(connection, replace(person, former_names=kept))
