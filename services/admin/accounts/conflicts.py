"""The rules that all accounts together have to keep: an address or a name has one owner, a delegate shares. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from services.admin.accounts.errors import AccountProblem, Kind
from services.admin.accounts.public_domains import PUBLIC_DOMAINS
from shared.mime.addresses import fold_address
from shared.mime.display_names import normalise
from shared.model import External, Local


def find_conflicts(
    externals: Sequence[External], people: Sequence[Local], saved: Collection[tuple[Kind, str]] = ()
) -> list[AccountProblem]:
    """Return the rules that all accounts together break; none if all is well.

    :param saved: kind and folded address of the accounts that a person changes now: of two accounts that are in each
        other's way, the problem is reported for one of these.
    """
    problems = _find_shared_addresses(externals, people, saved)
    external_ids = {external.id for external in externals}
    by_id = {person.id: person for person in people}
    names: dict[tuple[int, str], Local] = {}
    for person in sorted(people, key=lambda each: ("local", each.address.casefold()) in saved):
        found = [*_find_public_domains(person), *_find_shared_names(person, names)]
        if person.external_id not in external_ids:
            found.append(("external", "", "its external account is removed; name another"))
        problems += [
            AccountProblem(words, "local", address=person.address, field=(name,), value=value)
            for name, value, words in found
        ]
        problems += _find_wrong_delegate(person, by_id, saved)
    return problems


def _find_shared_addresses(
    externals: Sequence[External], people: Sequence[Local], saved: Collection[tuple[Kind, str]]
) -> list[AccountProblem]:
    problems = []
    owners: dict[str, tuple[Kind, str]] = {}
    claims: list[tuple[Kind, str, str, tuple[str, ...]]] = [
        ("external", e.address, "aliases", e.aliases) for e in externals
    ]
    claims += [("local", p.address, "addresses", p.addresses) for p in people]
    for kind, account, further, addresses in sorted(claims, key=lambda claim: (claim[0], claim[1].casefold()) in saved):
        for address in (account, *addresses):
            owner = owners.setdefault(fold_address(address), (kind, account))
            if owner != (kind, account):
                words = f"is an address of {owner[0]} account {owner[1]} already"
                name = "address" if address == account else further
                problems.append(AccountProblem(words, kind, address=account, field=(name,), value=repr(address)))
    return problems


def _find_public_domains(person: Local) -> list[tuple[str, str, str]]:
    """Return name of the field, value and words of each problem, as ``_find_shared_names``."""
    return [
        (
            "address" if address == person.address else "addresses",
            repr(address),
            f"{domain} is a public mail provider's domain; mail to everyone there would stay here. "
            "Use one of your own, for example local.com",
        )
        for address in (person.address, *person.addresses)
        if (domain := address.rpartition("@")[2].casefold()) in PUBLIC_DOMAINS
    ]


def _find_shared_names(person: Local, names: dict[tuple[int, str], Local]) -> list[tuple[str, str, str]]:
    """:param names: the owner of each name of an external account so far; the names of this person are added."""
    problems = []
    for name in (person.user_name, *person.aliases):
        owner = names.setdefault((person.external_id, normalise(name)), person)
        if owner is not person:
            words = f"{owner.address} has this name in the same share; a name may belong to one person only"
            problems.append(("user_name" if name == person.user_name else "aliases", repr(name), words))
    return problems


def _find_wrong_delegate(
    person: Local, people: Mapping[int, Local], saved: Collection[tuple[Kind, str]]
) -> list[AccountProblem]:
    """Find a delegate who is the person, or shares another account; a removed one is reported as a problem of mail."""
    delegate = people.get(person.delegate_id or 0)
    if delegate is None or (delegate.id != person.id and delegate.external_id == person.external_id):
        return []
    if ("local", person.address.casefold()) not in saved and ("local", delegate.address.casefold()) in saved:
        words = f"{person.address} has this person as delegate and stays; name another delegate there first"
        return [AccountProblem(words, "local", address=delegate.address, field=("external",))]
    words = "has to be another local account that shares the same external account"
    return [AccountProblem(words, "local", address=person.address, field=("delegate",))]
