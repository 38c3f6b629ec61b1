"""The use cases over in-memory stores."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from random import Random
from typing import Any, ClassVar

from domain.accept import Accept
from domain.circuit import Circuit
from domain.deliver import Deliver, Result, Settled
from domain.deliver_together import DeliverTogether
from domain.dispatch import Dispatch
from domain.event import Incoming
from domain.notification import Definition, Notification
from domain.operate import Operate
from domain.plan import Planner
from domain.pool import Member, Pool
from domain.rate import Limiter
from domain.receipt import Refine
from domain.retry import RetryPolicy
from domain.sweep import Sweep
from domain.vocabulary import Channel, Semantics
from tests.fakes import (
    Clock,
    MemoryCatalog,
    MemoryDeliveries,
    MemoryEvents,
    MemorySuppressions,
    NoSchemas,
    PlainRenderer,
    RecordingQueue,
    ScriptedProvider,
)

OVERDUE = timedelta(minutes=5)
LEASE = timedelta(minutes=2)
SMALL = b'{"recipients": [{"email": "ana@example.org"}], "data": {"order_id": 1042}}'


def notification(**more: Any) -> Notification:
    values: dict[str, Any] = {"name": "shipped", "on": "shop.#", "channels": {"email": {"subject": "s", "text": "t"}}}
    return Notification(version=1, definition=Definition.model_validate(values | more))


@dataclass(frozen=True)
class Together:
    """`Deliver`, by the way of those that came together."""

    alone: Deliver

    async def __call__(self, job: Dispatch, *, redelivered: bool = False, waited: timedelta = timedelta(0)) -> Result:
        results: list[Result | Exception] = []
        together = DeliverTogether(self.alone)
        await together([job], lambda _, result: results.append(result), redelivered=redelivered, waited=waited)
        (result,) = results
        if isinstance(result, Exception):
            raise result
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self.alone, name)


@dataclass
class World:
    """Everything between a message and its last state, with a clock that stands still.

    `together`: deliveries go the way of those that came together.
    """

    together: ClassVar[bool] = False
    semantics: Semantics = Semantics.AT_LEAST_ONCE
    clock: Clock = field(default_factory=Clock)
    events: MemoryEvents = field(default_factory=MemoryEvents)
    deliveries: MemoryDeliveries = field(default_factory=MemoryDeliveries)
    catalog: MemoryCatalog = field(default_factory=lambda: MemoryCatalog([notification()]))
    queue: RecordingQueue = field(default_factory=RecordingQueue)
    provider: ScriptedProvider = field(default_factory=ScriptedProvider)
    rng: Random = field(default_factory=lambda: Random(7))
    circuit: Circuit = field(init=False)
    others: list[Member] = field(default_factory=list)
    suppressions: MemorySuppressions = field(init=False)
    limiter: Limiter | None = None
    on_failover: Callable[[Settled], Any] = lambda _: None

    def __post_init__(self) -> None:
        self.events.deliveries = self.deliveries
        self.circuit = Circuit("scripted", self.clock, Random(7))
        self.suppressions = MemorySuppressions(self.clock)

    @property
    def policy(self) -> RetryPolicy:
        return RetryPolicy(semantics=self.semantics)

    @property
    def accept(self) -> Accept:
        planner = Planner(PlainRenderer(), NoSchemas(), frozenset({Channel.EMAIL, Channel.SMS}), OVERDUE)
        return Accept(
            self.events,
            self.deliveries,
            self.catalog,
            self.queue,
            planner,
            self.clock,
            1_000_000,
            OVERDUE,
            self.suppressions,
        )

    @property
    def pool(self) -> Pool:
        return Pool([Member(self.provider, self.circuit, limiter=self.limiter), *self.others], self.rng)

    @property
    def deliver(self) -> "Deliver | Together":
        return Together(self.alone) if self.together else self.alone

    @property
    def alone(self) -> Deliver:
        return Deliver(
            self.pool,
            self.deliveries,
            self.events,
            self.catalog,
            self.queue,
            PlainRenderer(),
            self.policy,
            self.clock,
            LEASE,
            OVERDUE,
            self.rng,
            on_failover=self.on_failover,
            suppressions=self.suppressions,
        )

    @property
    def sweep(self) -> Sweep:
        policies = {Channel.EMAIL: self.policy}
        return Sweep(
            self.events, self.deliveries, self.queue, self.accept, policies, self.clock, OVERDUE, LEASE, Random(7)
        )

    @property
    def refine(self) -> Refine:
        return Refine(self.deliveries, self.suppressions, self.queue, self.clock, lambda given: {given, "scripted"})

    @property
    def operate(self) -> Operate:
        return Operate(
            self.deliveries, self.events, self.queue, self.clock, OVERDUE, LEASE, self.catalog, self.suppressions
        )

    async def accepted(self, body: bytes = SMALL, **more: Any) -> list[Dispatch]:
        """Accept an event; returns what was dispatched for it."""
        before = len(self.queue.dispatched)
        await self.accept(Incoming(body, "shop.order.shipped", more.pop("message_id", "m-1"), **more))
        return self.queue.dispatched[before:]
