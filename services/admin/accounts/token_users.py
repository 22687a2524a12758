"""Accounts that use the access tokens of another one (``oauth.same_as``): what they and the other one need. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from services.admin.accounts.errors import AccountProblem
from services.admin.suggestions import say_unknown
from shared.model import External


def find_token_problems(
    externals: Sequence[External], changed: Collection[str], refused: Collection[str]
) -> list[AccountProblem]:
    """Find the accounts that will use the access tokens of an account without any, or of one with other servers.

    :param externals: all accounts after the change. :param changed: folded addresses of those that it saves.
    :param refused: folded addresses of those whose entries have problems of their own.
    """
    known = {external.address.casefold(): external for external in externals}
    problems = []
    for external in externals:
        given = external.oauth.same_as if external.oauth is not None else None
        if given is None or given.casefold() in refused:
            continue
        owner = known.get(given.casefold())
        if owner is None or external.address.casefold() in changed:
            if words := _say_without_tokens(external, owner, externals):
                field = ("oauth", "same_as")
                problems.append(AccountProblem(words, "external", None, external.address, field, repr(given)))
        elif _say_without_tokens(external, owner, ()):  # the other account is changed
            words = f"{external.address} uses the access tokens of this account; change that first"
            problems.append(AccountProblem(words, "external", None, owner.address, ("oauth",)))
    return problems


def _say_without_tokens(external: External, owner: External | None, known: Iterable[External]) -> str:
    """Return why an account cannot use the tokens of this one; '' if it can. Pure."""
    if owner is None:
        return f"there is no such external account{say_unknown(_same_as(external), [each.address for each in known])}"
    if owner is external:
        return "is this account itself; name another one, which has oauth"
    if owner.oauth is None:
        return "has no access tokens; name an account with oauth"
    if owner.oauth.same_as is not None:
        return f"has no access tokens of its own; name {owner.oauth.same_as}"
    if not external.hosts <= owner.hosts:
        return f"has other servers ({', '.join(sorted(owner.hosts))}); access tokens are sent to no other ones"
    return ""


def _same_as(external: External) -> str:
    assert external.oauth is not None and external.oauth.same_as is not None, "its caller has checked that"
    return external.oauth.same_as
