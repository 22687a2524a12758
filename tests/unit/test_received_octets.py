"""shared/provider/session_stream.py: octets of a provider wait in pieces, until somebody reads them."""

from __future__ import annotations

import asyncio
from typing import cast

from shared.provider.session_stream import BUFFER_OCTETS, JOINED_OCTETS, ReceivedOctets


class Transport:
    """Notes whether it is paused."""

    paused = False

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


async def read_all(received: ReceivedOctets) -> list[bytes]:
    pieces = []
    while not received.empty:
        pieces.append(await received.read_chunk())
    return pieces


async def test_many_small_pieces_are_read_together() -> None:
    # given a server whose packets have one octet each, and nobody who reads meanwhile
    received, transport = ReceivedOctets(), Transport()
    received.connection_made(cast(asyncio.BaseTransport, transport))
    sent = bytes(number % 251 for number in range(BUFFER_OCTETS + 1))
    for number in range(len(sent)):
        received.data_received(sent[number : number + 1])
    assert transport.paused
    # when
    pieces = await read_all(received)
    # then a few reads are enough, none is large, and reading goes on
    assert b"".join(pieces) == sent
    assert len(pieces) == 1 + BUFFER_OCTETS // JOINED_OCTETS
    assert not transport.paused


async def test_a_large_piece_is_read_by_itself() -> None:
    received = ReceivedOctets()
    pieces = [b"a" * 10, b"b" * JOINED_OCTETS * 2, b"c" * 10, b"d" * 10]
    for piece in pieces:
        received.data_received(piece)
    assert await read_all(received) == [pieces[0], pieces[1], pieces[2] + pieces[3]]
