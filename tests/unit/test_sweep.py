import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from domain.deliver import HeldBack
from domain.delivery import Change, Delivery
from domain.dispatch import Dispatch
from domain.failures import TransientFailure
from domain.operate import Refused
from domain.ports import Claim, Purpose, StoredEvent, Unreadable
from domain.sweep import GIVE_UP_AFTER, LONGEST_PATIENCE, RECORDING, RESUMPTIONS, UNREADABLE_FOR
from domain.vocabulary import Channel, EventState, Reason, Semantics, State
from tests.unit.world import LEASE, OVERDUE, SMALL, World
from tests.waiting import eventually


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
    await world.deliveries.claim(world.deliver.claim_of(job))
    world.queue.dispatched.clear()
    assert (await world.sweep()).idle
    assert not world.queue.dispatched


async def test_a_lease_that_ran_out_is_an_unknown_outcome() -> None:
    world = World()
    (job,) = await world.accepted()
    await world.deliveries.claim(world.deliver.claim_of(job))
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
    await world.deliveries.claim(world.deliver.claim_of(job))
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
    await world.deliveries.claim(world.deliver.claim_of(job))
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
        await world.deliveries.claim(world.deliver.claim_of(job))
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
    await world.deliveries.claim(world.deliver.claim_of(job))
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
    (job,) = await world.accepted(SMALL[:-1] + b', "expires_at": "2026-11-22T17:06:00Z"}')
    await world.deliveries.claim(replace(world.deliver.claim_of(job), purpose=purpose))
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


async def no_time(*_: object, **__: object) -> None:
    """Never ends."""
    await asyncio.Event().wait()


async def unplanned(world: World) -> str:
    """The key of an event whose planning has not been completed, and is due."""
    await world.accepted()
    (key,) = world.events.stored
    world.events.stored[key] = replace(world.events.stored[key], state=EventState.ACCEPTED)
    world.events.due_at[key] = world.clock()
    return key


async def test_that_a_process_is_stopped_in_order_is_no_fault_of_the_event_that_it_plans(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()
    key = await unplanned(world)
    world.deliveries.stored.clear()
    monkeypatch.setattr(world.queue, "dispatch", no_time)
    for _ in range(RESUMPTIONS + 1):
        planning = asyncio.create_task(world.sweep.plan())
        await eventually(lambda: world.events.stored[key].resumed == 1)
        planning.cancel()
        await asyncio.gather(planning, return_exceptions=True)
        assert planning.cancelled()
        assert world.events.stored[key].resumed == 0
        assert world.events.due_at[key] == world.clock(), "whoever leads next goes on with it"
    assert (world.events.stored[key].state, world.queue.rejected) == (EventState.ACCEPTED, [])


async def test_a_stop_does_not_wait_for_a_database_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("domain.sweep.STOPPED_WITHIN", timedelta(milliseconds=20))
    world = World()
    key = await unplanned(world)
    world.deliveries.stored.clear()
    monkeypatch.setattr(world.queue, "dispatch", no_time)
    planning = asyncio.create_task(world.sweep.plan())
    await eventually(lambda: world.events.stored[key].resumed == 1)
    monkeypatch.setattr(world.events, "postpone", no_time)
    planning.cancel()
    async with asyncio.timeout(1):
        await asyncio.gather(planning, return_exceptions=True)
    assert planning.cancelled()


async def test_deliveries_do_not_wait_for_an_event_that_is_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    await world.accepted(SMALL[:-1] + b', "send_at": "2026-11-22T18:00:00Z"}')
    world.clock.advance(timedelta(hours=1))
    (key,) = world.events.stored
    world.events.due_at[key] = world.clock()
    assert (await world.sweep.drive()).deliveries == {Reason.RELEASED: 1}
    assert world.events.stored[key].resumed == 0
    assert (await world.sweep.plan()).events == 1


async def lost_event(world: World) -> None:
    world.events.stored.clear()


async def unreadable_for_a_day(world: World) -> None:
    for key, stored in world.events.stored.items():
        world.events.stored[key] = replace(stored, body=b"no event")
    world.clock.advance(GIVE_UP_AFTER)


async def without_its_channel(world: World) -> None:
    (stored,) = world.deliveries.stored.values()
    world.deliveries.stored[stored.id] = replace(stored, channel=Channel.SMS)


@pytest.mark.parametrize("hopeless", [lost_event, unreadable_for_a_day, without_its_channel])
async def test_what_the_sweeper_gives_up_is_not_sent_though_its_order_still_waits(
    hopeless: Callable[[World], Awaitable[None]],
) -> None:
    world = World()
    (job,) = await world.accepted()
    await hopeless(world)
    world.clock.advance(OVERDUE)
    await world.sweep()
    (stored,) = world.deliveries.stored.values()
    assert (stored.state, stored.possible_duplicate, len(world.queue.parked)) == (State.FAILED, False, 1)
    await world.deliver(job)
    assert not world.provider.sent
    (stored,) = world.deliveries.stored.values()
    assert stored.state is State.FAILED


@pytest.mark.parametrize("hopeless", [lost_event, unreadable_for_a_day, without_its_channel])
async def test_what_is_being_sent_is_not_given_up(hopeless: Callable[[World], Awaitable[None]]) -> None:
    world = World()
    (job,) = await world.accepted()
    await hopeless(world)
    world.clock.advance(OVERDUE)
    claims = world.deliveries.claims

    async def too_early(ids: Sequence[str]) -> Mapping[str, Claim]:
        """A consumer claims it between the sweeper's two questions."""
        found = await claims(ids)
        assert await world.deliveries.claim(world.deliver.claim_of(job))
        return found

    world.deliveries.claims = too_early  # type: ignore[method-assign]
    await world.sweep()
    (stored,) = world.deliveries.stored.values()
    assert (stored.state, world.queue.parked) == (State.QUEUED, [])


async def test_what_a_sweeper_had_claimed_to_give_up_ends_though_it_ended_first() -> None:
    world = World()
    (job,) = await world.accepted()
    await world.deliveries.claim(replace(world.deliver.claim_of(job), purpose=Purpose.EXPIRE))
    world.clock.advance(OVERDUE + LEASE)
    await world.sweep()
    stored = world.deliveries.stored[job.delivery.id]
    assert (stored.state, stored.reason, stored.attempt) == (State.FAILED, Reason.INTERNAL_ERROR, 0)
    assert not stored.possible_duplicate
    assert len(world.queue.parked) == 1


async def in_batches_of_two(monkeypatch: pytest.MonkeyPatch, due: int) -> World:
    """So many deliveries are due, and were dispatched long ago."""
    monkeypatch.setattr("domain.sweep.BATCH", 2)
    world = World()
    for number in range(due):
        await world.accepted(message_id=f"m-{number}")
    world.queue.dispatched.clear()
    world.clock.advance(OVERDUE)
    return world


async def test_a_round_ends_though_the_database_takes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    world = await in_batches_of_two(monkeypatch, 3)

    async def refused(*_: object) -> None:
        return None

    monkeypatch.setattr(world.deliveries, "postpone", refused)
    async with asyncio.timeout(1):
        await world.sweep()
    assert len(world.queue.dispatched) == 2


async def test_one_round_takes_all_that_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    world = await in_batches_of_two(monkeypatch, 5)
    assert (await world.sweep()).deliveries == {Reason.REDRIVEN: 5}


async def test_an_event_that_cannot_be_read_stops_its_own_deliveries_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    (lame,) = await world.accepted(message_id="m-1")
    (sound,) = await world.accepted(message_id="m-2")
    world.queue.dispatched.clear()
    get = world.events.get

    async def archived(key: str) -> StoredEvent | None:
        if key == lame.delivery.event_key:
            raise ValueError("'archived' is not a valid EventState")
        return await get(key)

    monkeypatch.setattr(world.events, "get", archived)
    world.clock.advance(OVERDUE)
    swept = await world.sweep()
    assert len(swept.faults) == 1
    assert [job.delivery.id for job in world.queue.dispatched] == [sound.delivery.id]
    assert (await world.sweep()).idle


async def test_a_claim_that_cannot_be_read_stops_its_own_delivery_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    (lame,) = await world.accepted(message_id="m-1")
    (sound,) = await world.accepted(message_id="m-2")
    await world.deliveries.claim(world.deliver.claim_of(lame))
    world.queue.dispatched.clear()
    claims = world.deliveries.claims

    async def for_another_purpose(ids: Sequence[str]) -> Mapping[str, Claim]:
        if lame.delivery.claim_id(1) in ids:
            raise ValueError("'pause' is not a valid Purpose")
        return await claims(ids)

    monkeypatch.setattr(world.deliveries, "claims", for_another_purpose)
    world.clock.advance(OVERDUE)
    assert len((await world.sweep()).faults) == 1
    assert [job.delivery.id for job in world.queue.dispatched] == [sound.delivery.id]
    world.clock.advance(GIVE_UP_AFTER)
    await world.sweep()
    assert world.deliveries.stored[lame.delivery.id].state is State.QUEUED, "somebody has claimed it"


async def test_what_cannot_be_read_is_told_and_looked_at_later(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    (job,) = await world.accepted()
    (key,) = world.events.stored
    world.events.due_at[key] = world.clock() + OVERDUE
    due, events_due = world.deliveries.due, world.events.due

    async def no_delivery(now: datetime, limit: int) -> Sequence[Delivery | Unreadable]:
        return [Unreadable(each.id, "no Channel", each.due_at) for each in await due(now, limit)]

    async def no_event(now: datetime, limit: int) -> Sequence[StoredEvent | Unreadable]:
        return [Unreadable(key, "no EventState", now) for _ in await events_due(now, limit)]

    monkeypatch.setattr(world.deliveries, "due", no_delivery)
    monkeypatch.setattr(world.events, "due", no_event)
    world.clock.advance(OVERDUE)
    told = [
        f"1 deliveries cannot be read: {job.delivery.id}: no Channel",
        f"1 events cannot be read: {key}: no EventState",
    ]
    assert (await world.sweep()).faults == told
    assert (await world.sweep()).idle
    assert world.events.stored[key].resumed == 0
    world.clock.advance(UNREADABLE_FOR)
    assert (await world.sweep()).faults == told


async def test_a_full_dead_letter_queue_does_not_stop_the_sweeper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("domain.sweep.TAKEN_WITHIN", timedelta(milliseconds=20))
    world = World()
    (job,) = await world.accepted()
    failed = world.deliveries.stored[job.delivery.id]
    change = Change(State.FAILED, world.clock(), Reason.TIMEOUT, 1, 1)
    failed = replace(failed.changed(change, None), tell_at=world.clock())
    world.deliveries.stored[failed.id] = failed
    park = world.queue.park
    monkeypatch.setattr(world.queue, "park", no_time)
    swept = await world.sweep()
    assert (swept.told, swept.faults) == (0, ["notipy.dead.email takes nothing: it is full"])
    assert (await world.sweep()).idle
    monkeypatch.setattr(world.queue, "park", park)
    world.clock.advance(OVERDUE)
    assert (await world.sweep()).told == 1
    assert len(world.queue.parked) == 1


async def test_what_the_sweeper_gives_up_is_parked_when_there_is_room() -> None:
    world = World()
    (job,) = await world.accepted()
    world.events.stored.clear()
    world.queue.full = True
    world.clock.advance(OVERDUE)
    swept = await world.sweep()
    assert (sum(swept.final.values()), list(swept.faults)) == (1, [])
    stored = world.deliveries.stored[job.delivery.id]
    assert (stored.state, stored.tell_at) == (State.FAILED, world.clock() + OVERDUE)
    assert world.queue.told[-1].state is State.FAILED, "whoever listens is told at once"
    world.queue.full = False
    world.clock.advance(OVERDUE)
    assert (await world.sweep()).told == 1
    assert [parked.delivery.id for parked, _, _ in world.queue.parked] == [job.delivery.id]


async def test_what_a_full_dead_letter_queue_does_not_take_is_tried_ever_more_seldom() -> None:
    world = World()
    (job,) = await world.accepted()
    world.events.stored.clear()
    world.queue.full = True
    rounds = 0
    for _ in range(12 * 24):
        world.clock.advance(OVERDUE)
        rounds += bool((await world.sweep()).faults)
    assert rounds < 24 * 1.5, "in a day, once an hour in the end"
    world.queue.full = False
    world.clock.advance(LONGEST_PATIENCE)
    assert (await world.sweep()).told == 1
    assert [parked.delivery.id for parked, _, _ in world.queue.parked] == [job.delivery.id]
