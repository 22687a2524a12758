"""Formats FETCH responses of many mails that have no texts: flags, dates, sizes, envelopes, structures. Pure.

A row takes half a microsecond: one format for all rows, and a column of values for each item.
"""

from __future__ import annotations

import datetime as dt
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence

from services.imap_out.dates import format_internal_date
from services.imap_out.structure.stored import MailStructure
from services.imap_out.view import FLAG_NAMES, FolderState

FORMS = {
    "UID": b"UID %d",
    "FLAGS": b"FLAGS (%b)",
    "MODSEQ": b"MODSEQ (%d)",
    "RFC822.SIZE": b"RFC822.SIZE %d",
    "INTERNALDATE": b"INTERNALDATE %b",
    "ENVELOPE": b"ENVELOPE %b",
    "BODYSTRUCTURE": b"BODYSTRUCTURE %b",
    "BODY": b"BODY %b",
}
"""The items of a row, by name."""
STRUCTURE_ITEMS = frozenset(("ENVELOPE", "BODYSTRUCTURE", "BODY"))
"""Those that are made of the structure of the mail."""

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_FLAGS = tuple(" ".join(names).encode("ascii") for names in FLAG_NAMES)


def format_rows(
    names: Sequence[str], state: FolderState, indexes: Sequence[int], structures: Mapping[int, MailStructure]
) -> Iterator[bytes]:
    """Return the responses.

    :param names: of the items, as in FORMS. :param indexes: of the mails.
    :param structures: by blob id, of all these mails if one of the items needs them.
    """
    form = b"* %d FETCH (" + b" ".join([FORMS[name] for name in names]) + b")\r\n"
    columns = [_column(name, state, indexes, structures) for name in names]
    return map(form.__mod__, zip([index + 1 for index in indexes], *columns, strict=True))


def format_item(name: str, state: FolderState, index: int, structure: MailStructure | None) -> bytes:
    """Return one item of one mail, as ``format_rows``. :param structure: None if the item does not need it."""
    structures = {} if structure is None else {state.blob_ids[index]: structure}
    [value] = _column(name, state, (index,), structures)
    return FORMS[name] % value


def _column(
    name: str, state: FolderState, indexes: Sequence[int], structures: Mapping[int, MailStructure]
) -> Iterable[int | bytes]:
    match name:
        case "UID":
            return _pick(state.uids, indexes)
        case "FLAGS":
            if state.keywords:
                return [" ".join(state.flag_names(index)).encode("ascii", "replace") for index in indexes]
            return map(_FLAGS.__getitem__, _pick(state.flags, indexes))
        case "MODSEQ":
            return _pick(state.versions, indexes)
        case "RFC822.SIZE":
            return _pick(state.octets, indexes)
        case "INTERNALDATE":
            return map(internal_date, _pick(state.dates, indexes))
        case "ENVELOPE":
            return [structures[blob_id].envelope for blob_id in _pick(state.blob_ids, indexes)]
        case "BODYSTRUCTURE":
            return [structures[blob_id].bodystructure for blob_id in _pick(state.blob_ids, indexes)]
    return [structures[blob_id].body for blob_id in _pick(state.blob_ids, indexes)]


def _pick(column: array[int], indexes: Sequence[int]) -> Sequence[int]:
    first, count = (indexes[0], len(indexes)) if indexes else (0, 0)
    if count and indexes[-1] - first == count - 1:  # they are ascending, so there is no gap
        return column[first : first + count]
    return [column[index] for index in indexes]


def internal_date(microseconds: int) -> bytes:
    """Format an INTERNALDATE. :param microseconds: since 1970 in UTC."""
    return format_internal_date(_EPOCH + dt.timedelta(microseconds=microseconds))
