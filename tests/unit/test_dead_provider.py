"""A day without the provider, in simulated time: the use cases, the circuit and the sweeper together.

What is simulated is the broker alone: a channel's queue from which nothing is taken while the circuit is open, and
retry queues that hand back when their time has come. A step is a second; the sweeper comes round every five.
"""

import heapq
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import count

import pytest

from domain.circuit import LONGEST_WAIT, Mode
from domain.deliver import HeldBack, Settled
from domain.dispatch import Dispatch
from domain.failures import DeliveryFailure, TransientFailure
from domain.vocabulary import Reason, State
from tests.unit.world import World

DELIVERIES = 50
STEP = timedelta(seconds=1)
SWEEP_EVERY = timedelta(seconds=5)
AT_ONCE = 20
"""Messages that a consumer takes before it notices that the circuit has opened: its prefetch."""


@dataclass
class Day:
    """The world and its clock; `calls` are those to the provider, by hour."""

    world: World
    answers_checks: bool = False
    fault: DeliveryFailure | None = None
    checks: int = 0
    sends: int = 0
    records: int = 0
    queue: list[Dispatch] = field(default_factory=list)
    tiers: list[tuple[datetime, int, Dispatch]] = field(default_factory=list)
    numbers: "count[int]" = field(default_factory=count)

    async def run(self, until: datetime) -> None:
        swept = self.world.clock()
        while self.world.clock() < until and not self.done:
            self.world.clock.advance(STEP)
            if self.world.clock() - swept >= SWEEP_EVERY:
                await self.world.sweep()
                swept = self.world.clock()
            self.collect()
            await self.probe()
            await self.consume()

    @property
    def done(self) -> bool:
        return all(delivery.state.final for delivery in self.world.deliveries.stored.values())

    def collect(self) -> None:
        """What was published reaches its queue, now or when its retry queue lets it go."""
        published, retried = self.world.queue.dispatched, self.world.queue.retried
        for job, tier in retried:
            heapq.heappush(self.tiers, (self.world.clock() + tier, next(self.numbers), job))
        self.queue += published
        published.clear()
        retried.clear()
        while self.tiers and self.tiers[0][0] <= self.world.clock():
            self.queue.append(heapq.heappop(self.tiers)[2])
        self.world.queue.depth = len(self.queue)
        self.world.queue.consumers = int(self.world.circuit.mode is not Mode.OPEN)

    async def probe(self) -> None:
        if self.world.circuit.due():
            self.checks += 1
            self.world.circuit.asked(None if self.answers_checks else self.fault)

    async def consume(self) -> None:
        while self.queue and self.world.circuit.mode is not Mode.OPEN:
            batch, self.queue = self.queue[:AT_ONCE], self.queue[AT_ONCE:]
            for job in batch:
                if self.fault is not None:
                    self.world.provider.script = [self.fault]
                result = await self.world.deliver(job)
                self.sends += isinstance(result, Settled)
                self.records += isinstance(result, Settled | HeldBack)


@pytest.mark.parametrize(
    ("answers_checks", "outage"),
    [(False, timedelta(hours=24)), (True, timedelta(hours=4))],
    ids=["gone", "takes connections, refuses mail"],
)
async def test_a_day_without_the_provider_costs_nobody_an_attempt_and_ends_within_a_minute(
    answers_checks: bool, outage: timedelta
) -> None:
    day = await dawn()
    day.answers_checks, world = answers_checks, day.world
    day.fault = TransientFailure(Reason.CONNECTION_REFUSED, "nobody there", provider_fault=True)
    until = world.clock() + outage
    await day.run(until)
    waiting = list(world.deliveries.stored.values())
    print(f"{day.checks} checks, {day.sends} sends, {day.records} records, {len(world.queue.told)} told in {outage}")

    assert {delivery.state for delivery in waiting} <= {State.HELD, State.QUEUED, State.RETRYING}
    assert max(delivery.attempt - delivery.forgiven for delivery in waiting) <= 1
    most = outage / LONGEST_WAIT + 20
    assert day.checks <= most
    assert day.sends <= (most if answers_checks else 0) + DELIVERIES
    assert len(day.queue) <= DELIVERIES, "work orders are not multiplied"

    day.fault = None
    returned = world.clock()
    await day.run(returned + timedelta(hours=1))
    assert {delivery.state for delivery in world.deliveries.stored.values()} == {State.SENT}
    assert world.clock() - returned <= timedelta(minutes=1)
    assert len(world.provider.sent) == DELIVERIES


async def dawn() -> Day:
    """Everything accepted, nothing sent."""
    day = Day(World())
    for number in range(DELIVERIES):
        await day.world.accepted(message_id=f"m-{number}")
    return day
