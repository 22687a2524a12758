"""The AMQP 0-9-1 frames that travel by the thousand (sections 2.3.5 and 4.2 of the specification), pure.

pika makes objects and several callbacks for each frame, which is the larger part of what a message costs a stage.
Publications, deliveries and confirmations are written and read here; every other frame is left to pika.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

_METHOD, _HEADER, _BODY = 1, 2, 3
_END = 0xCE
_BASIC = 60
_PUBLISH, _DELIVER, _ACK = (_BASIC << 16) + 40, (_BASIC << 16) + 60, (_BASIC << 16) + 80
_MANDATORY = 1
_PERSISTENT = 2
_CONTENT_TYPE, _HEADERS, _DELIVERY_MODE, _MESSAGE_ID = 1 << 15, 1 << 13, 1 << 12, 1 << 7  # flags of the properties

_FRAME = struct.Struct(">BHI")  # type, channel, octets; a payload and _END follow
_FRAME_METHOD = struct.Struct(">BHII")  # … and the payload's class and method
_CONTENT = struct.Struct(">HHQ")  # class, weight, octets of the body
_TAG = struct.Struct(">QB")  # delivery tag, bits
_OVERHEAD = _FRAME.size + 1


class Delivered(NamedTuple):
    """A message from a queue."""

    channel: int
    tag: int
    redelivered: bool
    body: bytes


class Confirmed(NamedTuple):
    """The broker has taken a publication, or with ``multiple`` all up to it."""

    channel: int
    tag: int
    multiple: bool


def publish(
    channel: int, exchange: str, key: str, body: bytes, message_id: str, copies: Sequence[str], most: int
) -> bytes:
    """A mandatory, persistent message with a JSON body. copies: further routing keys (the CC header).

    :param most: octets of a frame.
    :raises ValueError: a key has more than 255 octets, or the properties do not fit into a frame.
    """
    flags = _CONTENT_TYPE | _DELIVERY_MODE | _MESSAGE_ID
    table = b""
    if copies:
        flags |= _HEADERS
        items = b"".join([b"S" + _long(copy.encode()) for copy in copies])
        table = _long(b"\2CCA" + _long(items))
    method = struct.pack(">IH", _PUBLISH, 0) + _short(exchange) + _short(key) + bytes((_MANDATORY,))
    header = (
        _CONTENT.pack(_BASIC, 0, len(body))
        + flags.to_bytes(2, "big")
        + _short("application/json")
        + table
        + bytes((_PERSISTENT,))
        + _short(message_id)
    )
    room = most - _OVERHEAD
    if len(header) > room:
        raise ValueError(f"{len(copies)} copies do not fit into a frame of {most} octets")
    parts = [body[start : start + room] for start in range(0, len(body), room)]
    return b"".join(
        [
            _frame(_METHOD, channel, method),
            _frame(_HEADER, channel, header),
            *(_frame(_BODY, channel, p) for p in parts),
        ]
    )


def _frame(kind: int, channel: int, payload: bytes) -> bytes:
    return _FRAME.pack(kind, channel, len(payload)) + payload + b"\xce"


def _short(text: str) -> bytes:
    octets = text.encode()
    return bytes((len(octets),)) + octets  # ValueError beyond 255


def _long(octets: bytes) -> bytes:
    return len(octets).to_bytes(4, "big") + octets


def read(data: bytes) -> tuple[list[Delivered | Confirmed], int]:
    """The deliveries and confirmations at the beginning of what arrived, and how many octets they are.

    It stops before the first frame of another kind, a message that is not whole or has a body of several frames, and
    anything malformed.
    """
    found: list[Delivered | Confirmed] = []
    position = 0
    with suppress(struct.error, IndexError):  # a frame whose fields lie outside of it
        while (end := _read_one(data, position, found)) > position:
            position = end
    return found, position


def _read_one(data: bytes, position: int, found: list[Delivered | Confirmed]) -> int:
    """Read what begins at ``position`` into ``found``; returns where it ends, or ``position``."""
    if position + _FRAME_METHOD.size > len(data):
        return position
    kind, channel, octets, method = _FRAME_METHOD.unpack_from(data, position)
    end: int = position + octets + _OVERHEAD
    if kind != _METHOD or end > len(data) or data[end - 1] != _END:
        return position
    at = position + _FRAME_METHOD.size
    if method == _ACK:
        tag, bits = _TAG.unpack_from(data, at)
        found.append(Confirmed(channel, tag, bool(bits & 1)))
        return end
    if method == _DELIVER:
        tag, bits = _TAG.unpack_from(data, at + 1 + data[at])  # behind the consumer's tag
        content = _content(data, end, channel)
        if content is not None:
            found.append(Delivered(channel, tag, bool(bits & 1), content[0]))
            return content[1]
    return position


def _content(data: bytes, position: int, channel: int) -> tuple[bytes, int] | None:
    """The body whose header frame begins here and where it ends; None unless it is whole and of one frame."""
    end = len(data)
    if position + _FRAME.size + _CONTENT.size > end:
        return None
    kind, number, octets = _FRAME.unpack_from(data, position)
    _, _, length = _CONTENT.unpack_from(data, position + _FRAME.size)
    position += octets + _OVERHEAD
    if (kind, number) != (_HEADER, channel) or position > end or data[position - 1] != _END:
        return None
    if length == 0:
        return b"", position
    if position + _FRAME.size > end:
        return None
    kind, number, octets = _FRAME.unpack_from(data, position)
    start, position = position + _FRAME.size, position + octets + _OVERHEAD
    if (kind, number, octets) != (_BODY, channel, length) or position > end or data[position - 1] != _END:
        return None
    return data[start : start + length], position
