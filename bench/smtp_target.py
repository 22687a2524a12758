"""An SMTP server of a provider that records when it accepted each mail."""

from __future__ import annotations

import asyncio
import re
import time
from typing import cast

_MESSAGE_ID = re.compile(rb"^Message-ID: <([^>]+)>", re.M | re.I)
_REPLIES = {
    b"EHLO": b"250-target.example\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SMTPUTF8\r\n",
    b"DATA": b"354 go on\r\n",
    b"QUIT": b"221 bye\r\n",
}


class Target(asyncio.Protocol):
    """One connection."""

    def __init__(self, taken: dict[str, float], changed: asyncio.Event) -> None:
        """:param taken: gets the time of each mail's 250 (``time.perf_counter``), by Message-ID. :param changed: is set
        after each mail.
        """
        self._taken, self._changed = taken, changed
        self._rest = b""
        self._body: bytes | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # those of uvloop have their own classes
        self._transport.write(b"220 target.example\r\n")

    def data_received(self, data: bytes) -> None:
        self._rest += data
        while self._mail() if self._body is not None else self._command():
            pass

    def _command(self) -> bool:
        assert self._transport is not None
        line, end, rest = self._rest.partition(b"\r\n")
        if not end:
            return False
        self._rest, verb = rest, line[:4].upper()
        self._transport.write(_REPLIES.get(verb, b"250 ok\r\n"))
        if verb == b"DATA":
            self._body = b""
        elif verb == b"QUIT":
            self._transport.close()
        return True

    def _mail(self) -> bool:
        assert self._transport is not None
        body, end, rest = self._rest.partition(b"\r\n.\r\n")
        if not end:
            return False
        self._rest, self._body = rest, None
        self._transport.write(b"250 taken\r\n")
        if found := _MESSAGE_ID.search(body):
            self._taken[found.group(1).decode()] = time.perf_counter()
            self._changed.set()
        return True
