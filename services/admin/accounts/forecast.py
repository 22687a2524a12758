"""What happens to the mails at a provider, told before they are fetched. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from shared.model import External, LedgerEntry


@dataclass(frozen=True, slots=True)
class _Counts:
    """The mails at the provider by what is known of them."""

    new: int
    history: int  # there at the first contact, or there now if that is still to come
    fetched: int
    skipped: int
    again: int  # fetched, listed under another key now, and known by their size until they are read
    unclear: int  # new, or there at the first contact under another key


def describe_policy(
    external: External, listed: Mapping[str, int | None], known: Sequence[LedgerEntry], met: bool
) -> str:
    """Describe what happens to the mails at the provider: how many are delivered, which are deleted when.

    :param listed: octets of each mail by its key, as far as the server reports them. :param known: the ledger without
        closed rows. :param met: the first poll is done; the mails that it found are the history.
    """
    counts = _count(listed, known, met)
    delivered = counts.new + counts.unclear + (counts.history if external.history == "all" else 0)
    words = f"{delivered} of them will be delivered"
    if not external.enabled:
        words += " once the account is enabled"
    elif external.hold:
        words += " once everybody is there and the account is started"
    if counts.fetched:
        words += f", {counts.fetched} were fetched already"
    if counts.again:
        words += f", {counts.again} seem to be fetched already by their size, and are read again to compare them"
    if counts.skipped:
        words += f", {counts.skipped} could not be fetched"
    if external.history == "from_now" and counts.history:
        words += f", {counts.history} were there at the first contact and stay there (history: from_now)"
    if external.history == "from_now" and counts.unclear:
        words += f"; {counts.unclear} are unclear: those from before the first contact will not be delivered"
    if external.delete_after_days is None:
        return words + "; nothing will be deleted at the provider"
    when = (
        "as soon as it is stored here"
        if external.delete_after_days == 0
        else (f"{external.delete_after_days} days after it was fetched")
    )
    kept = "" if external.delete_history else "; mail that was there at the first contact is never deleted"
    return f"{words}; fetched mail will be deleted at the provider {when}{kept}"


def _count(listed: Mapping[str, int | None], known: Sequence[LedgerEntry], met: bool) -> _Counts:
    rows = {row.key: row for row in known}
    states = Counter(
        (row.before or "fetched") if row.state == "vanished" else row.state for row in _found(listed, rows)
    )
    lost = [row for row in known if row.state == "vanished" and row.key not in listed]
    unknown = [key for key in listed if key not in rows]
    again = _count_same_size([listed[key] for key in unknown], lost)
    new, history = len(unknown) - again, states["history"]
    unclear = min(new, sum(row.before == "history" for row in lost))
    if not met:  # the first poll makes all mails history that were not fetched before
        new, history, unclear = 0, history + new, 0
    fetched = states["fetched"] + states["deleting"]
    return _Counts(new - unclear, history, fetched, states["skipped"], again, unclear)


def _found(listed: Collection[str], rows: Mapping[str, LedgerEntry]) -> list[LedgerEntry]:
    return [rows[key] for key in listed if key in rows]


def _count_same_size(sizes: Sequence[int | None], lost: Sequence[LedgerEntry]) -> int:
    """Count the mails that have the size of a lost mail, each lost mail once."""
    here, there = Counter(sizes), Counter(row.octets for row in lost)
    return sum(min(count, there[octets]) for octets, count in here.items() if octets is not None)
