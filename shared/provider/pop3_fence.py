"""The fence: commands behind a mail whose replies are known, and prove that the mail was read to its end. Pure.

A server that does not double dots (RFC 1939 section 3) ends a mail at its first line that is a lone dot. The rest of
that mail comes in place of the reply to the next command, and may even look like one. The writer of a mail may guess
its number and unique id, so each fence asks for mails that are chosen at random, or sends NOOP: the writer cannot know
which reply has to come.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import NamedTuple

from shared.provider.pop3_replies import unique_id

GUESSES = 4096
"""Odds against a rest that guesses the replies of a whole fence: one in so many. A wrong guess shows the mail."""
_CHANCE = random.SystemRandom()

NOOP = b"NOOP\r\n"

Words = tuple[str, ...]
"""The first two words of a reply after +OK."""


class FenceCommand(NamedTuple):
    """A command and the reply that the server has to give."""

    line: bytes  # with CRLF
    words: Words
    number: int = 0  # of the mail that it is about

    def is_answered(self, line: bytes) -> bool:
        """Whether this line is the reply."""
        return _words(line) == self.words


def noop_command(line: bytes) -> FenceCommand | None:
    """Return the command NOOP. :param line: its reply; None is returned if that is a refusal."""
    words = _words(line)
    return None if words is None else FenceCommand(NOOP, words)


def _words(line: bytes) -> Words | None:
    indicator, *text = line.split(None, 3)[:3] or [b""]
    return tuple(map(unique_id, text)) if indicator.upper() == b"+OK" else None


class Fence:
    """The commands of a session whose replies are known.

    verb: UIDL, LIST or STAT. noop: the command NOOP; None if its reply is not known.
    """

    def __init__(self, verb: str, known: Mapping[int, Words]) -> None:
        """:param known: the reply for each mail, by its number; for STAT of mail 0. At least one."""
        self.verb = verb
        self.noop: FenceCommand | None = None
        self._known = known
        self._numbers = list(known)

    @classmethod
    def of_uidls(cls, uidls: Mapping[int, str]) -> Fence:
        """Return the fence of a server whose UIDL names one mail."""
        return cls("UIDL", {number: (str(number), uidl) for number, uidl in uidls.items() if uidl})

    @classmethod
    def of_sizes(cls, sizes: Mapping[int, int]) -> Fence:
        """Return the fence of a server whose LIST measures one mail."""
        return cls("LIST", {number: (str(number), str(octets)) for number, octets in sizes.items()})

    @classmethod
    def of_counts(cls, count: int, octets: int) -> Fence:
        """Return the fence of a server that only counts its mails."""
        return cls("STAT", {0: (str(count), str(octets))})

    def forget(self, number: int) -> None:
        """Send no more commands about a mail that the server refuses, unless it is the only one."""
        if len(self._numbers) > 1 and number in self._numbers:
            self._numbers.remove(number)

    @property
    def length(self) -> int:
        """The number of commands that make a guess as unlikely as GUESSES says; 1 if there is only one command."""
        choices = self._choices
        return math.ceil(math.log(GUESSES) / math.log(choices) - 1e-9) if choices > 1 else 1

    def draw(self, length: int) -> list[FenceCommand]:
        """Return so many commands, each chosen at random."""
        return [self._command(_CHANCE.randrange(self._choices)) for _ in range(length)]

    def draw_about_mail(self, but: FenceCommand | None = None) -> FenceCommand:
        """Return a command about a mail. :param but: another one than this, if there is one."""
        numbers = _CHANCE.sample(self._numbers, min(2, len(self._numbers)))
        others = [number for number in numbers if but is None or number != but.number]
        return self._about((others or numbers)[0])

    def _about(self, number: int) -> FenceCommand:
        command = f"{self.verb} {number}\r\n" if number else f"{self.verb}\r\n"
        return FenceCommand(command.encode(), self._known[number], number)

    @property
    def _choices(self) -> int:
        return len(self._numbers) + (self.noop is not None)

    def _command(self, choice: int) -> FenceCommand:
        if choice < len(self._numbers) or self.noop is None:
            return self._about(self._numbers[choice])
        return self.noop
