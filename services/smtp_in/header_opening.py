"""Drops lines before the first header field of a submission: lines of an mbox, a byte order mark, blank lines. Pure.

The next server would end the header there, and the recipients would get From, To and Subject as text.
"""

from __future__ import annotations

import re

OPENING_OCTETS = 8 * 1024
"""Limits what is dropped, and what waits for the first field: octets; a line of an mbox has less than a hundred."""

_BOM = rb"(?:\xef\xbb\xbf)*+"
_SKIPPED = re.compile(_BOM + rb"(?:>*+From (?![ \t]*:)[^\n]*|[ \t]*)\r?\n")
_BLANK = re.compile(_BOM + rb"[ \t]*\r?\n")
_FIELD = re.compile(_BOM + rb"(?=[!-9;-~]++[ \t]*+:)")
# A blank line may also end an empty header, so what follows has to be a field that mail programs write.
_USUAL_FIELD = re.compile(
    _BOM + rb"(?=(?:From|Sender|Reply-To|To|Cc|Bcc|Subject|Date|Message-ID|In-Reply-To|References|MIME-Version|Received"
    rb"|Return-Path|Delivered-To|User-Agent|Importance|Priority|Organization|Disposition-Notification-To|Autocrypt"
    rb"|(?:Content|Resent|List|X)-[!-9;-~]++)[ \t]*+:)",
    re.IGNORECASE,
)


class HeaderOpening:
    """Holds back the first octets of a mail until its first line that is not skipped is known.

    :ivar decided: the rest of the mail need not be fed.
    """

    def __init__(self) -> None:
        self.decided = False
        self._octets = b""
        self._position = 0  # after the lines that are skipped if a field follows
        self._field = _FIELD

    def feed(self, octets: bytes) -> bytes:
        """Read the next octets, with lines that end in CRLF. Return those that are stored, none while undecided.

        Nothing is dropped unless a field follows: then the mail is a text without a header.
        """
        self._octets += octets
        while not self.decided:
            end = self._octets.find(b"\n", self._position) + 1
            if end == 0 and len(self._octets) <= OPENING_OCTETS:
                return b""
            whole = 0 < end <= OPENING_OCTETS
            line = self._octets[self._position : end if whole else OPENING_OCTETS]
            if whole and _SKIPPED.fullmatch(line):
                self._position = end
                self._field = _USUAL_FIELD if _BLANK.fullmatch(line) else self._field
            else:
                self.decided = True
                if found := self._field.match(line):
                    return self._octets[self._position + found.end() :]
        return self.finish()

    def finish(self) -> bytes:
        """Return the octets that are held back, at the end of the mail."""
        self.decided = True
        held, self._octets = self._octets, b""
        return held
