"""The frames that go past pika's codec: pika reads what is written here, and what pika writes is read here."""

from __future__ import annotations

import pika
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika import frame, spec

from shared.amqp import framing
from shared.amqp.framing import Confirmed, Delivered

KEYS = st.text("abcd.@é", max_size=60)


def decoded(data: bytes) -> list[frame.Frame]:
    """What pika makes of octets."""
    found = []
    while data:
        octets, one = frame.decode_frame(data)
        assert isinstance(one, frame.Frame), "not whole"
        found.append(one)
        data = data[octets:]
    return found


def delivered(channel: int, tag: int, redelivered: bool, body: bytes, parts: int = 1) -> bytes:
    """A delivery as the broker sends it."""
    method = spec.Basic.Deliver("ctag1.0", tag, redelivered, "mail", "fetched.support@company.com")
    properties = pika.BasicProperties(delivery_mode=2, headers={"x-delivery-count": 1}, message_id="7")
    size = -(-len(body) // parts) or 1
    return b"".join(
        [
            frame.Method(channel, method).marshal(),
            frame.Header(channel, len(body), properties).marshal(),
            *(frame.Body(channel, body[at : at + size]).marshal() for at in range(0, len(body), size)),
        ]
    )


def confirmed(channel: int, tag: int, multiple: bool) -> bytes:
    return frame.Method(channel, spec.Basic.Ack(tag, multiple)).marshal()


@given(st.integers(1, 9), KEYS, st.binary(max_size=300), st.lists(KEYS, max_size=5), st.integers(250, 4096))
def test_pika_reads_a_publication_as_it_was_meant(
    channel: int, key: str, body: bytes, copies: list[str], most: int
) -> None:
    if sum(len(copy.encode()) + 5 for copy in copies) > most - 100:
        return
    method, header, *bodies = decoded(framing.publish(channel, "mail", key, body, "17", copies, most))
    assert isinstance(method, frame.Method) and isinstance(header, frame.Header)
    published, properties = method.method, header.properties
    assert {each.channel_number for each in (method, header, *bodies)} == {channel}
    assert (published.exchange, published.routing_key, published.mandatory) == ("mail", key, True)
    assert (properties.content_type, properties.delivery_mode, properties.message_id) == ("application/json", 2, "17")
    assert properties.headers == ({"CC": copies} if copies else None)
    assert header.body_size == len(body)
    assert b"".join(each.fragment for each in bodies if isinstance(each, frame.Body)) == body


@pytest.mark.parametrize(("key", "copies"), [("k" * 256, []), ("k", ["c" * 200] * 30)])
def test_what_fits_into_no_frame_is_refused(key: str, copies: list[str]) -> None:
    with pytest.raises(ValueError):
        framing.publish(1, "mail", key, b"{}", "1", copies, 4096)


FOUND = st.one_of(
    st.builds(Delivered, st.integers(1, 3), st.integers(1, 2**40), st.booleans(), st.binary(max_size=50)),
    st.builds(Confirmed, st.integers(1, 3), st.integers(1, 2**40), st.booleans()),
)


@given(st.lists(FOUND, max_size=6), st.integers(0, 2000))
def test_deliveries_and_confirmations_are_read_up_to_where_the_octets_end(
    expected: list[Delivered | Confirmed], cut: int
) -> None:
    wire = [delivered(*each) if isinstance(each, Delivered) else confirmed(*each) for each in expected]
    data = b"".join(wire)[:cut]
    whole = 0
    while whole < len(wire) and sum(map(len, wire[: whole + 1])) <= cut:
        whole += 1
    assert framing.read(data) == (expected[:whole], sum(map(len, wire[:whole])))


@pytest.mark.parametrize(
    "other",
    [
        frame.Heartbeat().marshal(),
        frame.Method(1, spec.Basic.Nack(3)).marshal(),
        frame.Method(1, spec.Basic.Return(312, "NO_ROUTE", "mail", "nowhere")).marshal(),
        delivered(1, 5, False, b"in two frames", parts=2),
    ],
)
def test_everything_else_is_left_to_pika(other: bytes) -> None:
    first = confirmed(1, 2, True)
    assert framing.read(first + other + first) == ([Confirmed(1, 2, True)], len(first))


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_nothing_that_arrives_raises(junk: bytes, more: bytes) -> None:
    framing.read(junk)
    damaged = delivered(1, 5, False, b"body")
    framing.read(damaged[: len(junk)] + more + damaged[len(junk) + len(more) :])
