"""Keeps whole answers to FETCH without texts: clients that poll ask for the same of the same folder again and again.

An answer belongs to one state of a folder (view.py); after a change there is another state, which has no answer yet.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from services.imap_out.view import FolderState

KEPT_OCTETS = 16 * 1024 * 1024
"""Answers in memory, with those that are being sent for the first time: octets."""
ANSWER_OCTETS = 2 * 1024 * 1024
"""Longest answer that is kept: octets; the flags of 50,000 mails."""
LEAST_MAILS = 20
"""Mails of an answer that is kept; a shorter one is formatted in some microseconds."""

_Key = tuple[int, tuple[str, ...], int, int]


class FetchAnswers:
    """The answers of all sessions of the process; the least recently used ones are dropped first.

    :ivar octets: memory that they use.
    """

    def __init__(self, kept_octets: int = KEPT_OCTETS) -> None:
        """:param kept_octets: limit of the memory."""
        self.octets = 0
        self._kept_octets = kept_octets
        self._answers: OrderedDict[_Key, FetchAnswer] = OrderedDict()

    def find(self, state: FolderState, names: Sequence[str], indexes: Sequence[int]) -> Sequence[bytes] | None:
        """Return the answer in pieces; None if it is not kept.

        :param names: of the items. :param indexes: of the mails, ascending.
        """
        key = _key(state, names, indexes)
        answer = self._answers.get(key) if key is not None else None
        if key is None or answer is None or answer.state() is not state:
            return None
        self._answers.move_to_end(key)
        return answer.pieces

    def record(self, state: FolderState, names: Sequence[str], indexes: Sequence[int]) -> FetchAnswer:
        """Return an answer that will be sent now, as a context manager. Arguments as ``find``."""
        return FetchAnswer(self, _key(state, names, indexes), state)

    def reserve(self, octets: int) -> bool:
        """Count memory of an answer that is being sent. :return: False: there is none."""
        while self.octets + octets > self._kept_octets and self._answers:
            self._drop(next(iter(self._answers)))
        if self.octets + octets > self._kept_octets:
            return False
        self.octets += octets
        return True

    def keep(self, key: _Key, answer: FetchAnswer) -> None:
        """Keep an answer whose memory is reserved."""
        self._drop(key)
        self._answers[key] = answer

    def _drop(self, key: _Key) -> None:
        answer = self._answers.pop(key, None)
        if answer is not None:
            self.octets -= answer.octets


class FetchAnswer:
    """An answer. As a context manager it is kept if the block ends without a failure, and ``complete`` was set.

    :ivar complete: all of it was added.
    """

    __slots__ = ("_answers", "_key", "complete", "octets", "pieces", "state")

    def __init__(self, answers: FetchAnswers, key: _Key | None, state: FolderState) -> None:
        """:param key: None: it is not kept."""
        self._answers = answers
        self._key = key
        self.state = weakref.ref(state)
        self.pieces: list[bytes] = []
        self.octets = 0
        self.complete = False

    def add(self, piece: bytes) -> None:
        """Add what is sent."""
        if self._key is None:
            return
        if self.octets + len(piece) > ANSWER_OCTETS or not self._answers.reserve(len(piece)):
            self._forget()
            return
        self.pieces.append(piece)
        self.octets += len(piece)

    def _forget(self) -> None:
        self._answers.octets -= self.octets
        self.pieces, self.octets, self._key = [], 0, None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None and self.complete and self._key is not None:
            self._answers.keep(self._key, self)
        else:
            self._forget()


def _key(state: FolderState, names: Sequence[str], indexes: Sequence[int]) -> _Key | None:
    """Return the key of an answer; None: of mails with others between them, or of too few."""
    count = len(indexes)
    if count < LEAST_MAILS or indexes[-1] - indexes[0] != count - 1:
        return None
    return state.folder.id, tuple(names), indexes[0], count
