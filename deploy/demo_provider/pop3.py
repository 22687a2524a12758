"""One POP3 connection (RFC 1939), with the commands that a well-behaved client uses."""

from __future__ import annotations

import asyncio
import re

from deploy.demo_provider.maildrops import DemoMaildrop, Maildrops

_IDLE_SECONDS = 300.0


class CommandRefused(Exception):
    """The command is answered with -ERR."""


class DemoPop3Session:
    """A POP3 session, before and after its login."""

    def __init__(self, maildrops: Maildrops) -> None:
        """:param maildrops: the mailboxes of all users."""
        self._maildrops = maildrops
        self._user = ""
        self._drop: DemoMaildrop | None = None
        self._mails: list[tuple[str, bytes]] = []  # UIDL and content at the login; message numbers begin at 1
        self._deleted: set[int] = set()  # message numbers that QUIT deletes

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve until QUIT, the end of the connection or five idle minutes."""
        writer.write(b"+OK stand-in ready\r\n")
        try:
            while True:
                line = await asyncio.wait_for(reader.readline(), _IDLE_SECONDS)
                if not line:
                    return
                verb, _, argument = line.decode("utf-8", "replace").rstrip("\r\n").partition(" ")
                writer.write(self._answer(verb.upper(), argument))
                await writer.drain()
                if verb.upper() == "QUIT":
                    return
        except (TimeoutError, ConnectionError, ValueError):
            return
        finally:
            writer.close()

    def _answer(self, verb: str, argument: str) -> bytes:
        try:
            return self._do(verb, argument)
        except CommandRefused as error:
            return b"-ERR %s\r\n" % str(error).encode()

    def _do(self, verb: str, argument: str) -> bytes:
        match verb:
            case "CAPA":
                return b"+OK\r\nUSER\r\nUIDL\r\nTOP\r\nPIPELINING\r\n.\r\n"
            case "USER":
                self._user = argument
                return b"+OK\r\n"
            case "PASS":
                return self._log_in(argument)
            case "QUIT":
                if self._drop is not None:
                    for number in self._deleted:
                        self._drop.mails.pop(self._mails[number - 1][0], None)
                return b"+OK bye\r\n"
        if self._drop is None:
            raise CommandRefused("log in first")
        left = [number for number in range(1, len(self._mails) + 1) if number not in self._deleted]
        match verb:
            case "NOOP":
                return b"+OK\r\n"
            case "STAT":
                return b"+OK %d %d\r\n" % (len(left), sum(len(self._mails[number - 1][1]) for number in left))
            case "RSET":
                self._deleted.clear()
                return b"+OK\r\n"
            case "LIST" | "UIDL":
                numbers = [self._number(argument)] if argument else left
                lines = [b"%d %s" % (number, self._entry(verb, number)) for number in numbers]
                return b"+OK %s\r\n" % lines[0] if argument else b"\r\n".join([b"+OK", *lines, b".", b""])
            case "RETR":
                return b"+OK\r\n" + _stuffed(self._mails[self._number(argument) - 1][1])
            case "TOP":
                word, _, count = argument.partition(" ")
                header, _, body = self._mails[self._number(word) - 1][1].partition(b"\r\n\r\n")
                lines = body.split(b"\r\n")[: int(count) if count.isdigit() else 0]
                return b"+OK\r\n" + _stuffed(header + b"\r\n\r\n" + b"".join(line + b"\r\n" for line in lines))
            case "DELE":
                self._deleted.add(self._number(argument))
                return b"+OK\r\n"
        raise CommandRefused("unknown command")

    def _log_in(self, password: str) -> bytes:
        drop = self._maildrops.open(self._user, password)
        if drop is None:
            raise CommandRefused("[AUTH] wrong name or password")
        self._drop, self._mails, self._deleted = drop, list(drop.mails.items()), set()
        return b"+OK\r\n"

    def _entry(self, verb: str, number: int) -> bytes:
        uidl, content = self._mails[number - 1]
        return uidl.encode() if verb == "UIDL" else b"%d" % len(content)

    def _number(self, word: str) -> int:
        if not word.isdigit() or not 1 <= int(word) <= len(self._mails) or int(word) in self._deleted:
            raise CommandRefused("no such message")
        return int(word)


def _stuffed(mail: bytes) -> bytes:
    """Return the mail as a multi-line reply (RFC 1939 section 3)."""
    text = re.sub(rb"(?m)^\.", b"..", mail)
    return text + (b"" if text.endswith(b"\r\n") else b"\r\n") + b".\r\n"
