"""What SEARCH has read of a mail: decoded fields of its header, and what was found in its body."""

from __future__ import annotations

import datetime as dt
import email.utils
from collections.abc import Collection, Sequence

from services.imap_out.folding import fold_text
from shared.mime import headers

HEADER_OCTETS = 256 * 1024
"""Octets of a header that are searched."""


class UnreadMail:
    """A mail that has not been read; some texts are certainly not where they are looked for."""

    has_header = False

    def __init__(self, lacking: Collection[str]) -> None:
        """:param lacking: these texts."""
        self._lacking = lacking

    def lacks(self, text: str) -> bool:
        """Return whether a text is certainly not in the mail."""
        return text in self._lacking

    def header_values(self, name: str) -> None:
        """Return None: the header has not been read."""

    def sent_day(self) -> None:
        """Return None: the header has not been read."""

    def contains(self, text: str, header: bool) -> bool | None:
        """Return False if the mail lacks a text; None: it is not known."""
        return False if text in self._lacking else None


class SearchedMail:
    """What has been read of a mail: its header, and perhaps its body (``MailTexts``)."""

    has_header = True

    def __init__(
        self, header: bytes, found: Collection[str] | None = None, lacking: Collection[str] = frozenset()
    ) -> None:
        """:param header: raw. :param found: texts that are in the body; None: it has not been searched.
        :param lacking: texts that are certainly nowhere in the mail."""
        self._header = header[:HEADER_OCTETS]
        self._found = found
        self._lacking = lacking
        self._text: str | None = None

    def lacks(self, text: str) -> bool:
        """Return whether a text is certainly nowhere in the mail."""
        return text in self._lacking

    def header_values(self, name: str) -> Sequence[str]:
        """Return the values of a field."""
        return [fold_text(headers.field_text(value)) for value in headers.values(self._header, name)]

    def sent_day(self) -> dt.date | None:
        """Return the day of the Date field, in its own zone."""
        moment = sent_date(self._header)
        return None if moment is None else moment.date()

    def contains(self, text: str, header: bool) -> bool | None:
        """Return whether the mail contains a text."""
        if text in self._lacking:
            return False
        if header:
            if self._text is None:
                self._text = header_text(self._header)
            if text in self._text:
                return True
        return None if self._found is None else text in self._found


def header_text(header: bytes) -> str:
    """Return all fields of a header as one searchable text."""
    lines = (f"{name}: {headers.field_text(value)}" for name, value in headers.iterate_values(header))
    return fold_text("\n".join(lines))


def sent_date(header: bytes) -> dt.datetime | None:
    """Return the moment in the Date field of a header, in its own zone; None if there is none that can be read."""
    for value in headers.values(header, "date")[:1]:
        try:
            return _aware(email.utils.parsedate_to_datetime(headers.field_text(value[:200])))
        except Exception:  # the library raises many kinds for what is no date
            return None
    return None


def _aware(moment: dt.datetime) -> dt.datetime:
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=dt.UTC)  # -0000
