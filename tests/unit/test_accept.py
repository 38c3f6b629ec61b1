import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from domain.accept import Accepted, Duplicate, Rejected, Unmatched
from domain.delivery import Delivery
from domain.dispatch import INLINE_LIMIT
from domain.event import Incoming
from domain.operate import Refused
from domain.ports import StoredEvent
from domain.vocabulary import Channel, EventState, Reason, State
from tests.fakes import MemoryCatalog
from tests.unit.world import OVERDUE, SMALL, World, notification

KEY = "shop.order.shipped"


async def test_an_event_is_stored_planned_and_dispatched() -> None:
    world = World()
    verdict = await world.accept(Incoming(SMALL, KEY, "m-1"))
    assert isinstance(verdict, Accepted)
    (stored,) = world.events.stored.values()
    assert (stored.state, stored.planned, stored.plan) == (EventState.PLANNED, 1, (("shipped", 1),))
    assert not world.events.due_at
    (job,) = world.queue.dispatched
    assert world.deliveries.stored[job.delivery.id].due_at == world.clock() + OVERDUE


async def test_the_same_event_again_changes_nothing() -> None:
    world = World()
    await world.accept(Incoming(SMALL, KEY, "m-1"))
    other = json.dumps({"recipients": [{"email": "eve@example.org"}]}).encode()
    assert isinstance(await world.accept(Incoming(other, KEY, "m-1")), Duplicate)
    assert len(world.deliveries.stored) == len(world.queue.dispatched) == 1


async def test_a_redelivered_event_whose_planning_was_cut_short_is_completed_as_it_was_planned() -> None:
    world = World()
    await world.accept(Incoming(SMALL, KEY, "m-1"))
    (stored,) = world.events.stored.values()
    await world.events.settle(stored.key, EventState.ACCEPTED, 0)
    world.deliveries.stored.clear()
    # the catalog has changed meanwhile: the pinned version is used all the same
    world.catalog.notifications.append(notification(name="another"))
    verdict = await world.accept(Incoming(SMALL, KEY, "m-1", redelivered=True))
    assert isinstance(verdict, Accepted)
    assert [delivery.notification for delivery in world.deliveries.stored.values()] == ["shipped"]


async def test_a_delivery_is_created_when_its_event_was_received_and_due_from_when_it_is_planned() -> None:
    world = World()
    received = world.clock()
    await world.accept(Incoming(SMALL, KEY, "m-1"))
    (stored,) = world.events.stored.values()
    await world.events.settle(stored.key, EventState.ACCEPTED, 0)
    (before,) = world.deliveries.stored.values()
    world.deliveries.stored.clear()
    world.clock.advance(timedelta(days=1))
    await world.accept(Incoming(SMALL, KEY, "m-1", redelivered=True))
    (after,) = world.deliveries.stored.values()
    assert before.created_at == after.created_at == stored.received_at == received
    assert after.updated_at == world.clock()
    assert after.due_at == world.clock() + OVERDUE


async def test_completing_an_event_starts_what_has_not_moved_and_nothing_else() -> None:
    world = World()
    body = b'{"recipients": [{"email": "ana@example.org"}, {"email": "ben@example.org"}], "data": {}}'
    await world.accept(Incoming(body, KEY, "m-1"))
    first, second = world.queue.dispatched
    assert not isinstance(await world.operate.cancel(first.delivery.id), Refused)
    (stored,) = world.events.stored.values()
    await world.events.settle(stored.key, EventState.ACCEPTED, 0)
    world.deliveries.attempts.clear()  # long ago: its claim is not kept any more
    world.queue.dispatched.clear()
    verdict = await world.accept(Incoming(body, KEY, "m-1", redelivered=True))
    assert isinstance(verdict, Accepted)
    assert verdict.planned == 2
    assert [job.delivery.id for job in world.queue.dispatched] == [second.delivery.id]
    assert world.deliveries.stored[first.delivery.id].state is State.CANCELLED


async def test_an_event_that_was_lost_with_its_primary_is_stored_again() -> None:
    world = World()
    settle = world.events.settle

    async def failover(key: str, state: EventState, planned: int) -> bool:
        world.events.settle = settle  # type: ignore[method-assign]
        world.events.stored.clear()
        return await settle(key, state, planned)

    world.events.settle = failover  # type: ignore[method-assign]
    assert isinstance(await world.accept(Incoming(SMALL, KEY, "m-1")), Accepted)
    (stored,) = world.events.stored.values()
    assert (stored.state, stored.planned, stored.body) == (EventState.PLANNED, 1, SMALL)
    assert not world.events.due_at
    assert isinstance(await world.accept(Incoming(SMALL, KEY, "m-1")), Duplicate)
    assert len(world.queue.dispatched) == 1


async def test_a_duplicate_of_an_event_that_was_lost_meanwhile_takes_its_place() -> None:
    world = World()
    await world.accept(Incoming(SMALL, KEY, "m-1"))
    get = world.events.get

    async def failover(key: str) -> StoredEvent | None:
        world.events.stored.pop(key, None)
        return await get(key)

    world.events.get = failover  # type: ignore[method-assign]
    assert isinstance(await world.accept(Incoming(SMALL, KEY, "m-1")), Accepted)
    (stored,) = world.events.stored.values()
    assert stored.state is EventState.PLANNED


@pytest.mark.parametrize(("size", "durable"), [(10, False), (INLINE_LIMIT, True)])
async def test_an_event_that_its_deliveries_have_to_read_is_durable_before_they_are_planned(
    size: int, durable: bool
) -> None:
    world, asked = World(), []
    add = world.events.add

    async def told(
        event: StoredEvent, due_at: datetime, deliveries: Sequence[Delivery] = (), *, durable: bool = True
    ) -> bool:
        asked.append(durable)
        return await add(event, due_at, deliveries, durable=durable)

    world.events.add = told  # type: ignore[method-assign]
    body = {"recipients": [{"email": "ana@example.org"}], "data": {"order_id": "x" * size}}
    await world.accept(Incoming(json.dumps(body).encode(), KEY, "m-1"))
    assert asked == [durable]


async def test_an_event_that_nobody_is_told_of_is_kept() -> None:
    world = World(catalog=MemoryCatalog())
    assert isinstance(await world.accept(Incoming(SMALL, KEY, "m-1")), Unmatched)
    (stored,) = world.events.stored.values()
    assert stored.state is EventState.UNMATCHED


async def test_an_unusable_message_is_parked_with_its_faults() -> None:
    world = World()
    verdict = await world.accept(Incoming(b"{}", KEY, "m-1"))
    assert isinstance(verdict, Rejected)
    ((_, reason, faults),) = world.queue.rejected
    assert reason is Reason.INVALID
    assert faults[0].field == "recipients"
    assert not world.events.stored


@pytest.mark.parametrize(
    ("change", "state", "reason"),
    [
        ({"recipients": [{"phone": "+4915112345678"}]}, State.SUPPRESSED, Reason.NO_ADDRESS),
        ({"expires_at": "2020-01-01T00:00:00Z"}, State.EXPIRED, Reason.EXPIRED),
        ({"send_at": "2026-11-22T18:00:00Z"}, State.HELD, Reason.SCHEDULED),
        ({"send_at": "2020-01-01T00:00:00Z"}, State.QUEUED, Reason.PLANNED),
        ({"content": {"email": {"subject": "s"}}}, State.FAILED, Reason.TEMPLATE_ERROR),
        ({"recipients": [{"chat": "#ops"}], "content": {"chat": {"text": "t"}}}, State.FAILED, Reason.NOT_CONFIGURED),
    ],
)
async def test_how_a_delivery_starts(change: dict[str, object], state: State, reason: Reason) -> None:
    world = World()
    body = json.dumps(json.loads(SMALL) | change).encode()
    await world.accept(Incoming(body, KEY, "m-1"))
    (delivery,) = world.deliveries.stored.values()
    assert (delivery.state, delivery.reason) == (state, reason)
    assert (delivery.due_at is None) == state.final
    assert (delivery.send_at is not None) == (reason is Reason.SCHEDULED)
    assert bool(world.queue.parked) == (state is State.FAILED)


async def test_required_data_that_is_missing_is_named() -> None:
    world = World(catalog=MemoryCatalog([notification(required=["order_id", "carrier"])]))
    await world.accept(Incoming(SMALL, KEY, "m-1"))
    (delivery,) = world.deliveries.stored.values()
    assert (delivery.reason, delivery.detail) == (Reason.DATA_INVALID, "data lacks carrier")


async def test_a_bad_recipient_fails_alone() -> None:
    world = World()
    body = json.dumps({"recipients": [{"email": "ana@example.org"}, {"email": "nowhere"}]}).encode()
    await world.accept(Incoming(body, KEY, "m-1"))
    found = {delivery.state: delivery for delivery in world.deliveries.stored.values()}
    assert set(found) == {State.QUEUED, State.FAILED}
    assert found[State.FAILED].reason is Reason.BAD_ADDRESS
    assert len(world.queue.parked) == 1


@pytest.mark.parametrize(
    ("recipient", "expected"),
    [
        (
            {"email": "nowhere"},
            {Channel.EMAIL: (State.FAILED, Reason.BAD_ADDRESS), Channel.SMS: (State.SUPPRESSED, Reason.NO_ADDRESS)},
        ),
        (
            {"email": "nowhere", "nmae": "Ana"},
            {Channel.EMAIL: (State.FAILED, Reason.BAD_ADDRESS), Channel.SMS: (State.FAILED, Reason.BAD_ADDRESS)},
        ),
    ],
    ids=["a bad address", "a field that is none"],
)
async def test_a_bad_address_fails_its_own_channel_and_any_other_fault_all_of_them(
    recipient: dict[str, str], expected: dict[Channel, tuple[State, Reason]]
) -> None:
    words = {"email": {"subject": "s", "text": "t"}, "sms": {"text": "t"}}
    world = World(catalog=MemoryCatalog([notification(channels=words)]))
    body = json.dumps({"recipients": [{"email": "ana@example.org", "phone": "+4915112345678"}, recipient]}).encode()
    await world.accept(Incoming(body, KEY, "m-1"))
    bad = [delivery for delivery in world.deliveries.stored.values() if not delivery.recipient]
    assert {delivery.channel: (delivery.state, delivery.reason) for delivery in bad} == expected


async def test_a_recipient_named_twice_is_told_once() -> None:
    world = World()
    body = json.dumps({"recipients": [{"email": "ana@example.org"}] * 3}).encode()
    await world.accept(Incoming(body, KEY, "m-1"))
    assert len(world.deliveries.stored) == 1


async def test_ten_thousand_recipients_are_planned_in_batches() -> None:
    world = World()
    people = [{"email": f"user{number}@example.org"} for number in range(10_000)]
    await world.accept(Incoming(json.dumps({"recipients": people}).encode(), KEY, "m-1"))
    assert len(world.deliveries.stored) == len(world.queue.dispatched) == 10_000
    # its recipients make it large, not its data, which travels with each delivery
    assert world.queue.dispatched[0].event is not None


async def test_large_data_does_not_travel_but_is_read_once() -> None:
    world = World()
    people = [{"email": f"user{number}@example.org"} for number in range(50)]
    body = json.dumps({"recipients": people, "data": {"order_id": 1, "text": "x" * 20_000}}).encode()
    await world.accept(Incoming(body, KEY, "m-1"))
    reads: list[str] = []
    real = world.events.get

    async def counted(key: str) -> StoredEvent | None:
        reads.append(key)
        return await real(key)

    world.events.get = counted  # type: ignore[method-assign]
    deliver = world.deliver
    await asyncio.gather(*(deliver(job) for job in world.queue.dispatched))
    assert len(world.provider.sent) == 50
    assert len(reads) == 1


async def test_a_definitions_expiry_counts_from_the_events_time() -> None:
    world = World(catalog=MemoryCatalog([notification(expires_after="15m", lane="high")]))
    await world.accept(Incoming(SMALL, KEY, "m-1", timestamp=world.clock() - timedelta(minutes=5)))
    (delivery,) = world.deliveries.stored.values()
    assert delivery.expires_at == world.clock() + timedelta(minutes=10)
    assert delivery.lane == "high"


async def test_an_event_that_was_given_up_is_planned_when_it_is_published_again() -> None:
    world = World()
    await world.accepted()
    (key,) = world.events.stored
    world.deliveries.stored.clear()
    world.events.stored[key] = replace(world.events.stored[key], state=EventState.FAILED, planned=0)
    (job,) = await world.accepted()
    assert job.delivery.state is State.QUEUED
    assert (world.events.stored[key].state, world.events.stored[key].planned) == (EventState.PLANNED, 1)


async def test_what_fails_as_it_is_planned_and_finds_no_room_is_parked_by_the_sweeper() -> None:
    world = World()
    world.queue.full = True
    nobody = json.dumps({"recipients": [{"email": "nobody"}, {"email": "ana@example.org"}]}).encode()
    verdict = await world.accept(Incoming(nobody, KEY, "m-1"))
    assert isinstance(verdict, Accepted)
    assert not world.events.due_at, "the event waits for neither queue"
    found = {delivery.state: delivery for delivery in world.deliveries.stored.values()}
    assert found[State.QUEUED].due_at == world.clock() + OVERDUE
    assert found[State.FAILED].tell_at == world.clock() + 2 * OVERDUE, "after its event would be taken up again"
    world.queue.full = False
    world.clock.advance(2 * OVERDUE)
    await world.sweep()
    ((parked, reason, _),) = world.queue.parked
    assert (parked.delivery.id, reason) == (found[State.FAILED].id, Reason.BAD_ADDRESS)
    assert world.deliveries.stored[parked.delivery.id].tell_at is None


async def test_what_fails_as_it_is_planned_and_is_parked_is_told_no_more() -> None:
    world = World()
    unreadable = {"recipients": [{"email": "ana@example.org"}], "content": {"email": {"subject": "s"}}}
    await world.accept(Incoming(json.dumps(unreadable).encode(), KEY, "m-1"))
    (stored,) = world.deliveries.stored.values()
    assert (stored.state, stored.tell_at, len(world.queue.parked)) == (State.FAILED, None, 1)


async def test_what_was_not_parked_when_its_process_ended_is_parked_once() -> None:
    world = World()
    unreadable = {"recipients": [{"email": "ana@example.org"}], "content": {"email": {"subject": "s"}}}
    park = world.queue.park
    world.queue.park = None  # type: ignore[method-assign, assignment]
    with pytest.raises(TypeError):
        await world.accept(Incoming(json.dumps(unreadable).encode(), KEY, "m-1"))
    world.queue.park = park  # type: ignore[method-assign]
    for _ in range(5):
        world.clock.advance(OVERDUE)
        await world.sweep()
    assert len(world.queue.parked) == 1
    (stored,) = world.deliveries.stored.values()
    assert stored.tell_at is None


PLANNED_SO = {
    "data": ({"recipients": [{"email": "ana@example.org"}]}, Reason.DATA_INVALID, "its event's data"),
    "address": ({"recipients": [{"email": "ana@example.org"}, {"email": "x"}]}, Reason.BAD_ADDRESS, "no address"),
    "attachments": (
        {
            "recipients": [{"email": "ana@example.org"}],
            "content": {"email": {"subject": "s", "text": "t", "attachments": 1}},
        },
        Reason.ATTACHMENT_REJECTED,
        "attachments",
    ),
    "a field of its content": (
        {"recipients": [{"email": "ana@example.org"}], "content": {"email": {"subject": "s", "text": "t", "bdy": "z"}}},
        Reason.TEMPLATE_ERROR,
        "its event's own content",
    ),
}


@pytest.mark.parametrize(("body", "reason", "why"), PLANNED_SO.values(), ids=PLANNED_SO)
async def test_what_the_event_itself_rules_out_is_not_replayed(body: dict[str, Any], reason: Reason, why: str) -> None:
    """It would be sent without what planning has asked for, or fail for another reason."""
    world = World()
    if reason is Reason.DATA_INVALID:
        world.catalog.notifications = [notification(required=["order_id"])]
    await world.accept(Incoming(json.dumps(body).encode(), KEY, "m-1"))
    (failed,) = [each for each in world.deliveries.stored.values() if each.state is State.FAILED]
    assert failed.reason is reason
    refused = await world.operate.replay(failed)
    assert isinstance(refused, Refused)
    assert why in refused.why
    assert "another id" in refused.why


async def test_an_event_that_is_wrong_in_itself_is_told_so_though_its_channel_is_not_configured() -> None:
    world = World()
    world.catalog.notifications = [notification(required=["weight"])]
    accept = replace(world.accept, planner=replace(world.accept.planner, configured=frozenset()))
    await accept(Incoming(SMALL, KEY, "m-1"))
    (failed,) = world.deliveries.stored.values()
    assert failed.reason is Reason.DATA_INVALID
