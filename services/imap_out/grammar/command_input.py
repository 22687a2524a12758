"""Puts a command together from its lines and literals (RFC 3501 section 4.3, RFC 7888).

The connection feeds each line without its line end, does what the returned step says, and feeds what it has read. A
short literal is held in memory. The mail of APPEND is never held: the connection streams it to its store.

A single line that is longer than ``line_octets`` is not fed: where its command ends is not known, so the connection
ends. A command that is refused leaves no octet behind that could be taken for the next command: literals that come
without a wait are read and dropped, and the answer follows the last line.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from services.imap_out.grammar.command_parser import parse_command, read_tag
from services.imap_out.grammar.commands import ImapCommand
from services.imap_out.grammar.errors import CommandError
from services.imap_out.grammar.reader import LITERAL

_ANNOUNCED = re.compile(rb"(~?)\{(\d{1,19})(\+?)\}\Z")
_APPEND = re.compile(rb"[^ ]++ ++APPEND ++(?:[^ \0]|\0.)", re.IGNORECASE | re.DOTALL)  # with the mailbox
_LITERAL8 = b"~"


@dataclass(frozen=True, slots=True)
class InputLimits:
    """Limits of one command. RFC 9051 section 7.1 and RFC 7162 section 4 want lines of 8,192 octets to be accepted."""

    line_octets: int = 65_536  # of all lines of a command; some clients name thousands of UIDs
    literal_octets: int = 65_536  # of all literals in memory
    literals: int = 100
    mail_octets: int = 50_000_000  # of the mail of APPEND
    dropped_octets: int = 100_000_000  # that a refused command may still send; after more the connection ends


BEFORE_LOGIN = InputLimits(line_octets=16_384, literal_octets=4_096, literals=4, mail_octets=0, dropped_octets=65_536)
"""Limits for clients that have not logged in; an initial response with a token has some thousand octets."""


@dataclass(frozen=True, slots=True)
class ReadLiteral:
    """Send a continuation request if the client waits, read so many octets, feed them, then feed the next line."""

    octets: int
    waits: bool
    dropped: bool = False  # do not keep the octets, and do not feed them: the command is refused


@dataclass(frozen=True, slots=True)
class ReceiveMail:
    """Send a continuation request if the client waits, stream so many octets to the store, then feed the next line."""

    command: ImapCommand  # with AppendArguments
    octets: int
    waits: bool
    literal8: bool  # the mail may have NULs (RFC 3516 section 4.4)


@dataclass(frozen=True, slots=True)
class RunCommand:
    """The command is complete."""

    command: ImapCommand


@dataclass(frozen=True, slots=True)
class RefuseCommand:
    """Answer the command. ends: the connection ends, too: too much would have to be dropped."""

    tag: str  # '*': the line has no tag
    error: CommandError
    ends: bool = False


InputStep = ReadLiteral | ReceiveMail | RunCommand | RefuseCommand


class CommandInput:
    """The command that is being read.

    :ivar limits: may be replaced between two commands.
    :ivar utf8: names of mailboxes are UTF-8; may be set between two commands.
    """

    def __init__(self, limits: InputLimits, utf8: bool = False) -> None:
        """Begin with no command."""
        self.limits = limits
        self.utf8 = utf8
        self._begin()

    def _begin(self) -> None:
        self._text: list[bytes] = []
        self._text_octets = 0
        self._literals: list[bytes] = []
        self._announced = 0  # literals, kept or not
        self._literal_octets = 0
        self._dropped = 0
        self._refusal: CommandError | None = None
        self._append: ImapCommand | None = None

    @property
    def is_empty(self) -> bool:
        """Whether no line of a command has been read: the client may be idle here."""
        return not self._text

    def feed_line(self, line: bytes) -> InputStep:
        """Take the next line of the command, without its line end."""
        if self._append is not None:
            return self._end_append(line)
        announced = _ANNOUNCED.search(line) if line.endswith(b"}") else None
        self._add_text(line[: announced.start()] if announced else line)
        if announced is None:
            return self._finish()
        return self._announce(int(announced[2]), not announced[3], announced[1] == _LITERAL8)

    def feed_literal(self, octets: bytes) -> None:
        """Take the octets of a literal."""
        if b"\0" in octets:
            self._refuse(CommandError("a literal has a NUL (RFC 3501 section 9, CHAR8)"))
        self._literals.append(octets)

    def abandon_mail(self) -> None:
        """Forget the APPEND whose mail was announced by ``ReceiveMail``: the client that waits gets a refusal."""
        self._begin()

    def _add_text(self, text: bytes) -> None:
        self._text_octets += len(text)
        if self._text_octets > self.limits.line_octets:
            self._refuse(CommandError(f"the command is longer than {self.limits.line_octets} octets"))
            text = text[:200]
        elif b"\0" in text:
            self._refuse(CommandError("the command has a NUL (RFC 3501 section 9)"))
        if self._refusal is None or not self._text:
            self._text.append(text)

    def _refuse(self, error: CommandError) -> None:
        if self._refusal is None:
            self._refusal = error

    def _announce(self, octets: int, waits: bool, literal8: bool) -> InputStep:
        self._announced += 1
        if self._announced > self.limits.literals:
            self._refuse(CommandError(f"the command has more than {self.limits.literals} literals"))
        if self._refusal is None and self._announced <= 2 and _APPEND.match(b"".join(self._text)):
            return self._announce_mail(octets, waits, literal8)
        self._literal_octets += octets
        if literal8:
            self._refuse(CommandError("a binary literal is taken by APPEND only (RFC 3516)"))
        if self._literal_octets > self.limits.literal_octets:
            self._refuse(CommandError(f"a literal is longer than {self.limits.literal_octets} octets", "BAD", "TOOBIG"))
        if self._refusal is not None:
            return self._drop(octets, waits)
        self._text.append(LITERAL)
        return ReadLiteral(octets, waits)

    def _announce_mail(self, octets: int, waits: bool, literal8: bool) -> InputStep:
        self._text.append(LITERAL)
        try:
            command = parse_command(b"".join(self._text), self._literals, self.utf8, octets)
            if octets > self.limits.mail_octets:
                raise CommandError(f"the mail is longer than {self.limits.mail_octets} octets", "NO", "TOOBIG")
            if not octets:
                raise CommandError("a mail without an octet is none", "NO")
        except CommandError as error:
            self._refuse(error)
            return self._drop(octets, waits)
        self._append = command
        return ReceiveMail(command, octets, waits, literal8)

    def _drop(self, octets: int, waits: bool) -> InputStep:
        """Answer a client that waits at once; else drop the literal, as far as the limit allows."""
        self._dropped += octets
        if waits or self._dropped > self.limits.dropped_octets:
            return self._refused(ends=not waits)
        return ReadLiteral(octets, False, dropped=True)

    def _refused(self, ends: bool = False) -> RefuseCommand:
        tag, _ = read_tag(self._text[0] if self._text else b"")
        error = self._refusal or CommandError("the command is malformed")
        self._begin()
        return RefuseCommand(tag, error, ends)

    def _finish(self) -> InputStep:
        if self._refusal is not None:
            return self._refused()
        return self._parsed(lambda: parse_command(b"".join(self._text), self._literals, self.utf8))

    def _end_append(self, line: bytes) -> InputStep:
        """Take the rest of the line behind the mail of APPEND: ``)`` after UTF8, else nothing."""
        command = self._append
        self._append = None
        expected = b")" if getattr(command and command.arguments, "utf8", False) else b""
        if command is None or line.rstrip(b" ") != expected:
            self._refuse(CommandError("something follows the mail; APPEND takes one mail (RFC 3501 section 6.3.11)"))
            announced = _ANNOUNCED.search(line) if line.endswith(b"}") else None
            return self._drop(int(announced[2]), not announced[3]) if announced else self._refused()
        return self._parsed(lambda: command)

    def _parsed(self, parse: Callable[[], ImapCommand]) -> InputStep:
        try:
            command = parse()
        except CommandError as error:
            self._refuse(error)
            return self._refused()
        self._begin()
        return RunCommand(command)
