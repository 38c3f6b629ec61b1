"""Events that met no notification, planned when there is one."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import pytest

from domain.accept import Duplicate, Unmatched
from domain.audit import hour_of
from domain.event import Incoming
from domain.operate import Refused
from domain.ports import StoredEvent
from domain.unmatched import PlanAgain
from domain.vocabulary import EventState, State
from tests.fakes import MemoryCatalog
from tests.unit.world import SMALL, World, notification

KEY = "shop.order.shipped"


def plan_again(world: World, hours: list[datetime] | None = None) -> PlanAgain:
    audited_anew = [] if hours is None else hours

    async def audit_anew(found: Sequence[datetime]) -> None:
        audited_anew.extend(found)

    return PlanAgain(world.events, world.catalog, audit_anew, world.clock)


async def unmatched(world: World, **more: Any) -> StoredEvent:
    """An event that came while there was no notification; there is one an hour later."""
    notifications, world.catalog.notifications = world.catalog.notifications, []
    body = json.dumps(json.loads(SMALL) | more).encode()
    assert isinstance(await world.accept(Incoming(body, KEY, "m-1")), Unmatched)
    world.catalog.notifications = notifications
    world.clock.advance(timedelta(hours=1))
    (stored,) = world.events.stored.values()
    return stored


async def test_a_replayed_event_is_planned_by_the_sweeper_with_what_is_in_force_then() -> None:
    world = World()
    event = await unmatched(world)
    after = await plan_again(world).replay(event.key)
    assert isinstance(after, StoredEvent)
    assert world.events.stored[event.key] == after
    assert (after.state, after.plan, after.resumed) == (EventState.ACCEPTED, (("shipped", 1),), 0)
    assert world.events.due_at[event.key] == world.clock()
    assert not world.deliveries.stored
    world.catalog.notifications.append(notification(name="another"))
    assert (await world.sweep()).events == 1
    (delivery,) = world.deliveries.stored.values()
    assert (delivery.notification, delivery.state) == ("shipped", State.QUEUED)
    assert [job.delivery.id for job in world.queue.dispatched] == [delivery.id]
    assert world.events.stored[event.key].state is EventState.PLANNED


async def test_of_two_operators_one_replays_it_and_what_comes_again_is_a_duplicate() -> None:
    world = World()
    event = await unmatched(world)
    first, second = plan_again(world), plan_again(world)
    world.events.stored[event.key], seen = event, await second.replayable(event.key)
    assert isinstance(seen, StoredEvent)
    assert isinstance(await first.replay(event.key), StoredEvent)
    assert not await world.events.reopen(seen, world.clock())
    assert await second.replay(event.key) == Refused("it is accepted: its deliveries are being planned")
    await world.sweep()
    assert isinstance(await world.accept(Incoming(SMALL, KEY, "m-1")), Duplicate)
    assert len(world.queue.dispatched) == 1


async def test_who_comes_second_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    event = await unmatched(world)

    async def lost(*_: object) -> bool:
        return False

    monkeypatch.setattr(world.events, "reopen", lost)
    assert await plan_again(world).replay(event.key) == Refused("somebody else has just replayed it")


async def test_the_hour_of_an_event_that_is_replayed_is_audited_anew() -> None:
    world, hours = World(), list[datetime]()
    event = await unmatched(world)
    await plan_again(world, hours).replay(event.key)
    assert hours == [hour_of(event.received_at)]
    await plan_again(world, hours).replay(event.key)
    assert len(hours) == 1


async def test_looking_changes_nothing() -> None:
    world, hours = World(), list[datetime]()
    event = await unmatched(world)
    looked = await plan_again(world, hours).replayable(event.key)
    assert hours == []
    assert isinstance(looked, StoredEvent)
    assert looked.plan == (("shipped", 1),)
    assert world.events.stored[event.key] == event
    assert not world.events.due_at


@pytest.mark.parametrize(
    ("state", "why"),
    [
        (EventState.ACCEPTED, "it is accepted: its deliveries are being planned"),
        (EventState.PLANNED, "it is planned: replay its deliveries, with `notipy dead replay`"),
        (EventState.FAILED, "it is failed: publish it again, with `notipy dead replay --channel events`"),
    ],
)
async def test_an_event_of_another_state_is_refused(state: EventState, why: str) -> None:
    world = World()
    event = await unmatched(world)
    await world.events.settle(event.key, state, 0)
    refused = await plan_again(world).replay(event.key)
    assert isinstance(refused, Refused)
    assert refused.why.startswith(why)
    assert world.events.stored[event.key].state is state
    assert not world.events.due_at


async def test_a_failed_event_that_is_published_again_is_planned_as_the_refusal_says() -> None:
    world = World()
    await world.accept(Incoming(SMALL, KEY, "m-1"))
    (event,) = world.events.stored.values()
    await world.events.settle(event.key, EventState.FAILED, 0)
    world.deliveries.stored.clear()
    await world.accept(Incoming(SMALL, KEY, "m-1"))
    assert world.events.stored[event.key].state is EventState.PLANNED
    assert len(world.deliveries.stored) == 1


@pytest.mark.parametrize(
    ("catalog", "more", "why"),
    [
        ([], {}, "no notification is on shop.order.shipped: `notipy apply` defines one"),
        ([notification(on="shop.cart")], {}, "no notification is on shop.order.shipped: `notipy apply` defines one"),
        ([notification()], {"channels": ["sms"]}, "none of the channels that it names is one of its content"),
    ],
    ids=["none", "another", "channels"],
)
async def test_an_event_of_which_nobody_would_be_told_is_refused(
    catalog: list[Any], more: Mapping[str, Any], why: str
) -> None:
    world = World(catalog=MemoryCatalog(catalog))
    event = await unmatched(world, **more)
    assert await plan_again(world).replay(event.key) == Refused(why)
    assert world.events.stored[event.key] == event


async def test_an_event_that_retention_has_deleted_is_refused() -> None:
    assert await plan_again(World()).replay("nobody's") == Refused("it is no longer stored")


async def test_an_event_whose_time_is_over_ends_expired() -> None:
    world = World()
    event = await unmatched(world, expires_at=(world.clock() + timedelta(minutes=30)).isoformat())
    assert isinstance(await plan_again(world).replay(event.key), StoredEvent)
    await world.sweep()
    (delivery,) = world.deliveries.stored.values()
    assert delivery.state is State.EXPIRED
    assert not world.queue.dispatched
