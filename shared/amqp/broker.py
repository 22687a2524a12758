"""The way to RabbitMQ, and the only importer of pika.

Publishing is confirmed and ``mandatory``: a message counts as published when a quorum queue has it on disk. Consuming
hands out batches and takes acknowledgements for all of them at once. The connection is made again for ever, with the
whole topology declared each time, so a broker that lost everything is made whole by whoever comes first.

pika's AsyncioConnection runs on the service's event loop. Its callbacks only set futures and fill queues: an exception
in one would end the connection. What travels by the thousand goes past pika's own codec (``frames``). An
acknowledgement belongs to the channel that delivered; when that is gone the broker delivers again, and saying anything
would close the new channel.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pika
import structlog
from pika.adapters.asyncio_connection import AsyncioConnection
from pika.channel import Channel
from pika.exceptions import AMQPError
from prometheus_client import Gauge

from shared.amqp import framing, topology
from shared.errors import Temporary

WINDOW = 1000
"""Publications in flight without a confirmation."""
PUBLISH_SECONDS = 15.0
"""A broker that does not confirm within this time is a failed broker."""
CLOSE_SECONDS = 2.0
"""What is not confirmed by then is left to the sweeps."""
RECONNECT_SECONDS = (0.2, 0.5, 1.0)
REFUSING_SECONDS, FORGOTTEN_SECONDS = 5.0, 30.0
"""A broker that has refused everything for so long is of no use; what it refused so long ago says nothing about now."""

UNACKED = Gauge("mailgroup_queue_unacked_messages", "Messages this process has and has not acknowledged.", ["queue"])

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Publication:
    """A message for the topic exchange: routing key, body, and further routing keys (the CC header)."""

    key: str
    body: bytes
    copies: tuple[str, ...] = ()


@dataclass(slots=True)
class RefusalStreak:
    """When a broker refused messages without taking any between. Times are monotonic seconds."""

    first: float | None = None
    latest: float = 0.0

    def add(self, now: float) -> None:
        """It refused one."""
        if self.first is None or now > self.latest + FORGOTTEN_SECONDS:
            self.first = now
        self.latest = now

    def reset(self) -> None:
        """It took one."""
        self.first = None

    def is_lasting(self, now: float) -> bool:
        """Whether they have gone on for REFUSING_SECONDS, and up to now as far as is known."""
        return self.first is not None and now < self.latest + FORGOTTEN_SECONDS and now >= self.first + REFUSING_SECONDS


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message from a queue. redelivered: somebody had it before."""

    body: bytes
    tag: int
    redelivered: bool
    channel: Channel


class Consumer:
    """What one queue delivers to this process, in order. It survives reconnections."""

    def __init__(self, queue: str, prefetch: int) -> None:
        self.queue = queue
        self.prefetch = prefetch
        self._waiting: deque[Delivery] = deque()
        self._arrived = asyncio.Event()
        self._unacked = 0
        UNACKED.labels(queue).set_function(lambda: self._unacked)

    async def batch(self, limit: int) -> list[Delivery]:
        """Wait for a message and take up to ``limit`` that are there."""
        while True:
            batch: list[Delivery] = []
            while self._waiting and len(batch) < limit:
                delivery = self._waiting.popleft()
                if delivery.channel.is_open:  # else the broker delivers it again
                    batch.append(delivery)
            if batch:
                return batch
            self._arrived.clear()
            await self._arrived.wait()

    def ack(self, batch: Sequence[Delivery]) -> None:
        """Done with everything up to the last of the batch. Batches are to be acknowledged in their order."""
        open_ = [delivery for delivery in batch if delivery.channel.is_open]
        if open_:
            open_[-1].channel.basic_ack(open_[-1].tag, multiple=True)
            self._unacked -= len(open_)

    def reject(self, delivery: Delivery) -> None:
        """Not understood: to the dead letters."""
        if delivery.channel.is_open:
            delivery.channel.basic_reject(delivery.tag, requeue=False)
            self._unacked -= 1

    def requeue(self, batch: Sequence[Delivery]) -> None:
        """Hand a batch back to the queue."""
        for delivery in batch:
            if delivery.channel.is_open:
                delivery.channel.basic_nack(delivery.tag, requeue=True)
                self._unacked -= 1

    def _deliver(self, delivery: Delivery) -> None:
        self._waiting.append(delivery)
        self._unacked += 1
        self._arrived.set()

    def _reset(self) -> None:
        """A new channel: what the old one delivered comes again."""
        self._waiting.clear()
        self._unacked = 0


def _nothing(tag: int, multiple: bool) -> None:
    """Confirmations that concern nobody."""


class _Connection(AsyncioConnection):
    """Reads deliveries and confirmations itself, and sends many publications at once.

    deliver: for each consumer's channel, what takes its messages. confirm: what takes confirmations.
    """

    # pika's own, unknown to its types
    _frame_buffer: bytes
    _adapter_emit_data: Callable[[bytes], None]
    _read_frame: Callable[[], tuple[int, Any]]
    _trim_frame_buffer: Callable[[int], None]
    _process_frame: Callable[[Any], None]
    bytes_sent: int

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.deliver: dict[int, Callable[[framing.Delivered], None]] = {}
        self.confirm: Callable[[int, bool], None] = _nothing
        super().__init__(*arguments, **named)

    def send(self, data: bytes) -> None:
        """Whole frames, in one write."""
        self.bytes_sent += len(data)
        self._adapter_emit_data(data)

    def _on_data_available(self, data_in: bytes) -> None:
        self._frame_buffer += data_in
        while self._frame_buffer:
            found, octets = framing.read(self._frame_buffer)
            if octets:
                self._trim_frame_buffer(octets)
                for each in found:
                    if isinstance(each, framing.Confirmed):
                        self.confirm(each.tag, each.multiple)
                    elif each.channel in self.deliver:  # not while the channel is being opened or closed
                        self.deliver[each.channel](each)
                continue
            octets, frame = self._read_frame()
            if not frame:
                return
            self._trim_frame_buffer(octets)
            self._process_frame(frame)


class _Group:
    """Publications that somebody waits for. done: all of them are confirmed, or one failed."""

    def __init__(self, messages: int) -> None:
        self.left = messages
        self.tags: list[range] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def confirmed(self) -> None:
        self.left -= 1
        if self.left == 0:
            _resolve(self.done, None)


class Broker:
    """One connection with a channel to publish on, and one for each consumer."""

    def __init__(self, url: str, name: str) -> None:
        """Connects nothing yet. :param url: amqp://user:password@host:port/vhost. :param name: shown by the broker."""
        self._parameters = pika.URLParameters(url)
        self._parameters.heartbeat = 10
        self._parameters.blocked_connection_timeout = PUBLISH_SECONDS
        self._parameters.socket_timeout = 5
        self._parameters.stack_timeout = 10
        self._parameters.connection_attempts = 1
        self._parameters.client_properties = {"connection_name": f"mailgroup-{name}"}
        self._consumers: list[Consumer] = []
        self._connection: _Connection | None = None
        self._channel: Channel | None = None
        self._unconfirmed: dict[int, _Group] = {}  # in the order of their tags
        self._next_tag = 1
        self._room = asyncio.Event()  # there may be room in the window again
        self._unblocked = asyncio.Event()
        self._unblocked.set()
        self._keeper: asyncio.Task[None] | None = None
        self._behind: set[asyncio.Task[None]] = set()
        self._lost: asyncio.Future[str] | None = None
        self._up = asyncio.Event()
        self._refusals = RefusalStreak()

    # ------------------------------------------------------------------------------------------ connection

    @property
    def ready(self) -> bool:
        """Whether the topology is declared and the channel open."""
        return self._up.is_set()

    @property
    def accepts_messages(self) -> bool:
        """Whether it takes messages, too: a node whose disk was full may answer, and refuse every one."""
        return self.ready and not self._refusals.is_lasting(time.monotonic())

    async def wait_until_ready(self, seconds: float) -> None:
        """Wait for the connection. :raises Temporary: there is none within ``seconds``."""
        try:
            async with asyncio.timeout(seconds):
                await self._up.wait()
        except TimeoutError as error:
            raise Temporary(f"broker: no connection within {seconds:g} s") from error

    async def open(self) -> None:
        """Start connecting, in the background and for ever."""
        self._keeper = asyncio.create_task(self._keep(), name="broker")

    async def close(self) -> None:
        """Wait for what is being published behind (up to CLOSE_SECONDS), then disconnect."""
        if self._behind:
            await asyncio.wait(self._behind, timeout=CLOSE_SECONDS)
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        self._disconnect()
        await asyncio.sleep(0.05)  # let the close frames out

    async def _keep(self) -> None:
        pauses = iter(RECONNECT_SECONDS)
        while True:
            try:
                async with asyncio.timeout(20):
                    await self._connect()
                pauses = iter(RECONNECT_SECONDS)
                log.info("broker connected")
                assert self._lost is not None
                reason = await self._lost
                log.warning("broker lost", reason=reason)
            except (Temporary, TimeoutError, AMQPError, OSError) as error:
                log.warning("broker unreachable", reason=str(error) or type(error).__name__)
            except Exception:  # whatever it is: nobody else connects again
                log.exception("broker connection failed")
            finally:
                self._disconnect()
            await asyncio.sleep(next(pauses, RECONNECT_SECONDS[-1]))

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        opened: asyncio.Future[Any] = loop.create_future()
        self._lost = loop.create_future()
        lost = self._lost

        def on_lost(_: object, reason: object) -> None:
            if self._lost is lost:  # a connection that was given up may end when the next one works already
                self._up.clear()
            _fail(opened, reason)
            if not lost.done():
                lost.set_result(str(reason))

        connection = _Connection(
            self._parameters,
            on_open_callback=lambda _: _resolve(opened, None),
            on_open_error_callback=on_lost,
            on_close_callback=on_lost,
            custom_ioloop=loop,
        )
        self._connection = connection
        await opened
        connection.add_on_connection_blocked_callback(
            lambda *_: self._unblocked.clear() if self._lost is lost else None
        )
        connection.add_on_connection_unblocked_callback(lambda *_: self._unblocked.set())
        channel = await self._open_channel(connection, on_lost)
        await self._declare(channel)
        await _call(channel, partial(channel.confirm_delivery, self._on_confirm))
        channel.add_on_return_callback(self._on_return)
        connection.confirm = self._confirm
        self._channel, self._next_tag = channel, 1
        for consumer in self._consumers:
            await self._start(consumer, connection, on_lost)
        self._unblocked.set()
        self._up.set()

    async def _open_channel(self, connection: _Connection, on_lost: Callable[[object, object], None]) -> Channel:
        opened: asyncio.Future[Channel] = asyncio.get_running_loop().create_future()
        channel = connection.channel(on_open_callback=lambda c: _resolve(opened, c))

        def on_closed(_: object, reason: object) -> None:
            _fail(opened, reason)
            on_lost(_, reason)  # a channel that dies takes the connection with it: one way to recover, not two

        channel.add_on_close_callback(on_closed)
        return await opened

    async def _declare(self, channel: Channel) -> None:
        for exchange in (topology.EXCHANGE, topology.DEAD_EXCHANGE):
            await _call(channel, partial(channel.exchange_declare, exchange, "topic", durable=True))
        for queue in topology.QUEUES:
            arguments: dict[str, Any] = {"x-queue-type": "quorum", "x-delivery-limit": topology.DELIVERY_LIMIT}
            if queue.exchange == topology.EXCHANGE:
                arguments["x-dead-letter-exchange"] = topology.DEAD_EXCHANGE
            await _call(channel, partial(channel.queue_declare, queue.name, durable=True, arguments=arguments))
            for binding in queue.bindings:
                await _call(channel, partial(channel.queue_bind, queue.name, queue.exchange, binding))

    async def _start(
        self, consumer: Consumer, connection: _Connection, on_lost: Callable[[object, object], None]
    ) -> None:
        channel = await self._open_channel(connection, on_lost)
        consumer._reset()
        await _call(channel, partial(channel.basic_qos, prefetch_count=consumer.prefetch))
        channel.add_on_cancel_callback(
            lambda _: on_lost(None, f"the broker cancelled the consumer of {consumer.queue}")
        )

        def on_message(channel: Channel, method: Any, _: object, body: bytes) -> None:
            consumer._deliver(Delivery(body, method.delivery_tag, method.redelivered, channel))

        def on_delivered(found: framing.Delivered) -> None:
            consumer._deliver(Delivery(found.body, found.tag, found.redelivered, channel))

        connection.deliver[channel.channel_number] = on_delivered
        await _call(channel, partial(channel.basic_consume, consumer.queue, on_message))

    def _disconnect(self) -> None:
        self._up.clear()
        connection, self._connection, self._channel = self._connection, None, None
        if connection is not None:  # what it still says while it closes is about tags of before
            connection.confirm = _nothing
            connection.deliver.clear()
        for group in self._unconfirmed.values():
            _fail(group.done, "the connection to the broker was lost")
        self._unconfirmed.clear()
        self._room.set()
        self._unblocked.set()  # nobody waits on a connection that is gone
        if connection is not None and not (connection.is_closed or connection.is_closing):
            try:
                connection.close()
            except (AMQPError, OSError) as error:
                log.warning("broker not closed cleanly", reason=str(error))

    # ------------------------------------------------------------------------------------------ publishing

    async def publish(self, publications: Iterable[Publication]) -> None:
        """Publish and wait until a queue has each of them.

        :raises Temporary: the broker is away, too slow, or has no queue for a message.
        """
        waiting = list(publications)
        if not waiting:
            return
        group = _Group(len(waiting))
        sent = 0
        try:
            async with asyncio.timeout(PUBLISH_SECONDS):
                while sent < len(waiting) and not group.done.done():
                    await self._unblocked.wait()
                    part = waiting[sent : sent + WINDOW - len(self._unconfirmed)]
                    if part:
                        self._send(part, group)
                        sent += len(part)
                    else:
                        self._room.clear()
                        await self._room.wait()
                await group.done
        except TimeoutError as error:
            raise Temporary(f"broker: no confirmation within {PUBLISH_SECONDS:g} s") from error
        except (AMQPError, OSError, ValueError) as error:
            raise Temporary(f"broker: {type(error).__name__}: {error}") from error
        finally:
            if group.left:
                self._forget(group)

    def publish_behind(self, publications: Sequence[Publication]) -> None:
        """Publish without waiting. What fails is logged, and published again by the sweep of the stage it is for."""
        if publications:
            task = asyncio.create_task(self._publish_or_log(publications))
            self._behind.add(task)
            task.add_done_callback(self._behind.discard)

    async def _publish_or_log(self, publications: Sequence[Publication]) -> None:
        try:
            await self.publish(publications)
        except Temporary as error:
            log.warning("not published, left to the sweep", messages=len(publications), reason=str(error))

    def _send(self, publications: Sequence[Publication], group: _Group) -> None:
        channel, connection = self._channel, self._connection
        if not self.ready or channel is None or connection is None or not channel.is_open:
            raise Temporary("broker: not connected")
        tags = range(self._next_tag, self._next_tag + len(publications))
        # a message that no queue takes comes back without its tag, so that is its id
        data = b"".join(
            [
                framing.publish(
                    channel.channel_number,
                    topology.EXCHANGE,
                    publication.key,
                    publication.body,
                    str(tag),
                    publication.copies,
                    connection.params.frame_max,
                )
                for tag, publication in zip(tags, publications, strict=True)
            ]
        )
        connection.send(data)
        self._next_tag = tags.stop
        group.tags.append(tags)
        self._unconfirmed.update(dict.fromkeys(tags, group))

    def _forget(self, group: _Group) -> None:
        """Nobody waits for these publications any more; what is unconfirmed makes room."""
        if not group.done.cancel() and not group.done.cancelled():
            group.done.exception()  # seen
        for tag in itertools.chain.from_iterable(group.tags):
            if self._unconfirmed.get(tag) is group:
                del self._unconfirmed[tag]
        self._room.set()

    def _confirm(self, tag: int, multiple: bool) -> None:
        self._refusals.reset()
        for each in self._up_to(tag) if multiple else [tag]:
            group = self._unconfirmed.pop(each, None)
            if group is not None:
                group.confirmed()
        self._room.set()

    def _up_to(self, tag: int) -> list[int]:
        return list(itertools.takewhile(lambda each: each <= tag, self._unconfirmed))

    def _on_confirm(self, frame: Any) -> None:
        tag, multiple = frame.method.delivery_tag, frame.method.multiple
        if isinstance(frame.method, pika.spec.Basic.Ack):
            self._confirm(tag, multiple)
            return
        self._refusals.add(time.monotonic())
        for each in self._up_to(tag) if multiple else [tag]:
            group = self._unconfirmed.pop(each, None)
            if group is not None:
                _fail(group.done, "the broker refused a message")

    def _on_return(self, _: object, method: Any, properties: Any, __: object) -> None:
        group = self._unconfirmed.pop(int(properties.message_id), None)  # a return comes before its confirmation
        if group is not None:
            _fail(group.done, f"no queue takes {method.routing_key}: {method.reply_text}")

    # ------------------------------------------------------------------------------------------ consuming

    def consume(self, queue: str, prefetch: int) -> Consumer:
        """Register a consumer; to be called before ``open``. It is started with each connection."""
        consumer = Consumer(queue, prefetch)
        self._consumers.append(consumer)
        return consumer

    async def queue_depth(self, queue: str) -> tuple[int, int]:
        """Messages ready in a queue, and its consumers. :raises Temporary: the broker is away."""
        channel = self._channel
        if not self.ready or channel is None:
            raise Temporary("broker: not connected")
        try:
            async with asyncio.timeout(PUBLISH_SECONDS):
                frame = await _call(channel, partial(channel.queue_declare, queue, passive=True))
        except TimeoutError as error:
            raise Temporary("broker: no answer") from error
        return int(frame.method.message_count), int(frame.method.consumer_count)


async def _call(channel: Channel, request: Callable[..., object]) -> Any:
    """Send a request (a channel's method that takes ``callback``) and wait for its answer.

    :raises Temporary: the channel died first, which would otherwise be waited for for ever.
    """
    answered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def on_closed(_: object, reason: object) -> None:
        _fail(answered, reason)

    channel.add_on_close_callback(on_closed)
    try:
        request(callback=lambda frame: _resolve(answered, frame))
    except AMQPError as error:
        raise Temporary(f"broker: {type(error).__name__}: {error}") from error
    return await answered


def _resolve(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)


def _fail(future: asyncio.Future[Any], reason: object) -> None:
    if not future.done():
        future.set_exception(Temporary(f"broker: {str(reason) or type(reason).__name__}"))
