"""What happens to the mails at a provider, forecast before they are fetched. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from shared.languages.translation import gettext, marked
from shared.mime import headers
from shared.model import External, LedgerEntry

Identity = tuple[bytes, bytes, bytes]
"""Message-ID, Date and topmost Received of a mail, without white space: the same by each protocol. b"": it has none."""


@dataclass(frozen=True, slots=True)
class _Counts:
    """The mails at the provider by what is known of them."""

    new: int
    history: int  # there at the first contact, or there now if that is still to come
    fetched: int
    skipped: int
    same: int  # fetched, listed under another key now, and known by size and header
    again: int  # the same, known by their size alone until they are read
    resized: int  # with the header of a fetched mail and another size
    unclear: int  # new, or there at the first contact under another key


def identity_of(header: bytes) -> Identity | None:
    """Return what identifies a mail in its header; None if the header is cut, or has none of the three fields."""
    if headers.header_end(header) == len(header) and not header.endswith(b"\r\n\r\n"):
        return None
    fields = [headers.values(header, name)[:1] for name in ("message-id", "date", "received")]
    message_id, date, received = (b"".join(b"".join(value).split()) for value in fields)
    return (message_id, date, received) if message_id or date or received else None


def describe_policy(
    external: External,
    listed: Mapping[str, int | None],
    known: Sequence[LedgerEntry],
    met: bool,
    listed_as: Mapping[str, Identity] | None = None,
    known_as: Mapping[int, Identity] | None = None,
) -> str:
    """Describe what happens to the mails at the provider: how many are delivered, which are deleted when.

    :param listed: octets of each mail by its key, as far as the server reports them. :param known: the ledger without
        closed rows. :param met: the first poll is done; the mails that it found are the history.
    :param listed_as: identities of listed mails, by key. :param known_as: those of fetched ones, by id of the row.
    """
    counts = _count(listed, known, met, listed_as or {}, known_as or {})
    delivered = counts.new + counts.resized + counts.unclear + (counts.history if external.history == "all" else 0)
    if external.enabled and not external.hold:
        words = gettext("%(count)s of them will be delivered", count=delivered)
    elif external.enabled:
        words = gettext(
            "%(count)s of them will be delivered once everybody is there and the account is started", count=delivered
        )
    else:
        words = gettext("%(count)s of them will be delivered once the account is enabled", count=delivered)
    from_now = external.history == "from_now"
    for count, text in (
        (counts.fetched, marked(", %(count)s were fetched already")),
        (counts.same, marked(", %(count)s were fetched already by their size and header")),
        (
            counts.again,
            marked(", %(count)s seem to be fetched already by their size, and are read again to compare them"),
        ),
        (counts.skipped, marked(", %(count)s could not be fetched")),
        (
            counts.history if from_now else 0,
            marked(", %(count)s were there at the first contact and stay there (history: from_now)"),
        ),
        (
            counts.resized,
            marked("; %(count)s are unclear: they have the header of a fetched mail and another size"),
        ),
        (
            counts.unclear if from_now else 0,
            marked("; %(count)s are unclear: those from before the first contact will not be delivered"),
        ),
    ):
        if count:
            words += gettext(text, count=count)
    if external.delete_after_days is None:
        return words + gettext("; nothing will be deleted at the provider")
    if external.delete_after_days == 0:
        words += gettext("; fetched mail will be deleted at the provider as soon as it is stored here")
    else:
        words += gettext(
            "; fetched mail will be deleted at the provider %(days)s days after it was fetched",
            days=external.delete_after_days,
        )
    if not external.delete_history:
        words += gettext("; mail that was there at the first contact is never deleted")
    return words


def _count(
    listed: Mapping[str, int | None],
    known: Sequence[LedgerEntry],
    met: bool,
    listed_as: Mapping[str, Identity],
    known_as: Mapping[int, Identity],
) -> _Counts:
    rows = {row.key: row for row in known}
    states = Counter(
        (row.before or "fetched") if row.state == "vanished" else row.state for row in _found(listed, rows)
    )
    lost = [row for row in known if row.state == "vanished" and row.key not in listed]
    unknown = [key for key in listed if key not in rows]
    unknown, lost, same, resized = _match_headers(unknown, listed, lost, listed_as, known_as)
    again = _count_same_size(unknown, listed, lost, listed_as, known_as)
    new, history = len(unknown) - again, states["history"]
    unclear = min(new, sum(row.before == "history" for row in lost))
    if not met:  # the first poll makes all mails history that were not fetched before
        new, history, unclear = 0, history + new, 0
    fetched = states["fetched"] + states["deleting"]
    return _Counts(new - unclear, history, fetched, states["skipped"], same, again, resized, unclear)


def _match_headers(
    unknown: Sequence[str],
    listed: Mapping[str, int | None],
    lost: Sequence[LedgerEntry],
    listed_as: Mapping[str, Identity],
    known_as: Mapping[int, Identity],
) -> tuple[list[str], list[LedgerEntry], int, int]:
    """Match listed mails with lost ones by their headers, each lost mail once: first those of the same size.

    :return: what is left of both; how many have header and size of a lost mail, and how many only the header.
    """
    by_header: dict[Identity, list[LedgerEntry]] = {}
    for row in lost:
        if row.id in known_as:
            by_header.setdefault(known_as[row.id], []).append(row)
    left, counts, taken = list(unknown), [0, 0], set[int]()
    for number, needs_size in enumerate((True, False)):
        for key in list(left):
            rows = by_header.get(listed_as[key], []) if key in listed_as else []
            match = next((row for row in rows if not needs_size or listed[key] in (None, row.octets)), None)
            if match is not None:
                rows.remove(match)
                left.remove(key)
                taken.add(match.id)
                counts[number] += 1
    return left, [row for row in lost if row.id not in taken], counts[0], counts[1]


def _found(listed: Collection[str], rows: Mapping[str, LedgerEntry]) -> list[LedgerEntry]:
    return [rows[key] for key in listed if key in rows]


def _count_same_size(
    unknown: Sequence[str],
    listed: Mapping[str, int | None],
    lost: Sequence[LedgerEntry],
    listed_as: Mapping[str, Identity],
    known_as: Mapping[int, Identity],
) -> int:
    """Count the mails that have the size of a lost mail, each lost mail once.

    Two mails whose headers are both known are different ones: their headers would be the same otherwise.
    """
    with_header = Counter(row.octets for row in lost if row.id in known_as)
    without = Counter(row.octets for row in lost if row.id not in known_as)
    count = 0
    for key in sorted(unknown, key=lambda key: key not in listed_as):  # first those with fewer chances
        octets = listed[key]
        for rows in (without,) if key in listed_as else (with_header, without):
            if octets is not None and rows[octets]:
                rows[octets] -= 1
                count += 1
                break
    return count
