"""What a channel's handler does with orders that came together, where one of them meets a fault of ours."""

import asyncio
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from typing import Any, cast
from unittest.mock import AsyncMock

import pytest

from consumers import codec
from consumers.handlers import TAKEN_APART_AFTER, DeliveryHandler, Guarded
from consumers.metrics import Metrics
from domain.deliver import Deliver, Result
from domain.dispatch import Dispatch
from domain.vocabulary import Channel, Reason, State
from tests.unit.world import OVERDUE, World


@dataclass
class Message:
    """The part of an incoming message that handlers look at."""

    body: bytes
    headers: dict[str, Any] = field(default_factory=dict)
    redelivered: bool = False
    routing_key: str = "email.normal"
    message_id: str = "m"
    timestamp: None = None
    content_type: str | None = None
    exchange: str = "notipy.channels"


async def three(world: World) -> tuple[list[Dispatch], Message]:
    jobs = [job for number in range(3) for job in await world.accepted(message_id=f"m-{number}")]
    (parcel,) = codec.parcels(jobs)
    assert isinstance(parcel, codec.Parcel)
    return jobs, Message(parcel.body, dict(parcel.headers))


def handler(world: World, deliver: Any, concurrency: int) -> Any:
    return DeliveryHandler(Channel.EMAIL, cast("Deliver", deliver), world.operate, world.queue, Metrics(), concurrency)


async def test_an_order_whose_handling_fails_is_parked_alone() -> None:
    world = World()
    jobs, message = await three(world)
    real = world.deliver

    async def deliver(job: Dispatch, *, redelivered: bool, waited: timedelta) -> Result:
        if job.delivery.id == jobs[1].delivery.id:
            raise LookupError("ana@example.org")
        return await real(job, redelivered=redelivered)

    await handler(world, deliver, 10)(message)
    ((parked, reason, faults),) = world.queue.rejected
    assert reason is Reason.INTERNAL_ERROR
    assert "ana@" not in str(faults)
    assert [job.delivery.id for job in codec.read_dispatch(parked.body)] == [jobs[1].delivery.id]
    states = [world.deliveries.stored[job.delivery.id].state for job in jobs]
    assert states == [State.SENT, State.QUEUED, State.SENT]


async def test_no_more_attempts_are_in_progress_than_the_setting_says() -> None:
    world = World()
    _, message = await three(world)
    active, most = 0, 0

    async def deliver(job: Dispatch, *, redelivered: bool, waited: timedelta) -> Result:
        nonlocal active, most
        active += 1
        most = max(most, active)
        await asyncio.sleep(0)
        active -= 1
        return await world.deliver(job, redelivered=redelivered)

    await handler(world, deliver, 2)(message)
    assert most == 2
    assert len(world.provider.sent) == 3


async def test_what_those_of_one_message_have_waited_in_hand_counts_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    _, message = await three(world)
    clock, told = count(0.0, 5.0), []
    monkeypatch.setattr("consumers.handlers.monotonic", lambda: next(clock))

    async def deliver(job: Dispatch, *, redelivered: bool, waited: timedelta) -> Result:
        told.append(waited.total_seconds())
        return await world.deliver(job, redelivered=redelivered, waited=waited)

    await handler(world, deliver, 1)(message)
    assert told == [5.0, 10.0, 15.0]


async def test_what_has_not_begun_when_the_process_stops_is_dispatched_again() -> None:
    world = World()
    jobs, message = await three(world)
    stopping = False

    async def deliver(job: Dispatch, *, redelivered: bool, waited: timedelta) -> Result:
        nonlocal stopping
        stopping = True
        return await world.deliver(job, redelivered=redelivered)

    before = len(world.queue.dispatched)
    real: Any = cast("Deliver", deliver)
    one_at_a_time = DeliveryHandler(Channel.EMAIL, real, world.operate, world.queue, Metrics(), 1, lambda: stopping)
    await one_at_a_time(cast("Any", message))
    assert len(world.provider.sent) == 1
    again = world.queue.dispatched[before:]
    assert [job.delivery.id for job in again] == [job.delivery.id for job in jobs[1:]]
    assert [job.attempt for job in again] == [1, 1]


async def test_a_receipt_whose_handling_fails_is_parked_with_its_content_type() -> None:
    queue, headers = AsyncMock(), {"x-notipy-delivery": "d"}
    metrics, poisoned = Metrics(), AsyncMock()
    handle = AsyncMock(side_effect=LookupError)
    guarded = Guarded("receipts", handle, queue, AsyncMock(), metrics, 20, poisoned, asyncio.Lock())
    await guarded(cast("Any", Message(b"a mail", headers, content_type="message/rfc822")))
    assert queue.reject.call_args.args[-1] == {**headers, codec.CONTENT_TYPE: "message/rfc822"}


@pytest.mark.parametrize(
    ("handed_out", "stopping"), [(TAKEN_APART_AFTER, False), (1, True)], ids=["taken apart", "stopping"]
)
async def test_what_is_passed_on_is_told_as_what_has_been_handed_out_before(handed_out: int, stopping: bool) -> None:
    """Its status may not have been published: the process that recorded it may have died before."""
    world = World()
    jobs, message = await three(world)
    message.redelivered, message.headers["x-delivery-count"] = True, handed_out
    await world.deliver(jobs[0])
    world.queue.told.clear()
    world.queue.dispatched.clear()
    passing = DeliveryHandler(Channel.EMAIL, world.alone, world.operate, world.queue, Metrics(), 10, lambda: stopping)
    await passing(cast("Any", message))
    assert len(world.queue.dispatched) == len(world.queue.alone) == 3
    for job in world.queue.alone:
        (parcel,) = codec.parcels([job])
        assert isinstance(parcel, codec.Parcel)
        await handler(world, world.deliver, 10)(Message(parcel.body, {**parcel.headers, codec.AGAIN: True}))
    assert [change.state for change in world.queue.told].count(State.SENT) == 3


async def test_what_cannot_be_passed_on_is_left_to_the_sweeper() -> None:
    world = World()
    _, message = await three(world)
    message.headers["x-delivery-count"] = TAKEN_APART_AFTER
    world.queue.full = True
    await handler(world, world.deliver, 10)(message)
    assert [each.state for each in world.deliveries.stored.values()] == [State.QUEUED] * 3
    world.queue.full = False
    world.clock.advance(OVERDUE)
    await world.sweep()
    assert len(world.queue.dispatched) == 3 + 3
