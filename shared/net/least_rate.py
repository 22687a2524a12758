"""The least rate of a transfer: a client that sends or reads too slowly is disconnected (pop3_out, smtp_in).

An average since the start would let a client send much at once and then hold the memory for hours. Here a transfer has
a number of seconds in advance, which time uses up and octets earn back, never more than at the start.
"""

from __future__ import annotations

import asyncio
import fcntl
import struct
import termios


def unacknowledged_octets(transport: asyncio.Transport) -> int:
    """Octets that were written and that the client has not received: those of the process and of the kernel, which may
    hold megabytes."""
    waiting = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
    return transport.get_write_buffer_size() + int(struct.unpack("i", waiting)[0])


class LeastRate:
    """The deadline of one transfer."""

    __slots__ = ("_advance_seconds", "_ends_at", "_octets_a_second")

    def __init__(self, octets_a_second: float, advance_seconds: float, now: float) -> None:
        """:param octets_a_second: least rate. :param advance_seconds: longest pause. :param now: monotonic seconds."""
        self._octets_a_second = octets_a_second
        self._advance_seconds = advance_seconds
        self._ends_at = now + advance_seconds

    def record(self, octets: int, now: float) -> None:
        """Count octets that were transferred."""
        self._ends_at = min(self._ends_at + octets / self._octets_a_second, now + self._advance_seconds)

    def extend(self, seconds: float) -> None:
        """Leave out a time in which the client had to wait for the server."""
        self._ends_at += seconds

    def seconds_left(self, now: float) -> float:
        """Seconds until the transfer is too slow; negative afterwards."""
        return self._ends_at - now
