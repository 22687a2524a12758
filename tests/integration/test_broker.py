"""The broker wrapper against a real RabbitMQ: confirms, returns, batches, and a connection that is lost."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import pika
import pytest
from structlog.testing import capture_logs

import shared.amqp.broker as broker_module
from deploy.machine import ports
from deploy.machine.rabbitmq import RabbitMQ
from shared.amqp import topology
from shared.amqp.broker import Broker, Publication
from shared.errors import Temporary
from tests.faults.proxy import Proxy
from tests.polling import until


@pytest.fixture
async def broker(broker_url: str) -> AsyncIterator[Broker]:
    opened = Broker(broker_url, "test")
    yield opened
    await opened.close()


async def connected(broker: Broker) -> Broker:
    await broker.open()
    await broker.wait_until_ready(20)
    return broker


def fetched(number: int) -> Publication:
    return Publication("fetched.support@company.com", b"%d" % number)


async def test_published_messages_are_delivered_in_order_and_acknowledged(broker: Broker) -> None:
    consumer = broker.consume(topology.ROUTER, prefetch=500)
    await connected(broker)
    await broker.publish([fetched(number) for number in range(300)])
    got: list[bytes] = []
    async with asyncio.timeout(20):
        while len(got) < 300:
            batch = await consumer.batch(100)
            got += [delivery.body for delivery in batch]
            consumer.ack(batch)
    assert got == [b"%d" % number for number in range(300)]
    assert (await broker.queue_depth(topology.ROUTER))[0] == 0


async def test_a_message_with_copies_reaches_the_queue_once(broker: Broker) -> None:
    consumer = broker.consume(topology.MAILBOX, prefetch=10)
    await connected(broker)
    await broker.publish([Publication("routed.alex@local.com", b"1", ("routed.jim@local.com", "routed.kim@local.com"))])
    async with asyncio.timeout(20):
        assert len(await consumer.batch(10)) == 1
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await consumer.batch(10)


@pytest.mark.parametrize("copies", [(), ("routed.jim@local.com", "routed.kim@local.com")])
async def test_a_message_is_persistent_json_with_its_copies_in_the_header(
    broker: Broker, broker_url: str, copies: tuple[str, ...]
) -> None:
    await connected(broker)
    await broker.publish([Publication("routed.alex@local.com", b"{}", copies)])

    def get() -> tuple[Any, Any, Any]:
        connection = pika.BlockingConnection(pika.URLParameters(broker_url))
        found = connection.channel().basic_get(topology.MAILBOX, auto_ack=True)
        connection.close()
        return found

    method, properties, body = await asyncio.to_thread(get)
    assert (method.exchange, method.routing_key, body) == (topology.EXCHANGE, "routed.alex@local.com", b"{}")
    assert (properties.content_type, properties.delivery_mode, properties.message_id) == ("application/json", 2, "1")
    assert (properties.headers or {}).get("CC") == (list(copies) or None)


async def test_a_hint_reaches_the_queues_that_are_bound_and_waits_for_none(broker: Broker, broker_url: str) -> None:
    await connected(broker)
    hint = Publication("changed.alex@local.com", b'{"id": 1}', transient=True)
    # given a hint that nobody wants, which is no error
    await broker.publish([hint, fetched(1)])
    with ThreadPoolExecutor(1) as pool:
        loop = asyncio.get_running_loop()

        def bind() -> tuple[pika.BlockingConnection, Any, str]:
            connection = pika.BlockingConnection(pika.URLParameters(broker_url))
            channel = connection.channel()
            queue = str(channel.queue_declare("", exclusive=True).method.queue)
            channel.queue_bind(queue, topology.EXCHANGE, "changed.#")
            return connection, channel, queue

        def consume() -> tuple[bytes, int, int]:
            for _, properties, body in channel.consume(queue, auto_ack=True, inactivity_timeout=60):
                assert properties is not None
                left = channel.queue_declare(queue, passive=True).method.message_count
                connection.close()
                return body, properties.delivery_mode, left
            raise AssertionError("nothing came")

        connection, channel, queue = await loop.run_in_executor(pool, bind)
        # when another one follows
        await broker.publish([hint])
        # then a program that watches gets this one alone
        assert await loop.run_in_executor(pool, consume) == (b'{"id": 1}', 1, 0)


async def test_a_hint_is_dropped_while_the_broker_is_away(broker_url: str) -> None:
    away = Broker(broker_url, "test-away")  # it is not open
    async with asyncio.timeout(20):
        await away.publish([Publication("changed.alex@local.com", b"{}", transient=True)])


async def test_a_listener_gets_hints_again_after_a_lost_connection(broker_url: str) -> None:
    heard: asyncio.Queue[bytes] = asyncio.Queue()

    def receive(body: bytes) -> None:
        heard.put_nowait(body)
        if body == b"1":
            raise RuntimeError("a mistake in the receiver")

    listener = Broker(broker_url, "test-listener")
    listener.listen("changed.#", receive)
    await listener.open()
    try:
        async with asyncio.timeout(120):
            await listener.wait_until_ready(60)
            # a hint that the receiver cannot handle harms no other
            for body in (b"1", b"2"):
                await listener.publish([Publication("changed.alex@local.com", body, transient=True)])
                assert await heard.get() == body
            # when the connection is lost
            transport: Any = getattr(listener._connection, "_transport")  # noqa: B009  # pika's own, unknown to its types
            transport._sock.shutdown(socket.SHUT_RDWR)
            # then hints come again as soon as there is another one
            while heard.empty():
                await listener.publish([Publication("changed.jim@local.com", b"3", transient=True)])
                await asyncio.sleep(0.05)
            assert await heard.get() == b"3"
    finally:
        await listener.close()


async def test_a_message_that_no_queue_accepts_is_an_error(broker: Broker) -> None:
    await connected(broker)
    with pytest.raises(Temporary, match="no queue accepts nowhere"):
        await broker.publish([fetched(1), Publication("nowhere", b"2")])


@pytest.mark.parametrize(
    "too_large",
    [
        Publication("fetched." + "k" * 255, b"1"),
        Publication("fetched.support@company.com", b"1", ("routed." + "c" * 200,) * 1000),
    ],
)
async def test_a_message_that_fits_no_frame_fails_and_later_ones_are_confirmed(
    broker: Broker, too_large: Publication
) -> None:
    consumer = broker.consume(topology.ROUTER, prefetch=10)
    await connected(broker)
    with pytest.raises(Temporary):
        await broker.publish([fetched(1), too_large, fetched(2)])
    await broker.publish([fetched(3)])
    async with asyncio.timeout(20):
        got: list[bytes] = []
        while len(got) < 2:
            got += [delivery.body for delivery in await consumer.batch(10)]
    assert got == [b"1", b"3"]
    assert broker.ready


async def test_publishing_without_a_connection_fails_at_once(broker: Broker) -> None:
    with pytest.raises(Temporary, match="not connected"):
        await broker.publish([fetched(1)])


async def test_a_rejected_message_goes_to_the_dead_letters(broker: Broker) -> None:
    consumer = broker.consume(topology.ROUTER, prefetch=10)
    await connected(broker)
    await broker.publish([fetched(1)])
    async with asyncio.timeout(20):
        consumer.reject((await consumer.batch(1))[0])
        while (await broker.queue_depth(topology.DEAD_LETTERS))[0] == 0:  # noqa: ASYNC110  # only the broker knows
            await asyncio.sleep(0.05)


async def test_after_a_lost_connection_all_is_declared_and_redelivered(
    broker: Broker,
) -> None:
    consumer = broker.consume(topology.ROUTER, prefetch=10)
    await connected(broker)
    await broker.publish([fetched(1)])
    async with asyncio.timeout(20):
        [first] = await consumer.batch(10)
        transport: Any = getattr(broker._connection, "_transport")  # noqa: B009  # pika's own, unknown to its types
        transport._sock.shutdown(socket.SHUT_RDWR)  # the peer has disconnected
        [again] = await consumer.batch(10)
    assert (first.body, again.body) == (b"1", b"1")
    consumer.ack([first])  # stale: says nothing on the new channel
    consumer.ack([again])
    await broker.wait_until_ready(20)
    async with asyncio.timeout(20):
        await broker.publish([fetched(2)])
        [next_] = await consumer.batch(10)
    assert next_.body == b"2"


async def test_queues_that_were_deleted_are_declared_again(broker: Broker, broker_url: str) -> None:
    consumer = broker.consume(topology.ROUTER, prefetch=10)
    await connected(broker)

    def delete_queues() -> None:
        connection = pika.BlockingConnection(pika.URLParameters(broker_url))
        for queue in topology.QUEUES:
            connection.channel().queue_delete(queue.name)
        connection.close()

    await asyncio.to_thread(delete_queues)
    async with asyncio.timeout(30):
        while True:
            try:
                await broker.publish([fetched(7)])
                break
            except Temporary:
                await asyncio.sleep(0.1)
        assert [delivery.body for delivery in await consumer.batch(10)] == [b"7"]


async def test_a_blocked_connection_stays_and_goes_on_once_it_is_unblocked(
    broker: Broker, rabbitmq: RabbitMQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker_module, "PUBLISH_SECONDS", 2.0)
    consumer = broker.consume(topology.ROUTER, prefetch=10)
    await connected(broker)
    await broker.publish([fetched(1)])
    # given a broker that is short of memory
    await asyncio.to_thread(rabbitmq.control, "set_vm_memory_high_watermark", "absolute", "1MB")
    try:
        await until(lambda: publish_fails(broker))
        assert not await broker.answers(5.0)
        async with asyncio.timeout(60):
            [delivery] = await consumer.batch(1)
        # when it stays so for longer than a publication waits
        connection = broker._connection
        await asyncio.sleep(3.0)
        # then the connection is the same, and nothing is delivered again
        assert broker._connection is connection and delivery.channel.is_open
    finally:
        await asyncio.to_thread(rabbitmq.control, "set_vm_memory_high_watermark", "0.4")
    # and as soon as it has memory again, it takes messages
    await until(lambda: broker.accepts_messages)
    await broker.publish([fetched(2)])
    assert await broker.answers(60.0) and broker._connection is connection


async def publish_fails(broker: Broker) -> bool:
    try:
        await broker.publish([fetched(0)])
    except Temporary:
        return True
    return False


async def test_a_broker_that_hangs_is_not_ready_at_the_next_question(broker_url: str) -> None:
    parsed = urlsplit(broker_url)
    [port] = ports.choose(1, broker_url)
    proxy = Proxy(port, parsed.port or 0)
    async with proxy.running():
        broker = Broker(broker_url.replace(f":{parsed.port}/", f":{port}/"), "test")
        await connected(broker)
        assert await broker.answers(60.0)
        proxy.silence()
        # a question that waited for the end of the connection would wait for minutes
        async with asyncio.timeout(30):
            assert broker.ready and not await broker.answers(0.5)
        # and it is ready again as soon as it answers
        await proxy.resume()
        await until(lambda: broker.answers(1.0))
        await broker.close()


async def test_questions_to_the_broker_leave_nothing_behind(broker: Broker) -> None:
    await connected(broker)
    channel: Any = broker._channel
    await broker.queue_depth(topology.ROUTER)
    before = callbacks(channel)
    for _ in range(20):
        await broker.queue_depth(topology.ROUTER)
        assert await broker.answers(60.0)
    assert callbacks(channel) == before


def callbacks(channel: Any) -> int:
    """The callbacks that pika keeps for a channel."""
    return sum(len(kept) for kept in channel.callbacks._stack[str(channel.channel_number)].values())


async def test_what_is_published_behind_is_bounded(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker_module, "BEHIND", 3)
    await connected(broker)
    broker._unblocked.clear()
    with capture_logs() as logged:
        for number in range(5):
            broker.publish_behind([fetched(number)])
    assert [line["error"] for line in logged] == ["broker: 3 publications wait already"] * 2
    broker._unblocked.set()
    await until(lambda: not broker._background)
    assert (await broker.queue_depth(topology.ROUTER))[0] == 3


async def test_a_refusal_ends_the_wait_for_a_full_window(broker: Broker, broker_url: str) -> None:
    # given a queue that is full with one message, and refuses the others
    def add_full_queue() -> None:
        connection = pika.BlockingConnection(pika.URLParameters(broker_url))
        channel = connection.channel()
        channel.queue_declare("full", arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
        channel.queue_bind("full", topology.EXCHANGE, "fetched.full@company.com")
        connection.close()

    await connected(broker)
    await asyncio.to_thread(add_full_queue)
    one = Publication("fetched.full@company.com", b"1")
    await broker.publish([one])
    # when more messages are published than may be unconfirmed, then the refusal is the reason, not the time
    with pytest.raises(Temporary, match="refused"):
        await broker.publish([one] * (broker_module.WINDOW + 1))


async def test_a_lost_connection_leaves_no_message_counted_as_unacknowledged(broker: Broker) -> None:
    consumer = broker.consume(topology.ROUTER, prefetch=10)
    await connected(broker)
    await broker.publish([fetched(1)])
    async with asyncio.timeout(20):
        await consumer.batch(1)
    assert consumer._unacked == 1
    await broker.close()
    assert consumer._unacked == 0
