"""The peer: a FastStream service, as in FastStream's documentation. `pip install 'beds[bench]'` brings FastStream.

The handler calls the drivers itself, since a process executes one message at a time; a thread pool only adds a switch.
A round trip is `broker.request`, which keeps one request in flight and consumes anew for each. Many at once are
therefore published with `reply_to`, and a subscriber receives the replies.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar
from uuid import uuid4

from faststream import AckPolicy, FastStream
from faststream.rabbit import Channel, QueueType, RabbitBroker, RabbitMessage, RabbitQueue

from beds.config import load_settings
from bench.amqp_peer import PREFETCH
from bench.objects import Data, Objects
from bench.side import DEADLINE

T = TypeVar("T")
QUEUE = RabbitQueue("bench.faststream", queue_type=QueueType.QUORUM, durable=True)


class Requester:
    """Sends requests to the queue, on an event loop of its own that runs while it waits."""

    def __init__(self, url: str) -> None:
        self._loop = asyncio.new_event_loop()
        # No heartbeats: the loop stands still while another side is measured.
        self._broker = RabbitBroker(f"{url}?heartbeat=0", logger=None)
        self._replies = f"bench.replies.{uuid4()}"
        self._waiting: dict[str, asyncio.Future[Data]] = {}
        replies = RabbitQueue(self._replies, exclusive=True, auto_delete=True)
        self._broker.subscriber(replies, ack_policy=AckPolicy.ACK_FIRST)(self._take)
        self._run(self._start())

    def one(self, operation: str, data: Data) -> Data:
        return self._run(self._request(operation, data))

    def many(self, operation: str, batch: Sequence[Data]) -> list[Data]:
        return self._run(self._request_all(operation, batch))

    def close(self) -> None:
        self._run(self._broker.stop())
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(asyncio.wait_for(work, DEADLINE))

    async def _start(self) -> None:
        await self._broker.start()
        await self._broker.declare_queue(QUEUE)

    async def _request(self, operation: str, data: Data) -> Data:
        message = {"operation": operation, "data": data}
        reply = await self._broker.request(message, QUEUE, timeout=DEADLINE, persist=True)
        found: Data = await reply.decode()
        return found

    async def _request_all(self, operation: str, batch: Sequence[Data]) -> list[Data]:
        return await asyncio.gather(*(self._request_queued(operation, data) for data in batch))

    async def _request_queued(self, operation: str, data: Data) -> Data:
        guid = str(uuid4())
        future = self._waiting[guid] = self._loop.create_future()
        message = {"operation": operation, "data": data}
        await self._broker.publish(message, QUEUE, reply_to=self._replies, correlation_id=guid, persist=True)
        answer: Data = await future
        return answer

    async def _take(self, body: Data, message: RabbitMessage) -> None:
        self._waiting.pop(str(message.correlation_id)).set_result(body)


def main() -> None:
    settings = load_settings()
    objects = Objects.of_brokers(settings)
    broker = RabbitBroker(settings.amqp.broker_url, logger=None, default_channel=Channel(prefetch_count=PREFETCH))

    @broker.subscriber(QUEUE)  # type: ignore[untyped-decorator]
    async def perform(operation: str, data: Data) -> Data:
        return objects.perform(operation, data)

    asyncio.run(FastStream(broker, logger=None).run())


if __name__ == "__main__":
    main()
