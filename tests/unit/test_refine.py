"""What a receipt does to a delivery and to its address, in whatever order receipts come."""

from dataclasses import replace
from datetime import timedelta
from itertools import permutations
from typing import Any

import pytest

from domain.delivery import Delivery
from domain.failures import TransientFailure, UnknownOutcome
from domain.message import Accepted
from domain.receipt import Ignored, NotYet, Receipt, Refined, Status, Unmatched, Verdict
from domain.suppression import keys_of
from domain.vocabulary import Channel, Reason, Semantics, State, SuppressionReason
from tests.unit.world import LEASE, OVERDUE, World

NOBODY = "00000000-0000-5000-8000-000000000000"


async def sent(world: World, reference: str | None = None, message_id: str = "m-1") -> Delivery:
    world.provider.script = [Accepted("250 ok", reference)]
    (job,) = await world.accepted(message_id=message_id)
    await world.deliver(job)
    return world.deliveries.stored[job.delivery.id]


def receipt(delivery: Delivery, status: Status, **more: Any) -> Receipt:
    return Receipt(delivery=delivery.id, status=status, **more)


def now_of(world: World, delivery: Delivery) -> Delivery:
    return world.deliveries.stored[delivery.id]


def suppressed(world: World) -> list[SuppressionReason]:
    return [entry.reason for entry in world.suppressions.stored.values()]


@pytest.mark.parametrize(
    ("status", "state", "reason", "suppression"),
    [
        (Status.DELIVERED, State.DELIVERED, Reason.DELIVERED, None),
        (Status.BOUNCED, State.BOUNCED, Reason.HARD_BOUNCE, SuppressionReason.HARD_BOUNCE),
        (Status.SOFT_BOUNCED, State.BOUNCED, Reason.SOFT_BOUNCE, None),
        (Status.FAILED, State.BOUNCED, Reason.NOT_DELIVERED, None),
        (Status.COMPLAINED, State.DELIVERED, Reason.COMPLAINED, SuppressionReason.COMPLAINT),
        (Status.UNSUBSCRIBED, State.DELIVERED, Reason.UNSUBSCRIBED, SuppressionReason.UNSUBSCRIBED),
    ],
)
async def test_a_receipt_refines_what_was_sent(
    status: Status, state: State, reason: Reason, suppression: SuppressionReason | None
) -> None:
    world = World()
    before = await sent(world)
    world.clock.advance(timedelta(seconds=9))
    verdict = await world.refine(receipt(before, status, code="5.1.1", detail="no such user"))
    assert isinstance(verdict, Refined)
    after = now_of(world, before)
    assert (after.state, after.reason, after.updated_at) == (state, reason, world.clock())
    assert (after.attempt, after.provider, after.detail) == (1, "scripted", "5.1.1 no such user")
    assert [change.state for change in after.history[-2:]] == [State.SENT, state]
    assert world.queue.told[-1] == after.history[-1]
    assert after.history[-1].address_suppressed is (suppression is not None)
    assert suppressed(world) == ([suppression] if suppression else [])


async def test_progress_changes_nothing() -> None:
    world = World()
    before = await sent(world)
    assert await world.refine(receipt(before, Status.PROGRESS)) == Ignored("progress")
    assert now_of(world, before) == before


async def test_a_receipt_finds_its_delivery_by_the_providers_reference() -> None:
    world = World()
    before = await sent(world, "<SM1@provider.example>")
    assert before.reference == "SM1@provider.example"
    found = Receipt(provider="twilio", reference="<SM1@provider.example>", status=Status.DELIVERED)
    assert isinstance(await world.refine(found), Refined)
    assert now_of(world, before).state is State.DELIVERED


async def test_a_reference_that_names_the_delivery_is_not_stored() -> None:
    world = World()
    (job,) = await world.accepted()
    world.provider.script = [Accepted("250 ok", job.delivery.ref)]
    await world.deliver(job)
    assert now_of(world, job.delivery).reference is None
    found = Receipt(provider="smtp", reference=job.delivery.ref, status=Status.DELIVERED)
    assert isinstance(await world.refine(found), Refined)


async def test_a_receipt_that_comes_twice_does_what_it_does_once() -> None:
    world = World()
    before = await sent(world)
    await world.refine(receipt(before, Status.BOUNCED))
    once = now_of(world, before)
    told = len(world.queue.told)
    world.suppressions.stored.clear()  # by an operator, who knows better
    assert await world.refine(receipt(before, Status.BOUNCED)) == Ignored("repeated")
    assert now_of(world, before) == once
    assert (len(world.queue.told), suppressed(world)) == (told, [])


async def test_one_that_is_handed_out_again_tells_of_it_again() -> None:
    world = World()
    before = await sent(world)
    await world.refine(receipt(before, Status.DELIVERED))
    assert await world.refine(receipt(before, Status.DELIVERED), redelivered=True) == Ignored("repeated")
    assert [change.state for change in world.queue.told].count(State.DELIVERED) == 2


@pytest.mark.parametrize("order", list(permutations([Status.DELIVERED, Status.BOUNCED, Status.COMPLAINED])))
async def test_bounced_wins_in_any_order_and_the_rest_is_noted(order: tuple[Status, ...]) -> None:
    world = World()
    before = await sent(world)
    for status in (*order, *order):
        await world.refine(receipt(before, status))
    after = now_of(world, before)
    assert (after.state, after.reason) == (State.BOUNCED, Reason.HARD_BOUNCE)
    noted = [change.reason for change in after.history]
    assert noted.count(Reason.HARD_BOUNCE) == noted.count(Reason.COMPLAINED) == 1
    assert noted.count(Reason.DELIVERED) <= 1
    assert after.last_change.reason is Reason.HARD_BOUNCE
    assert len(suppressed(world)) == 1


async def test_a_complaint_after_the_delivery_is_noted_and_told() -> None:
    world = World()
    before = await sent(world)
    await world.refine(receipt(before, Status.DELIVERED))
    verdict = await world.refine(receipt(before, Status.COMPLAINED))
    assert isinstance(verdict, Refined)
    assert verdict.noted
    assert now_of(world, before).state is State.DELIVERED
    assert (world.queue.told[-1].reason, world.queue.told[-1].address_suppressed) == (Reason.COMPLAINED, True)
    assert suppressed(world) == [SuppressionReason.COMPLAINT]


async def test_a_receipt_before_its_sending_is_on_record_has_to_wait() -> None:
    world = World()
    (job,) = await world.accepted()
    early = await world.refine(receipt(job.delivery, Status.BOUNCED))
    assert isinstance(early, NotYet)
    assert early.reason is Reason.NOT_SENT
    unknown = await world.refine(Receipt(provider="twilio", reference="SM1", status=Status.DELIVERED))
    assert isinstance(unknown, NotYet)
    assert unknown.reason is Reason.UNKNOWN_DELIVERY


@pytest.mark.parametrize(
    ("status", "more", "expected"),
    [
        (Status.BOUNCED, {}, [SuppressionReason.HARD_BOUNCE]),
        (Status.COMPLAINED, {}, [SuppressionReason.COMPLAINT]),
        (Status.COMPLAINED, {"recipient": "boss@example.org"}, []),
        (Status.SOFT_BOUNCED, {}, []),
    ],
)
async def test_its_address_is_suppressed_while_it_waits(
    status: Status, more: dict[str, str], expected: list[SuppressionReason]
) -> None:
    world = World()
    (job,) = await world.accepted()
    for _ in range(2):
        assert isinstance(await world.refine(receipt(job.delivery, status, **more)), NotYet)
        assert suppressed(world) == expected
    assert now_of(world, job.delivery) == job.delivery


@pytest.mark.parametrize("about", [NOBODY, f"{NOBODY}/1", "order-1042"])
async def test_a_receipt_of_no_delivery_is_of_no_use(about: str) -> None:
    verdict = await World().refine(Receipt(delivery=about, status=Status.DELIVERED))
    assert isinstance(verdict, Unmatched)
    assert verdict.reason is Reason.UNKNOWN_DELIVERY


async def test_what_nobody_knew_the_end_of_was_delivered_after_all() -> None:
    world = World(semantics=Semantics.AT_MOST_ONCE)
    world.provider.script = [UnknownOutcome(Reason.CONNECTION_LOST, "gone")]
    (job,) = await world.accepted()
    await world.deliver(job)
    assert now_of(world, job.delivery).state is State.UNKNOWN
    await world.refine(receipt(job.delivery, Status.DELIVERED))
    assert now_of(world, job.delivery).state is State.DELIVERED


async def test_a_failed_delivery_that_had_arrived_is_not_to_be_replayed() -> None:
    world = World()
    (job,) = await world.accepted()
    failed = await world.operate.poisoned(job.delivery.id)
    assert isinstance(failed, Delivery)
    noted = await world.refine(receipt(failed, Status.FAILED))
    assert isinstance(noted, Refined)
    assert noted.noted
    assert now_of(world, failed).state is State.FAILED
    await world.refine(receipt(failed, Status.DELIVERED))
    assert now_of(world, failed).state is State.DELIVERED


async def test_a_receipt_of_an_epoch_before_is_noted_alone() -> None:
    world = World(semantics=Semantics.AT_MOST_ONCE)
    world.provider.script = [UnknownOutcome(Reason.CONNECTION_LOST, "gone")]
    (job,) = await world.accepted()
    await world.deliver(job)
    again = await world.operate.replay(now_of(world, job.delivery))
    assert isinstance(again, Delivery)
    await world.deliver(world.queue.dispatched[-1])
    verdict = await world.refine(Receipt(delivery=f"{again.id}/1", status=Status.BOUNCED))
    assert isinstance(verdict, Refined)
    assert verdict.noted
    after = now_of(world, again)
    assert (after.state, after.epoch) == (State.SENT, 2)
    assert (after.history[-1].reason, after.history[-1].epoch) == (Reason.HARD_BOUNCE, 1)
    assert suppressed(world) == [SuppressionReason.HARD_BOUNCE]


async def test_a_receipt_of_a_copys_address_changes_nothing() -> None:
    world = World()
    before = await sent(world)
    of_a_copy = receipt(before, Status.BOUNCED, recipient="boss@example.org")
    assert await world.refine(of_a_copy) == Ignored("other_recipient")
    assert (now_of(world, before), suppressed(world)) == (before, [])
    own = receipt(before, Status.BOUNCED, recipient="ANA@Example.ORG")
    assert isinstance(await world.refine(own), Refined)


async def soft_bounces(world: World, number: int, first: int = 0) -> list[Verdict]:
    verdicts = []
    for count in range(first, first + number):
        delivery = await sent(world, message_id=f"m-{count}")
        verdicts.append(await world.refine(receipt(delivery, Status.SOFT_BOUNCED)))
        await world.refine(receipt(delivery, Status.SOFT_BOUNCED))  # told twice, counted once
    return verdicts


async def test_five_soft_bounces_suppress_the_address() -> None:
    world = World()
    assert all(isinstance(verdict, Refined) and verdict.suppressed is None for verdict in await soft_bounces(world, 4))
    assert suppressed(world) == []
    (last,) = await soft_bounces(world, 1, first=4)
    assert isinstance(last, Refined)
    assert last.suppressed is SuppressionReason.SOFT_BOUNCES
    assert last.change.address_suppressed


async def test_soft_bounces_are_counted_anew_after_something_was_delivered() -> None:
    world = World()
    await soft_bounces(world, 4)
    delivered = await sent(world, message_id="between")
    await world.refine(receipt(delivered, Status.DELIVERED))
    await soft_bounces(world, 4, first=4)
    assert suppressed(world) == []
    assert max(len(refs) for refs in world.suppressions.bounced.values()) == 4


async def test_of_two_receipts_at_once_neither_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    before = await sent(world)
    refine = world.deliveries.refine
    crossed = [receipt(before, Status.DELIVERED)]

    async def crossing(*arguments: Any) -> bool:
        if crossed:
            await world.refine(crossed.pop())
        return await refine(*arguments)

    monkeypatch.setattr(world.deliveries, "refine", crossing)
    assert isinstance(await world.refine(receipt(before, Status.BOUNCED)), Refined)
    after = now_of(world, before)
    assert [change.state for change in after.history[-2:]] == [State.DELIVERED, State.BOUNCED]


async def test_an_address_is_suppressed_before_the_change_is_on_record(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    before = await sent(world)

    async def down(*_: Any) -> bool:
        raise ConnectionError

    monkeypatch.setattr(world.deliveries, "refine", down)
    with pytest.raises(ConnectionError):
        await world.refine(receipt(before, Status.BOUNCED))
    assert list(world.suppressions.stored) == list(keys_of(before))


async def test_a_reference_goes_with_its_epoch() -> None:
    world = World()
    before = await sent(world, "SM1")
    assert before.changed(before.last_change, None).reference == "SM1"
    world.provider.script = [TransientFailure(Reason.TIMEOUT, "slow")]
    (job,) = await world.accepted(message_id="m-2")
    await world.deliver(job)
    assert now_of(world, job.delivery).reference is None


async def test_a_receipt_of_another_reference_than_this_epochs_is_noted_alone() -> None:
    world = World(semantics=Semantics.AT_MOST_ONCE)
    world.provider.script = [UnknownOutcome(Reason.CONNECTION_LOST, "gone"), Accepted("250 ok", "B")]
    (job,) = await world.accepted()
    await world.deliver(job)
    await world.operate.replay(now_of(world, job.delivery))
    await world.deliver(world.queue.dispatched[-1])
    of_before = await world.refine(receipt(job.delivery, Status.DELIVERED, reference="<A>"))
    assert isinstance(of_before, Refined)
    assert (of_before.noted, of_before.change.epoch) == (True, 1)
    assert now_of(world, job.delivery).state is State.SENT
    own = await world.refine(receipt(job.delivery, Status.DELIVERED, reference="<B>"))
    assert isinstance(own, Refined)
    assert now_of(world, job.delivery).state is State.DELIVERED


@pytest.mark.parametrize("form", ["{}/3", "{}.3", "{}_3"])
def test_an_epoch_goes_with_the_delivery(form: str) -> None:
    assert Receipt(delivery=form.format(NOBODY), status=Status.DELIVERED).about == (NOBODY, 3)


@pytest.mark.parametrize(
    ("address", "own"),
    [("4915112345678", True), ("+49 151 12345678", True), ("4915112345679", False), ("SHOP", False)],
)
async def test_a_number_is_the_deliverys_however_it_is_written(address: str, own: bool) -> None:
    world = World()
    (job,) = await world.accepted()
    await world.deliver(job)
    over_sms = replace(now_of(world, job.delivery), channel=Channel.SMS, recipient={"phone": "+4915112345678"})
    world.deliveries.stored[over_sms.id] = over_sms
    verdict = await world.refine(receipt(over_sms, Status.DELIVERED, recipient=address))
    assert isinstance(verdict, Refined if own else Ignored)


async def test_the_reference_of_a_late_answer_finds_its_delivery() -> None:
    world = World(semantics=Semantics.AT_MOST_ONCE)
    (job,) = await world.accepted()

    async def slow(*_: Any) -> Accepted:
        world.clock.advance(OVERDUE + LEASE)
        await world.sweep()
        return Accepted("250 ok", "SM1")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world.provider, "send", slow)
        await world.deliver(job)
    assert now_of(world, job.delivery).state is State.UNKNOWN
    found = Receipt(provider="scripted", reference="SM1", status=Status.DELIVERED)
    assert isinstance(await world.refine(found), Refined)
    assert now_of(world, job.delivery).state is State.DELIVERED
