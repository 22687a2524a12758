"""Receives the text of a mail in pieces, with a limit of size. Pure."""

from __future__ import annotations

import hashlib

from shared.provider.retrieval import HEAD_OCTETS


class MailText:
    """The text of one mail, with each lone LF replaced by CRLF. The pieces may be cut anywhere.

    kept: the text, up to the limit. octets: length of the whole text. head: the beginning of a text that is too large.
    """

    def __init__(self, limit: int) -> None:
        """:param limit: octets to keep; of a longer text only ``head`` is kept, and ``octets`` still counts all."""
        self.kept = bytearray()
        self.head = b""
        self.octets = 0
        self.too_large = False
        self._limit = limit
        self._digest = hashlib.sha256()
        self._held = b""  # a CR at the end of the last piece: an LF may follow

    def add(self, piece: bytes) -> None:
        """Append a piece."""
        if self._held:
            piece, self._held = self._held + piece, b""
        if piece.endswith(b"\r"):
            piece, self._held = piece[:-1], b"\r"
        self._append(piece)

    def finish(self) -> None:
        """Append what is left, after the last piece."""
        held, self._held = self._held, b""
        self._append(held)

    def _append(self, piece: bytes) -> None:
        if piece.count(b"\n") != piece.count(b"\r\n"):
            piece = piece.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
        self.octets += len(piece)
        if self.octets > self._limit:
            if not self.too_large:
                self.head = bytes(memoryview(self.kept + piece[:HEAD_OCTETS])[:HEAD_OCTETS])
            self.too_large = True
            self.kept = bytearray()
        else:
            self.kept += piece
            self._digest.update(piece)

    @property
    def sha256(self) -> bytes:
        """The SHA-256 of the kept octets."""
        return self._digest.digest()
