"""What integration tests do to NotiPy from outside: publish, apply, look, wait."""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractQueue

from config.settings import Settings
from consumers.app import Application, Core, open_core
from domain.delivery import Delivery
from domain.event import event_key
from domain.notification import Definition
from domain.vocabulary import State
from storage.deliveries import DeliveryFilter
from tests.waiting import eventually

ORDER_SHIPPED: Mapping[str, Any] = {
    "name": "order-shipped",
    "on": "shop.order.shipped",
    "required": ["order_id"],
    "channels": {
        "email": {"subject": "Order {{ order_id }} shipped", "text": "Hello {{ recipient.name | default('you') }}"}
    },
}


@dataclass(frozen=True)
class Stack:
    """A connection of its own to the test's virtual host and database."""

    core: Core
    channel: AbstractChannel

    @staticmethod
    @asynccontextmanager
    async def open(settings: Settings) -> AsyncIterator["Stack"]:
        """Declares the topology."""
        async with open_core(settings, role="test") as core:
            channel = await core.connection.channel(publisher_confirms=True, on_return_raises=True)
            yield Stack(core, channel)
            await channel.close()

    async def apply(self, *definitions: Mapping[str, Any]) -> None:
        """Put definitions in force."""
        checked = [Definition.model_validate(definition) for definition in definitions]
        plan = await self.core.catalog.plan(checked, prune=False)
        await self.core.catalog.apply(checked, plan)

    async def publish(
        self,
        body: Mapping[str, Any] | bytes,
        *,
        key: str = "shop.order.shipped",
        message_id: str | None = None,
    ) -> str:
        """As a producer does; returns the message's id."""
        chosen = message_id or uuid4().hex
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        await self.core.publisher.event(key, raw, chosen)
        return chosen

    async def deliveries(self, event_id: str | None = None, source: str = "shop") -> Sequence[Delivery]:
        """Of one event, or all of them."""
        key = event_key(source, event_id) if event_id else None
        return await self.core.deliveries.page(DeliveryFilter(event_key=key), 100_000)

    async def final(self, event_id: str, *, count: int = 1, timeout: float = 20) -> Sequence[Delivery]:
        """Wait until the event has so many deliveries and all are final."""

        async def settled() -> bool:
            found = await self.deliveries(event_id)
            return len(found) == count and all(delivery.state.final for delivery in found)

        await eventually(settled, timeout=timeout)
        return await self.deliveries(event_id)

    async def reach(self, event_id: str, state: State, *, timeout: float = 20) -> Delivery:
        """Wait until the event's one delivery is in this state."""

        async def there() -> bool:
            found = await self.deliveries(event_id)
            return len(found) == 1 and found[0].state is state

        await eventually(there, timeout=timeout)
        return (await self.deliveries(event_id))[0]

    async def depth(self, queue: str) -> int:
        """Messages that are ready in a queue."""
        return (await self.core.publisher.counts(queue) or (-1, 0))[0]

    async def take(self, queue: str) -> aio_pika.abc.AbstractIncomingMessage:
        """Wait for a message and take it away."""
        source = await self.channel.get_queue(queue, ensure=False)
        found: list[aio_pika.abc.AbstractIncomingMessage] = []

        async def got() -> bool:
            message = await source.get(fail=False, no_ack=True)
            if message is not None:
                found.append(message)
            return bool(found)

        await eventually(got)
        return found[0]

    async def listen(self, key: str = "#") -> AbstractQueue:
        """A queue bound to `notipy.status`."""
        queue = await self.channel.declare_queue(exclusive=True)
        await queue.bind("notipy.status", key)
        return queue


def order(email: str = "ana@example.org", **more: Any) -> dict[str, Any]:
    """The smallest event."""
    return {"recipients": [{"email": email}], "data": {"order_id": 1042}, **more}


def total(application: Application, name: str, **labels: str) -> float:
    """The sum of a metric's samples that have these labels."""
    samples: list[Any] = [sample for family in application.metrics.registry.collect() for sample in family.samples]
    return float(sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items()))
