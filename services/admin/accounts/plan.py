"""The plan of a change: the difference between the stored accounts and an accounts file, and what must not be. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TypeVar

from services.admin.accounts.errors import AccountsError
from services.admin.accounts.file_format import AccountsFile, ExternalFields, LocalFields
from services.admin.accounts.public_domains import PUBLIC_DOMAINS
from shared.mime.addresses import fold_address
from shared.mime.display_names import normalise
from shared.model import External, Local, OAuth, Server
from shared.net.http_client import place_of

Account = TypeVar("Account", External, Local)


@dataclass(frozen=True, slots=True)
class AccountsPlan:
    """The steps of a change, in the order in which they are executed."""

    save_externals: list[tuple[ExternalFields, External | None]]  # with the stored account, if there is one
    remove_locals: list[Local]
    save_locals: list[tuple[LocalFields, Local | None]]  # with the stored account, if there is one
    remove_externals: list[External]


def plan_changes(
    wanted: AccountsFile, externals: Sequence[External], people: Sequence[Local], prune: bool
) -> AccountsPlan:
    """Compare an accounts file with the stored accounts.

    :param prune: remove the stored accounts that the file does not name.
    :raises AccountsError: an account is given twice, has no password, or refers to an account that does not exist.
    """
    stored_externals = {external.address.casefold(): external for external in externals}
    stored_locals = {person.address.casefold(): person for person in people}
    problems = _find_repeated(wanted) + _find_without_password(wanted, stored_externals, stored_locals)
    if problems:
        raise AccountsError(problems)
    plan = AccountsPlan(
        [(entry, stored_externals.get(entry.address.casefold())) for entry in wanted.external_accounts],
        _not_named(stored_locals, wanted.local_accounts) if prune else [],
        [(entry, stored_locals.get(entry.address.casefold())) for entry in wanted.local_accounts],
        _not_named(stored_externals, wanted.external_accounts) if prune else [],
    )
    problems = _find_unknown_externals(plan, stored_externals) or _find_unknown_delegates(plan, stored_locals)
    if problems:
        raise AccountsError(problems)
    return plan


def _not_named(stored: Mapping[str, Account], entries: Iterable[ExternalFields | LocalFields]) -> list[Account]:
    named = {entry.address.casefold() for entry in entries}
    return [account for key, account in stored.items() if key not in named]


def _find_repeated(wanted: AccountsFile) -> list[str]:
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


def _find_without_password(
    wanted: AccountsFile, externals: Mapping[str, External], people: Mapping[str, Local]
) -> list[str]:
    problems = []
    for entry in wanted.external_accounts:
        if (why := why_password_needed(entry, externals.get(entry.address.casefold()))) is not None:
            problems.append(f"external account {entry.address}: password: {why}")
    for person in wanted.local_accounts:
        if person.address.casefold() not in people and not (person.password or person.password_hash):
            problems.append(f"local account {person.address}: password: is missing, and none is stored")
    return problems


def why_password_needed(wanted: ExternalFields, old: External | None) -> str | None:
    """Return why a password has to be given; None if the stored one may be used, or access tokens are.

    SECURITY. A password is sent only to the servers that it was given for: else everyone who may change an account
    could send the password to a server of their own.
    """
    if wanted.password is not None or wanted.oauth is not None:
        return None
    if old is None or old.oauth is not None:
        return "is missing, and none is stored"
    if changes := changed_hosts(wanted, old):
        return f"has to be given again, because the stored one is for another server ({changes})"
    return None


def changed_hosts(wanted: ExternalFields, old: External) -> str:
    """Return the servers that another host is to replace, for people; '' for none."""
    pairs = (("pop3.host", old.pop3.host, wanted.pop3.host), ("smtp.host", old.smtp.host, wanted.smtp.host))
    return ", ".join(f"{name} {was} -> {new}" for name, was, new in pairs if _host(was) != _host(new))


def _host(name: str) -> str:
    return name.strip("[]").rstrip(".").casefold()


def _find_unknown_externals(plan: AccountsPlan, externals: Mapping[str, External]) -> list[str]:
    addresses = {key: external.address for key, external in externals.items()}
    addresses |= {entry.address.casefold(): entry.address for entry, _ in plan.save_externals}
    leaving = {external.address.casefold() for external in plan.remove_externals}
    return [
        f"local account {person.address}: external: {person.external!r}: there is no such external account; there are "
        f"{', '.join(sorted(addresses.values())) or 'none'}"
        for person, _ in plan.save_locals
        if person.external.casefold() not in addresses.keys() - leaving
    ]


def _find_unknown_delegates(plan: AccountsPlan, people: Mapping[str, Local]) -> list[str]:
    known = people.keys() - {person.address.casefold() for person in plan.remove_locals}
    known |= {entry.address.casefold() for entry, _ in plan.save_locals}
    return [
        f"local account {person.address}: delegate: {person.delegate!r}: there is no such local account"
        for person, _ in plan.save_locals
        if person.delegate is not None and person.delegate.casefold() not in known
    ]


# ---------------------------------------------------------------------------------------------- all accounts together


def find_conflicts(externals: Sequence[External], people: Sequence[Local]) -> list[str]:
    """Return the rules that all accounts together break; one line each, none if all is well."""
    problems = _find_shared_addresses(externals, people)
    external_ids = {external.id for external in externals}
    by_id = {person.id: person for person in people}
    names: dict[tuple[int, str], Local] = {}
    for person in people:
        label = f"local account {person.address}"
        if person.external_id not in external_ids:
            problems.append(f"{label}: external: its external account is removed; name another")
        problems += [f"{label}: {problem}" for problem in _find_public_domains(person)]
        problems += [f"{label}: {problem}" for problem in _find_shared_names(person, names)]
        if not _is_delegate_allowed(person, by_id):
            problems.append(f"{label}: delegate: has to be another local account that shares the same external account")
    return problems


def _find_shared_addresses(externals: Sequence[External], people: Sequence[Local]) -> list[str]:
    problems = []
    owners: dict[str, str] = {}
    claims = [(f"external account {e.address}", (e.address, *e.aliases)) for e in externals]
    claims += [(f"local account {p.address}", (p.address, *p.addresses)) for p in people]
    for label, addresses in claims:
        for address in addresses:
            owner = owners.setdefault(fold_address(address), label)
            if owner != label:
                problems.append(f"{label}: address {address!r}: is an address of {owner} already")
    return problems


def _find_public_domains(person: Local) -> list[str]:
    return [
        f"address {address!r}: {domain} is a public mail provider's domain; mail to everyone there would stay here. "
        "Use one of your own, for example local.com"
        for address in (person.address, *person.addresses)
        if (domain := address.rpartition("@")[2].casefold()) in PUBLIC_DOMAINS
    ]


def _find_shared_names(person: Local, names: dict[tuple[int, str], Local]) -> list[str]:
    """:param names: the owner of each name of an external account so far; the names of this person are added."""
    problems = []
    for name in (person.user_name, *person.aliases):
        owner = names.setdefault((person.external_id, normalise(name)), person)
        if owner is not person:
            problems.append(
                f"user_name or aliases: {name!r}: {owner.address} has this name in the same share; a name may belong "
                "to one person only"
            )
    return problems


def _is_delegate_allowed(person: Local, people: Mapping[int, Local]) -> bool:
    if person.delegate_id is None:
        return True
    delegate = people.get(person.delegate_id)
    return delegate is not None and delegate.id != person.id and delegate.external_id == person.external_id


# ---------------------------------------------------------------------------------------------- one account


def build_local(wanted: LocalFields, old: Local | None, external_id: int, password_hash: str) -> Local:
    """Return the local account with these fields. :param old: as it is stored; its id, delegate and names are kept."""
    former = _former_names(old, wanted.user_name)
    # An exported file lists former names among the aliases, the one that is used again too.
    known = {normalise(name) for name in (wanted.user_name, *former)}
    return Local(
        old.id if old else 0,
        wanted.address,
        wanted.enabled,
        password_hash,
        wanted.user_name,
        tuple(name for name in wanted.aliases if normalise(name) not in known),
        tuple(wanted.addresses),
        external_id,
        old.delegate_id if old else None,
        former,
    )


def _former_names(old: Local | None, user_name: str) -> tuple[str, ...]:
    """Return the earlier names of a person, which customers still write to, without the present one."""
    if old is None:
        return ()
    names = {normalise(name): name for name in (*old.former_names, old.user_name)}
    names.pop(normalise(user_name), None)
    return tuple(names.values())


def describe_change(old: External | Local | None, new: External | Local, external: str = "") -> str:
    """Describe a change by the field names of the accounts file. :param external: address of the new external account
    of a person."""
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
        return f"{value.name or place_of(value.issuer.token_url)} (client {value.client_id})"
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
