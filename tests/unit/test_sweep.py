import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from domain.deliver import HeldBack
from domain.delivery import Delivery
from domain.dispatch import Dispatch
from domain.failures import TransientFailure
from domain.operate import Refused
from domain.ports import Purpose
from domain.sweep import RECORDING, RESUMPTIONS
from domain.vocabulary import EventState, Reason, Semantics, State
from tests.unit.world import LEASE, OVERDUE, SMALL, World


async def test_a_lost_work_order_is_dispatched_again() -> None:
    world = World()
    (job,) = await world.accepted()
    world.queue.dispatched.clear()
    assert (await world.sweep()).idle
    world.clock.advance(OVERDUE)
    swept = await world.sweep()
    assert swept.deliveries == {Reason.REDRIVEN: 1}
    (again,) = world.queue.dispatched
    assert (again.delivery.id, again.attempt) == (job.delivery.id, 1)


async def test_one_that_may_wait_in_its_queue_is_left_alone_for_a_while() -> None:
    world = World()
    await world.accepted()
    world.queue.dispatched.clear()
    world.queue.depth = 1000
    world.clock.advance(OVERDUE)
    assert (await world.sweep()).idle
    world.clock.advance(OVERDUE * 4)
    assert (await world.sweep()).deliveries == {Reason.REDRIVEN: 1}
    # the next look comes after as long as it has waited already
    world.clock.advance(OVERDUE * 4)
    assert (await world.sweep()).idle


async def test_a_claim_within_its_lease_is_respected() -> None:
    world = World()
    (job,) = await world.accepted()
    world.clock.advance(OVERDUE)
    await world.deliveries.claim(world.deliver._claim(job))
    world.queue.dispatched.clear()
    assert (await world.sweep()).idle
    assert not world.queue.dispatched


async def test_a_lease_that_ran_out_is_an_unknown_outcome() -> None:
    world = World()
    (job,) = await world.accepted()
    await world.deliveries.claim(world.deliver._claim(job))
    world.queue.dispatched.clear()
    world.clock.advance(OVERDUE + LEASE)
    assert (await world.sweep()).deliveries == {Reason.OUTCOME_UNKNOWN: 1}
    stored = world.deliveries.stored[job.delivery.id]
    assert (stored.state, stored.attempt, stored.possible_duplicate) == (State.QUEUED, 1, True)
    (again,) = world.queue.dispatched
    assert again.attempt == 2
    await world.deliver(again)
    assert world.deliveries.stored[job.delivery.id].state is State.SENT


async def test_at_most_once_stops_at_unknown() -> None:
    world = World(Semantics.AT_MOST_ONCE)
    (job,) = await world.accepted()
    await world.deliveries.claim(world.deliver._claim(job))
    world.queue.dispatched.clear()
    world.clock.advance(OVERDUE + LEASE)
    await world.sweep()
    stored = world.deliveries.stored[job.delivery.id]
    assert (stored.state, stored.reason, stored.due_at) == (State.UNKNOWN, Reason.OUTCOME_UNKNOWN, None)
    assert not world.queue.dispatched


async def test_a_scheduled_delivery_is_released_when_it_is_due() -> None:
    world = World()
    await world.accepted(SMALL[:-1] + b', "send_at": "2026-11-22T18:00:00Z"}')
    assert not world.queue.dispatched
    world.clock.advance(timedelta(hours=1))
    assert (await world.sweep()).deliveries == {Reason.RELEASED: 1}
    (job,) = world.queue.dispatched
    await world.deliver(job)
    stored = world.deliveries.stored[job.delivery.id]
    assert [change.state for change in stored.history] == [State.HELD, State.QUEUED, State.SENDING, State.SENT]


async def test_a_released_delivery_that_is_held_again_at_once_stays_held(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    await world.accepted(SMALL[:-1] + b', "send_at": "2026-11-22T18:00:00Z"}')
    world.circuit.ended(TransientFailure(Reason.AUTHENTICATION, "535 no", provider_fault=True))

    async def taken_at_once(job: Dispatch, *, alone: bool = False) -> None:
        assert isinstance(await world.deliver(job), HeldBack)

    monkeypatch.setattr(world.queue, "dispatch", taken_at_once)
    world.clock.advance(timedelta(hours=1))
    assert (await world.sweep()).deliveries == {Reason.RELEASED: 1}
    (stored,) = world.deliveries.stored.values()
    assert (stored.state, stored.reason) == (State.HELD, Reason.PROVIDER_PAUSED)


async def test_what_another_has_released_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    await world.accepted(SMALL[:-1] + b', "send_at": "2026-11-22T18:00:00Z"}')

    async def refused(*_: object) -> bool:
        return False

    monkeypatch.setattr(world.deliveries, "record", refused)
    world.clock.advance(timedelta(hours=1))
    assert not (await world.sweep()).deliveries
    assert not world.queue.dispatched


async def test_a_held_delivery_whose_time_is_over_expires() -> None:
    world = World()
    body = SMALL[:-1] + b', "send_at": "2026-11-22T18:00:00Z", "expires_at": "2026-11-22T17:30:00Z"}'
    await world.accepted(body)
    world.clock.advance(timedelta(minutes=30))
    assert (await world.sweep()).deliveries == {Reason.EXPIRED: 1}
    (stored,) = world.deliveries.stored.values()
    assert stored.state is State.EXPIRED


async def test_an_event_that_was_not_planned_to_the_end_is_resumed() -> None:
    world = World()
    await world.accepted()
    (stored,) = world.events.stored.values()
    world.events.stored[stored.key] = stored.__class__(
        **{name: getattr(stored, name) for name in stored.__dataclass_fields__} | {"state": EventState.ACCEPTED}
    )
    world.events.due_at[stored.key] = world.clock()
    world.deliveries.stored.clear()
    swept = await world.sweep()
    assert swept.events == 1
    assert len(world.deliveries.stored) == 1


async def test_replaying_is_idempotent() -> None:
    world = World()
    world.provider.script = [TransientFailure(Reason.TIMEOUT, "slow")] * 7
    (job,) = await world.accepted()
    for _ in range(7):
        await world.deliver(job)
        job = job.again(world.deliveries.stored[job.delivery.id])
    failed = world.deliveries.stored[job.delivery.id]
    world.queue.dispatched.clear()
    first, second = await world.operate.replay(failed), await world.operate.replay(failed)
    assert not isinstance(first, Refused)
    assert isinstance(second, Refused)
    (again,) = world.queue.dispatched
    assert (again.delivery.epoch, again.attempt) == (2, 1)
    await world.deliver(again)
    stored = world.deliveries.stored[job.delivery.id]
    assert (stored.state, stored.epoch, stored.attempt) == (State.SENT, 2, 1)
    assert world.provider.sent[0].idempotency_key.endswith("/2")


async def test_a_cancelled_delivery_is_not_sent_though_its_order_still_waits() -> None:
    world = World()
    (job,) = await world.accepted()
    assert not isinstance(await world.operate.cancel(job.delivery.id), Refused)
    await world.deliver(job)
    assert not world.provider.sent
    assert world.deliveries.stored[job.delivery.id].state is State.CANCELLED
    assert isinstance(await world.operate.cancel(job.delivery.id), Refused)


async def test_what_is_being_sent_cannot_be_cancelled() -> None:
    world = World()
    (job,) = await world.accepted()
    await world.deliveries.claim(world.deliver._claim(job))
    refused = await world.operate.cancel(job.delivery.id)
    assert refused == Refused("it is being sent at this moment")


async def test_a_delivery_over_a_channel_that_is_configured_no_more_ends() -> None:
    world = World()
    await world.accepted(b'{"recipients": [{"phone": "+4915112345678"}], "content": {"sms": {"text": "t"}}}')
    world.clock.advance(OVERDUE)
    await world.sweep()
    (delivery,) = world.deliveries.stored.values()
    assert (delivery.state, delivery.reason) == (State.FAILED, Reason.NOT_CONFIGURED)
    assert len(world.queue.parked) == 1


async def without_outcomes(world: World) -> Delivery:
    """A delivery each of whose attempts was claimed by a process that ended."""
    (job,) = await world.accepted()
    for _ in range(world.policy.attempts):
        await world.deliveries.claim(world.deliver._claim(job))
        world.clock.advance(OVERDUE + LEASE)
        await world.sweep()
        job = job.again(world.deliveries.stored[job.delivery.id])
    return world.deliveries.stored[job.delivery.id]


async def test_the_last_attempt_with_unknown_outcome_is_marked_when_it_is_replayed() -> None:
    world = World()
    failed = await without_outcomes(world)
    assert (failed.state, failed.possible_duplicate) == (State.FAILED, True)
    replayed = await world.operate.replay(failed)
    assert not isinstance(replayed, Refused)
    assert replayed.possible_duplicate


async def test_an_event_that_cannot_be_read_back_is_given_up_in_the_end() -> None:
    world = World()
    await world.accepted()
    (stored,) = world.events.stored.values()
    world.events.stored[stored.key] = replace(stored, body=b"no event")
    world.clock.advance(OVERDUE)
    swept = await world.sweep()
    assert len(swept.faults) == 1
    world.clock.advance(timedelta(days=2))
    await world.sweep()
    (delivery,) = world.deliveries.stored.values()
    assert (delivery.state, delivery.reason) == (State.FAILED, Reason.INTERNAL_ERROR)


async def test_what_is_sent_or_waiting_is_not_dropped() -> None:
    world = World()
    (job,) = await world.accepted()
    assert isinstance(await world.operate.drop(world.deliveries.stored[job.delivery.id]), Refused)


async def test_a_claim_is_live_for_a_while_after_an_outage_of_the_database() -> None:
    world = World()
    (job,) = await world.accepted()
    await world.deliveries.claim(world.deliver._claim(job))
    world.clock.advance(OVERDUE + LEASE)
    back = world.clock()
    sweep = replace(world.sweep, outage_ended=lambda: back)
    assert (await sweep()).idle, "its owner may be about to record"
    world.clock.advance(RECORDING)
    assert (await sweep()).deliveries == {Reason.OUTCOME_UNKNOWN: 1}


@pytest.mark.parametrize(
    ("purpose", "state"), [(Purpose.CANCEL, State.CANCELLED), (Purpose.EXPIRE, State.EXPIRED)], ids=str
)
async def test_nothing_was_sent_under_a_claim_for_another_purpose(purpose: Purpose, state: State) -> None:
    world = World()
    (job,) = await world.accepted()
    await world.deliveries.claim(replace(world.deliver._claim(job), purpose=purpose))
    world.clock.advance(OVERDUE + LEASE)
    await world.sweep()
    stored = world.deliveries.stored[job.delivery.id]
    assert (stored.state, stored.attempt, stored.possible_duplicate, stored.tell_at) == (state, 0, False, None)


async def test_an_end_that_nobody_was_told_of_is_told() -> None:
    world = World()
    (job,) = await world.accepted()
    queue = world.queue
    # the sweeper's process ends between its record and its publishes
    world.queue.park = world.queue.status = None  # type: ignore[method-assign, assignment]
    world.clock.advance(OVERDUE)
    world.events.stored.clear()
    await world.sweep()
    (stored,) = world.deliveries.stored.values()
    assert (stored.state, stored.tell_at) == (State.FAILED, world.clock() + OVERDUE)
    del queue.park, queue.status
    queue.told.clear()
    assert (await world.sweep()).idle
    world.clock.advance(OVERDUE)
    assert (await world.sweep()).told == 1
    ((parked, reason, _),) = queue.parked
    assert (parked.delivery.id, reason) == (job.delivery.id, Reason.INTERNAL_ERROR)
    assert [change.state for change in queue.told] == [State.FAILED]
    assert world.deliveries.stored[job.delivery.id].tell_at is None


async def test_an_event_whose_planning_never_ends_is_parked() -> None:
    world = World()
    await world.accepted()
    (key,) = world.events.stored
    world.events.stored[key] = replace(world.events.stored[key], state=EventState.ACCEPTED)
    planned, world.deliveries.add = world.deliveries.add, None  # type: ignore[method-assign, assignment]
    for _ in range(RESUMPTIONS):
        world.events.due_at[key] = world.clock()
        assert (await world.sweep()).poison == 0
    world.deliveries.add = planned  # type: ignore[method-assign]
    world.events.due_at[key] = world.clock()
    assert (await world.sweep()).poison == 1
    assert world.events.stored[key].state is EventState.FAILED
    assert world.events.stored[key].planned == 1
    ((_, reason, _),) = world.queue.rejected
    assert reason is Reason.POISON


async def test_a_delivery_every_attempt_of_which_ended_its_process_is_poison() -> None:
    stored = await without_outcomes(World())
    assert (stored.state, stored.reason, stored.possible_duplicate) == (State.FAILED, Reason.POISON, True)


async def test_a_queue_that_nobody_takes_from_is_given_nothing_twice() -> None:
    world = World()
    await world.accepted()
    world.queue.dispatched.clear()
    world.queue.depth, world.queue.consumers = 1, 0
    for _ in range(200):
        world.clock.advance(OVERDUE)
        await world.sweep()
    assert not world.queue.dispatched
    world.queue.consumers = 1
    world.clock.advance(OVERDUE + timedelta(hours=1))
    await world.sweep()
    assert len(world.queue.dispatched) == 1


async def test_a_full_queue_stops_neither_other_channels_nor_the_sweeper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("domain.sweep.TAKEN_WITHIN", timedelta(milliseconds=20))
    monkeypatch.setattr("domain.sweep.PLANNED_WITHIN", timedelta(milliseconds=20))
    world = World()
    (stuck,) = await world.accepted(message_id="m-1")
    (free,) = await world.accepted(message_id="m-2")
    await world.accepted(message_id="m-3")
    unplanned = next(key for key, event in world.events.stored.items() if event.id == "m-3")
    world.events.due_at[unplanned] = world.clock()
    dispatch, dispatched = world.queue.dispatch, []

    async def full(job: Dispatch, *, alone: bool = False) -> None:
        if job.delivery.id != free.delivery.id:
            await asyncio.Event().wait()
        dispatched.append(job)

    world.queue.dispatch = full  # type: ignore[method-assign]
    world.clock.advance(OVERDUE)
    swept = await world.sweep()
    assert [job.delivery.id for job in dispatched] == [free.delivery.id]
    assert any("full" in fault for fault in swept.faults)
    assert world.events.stored[unplanned].resumed == 0, "that its queue is full is no fault of the event's"
    assert world.deliveries.stored[stuck.delivery.id].state is State.QUEUED
    world.queue.dispatch = dispatch  # type: ignore[method-assign]
    world.clock.advance(OVERDUE * 2)
    await world.sweep()
    assert stuck.delivery.id in {job.delivery.id for job in world.queue.dispatched}
