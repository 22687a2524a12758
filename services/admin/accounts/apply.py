"""Making the accounts what they are to be: compared with what is there, checked as a whole, saved in one transaction.

Every way to change an account (``apply``, ``external``, ``local``) ends here, so every way has the same rules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

from services.admin.accounts.errors import AccountsError
from services.admin.accounts.file_format import AccountsFile, ExternalFields, LocalFields
from services.admin.accounts.public_domains import PUBLIC_DOMAINS
from shared.auth.passwords import HashingPool
from shared.db.database import Connection
from shared.errors import Permanent
from shared.mime.addresses import fold_address
from shared.mime.display_names import normalise
from shared.model import External, Issuer, Local, OAuth, Server
from shared.provider.credentials import Grant
from shared.provider.oauth import ISSUERS
from shared.provider.vault import Vault
from shared.store import account_changes, accounts, inbound, maildrops, polls, relay_status

_FETCHING = ("enabled", "login", "password", "oauth", "pop3", "history", "delete_after_days", "delete_history")
"""The fields that decide about what lies at the provider."""


@dataclass(slots=True)
class ApplyResult:
    """What was changed: lines for people, and the external accounts that are new or are fetched in another way."""

    lines: list[str] = field(default_factory=list)
    contacts: list[External] = field(default_factory=list)


async def apply(
    connection: Connection, wanted: AccountsFile, vault: Vault, passwords: HashingPool, prune: bool = False
) -> ApplyResult:
    """Make the accounts what the file says; ``prune`` removes those that it does not name.

    Runs in the caller's transaction. :raises AccountsError: nothing is changed then.
    """
    await account_changes.lock_for_change(connection)
    outcome = ApplyResult()
    problems: list[str] = []
    externals = {external.address.casefold(): external for external in await accounts.load_externals(connection)}
    locals_ = {local.address.casefold(): local for local in await accounts.load_locals(connection)}
    problems += _repeated(wanted) + _without_password(wanted, externals, locals_)
    if problems:
        raise AccountsError(problems)
    # Before anything is written: hashing takes long, and what is written is locked, for the pollers and senders too.
    hashes = {
        person.address.casefold(): await _password_hash(person, locals_.get(person.address.casefold()), passwords)
        for person in wanted.local_accounts
    }

    for fields_ in wanted.external_accounts:
        externals[fields_.address.casefold()] = await _save_external(
            connection, fields_, externals.get(fields_.address.casefold()), vault, outcome
        )
    named = {fields_.address.casefold() for fields_ in wanted.external_accounts}
    leaving = {key for key in externals if prune and key not in named}
    staying = {person.address.casefold() for person in wanted.local_accounts}
    for key in [key for key in locals_ if prune and key not in staying]:
        await account_changes.remove_account(connection, "local", locals_[key].id)
        outcome.lines.append(
            f"local account {locals_.pop(key).address}: removed; its mail is kept for the retention "
            "time ('local restore' brings it back)"
        )
    for person in wanted.local_accounts:
        external = externals.get(person.external.casefold())
        if external is None or person.external.casefold() in leaving:
            problems.append(
                f"local account {person.address}: external: {person.external!r}: there is no such external "
                f"account; there are {', '.join(sorted(e.address for e in externals.values())) or 'none'}"
            )
            continue
        key = person.address.casefold()
        locals_[key] = await _save_local(connection, person, locals_.get(key), external, hashes[key], outcome)
    for key in leaving:
        await account_changes.remove_account(connection, "external", externals[key].id)
        outcome.lines.append(f"external account {externals.pop(key).address}: removed")
    if problems:
        raise AccountsError(problems)
    await _save_delegates(connection, wanted.local_accounts, locals_, outcome)
    await transfer_former_names(connection)
    problems = find_conflicts(await accounts.load_externals(connection), await accounts.load_locals(connection))
    if problems:
        raise AccountsError(problems)
    released = await inbound.release_held(connection, [external.id for external in externals.values()])
    if released:
        outcome.lines.append(f"{len(released)} held mails go to the router again")
    return outcome


def find_conflicts(externals: Sequence[External], locals_: Sequence[Local]) -> list[str]:
    """What must not be, looking at all accounts together; a line each, none if all is well. Pure."""
    problems = []
    owners: dict[str, str] = {}
    claims = [(f"external account {e.address}", (e.address, *e.aliases)) for e in externals]
    claims += [(f"local account {p.address}", (p.address, *p.addresses)) for p in locals_]
    for label, own in claims:
        for address in own:
            other = owners.setdefault(fold_address(address), label)
            if other != label:
                problems.append(f"{label}: address {address!r}: is an address of {other} already")
    by_id = {external.id: external for external in externals}
    names: dict[tuple[int, str], Local] = {}
    people = {local.id: local for local in locals_}
    for local in locals_:
        if local.external_id not in by_id:
            problems.append(f"local account {local.address}: external: its external account is removed; name another")
        for address in (local.address, *local.addresses):
            domain = address.rpartition("@")[2].casefold()
            if domain in PUBLIC_DOMAINS:
                problems.append(
                    f"local account {local.address}: address {address!r}: {domain} is a public mail "
                    "provider's domain; mail to everyone there would stay here. Use one of your own, "
                    "for example local.com"
                )
        for name in (local.user_name, *local.aliases):
            other_ = names.setdefault((local.external_id, normalise(name)), local)
            if other_ is not local:
                problems.append(
                    f"local account {local.address}: user_name or aliases: {name!r}: {other_.address} has "
                    "this name in the same share; a name may belong to one person only"
                )
        delegate = people.get(local.delegate_id or 0)
        if local.delegate_id is not None and (
            delegate is None or delegate.id == local.id or delegate.external_id != local.external_id
        ):
            problems.append(
                f"local account {local.address}: delegate: has to be another local account that shares "
                "the same external account"
            )
    return problems


def _without_password(
    wanted: AccountsFile, externals: Mapping[str, External], locals_: Mapping[str, Local]
) -> list[str]:
    problems = []
    for fields_ in wanted.external_accounts:
        old = externals.get(fields_.address.casefold())
        stored = old is not None and old.oauth is None
        if fields_.password is None and fields_.oauth is None and not stored:
            problems.append(f"external account {fields_.address}: password: is missing, and none is stored")
    for person in wanted.local_accounts:
        if person.address.casefold() not in locals_ and not (person.password or person.password_hash):
            problems.append(f"local account {person.address}: password: is missing, and none is stored")
    return problems


def _repeated(wanted: AccountsFile) -> list[str]:
    problems = []
    groups: Mapping[str, Sequence[ExternalFields | LocalFields]] = {
        "external_accounts": wanted.external_accounts,
        "local_accounts": wanted.local_accounts,
    }
    for group, entries in groups.items():
        seen: set[str] = set()
        for entry in entries:
            if entry.address.casefold() in seen:
                problems.append(f"{group}: address {entry.address!r}: is given twice")
            seen.add(entry.address.casefold())
    return problems


async def _save_external(
    connection: Connection, wanted: ExternalFields, old: External | None, vault: Vault, outcome: ApplyResult
) -> External:
    # Added anew, it goes on with its ledger: nothing that was fetched before is delivered again, held mail is found.
    before = old or await account_changes.restore_external(connection, wanted.address)
    new = external_of(wanted, old, vault, before.id if before else 0)
    if new == old:
        return new
    new = replace(new, id=await account_changes.save_external(connection, new))
    # Whatever was wrong with the login or the server may be mended now: both directions are tried at once.
    await polls.poll_now(connection, new.id)
    if before is not None and (before.pop3.host, before.login) != (new.pop3.host, new.login):
        await polls.forget_maildrop(connection, new.id)
    await relay_status.unpause(connection, new.id)
    outcome.lines.append(f"external account {new.address}: {_difference(old, new)}")
    if old is None or any(getattr(old, name) != getattr(new, name) for name in _FETCHING):
        outcome.contacts.append(new)
    return new


def external_of(wanted: ExternalFields, old: External | None, vault: Vault, id_: int) -> External:
    """The account that these fields make. old: as it is stored, where a secret that is not given comes from.

    :param id_: 0 for one that is not there yet. :raises AccountsError: there is no secret.
    """
    oauth = _oauth(wanted)
    if wanted.password is None and oauth is None and (old is None or old.oauth is not None):
        raise AccountsError([f"external account {wanted.address}: password: is missing, and none is stored"])
    assert wanted.login is not None and wanted.pop3.port is not None and wanted.smtp.port is not None
    return External(
        id_,
        wanted.address,
        wanted.enabled,
        wanted.login,
        _secret(wanted, oauth, old, vault),
        Server(wanted.pop3.host, wanted.pop3.port, wanted.pop3.tls, wanted.pop3.tls_fingerprint),
        Server(wanted.smtp.host, wanted.smtp.port, wanted.smtp.tls, wanted.smtp.tls_fingerprint),
        wanted.smtp.auth,
        wanted.smtp.connections,
        wanted.poll_seconds,
        wanted.history,
        wanted.delete_after_days,
        wanted.delete_history,
        wanted.reply_to_author,
        tuple(wanted.aliases),
        oauth,
        answer_notes=wanted.answer_notes,
    )


def _oauth(wanted: ExternalFields) -> OAuth | None:
    if wanted.oauth is None:
        return None
    given = wanted.oauth.issuer
    if isinstance(given, str):
        return OAuth(given, ISSUERS[given], wanted.oauth.client_id)
    issuer = Issuer(given.token_url, given.scope, given.device_url, given.authorize_url)
    return OAuth("", issuer, wanted.oauth.client_id)


def _secret(wanted: ExternalFields, oauth: OAuth | None, old: External | None, vault: Vault) -> bytes:
    """What is to be sealed for the account; as it is if nothing changes. Another client or issuer has no grant yet."""
    if oauth is None or wanted.oauth is None:
        if wanted.password is not None and (old is None or not _same_password(vault, old.password, wanted.password)):
            return vault.seal(wanted.password)
        assert old is not None
        return old.password
    stored = _grant(vault, old.password) if old is not None and old.oauth == oauth else None
    grant = stored or Grant()
    secret = wanted.oauth.client_secret or grant.client_secret
    if old is not None and stored is not None and secret == stored.client_secret:
        return old.password
    return replace(grant, client_secret=secret).seal(vault)


def _grant(vault: Vault, sealed: bytes) -> Grant | None:
    try:
        return Grant.open(vault, sealed)
    except Permanent:  # sealed under a lost key: somebody has to authorize the account again
        return None


def _same_password(vault: Vault, sealed: bytes, password: str) -> bool:
    try:
        return vault.open(sealed) == password
    except Exception:  # sealed under a lost key: whatever it was, it is replaced
        return False


async def _password_hash(wanted: LocalFields, old: Local | None, passwords: HashingPool) -> str:
    if wanted.password_hash is not None:
        return wanted.password_hash
    if wanted.password is not None and (old is None or not await passwords.matches(old.password_hash, wanted.password)):
        return await passwords.hash(wanted.password)
    assert old is not None
    return old.password_hash


async def _save_local(
    connection: Connection,
    wanted: LocalFields,
    old: Local | None,
    external: External,
    password_hash: str,
    outcome: ApplyResult,
) -> Local:
    former = _former_names(old, wanted.user_name)
    # An exported file lists former names among the aliases, the one that is used again too.
    known = {normalise(name) for name in (wanted.user_name, *former)}
    aliases = tuple(name for name in wanted.aliases if normalise(name) not in known)
    new = Local(
        old.id if old else 0,
        wanted.address,
        wanted.enabled,
        password_hash,
        wanted.user_name,
        aliases,
        tuple(wanted.addresses),
        external.id,
        old.delegate_id if old else None,
        former,
    )
    if new == old:
        return new
    new = replace(new, id=await account_changes.save_local(connection, new))
    if old is None:
        await maildrops.create_maildrop(connection, new.id)
    outcome.lines.append(f"local account {new.address}: {_difference(old, new, external.address)}")
    return new


def _former_names(old: Local | None, user_name: str) -> tuple[str, ...]:
    """The names that a person had before, with the present one if it is given up now; customers go on writing to it."""
    if old is None:
        return ()
    names = {normalise(name): name for name in (*old.former_names, old.user_name)}
    names.pop(normalise(user_name), None)
    return tuple(names.values())


async def transfer_former_names(connection: Connection) -> None:
    """A former name that somebody else of the share has now is theirs alone."""
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


async def _save_delegates(
    connection: Connection, wanted: Sequence[LocalFields], locals_: dict[str, Local], outcome: ApplyResult
) -> None:
    """After all accounts are saved, since a delegate may be new itself."""
    for person in wanted:
        local = locals_[person.address.casefold()]
        delegate = locals_.get((person.delegate or "").casefold())
        if person.delegate is not None and delegate is None:
            raise AccountsError(
                [f"local account {person.address}: delegate: {person.delegate!r}: there is no such local account"]
            )
        new = replace(local, delegate_id=delegate.id if delegate else None)
        if new != local:
            await account_changes.save_local(connection, new)
            locals_[person.address.casefold()] = new
            outcome.lines.append(f"local account {new.address}: delegate {delegate.address if delegate else 'none'}")


def _difference(old: External | Local | None, new: External | Local, external: str = "") -> str:
    """In words, with the fields' names of the accounts file. external: the address of a person's new one."""
    if old is None:
        return "added"
    changed = []
    for name in (f.name for f in fields(new) if f.name != "id" and getattr(old, f.name) != getattr(new, f.name)):
        if name in ("password", "password_hash"):
            changed.append("password")
        elif name == "external_id":
            changed.append(f"external -> {external}")
        else:
            before, now = _shown(getattr(old, name)), _shown(getattr(new, name))
            changed.append(f"{name.replace('smtp_', 'smtp.')} {before} -> {now}")
    return "changed " + ", ".join(changed)


def _shown(value: object) -> str:
    if isinstance(value, Server):
        pinned = f" (certificate {value.tls_fingerprint[:8]}…)" if value.tls_fingerprint else ""
        return f"{value.host}:{value.port}/{value.tls}{pinned}"
    if isinstance(value, OAuth):
        return f"{value.name or value.issuer.token_url} (client {value.client_id})"
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
