"""Connects to RabbitMQ, publishes with confirms, and consumes in batches.

Publications are confirmed and ``mandatory``: a message counts as published when a quorum queue has it on disk. A
consumer returns batches and acknowledges each batch at once. A lost connection is opened again, without limit, and each
new connection declares the whole topology: the first service that connects restores a broker that lost everything.

pika's AsyncioConnection runs on the service's event loop. Its callbacks only set futures and fill queues, because an
exception in a callback would end the connection. An acknowledgement belongs to the channel of its delivery. When that
channel is closed, the broker delivers the message again, and an old acknowledgement would close the new channel.
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

from shared.amqp import topology
from shared.errors import Temporary

WINDOW = 1000
"""Limit of unconfirmed publications: at this number the publisher waits."""
PUBLISH_SECONDS = 15.0
"""Time limit for a confirmation: seconds. A broker that does not confirm within it has failed."""
CLOSE_SECONDS = 2.0
"""Time limit for pending publications when the broker closes: seconds. The sweeps publish the rest again."""
RECONNECT_SECONDS = (0.2, 0.5, 1.0)
"""Pauses before the next connection: seconds; the last one repeats."""
STARTING_SECONDS = 60.0
"""A first connection that fails for this long is no cause for a warning: seconds; the broker may start meanwhile."""
REFUSING_SECONDS = 5.0
"""A broker that has refused every message for this long does not count as ready: seconds."""
FORGOTTEN_SECONDS = 30.0
"""A refusal older than this does not count: seconds."""
BEHIND = 2000
"""Limit of publications that ``publish_behind`` waits for: calls; each holds memory for up to PUBLISH_SECONDS while the
broker accepts nothing. The rest is left to the sweeps at once."""
HINTS_WAITING = 10_000
"""Limit of the queue of a listener: messages of about 100 octets; a process that is so far behind looks itself."""
_PROPERTY_OCTETS = 200
"""Room for the properties beside the copies, in their frame: octets."""

UNACKED = Gauge(
    "mailgroup_queue_unacked_messages", "Messages delivered to this process and not yet acknowledged.", ["queue"]
)

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Publication:
    """A message for the topic exchange: routing key, body, and further routing keys (the CC header)."""

    key: str
    body: bytes
    copies: tuple[str, ...] = ()
    transient: bool = (
        False  # a hint that may be lost: sent without confirmation, to the queues that are bound just then
    )


@dataclass(slots=True)
class RefusalStreak:
    """The refusals of a broker since it last accepted a message; no answer in time is one. Monotonic seconds."""

    first: float | None = None
    latest: float = 0.0

    def add(self, now: float) -> None:
        """Record a refusal."""
        if self.first is None or now > self.latest + FORGOTTEN_SECONDS:
            self.first = now
        self.latest = now

    def reset(self) -> None:
        """Record an accepted message, which ends the streak."""
        self.first = None

    def is_lasting(self, now: float) -> bool:
        """Whether the streak has lasted for REFUSING_SECONDS and its latest refusal still counts."""
        return self.first is not None and now < self.latest + FORGOTTEN_SECONDS and now >= self.first + REFUSING_SECONDS


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message from a queue. redelivered: a consumer got it before."""

    body: bytes
    tag: int
    redelivered: bool
    channel: Channel


class Consumer:
    """The deliveries of one queue to this process, in order. A consumer survives reconnections."""

    def __init__(self, queue: str, prefetch: int) -> None:
        self.queue = queue
        self.prefetch = prefetch
        self._waiting: deque[Delivery] = deque()
        self._arrived = asyncio.Event()
        self._unacked = 0
        UNACKED.labels(queue).set_function(lambda: self._unacked)

    async def batch(self, limit: int) -> list[Delivery]:
        """Wait for a message; return it with those that have arrived, ``limit`` at most."""
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
        """Acknowledge everything up to the last delivery of the batch. Acknowledge batches in their order."""
        live = [delivery for delivery in batch if delivery.channel.is_open]
        if live:
            live[-1].channel.basic_ack(live[-1].tag, multiple=True)
            self._unacked -= len(live)

    def reject(self, delivery: Delivery) -> None:
        """Reject a message that cannot be read: the broker dead-letters it."""
        if delivery.channel.is_open:
            delivery.channel.basic_reject(delivery.tag, requeue=False)
            self._unacked -= 1

    def requeue(self, batch: Sequence[Delivery]) -> None:
        """Return a batch to the queue."""
        for delivery in batch:
            if delivery.channel.is_open:
                delivery.channel.basic_nack(delivery.tag, requeue=True)
                self._unacked -= 1

    def _deliver(self, delivery: Delivery) -> None:
        if not delivery.channel.is_open:  # the broker delivers the message again on the next channel
            return
        self._waiting.append(delivery)
        self._unacked += 1
        self._arrived.set()

    def _reset(self) -> None:
        """Forget the deliveries of the old channel: the broker delivers them again."""
        self._waiting.clear()
        self._unacked = 0


class _PublicationGroup:
    """The publications of one ``publish`` call. done: all of them are confirmed, or one failed."""

    def __init__(self, messages: int) -> None:
        self.unconfirmed = messages
        self.tags: list[int] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def confirm_one(self) -> None:
        self.unconfirmed -= 1
        if self.unconfirmed == 0:
            _resolve(self.done, None)


class Broker:
    """One connection: a channel for publishing, one for hints, and one for each consumer."""

    def __init__(self, url: str, name: str) -> None:
        """Does not connect yet.

        :param url: amqp://user:password@host:port/vhost. :param name: shown in the broker's list of connections.
        """
        self._parameters = pika.URLParameters(url)
        self._parameters.heartbeat = 10
        self._parameters.socket_timeout = 5
        self._parameters.stack_timeout = 10
        self._parameters.connection_attempts = 1
        self._parameters.client_properties = {"connection_name": f"mailgroup-{name}"}
        self._consumers: list[Consumer] = []
        self._listeners: list[tuple[str, Callable[[bytes], None]]] = []  # binding, and what gets the bodies
        self._connection: AsyncioConnection | None = None
        self._channel: Channel | None = None
        self._hints: Channel | None = None  # without confirmations
        self._unconfirmed: dict[int, _PublicationGroup] = {}  # in the order of their tags
        self._next_tag = 1
        self._window_freed = asyncio.Event()  # the window may have places again
        self._unblocked = asyncio.Event()
        self._unblocked.set()
        self._keeper: asyncio.Task[None] | None = None
        self._background: set[asyncio.Task[None]] = set()  # of publish_behind
        self._lost: asyncio.Future[str] | None = None
        self._calls: set[asyncio.Future[Any]] = set()  # that wait for the broker's reply
        self._question: asyncio.Task[bool] | None = None  # of answers()
        self._up = asyncio.Event()
        self._refusals = RefusalStreak()

    # ------------------------------------------------------------------------------------------ connection

    @property
    def ready(self) -> bool:
        """Whether the topology is declared and the channel open."""
        return self._up.is_set()

    @property
    def accepts_messages(self) -> bool:
        """Whether the broker is ready and accepts messages: without free disk or memory it blocks or refuses all."""
        return self.ready and self._unblocked.is_set() and not self._refusals.is_lasting(time.monotonic())

    async def answers(self, seconds: float) -> bool:
        """Ask the broker, and return whether it accepts messages and has answered within ``seconds``."""
        if not self.accepts_messages:
            return False
        if self._question is None or self._question.done():  # else the one before is still unanswered
            self._question = asyncio.create_task(self._ask())
        await asyncio.wait({self._question}, timeout=seconds)
        return self._question.done() and self._question.result()

    async def _ask(self) -> bool:
        channel = self._channel
        if channel is None:
            return False
        try:
            await self._call(channel, partial(channel.exchange_declare, topology.EXCHANGE, "topic", passive=True))
        except Temporary:
            return False
        return True

    async def wait_until_ready(self, seconds: float) -> None:
        """Wait for the connection. :raises Temporary: no connection within ``seconds``."""
        try:
            async with asyncio.timeout(seconds):
                await self._up.wait()
        except TimeoutError as error:
            raise Temporary(f"broker: no connection within {seconds:g} s") from error

    async def open(self) -> None:
        """Start the background task that connects, and connects again after each loss."""
        self._keeper = asyncio.create_task(self._keep(), name="broker")

    async def close(self) -> None:
        """Wait up to CLOSE_SECONDS for the publications of ``publish_behind``, then disconnect."""
        if self._background:
            await asyncio.wait(self._background, timeout=CLOSE_SECONDS)
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        self._disconnect()
        await asyncio.sleep(0.05)  # let the close frames out

    async def _keep(self) -> None:
        pauses = iter(RECONNECT_SECONDS)
        calm_until = time.monotonic() + STARTING_SECONDS
        while True:
            say = log.info if time.monotonic() < calm_until else log.warning
            try:
                async with asyncio.timeout(20):
                    await self._connect()
                pauses = iter(RECONNECT_SECONDS)
                calm_until = 0.0
                log.info("broker connected")
                assert self._lost is not None
                log.warning("broker connection lost", error=f"broker: {await self._lost}")
            except Temporary as error:
                say("broker unavailable, reconnecting", error=str(error))
            except (TimeoutError, AMQPError, OSError) as error:
                say("broker unavailable, reconnecting", error=f"broker: {error or type(error).__name__}")
            except Exception:  # any other error too: no other task connects again
                log.exception("broker connection failed, reconnecting")
            finally:
                self._disconnect()
            await asyncio.sleep(next(pauses, RECONNECT_SECONDS[-1]))

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        opened: asyncio.Future[Any] = loop.create_future()
        self._lost = loop.create_future()
        lost = self._lost

        def on_lost(_: object, reason: object) -> None:
            if self._lost is lost:  # an abandoned connection may end after the next one is open
                self._up.clear()
                for call in self._calls:
                    _fail(call, reason)
            _fail(opened, reason)
            if not lost.done():
                lost.set_result(str(reason))

        connection = AsyncioConnection(
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
        connection.add_on_connection_unblocked_callback(
            lambda *_: self._unblocked.set() if self._lost is lost else None
        )
        channel = await self._open_channel(connection, on_lost)
        await self._declare(channel)
        await self._call(channel, partial(channel.confirm_delivery, partial(self._on_confirm, channel)))
        channel.add_on_return_callback(self._on_return)
        self._hints = await self._open_channel(connection, on_lost)
        self._channel, self._next_tag = channel, 1
        for consumer in self._consumers:
            await self._start(consumer, connection, on_lost)
        for binding, receive in self._listeners:
            await self._listen(binding, receive, connection, on_lost)
        self._unblocked.set()
        self._up.set()

    async def _open_channel(self, connection: AsyncioConnection, on_lost: Callable[[object, object], None]) -> Channel:
        opened: asyncio.Future[Channel] = asyncio.get_running_loop().create_future()
        channel = connection.channel(on_open_callback=lambda c: _resolve(opened, c))

        def on_closed(_: object, reason: object) -> None:
            _fail(opened, reason)
            on_lost(_, reason)  # a closed channel ends the connection: one way to recover, not two

        channel.add_on_close_callback(on_closed)
        return await opened

    async def _declare(self, channel: Channel) -> None:
        for exchange in (topology.EXCHANGE, topology.DEAD_EXCHANGE):
            await self._call(channel, partial(channel.exchange_declare, exchange, "topic", durable=True))
        for queue in topology.QUEUES:
            arguments: dict[str, Any] = {"x-queue-type": "quorum", "x-delivery-limit": topology.DELIVERY_LIMIT}
            if queue.exchange == topology.EXCHANGE:
                arguments["x-dead-letter-exchange"] = topology.DEAD_EXCHANGE
            await self._call(channel, partial(channel.queue_declare, queue.name, durable=True, arguments=arguments))
            for binding in queue.bindings:
                await self._call(channel, partial(channel.queue_bind, queue.name, queue.exchange, binding))

    async def _start(
        self, consumer: Consumer, connection: AsyncioConnection, on_lost: Callable[[object, object], None]
    ) -> None:
        channel = await self._open_channel(connection, on_lost)
        consumer._reset()
        await self._call(channel, partial(channel.basic_qos, prefetch_count=consumer.prefetch))
        channel.add_on_cancel_callback(
            lambda _: on_lost(None, f"the broker cancelled the consumer of {consumer.queue}")
        )

        def on_message(channel: Channel, method: Any, _: object, body: bytes) -> None:
            consumer._deliver(Delivery(body, method.delivery_tag, method.redelivered, channel))

        await self._call(channel, partial(channel.basic_consume, consumer.queue, on_message))

    def _disconnect(self) -> None:
        self._up.clear()
        connection, self._connection, self._channel, self._hints = self._connection, None, None, None
        for group in self._unconfirmed.values():
            _fail(group.done, "the connection to the broker was lost")
        self._unconfirmed.clear()
        for call in self._calls:
            _fail(call, "the connection to the broker was lost")
        for consumer in self._consumers:
            consumer._reset()
        self._window_freed.set()
        self._unblocked.set()  # no publisher may wait for a connection that is gone
        if connection is not None and not (connection.is_closed or connection.is_closing):
            try:
                connection.close()
            except (AMQPError, OSError) as error:
                log.warning("broker close failed", error=str(error))

    # ------------------------------------------------------------------------------------------ publishing

    async def publish(self, publications: Iterable[Publication]) -> None:
        """Publish and wait until a queue has each of them. Transient ones are sent if that is possible at once.

        :raises Temporary: the broker is unavailable, too slow, or has no queue for a message.
        """
        messages = []
        for publication in publications:
            if publication.transient:
                self._hint(publication)
            else:
                messages.append(publication)
        if not messages:
            return
        group = _PublicationGroup(len(messages))
        sent = 0
        try:
            async with asyncio.timeout(PUBLISH_SECONDS):
                while sent < len(messages) and not group.done.done():
                    await self._unblocked.wait()
                    part = messages[sent : sent + WINDOW - len(self._unconfirmed)]
                    if part:
                        self._send(part, group)
                        sent += len(part)
                    else:
                        self._window_freed.clear()
                        await self._window_freed.wait()
                await group.done
        except TimeoutError as error:
            if self._unblocked.is_set():
                self._refusals.add(time.monotonic())
            raise Temporary(f"broker: no confirmation within {PUBLISH_SECONDS:g} s") from error
        except (AMQPError, OSError, ValueError) as error:
            raise Temporary(f"broker: {type(error).__name__}: {error}") from error
        finally:
            if group.unconfirmed:
                self._forget(group)

    def publish_behind(self, publications: Sequence[Publication]) -> None:
        """Publish without waiting. A failure is logged; the sweep of the receiving stage publishes again."""
        if len(self._background) >= BEHIND:
            log.warning(
                "publish failed, left to the sweep",
                messages=len(publications),
                error=f"broker: {BEHIND} publications wait already",
            )
        elif publications:
            task = asyncio.create_task(self._publish_or_log(publications))
            self._background.add(task)
            task.add_done_callback(self._background.discard)

    async def _publish_or_log(self, publications: Sequence[Publication]) -> None:
        try:
            await self.publish(publications)
        except Temporary as error:
            log.warning("publish failed, left to the sweep", messages=len(publications), error=str(error))

    def _hint(self, publication: Publication) -> None:
        """Send a transient message, unless the broker is away or accepts nothing: then it would wait in memory."""
        channel, connection = self._hints, self._connection
        if not self.ready or not self._unblocked.is_set() or channel is None or connection is None:
            return
        try:
            properties = _properties(publication, None, connection.params.frame_max)
            channel.basic_publish(topology.EXCHANGE, publication.key, publication.body, properties)
        except AMQPError as error:  # the connection is just ending
            log.info("hint not sent", key=publication.key, error=f"{type(error).__name__}: {error}")

    def _send(self, publications: Sequence[Publication], group: _PublicationGroup) -> None:
        channel, connection = self._channel, self._connection
        if not self.ready or channel is None or connection is None or not channel.is_open:
            raise Temporary("broker: not connected")
        for publication in publications:
            tag = self._next_tag
            channel.basic_publish(  # raises before it sends anything, so a failed publication uses no tag
                topology.EXCHANGE,
                publication.key,
                publication.body,
                _properties(publication, tag, connection.params.frame_max),
                mandatory=True,
            )
            self._next_tag += 1
            group.tags.append(tag)
            self._unconfirmed[tag] = group

    def _forget(self, group: _PublicationGroup) -> None:
        """Drop a group whose publisher waits no more; its unconfirmed publications leave the window."""
        if not group.done.cancel() and not group.done.cancelled():
            group.done.exception()  # marks the exception as retrieved
        for tag in group.tags:
            if self._unconfirmed.get(tag) is group:
                del self._unconfirmed[tag]
        self._window_freed.set()

    def _confirm(self, tag: int, multiple: bool) -> None:
        self._refusals.reset()
        for each in self._up_to(tag) if multiple else [tag]:
            group = self._unconfirmed.pop(each, None)
            if group is not None:
                group.confirm_one()
        self._window_freed.set()

    def _up_to(self, tag: int) -> list[int]:
        return list(itertools.takewhile(lambda each: each <= tag, self._unconfirmed))

    def _on_confirm(self, channel: Channel, frame: Any) -> None:
        if channel is not self._channel:  # a closing connection confirms tags that the next one uses again
            return
        tag, multiple = frame.method.delivery_tag, frame.method.multiple
        if isinstance(frame.method, pika.spec.Basic.Ack):
            self._confirm(tag, multiple)
            return
        self._refusals.add(time.monotonic())
        for each in self._up_to(tag) if multiple else [tag]:
            group = self._unconfirmed.pop(each, None)
            if group is not None:
                _fail(group.done, "the broker refused a message")
        self._window_freed.set()

    def _on_return(self, channel: Channel, method: Any, properties: Any, _: object) -> None:
        if channel is not self._channel:
            return
        group = self._unconfirmed.pop(int(properties.message_id), None)  # basic.return precedes the confirmation
        if group is not None:
            _fail(group.done, f"no queue accepts {method.routing_key}: {method.reply_text}")

    # ------------------------------------------------------------------------------------------ consuming

    def consume(self, queue: str, prefetch: int) -> Consumer:
        """Register a consumer, which each connection starts. To be called before ``open``."""
        consumer = Consumer(queue, prefetch)
        self._consumers.append(consumer)
        return consumer

    def listen(self, binding: str, receive: Callable[[bytes], None]) -> None:
        """Register a receiver of transient messages, which each connection starts. To be called before ``open``.

        What is published while the connection is lost, or to a process that is HINTS_WAITING behind, is lost, too.

        :param binding: a routing key, or a pattern of keys. :param receive: gets each body; must not wait.
        """
        self._listeners.append((binding, receive))

    async def _listen(
        self,
        binding: str,
        receive: Callable[[bytes], None],
        connection: AsyncioConnection,
        on_lost: Callable[[object, object], None],
    ) -> None:
        channel = await self._open_channel(connection, on_lost)
        arguments = {"x-max-length": HINTS_WAITING, "x-overflow": "drop-head"}
        declare = partial(channel.queue_declare, "", exclusive=True, auto_delete=True, arguments=arguments)
        queue = (await self._call(channel, declare)).method.queue
        await self._call(channel, partial(channel.queue_bind, queue, topology.EXCHANGE, binding))

        def on_message(_channel: Channel, method: Any, _: object, body: bytes) -> None:
            try:
                receive(body)
            except Exception:  # it would end the connection
                log.exception("hint not handled", key=method.routing_key)

        channel.basic_consume(queue, on_message, auto_ack=True, exclusive=True)

    async def queue_depth(self, queue: str) -> tuple[int, int]:
        """Return how many ready messages and consumers a queue has. :raises Temporary: the broker is unavailable."""
        channel = self._channel
        if not self.ready or channel is None:
            raise Temporary("broker: not connected")
        try:
            async with asyncio.timeout(PUBLISH_SECONDS):
                frame = await self._call(channel, partial(channel.queue_declare, queue, passive=True))
        except TimeoutError as error:
            raise Temporary("broker: no answer") from error
        return int(frame.method.message_count), int(frame.method.consumer_count)

    async def _call(self, channel: Channel, request: Callable[..., object]) -> Any:
        """Call a channel's method that accepts ``callback``, and wait for the broker's reply.

        :raises Temporary: the connection was lost first, or its channel was closed, which ends the connection.
        """
        answered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._calls.add(answered)
        try:
            request(callback=lambda frame: _resolve(answered, frame))
            return await answered
        except AMQPError as error:
            raise Temporary(f"broker: {type(error).__name__}: {error}") from error
        finally:
            self._calls.discard(answered)


def _properties(publication: Publication, tag: int | None, max_frame_octets: int) -> pika.BasicProperties:
    """Return the properties of a message with a JSON body, which is persistent unless it is transient.

    basic.return carries no tag, so the tag is also the message id.

    :raises ValueError: the copies do not fit into one frame, which would end the connection.
    """
    if sum(len(copy.encode()) + 5 for copy in publication.copies) > max_frame_octets - _PROPERTY_OCTETS:
        raise ValueError(f"{len(publication.copies)} copies do not fit into a frame of {max_frame_octets} octets")
    return pika.BasicProperties(
        content_type="application/json",
        delivery_mode=1 if publication.transient else 2,
        message_id=None if tag is None else str(tag),
        headers={"CC": list(publication.copies)} if publication.copies else None,
    )


def _resolve(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)


def _fail(future: asyncio.Future[Any], reason: object) -> None:
    if not future.done():
        future.set_exception(Temporary(f"broker: {str(reason) or type(reason).__name__}"))
