"""Changes of addresses: which stored account an entry of the accounts file is. Pure.

An account is a row with an id. Mail, UIDLs, the ledger, sent mail, people and delegates refer to the id, so they follow
a changed address. Only ``oauth.same_as`` names another account by its address; it is changed with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from services.admin.accounts.errors import AccountProblem, Kind
from services.admin.accounts.field_problems import show_value
from services.admin.accounts.file_format import ExternalFields, LocalFields
from shared.model import External, Local

Account = TypeVar("Account", External, Local)


def find_renamed(
    kind: Kind, entries: Sequence[ExternalFields | LocalFields], stored: Mapping[str, Account]
) -> tuple[dict[str, Account], list[AccountProblem]]:
    """Return the stored account of each entry that changes its address, by the folded new address, and the problems.

    An entry is the account of its address. ``renamed_from`` counts only while there is none: so the file can be applied
    again after the change.

    :param stored: by folded address.
    """
    entered = {entry.address.casefold(): (entry.renamed_from or "").casefold() for entry in entries}
    renamed: dict[str, Account] = {}
    problems = []
    for entry in entries:
        key, former = entry.address.casefold(), (entry.renamed_from or "").casefold()
        if not former or former == key:
            continue
        name, value, words = "renamed_from", entry.renamed_from, ""
        if key in stored and entered.get(former) == key and former in stored:
            words = "has this address as its former one, too; let one of them have a third address meanwhile"
        elif key in stored and (former not in stored or former in entered):
            continue  # it was changed before
        elif key in stored and key in entered.values():
            words = "is the address of an account that is changed, too; change that one before"
        elif key in stored:
            name, value = "address", entry.address
            words = "is the address of another account already; two accounts cannot become one"
        elif former not in stored:
            words = "is the address of no account; without this field the account is added as a new one"
        elif former in entered:
            words = "is the address of another entry, too; change the address first, and add that account afterwards"
        elif stored[former] in renamed.values():
            words = "is named by two entries"
        else:
            renamed[key] = stored[former]
        if words:
            problems.append(AccountProblem(words, kind, address=entry.address, field=(name,), value=show_value(value)))
    return renamed, problems


def follow_renamed(externals: Sequence[External], renamed: Mapping[str, str]) -> list[External]:
    """Return the accounts with the new addresses of those whose access tokens they use.

    :param renamed: new address by the folded former one.
    """
    followed = []
    for external in externals:
        oauth = external.oauth
        if oauth is not None and (new := renamed.get((oauth.same_as or "").casefold())) is not None:
            external = replace(external, oauth=replace(oauth, same_as=new))
        relays = tuple(
            replace(relay, tokens_of=renamed.get((relay.tokens_of or "").casefold(), relay.tokens_of))
            for relay in external.relays
        )
        followed.append(external if relays == external.relays else replace(external, relays=relays))
    return followed
