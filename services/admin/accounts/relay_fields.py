"""The SMTP servers of an account that a command changes by single fields: smtp.port is of the first one, smtp[1].port
of the second. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from services.admin.accounts.errors import AccountProblem, AccountsError


def merge_relays(address: str, stored: Any, given: Any) -> Any:
    """Return the field ``smtp`` of an account's entry with the given fields changed: a server, or a list of several.

    :param stored: the field as it is stored; None: of a new account. :param given: a whole list; or the fields of the
        first server by name, and those of any by position: {"port": 25, 1: {"host": "..."}}. None removes a server.
    :raises AccountsError: a position is beyond the next one.
    """
    if not isinstance(given, Mapping):
        return given
    relays = [dict(each) for each in (stored if isinstance(stored, list) else [stored] if stored else [])]
    changes: dict[int, Any] = {position: value for position, value in given.items() if isinstance(position, int)}
    first = {name: value for name, value in given.items() if isinstance(name, str)}
    if first:
        changes[0] = first | dict(changes.get(0) or {})
    for position in sorted(changes):
        value = changes[position]
        if position > len(relays):
            words = f"the account has {len(relays)} SMTP servers; the next one is smtp[{len(relays)}]"
            raise AccountsError([AccountProblem(words, "external", address=address, field=("smtp", position))])
        if position == len(relays):
            relays.append({})
        relays[position] = _merge(relays[position], value) if isinstance(value, Mapping) else value
    left = [relay for relay in relays if relay is not None]
    return left[0] if len(left) == 1 else left


def _merge(stored: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**stored, **given}
    if "tls" in given and "port" not in given:
        merged.pop("port", None)  # the port follows the mode unless it is given
    return merged
