"""Accounts and relays that use the access tokens of another account (``oauth.same_as``): what they and the other one
need. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from services.admin.accounts.errors import AccountProblem
from services.admin.suggestions import say_unknown
from shared.model import External, compared_host


@dataclass(frozen=True, slots=True)
class _TokenUse:
    """A login with access tokens of another account. of: that account's address. field: names it."""

    external: External
    of: str
    hosts: frozenset[str]  # that get the tokens
    field: tuple[str | int, ...]
    of_relay: bool  # by a relay with a login of its own


def _uses_of(external: External) -> Iterator[_TokenUse]:
    """Yield the uses of other accounts' tokens by the logins of an account."""
    if external.oauth is not None and external.oauth.same_as is not None:
        yield _TokenUse(external, external.oauth.same_as, external.hosts, ("oauth", "same_as"), of_relay=False)
    for relay in external.relays:
        if relay.tokens_of is not None:
            place = ("smtp",) if len(external.relays) == 1 else ("smtp", relay.position)
            hosts = frozenset((compared_host(relay.server.host),))
            yield _TokenUse(external, relay.tokens_of, hosts, (*place, "oauth", "same_as"), of_relay=True)


def find_token_problems(
    externals: Sequence[External], changed: Collection[str], refused: Collection[str]
) -> list[AccountProblem]:
    """Find the accounts that will use the access tokens of an account without any, or of one with other servers.

    :param externals: all accounts after the change. :param changed: folded addresses of those that it saves.
    :param refused: folded addresses of those whose entries have problems of their own.
    """
    known = {external.address.casefold(): external for external in externals}
    problems = []
    for use in (use for external in externals for use in _uses_of(external)):
        if use.of.casefold() in refused:
            continue
        external, owner = use.external, known.get(use.of.casefold())
        if owner is None or external.address.casefold() in changed:
            if words := _say_without_tokens(use, owner, externals):
                problems.append(AccountProblem(words, "external", None, external.address, use.field, repr(use.of)))
        elif _say_without_tokens(use, owner, ()):  # the other account is changed
            words = f"{external.address} uses the access tokens of this account; change that first"
            problems.append(AccountProblem(words, "external", None, owner.address, ("oauth",)))
    return problems


def _say_without_tokens(use: _TokenUse, owner: External | None, known: Iterable[External]) -> str:
    """Return why the tokens of this account cannot be used; '' if they can. Pure."""
    if owner is None:
        return f"there is no such external account{say_unknown(use.of, [each.address for each in known])}"
    if owner is use.external and not use.of_relay:
        return "is this account itself; name another one, which has oauth"
    if owner.oauth is None:
        return "has no access tokens; name an account with oauth"
    if owner.oauth.same_as is not None:
        return f"has no access tokens of its own; name {owner.oauth.same_as}"
    if not use.hosts <= owner.hosts:
        return f"has other servers ({', '.join(sorted(owner.hosts))}); access tokens are sent to no other ones"
    return ""
