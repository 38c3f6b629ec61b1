"""Which addresses are the same, and where a suppressed one stops a delivery."""

from dataclasses import replace
from datetime import timedelta
from typing import Any
from unittest.mock import AsyncMock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels.push import target
from consumers.metrics import Metrics
from domain.deliver import Late, Result, Settled
from domain.delivery import Delivery
from domain.dispatch import Dispatch
from domain.failures import PermanentFailure, TransientFailure
from domain.message import Accepted, Message
from domain.operate import Refused
from domain.suppression import Suppression, address_key, addresses_of, normalised
from domain.vocabulary import Channel, Reason, State, SuppressionReason
from tests.fakes import START, MemoryCatalog, MemorySuppressions
from tests.unit.world import LEASE, World, notification

ANA = "ana@example.org"


def suppression(address: str = ANA, channel: Channel = Channel.EMAIL, **more: Any) -> Suppression:
    values = {"reason": SuppressionReason.HARD_BOUNCE, "source": "receipt:ses", "since": START}
    return Suppression(channel, address, **{**values, **more})


@pytest.mark.parametrize(
    ("channel", "one", "other", "same"),
    [
        (Channel.EMAIL, "Ana@Example.ORG", "ana@example.org", True),
        (Channel.EMAIL, " ana@example.org ", "ana@example.org", True),
        (Channel.EMAIL, "ana@münchen.example", "ana@xn--mnchen-3ya.example", True),
        (Channel.EMAIL, "ana+1@example.org", "ana@example.org", False),
        (Channel.SMS, "+4915112345678", "+4915112345678", True),
        (Channel.PUSH, "Token", "token", False),
        (Channel.CHAT, "#Orders", "#orders", False),
        (Channel.CHAT, "Slack:C0123456789", "slack: C0123456789", True),
        (Channel.CHAT, "slack:C0123456789", "teams:C0123456789", False),
        (Channel.CHAT, "slack:c0123456789", "slack:C0123456789", False),
        (Channel.CHAT, "HTTPS://Hooks.Slack.com/services/T/B", "https://hooks.slack.com:443/services/T/B", True),
        (Channel.CHAT, "ops:https://Hooks.example/a", "Ops:https://hooks.example/a#x", True),
        (Channel.WEBHOOK, "https://a.example/X", "https://a.example/x", False),
        (Channel.WEBHOOK, "https://A.example", "HTTPS://a.EXAMPLE:443/", True),
        (Channel.WEBHOOK, "http://a.example:80/x?b=C", "http://a.example/x?b=C", True),
        (Channel.WEBHOOK, "https://a.example:80/", "https://a.example/", False),
        (Channel.WEBHOOK, "https://a.example/", "http://a.example/", False),
        (Channel.WEBHOOK, "https://Me:Pw@a.example/", "https://me:pw@a.example/", False),
        (Channel.WEBHOOK, "https://münchen.example/", "https://xn--mnchen-3ya.example/", True),
        (Channel.WEBHOOK, "https://[::1]:443/x", "https://[::1]/x", True),
        (Channel.WEBHOOK, "https://a.example/x?", "https://a.example/x", True),
        (Channel.INBOX, "user-7", "user-7", True),
    ],
)
def test_what_is_one_address(channel: Channel, one: str, other: str, same: bool) -> None:
    assert (address_key(channel, one) == address_key(channel, other)) is same


def test_an_address_of_one_channel_is_none_of_another() -> None:
    assert address_key(Channel.CHAT, "7") != address_key(Channel.INBOX, "7")


def test_an_odd_domain_is_still_compared() -> None:
    assert normalised(Channel.EMAIL, "A@" + "ü" * 80) == "a@" + "ü" * 80


@pytest.mark.parametrize("address", ["https://[", "https://a.example:x/", "https://", "7", "::", ""])
@pytest.mark.parametrize("channel", [Channel.WEBHOOK, Channel.CHAT])
def test_what_is_no_url_is_compared_as_it_is(channel: Channel, address: str) -> None:
    assert normalised(channel, address) == address


@given(st.text(max_size=60), st.sampled_from(Channel))
def test_a_normal_form_is_its_own(address: str, channel: Channel) -> None:
    once = normalised(channel, address)
    assert normalised(channel, once) == once


def test_a_device_is_known_by_its_token() -> None:
    recipient = {"push": [{"provider": "fcm", "token": "t-1"}]}
    assert addresses_of(Channel.PUSH, recipient) == ["t-1"] == [target(recipient)["token"]]


def test_the_address_is_not_shown() -> None:
    entry = suppression()
    assert ANA not in repr(entry) + entry.key + entry.told
    assert entry.told == "hard_bounce since 2026-11-22T17:00:00Z, by receipt:ses"


async def test_a_delivery_to_a_suppressed_address_is_planned_as_such() -> None:
    world = World()
    await world.suppressions.add(suppression("ANA@example.org"))
    body = b'{"recipients": [{"email": "ana@example.org"}, {"email": "ben@example.org"}], "data": {}}'
    (job,) = await world.accepted(body)
    assert job.delivery.recipient["email"] == "ben@example.org"
    stopped = next(each for each in world.deliveries.stored.values() if each.id != job.delivery.id)
    assert (stopped.state, stopped.reason) == (State.SUPPRESSED, Reason.SUPPRESSED_ADDRESS)
    assert stopped.detail == "hard_bounce since 2026-11-22T17:00:00Z, by receipt:ses"
    assert stopped.due_at is None
    assert [change.state for change in stopped.history] == [State.SUPPRESSED]
    assert State.SUPPRESSED in [change.state for change in world.queue.told]


async def test_what_failed_at_planning_stays_failed() -> None:
    world = World()
    await world.suppressions.add(suppression("#orders", Channel.CHAT))
    await world.accepted(b'{"recipients": [{"chat": "#orders"}], "content": {"chat": {"text": "t"}}}')
    (delivery,) = world.deliveries.stored.values()
    assert delivery.reason is Reason.NOT_CONFIGURED


async def test_an_address_that_was_suppressed_since_is_not_sent_to() -> None:
    world = World()
    (job,) = await world.accepted()
    await world.suppressions.add(suppression())
    result = await world.deliver(job)
    assert isinstance(result, Settled)
    assert world.provider.sent == []
    delivery = world.deliveries.stored[job.delivery.id]
    assert (delivery.state, delivery.reason, delivery.attempt) == (State.SUPPRESSED, Reason.SUPPRESSED_ADDRESS, 0)
    assert [change.state for change in delivery.history] == [State.QUEUED, State.SUPPRESSED]
    assert delivery.due_at is None


async def test_what_has_expired_stops_nobody() -> None:
    world = World()
    await world.suppressions.add(suppression(expires_at=START + timedelta(hours=1)))
    world.clock.advance(timedelta(hours=1))
    (job,) = await world.accepted()
    await world.deliver(job)
    assert len(world.provider.sent) == 1


@pytest.mark.parametrize(
    ("failure", "kept"),
    [
        (PermanentFailure(Reason.RECIPIENT_REJECTED, "gone", suppress=True), True),
        (PermanentFailure(Reason.MESSAGE_REJECTED, "spam"), False),
        (TransientFailure(Reason.MAILBOX_UNAVAILABLE, "full"), False),
    ],
)
async def test_an_address_that_a_provider_refuses_as_such_is_suppressed(failure: Exception, kept: bool) -> None:
    world = World()
    world.provider.script = [failure]
    (job,) = await world.accepted()
    await world.deliver(job)
    found = [(entry.reason, entry.source, entry.address) for entry in world.suppressions.stored.values()]
    assert found == ([(SuppressionReason.REJECTED, "send:scripted", ANA)] if kept else [])
    assert world.deliveries.stored[job.delivery.id].history[-1].address_suppressed is kept
    assert world.queue.told[-1].address_suppressed is kept
    again = await world.accepted(message_id="m-2")
    assert (again == []) is kept


@pytest.mark.parametrize(
    ("channel", "recipient", "reason"),
    [
        (Channel.PUSH, {"push": [{"provider": "fcm", "token": "t"}]}, SuppressionReason.DEAD_TOKEN),
        (Channel.WEBHOOK, {"webhook": "https://a.example"}, SuppressionReason.ENDPOINT_GONE),
    ],
)
async def test_the_reason_says_what_it_was(
    channel: Channel, recipient: dict[str, Any], reason: SuppressionReason
) -> None:
    world = World()
    (job,) = await world.accepted()
    moved = replace(job.delivery, channel=channel, recipient=recipient)
    world.deliveries.stored[moved.id] = moved
    world.catalog.notifications[0].definition.channels[channel] = {"text": "t"}
    world.provider.script = [PermanentFailure(Reason.RECIPIENT_REJECTED, "gone", suppress=True)]
    await world.deliver(replace(job, delivery=moved))
    assert [entry.reason for entry in world.suppressions.stored.values()] == [reason]


REFUSED = PermanentFailure(Reason.RECIPIENT_REJECTED, "gone", suppress=True)


def failed_in(world: World, job: Dispatch) -> Delivery:
    delivery = world.deliveries.stored[job.delivery.id]
    assert delivery.state is State.FAILED
    return delivery


async def replayed(world: World, job: Dispatch) -> Delivery:
    assert isinstance(await world.operate.replay(failed_in(world, job)), Delivery)
    await world.deliver(world.queue.dispatched[-1])
    return world.deliveries.stored[job.delivery.id]


async def test_a_replay_to_a_suppressed_address_is_refused_until_it_is_suppressed_no_more() -> None:
    world = World()
    world.provider.script = [PermanentFailure(Reason.MESSAGE_REJECTED, "spam")]
    (job,) = await world.accepted()
    await world.deliver(job)
    failed = failed_in(world, job)
    await world.suppressions.add(suppression())
    refused = await world.operate.replay(failed)
    assert isinstance(refused, Refused)
    assert "remove it from the suppression list" in refused.why
    assert await world.operate.replayable(failed) == refused
    assert world.deliveries.stored[job.delivery.id] == failed
    world.suppressions.stored.clear()
    assert isinstance(await world.operate.replay(failed), Delivery)
    await world.suppressions.add(suppression())
    await world.deliver(world.queue.dispatched[-1])
    assert world.provider.sent == []
    assert world.deliveries.stored[job.delivery.id].state is State.SUPPRESSED


async def test_a_refused_delivery_that_a_replay_sends_proves_its_suppression_wrong() -> None:
    world = World()
    world.provider.script = [REFUSED]
    (job,) = await world.accepted()
    await world.deliver(job)
    assert isinstance(await world.operate.replayable(failed_in(world, job)), Delivery)
    assert await world.accepted(message_id="m-2") == [], "whatever else goes there stays suppressed"
    after = await replayed(world, job)
    assert (after.state, after.epoch, after.detail) == (State.SENT, 2, "ok; its address is suppressed no more")
    assert not world.suppressions.stored
    (again,) = await world.accepted(message_id="m-3")
    await world.deliver(again)
    assert [message.delivery_id for message in world.provider.sent] == [job.delivery.id, again.delivery.id]


@pytest.mark.parametrize("again", [REFUSED, PermanentFailure(Reason.MESSAGE_REJECTED, "spam")])
async def test_a_replay_that_is_not_sent_leaves_its_address_suppressed(again: Exception) -> None:
    world = World()
    world.provider.script = [REFUSED, again]
    (job,) = await world.accepted()
    await world.deliver(job)
    before = dict(world.suppressions.stored)
    assert (await replayed(world, job)).state is State.FAILED
    assert world.suppressions.stored == before
    assert (await replayed(world, job)).state is State.SENT, "it may be replayed as often as an operator likes"


async def test_another_delivery_is_not_replayed_before_the_refused_one_was_sent() -> None:
    world = World()
    world.provider.script = [PermanentFailure(Reason.MESSAGE_REJECTED, "spam"), REFUSED]
    (spam,), (refused,) = await world.accepted(), await world.accepted(message_id="m-2")
    await world.deliver(spam)
    await world.deliver(refused)
    told = await world.operate.replay(failed_in(world, spam))
    assert isinstance(told, Refused)
    assert "another delivery to it was refused" in told.why
    assert (await replayed(world, refused)).state is State.SENT
    assert (await replayed(world, spam)).state is State.SENT


async def test_what_an_operator_or_a_receipt_has_said_holds_a_refused_delivery_back_too() -> None:
    world = World()
    world.provider.script = [REFUSED]
    (job,) = await world.accepted()
    await world.deliver(job)
    await world.suppressions.add(suppression(reason=SuppressionReason.COMPLAINT))
    assert isinstance(await world.operate.replay(failed_in(world, job)), Refused)


async def test_a_refusal_that_was_not_recorded_before_its_process_ended_is_met_again() -> None:
    world = World()
    (job,) = await world.accepted()
    await world.suppressions.add(suppression(delivery=job.delivery.id))
    world.provider.script = [REFUSED]
    await world.deliver(job)
    assert failed_in(world, job).reason is Reason.RECIPIENT_REJECTED
    assert len(world.suppressions.stored) == 1


async def refused_late(world: World, job: Dispatch) -> Result:
    """An attempt that is refused only when its lease is over, and another has been made in its place."""
    made, send = world.deliver, world.provider.send

    async def slow(_: Message) -> Accepted:
        world.provider.send = send  # type: ignore[method-assign]
        stored = world.deliveries.stored[job.delivery.id]
        world.deliveries.stored[job.delivery.id] = replace(stored, due_at=world.clock())
        world.clock.advance(LEASE * 2)
        await world.sweep()
        await world.deliver(world.queue.dispatched[-1])
        raise REFUSED

    world.provider.send = slow  # type: ignore[method-assign,assignment]
    return await made(job)


async def test_a_refusal_that_comes_late_does_not_suppress_an_address_that_was_reached_meanwhile() -> None:
    world = World()
    (job,) = await world.accepted()
    assert isinstance(await refused_late(world, job), Late)
    after = world.deliveries.stored[job.delivery.id]
    assert after.state is State.SENT
    assert world.suppressions.stored == {}
    assert "after its lease: gone" in str(after.history[-1].detail)
    assert "its address is suppressed no more" in str(after.history[-1].detail)
    assert not after.history[-1].address_suppressed


async def test_a_refusal_that_comes_late_holds_where_the_other_attempt_was_refused_too() -> None:
    world = World()
    world.provider.script = [REFUSED]
    (job,) = await world.accepted()
    assert isinstance(await refused_late(world, job), Late)
    after = world.deliveries.stored[job.delivery.id]
    assert after.state is State.FAILED
    assert len(world.suppressions.stored) == 1
    assert "no more" not in str(after.history[-1].detail)


async def test_a_refusal_that_comes_late_leaves_what_others_have_suppressed() -> None:
    world = World()
    (job,) = await world.accepted()
    other = suppression(delivery="another delivery")

    async def meanwhile(_: Message) -> Accepted:
        await world.suppressions.add(other)
        return Accepted("ok")

    world.provider.send = meanwhile  # type: ignore[method-assign,assignment]
    await refused_late(world, job)
    assert world.deliveries.stored[job.delivery.id].state is State.SENT
    assert list(world.suppressions.stored.values()) == [other]


COPIED = notification(
    channels={"email": {"subject": "s", "text": "t", "cc": "ben@example.org cem@example.org", "bcc": "Ben@example.org"}}
)


async def test_a_copy_that_is_suppressed_is_left_out_and_the_mail_goes_on() -> None:
    world = World(catalog=MemoryCatalog([COPIED]))
    (job,) = await world.accepted()
    await world.suppressions.add(suppression("ben@example.org"))
    result = await world.deliver(job)
    (message,) = world.provider.sent
    assert (message.content["cc"], message.content["bcc"], message.recipient["email"]) == ("cem@example.org", "", ANA)
    assert message.copies_suppressed == 2
    delivery = world.deliveries.stored[job.delivery.id]
    assert (delivery.state, delivery.detail) == (State.SENT, "ok; 2 copies left out: suppressed")
    metrics = Metrics()
    metrics.delivered(result)
    assert metrics._copies._value.get() == 2


async def test_a_mail_whose_copies_are_not_suppressed_is_sent_as_it_is() -> None:
    world = World(catalog=MemoryCatalog([COPIED]))
    await world.suppressions.add(suppression("dan@example.org"))
    (job,) = await world.accepted()
    await world.deliver(job)
    assert world.provider.sent[0].content == COPIED.definition.channels[Channel.EMAIL]
    assert world.deliveries.stored[job.delivery.id].detail == "ok"


class BrokenSuppressions(MemorySuppressions):
    """A list that cannot be asked, or not be written to."""

    def __init__(self, operation: str) -> None:
        super().__init__()
        setattr(self, operation, AsyncMock(side_effect=KeyError("ana@example.org")))


@pytest.mark.parametrize("operation", ["among", "add"])
async def test_a_fault_of_the_list_is_tried_again(operation: str) -> None:
    world = World()
    (job,) = await world.accepted()
    world.suppressions = BrokenSuppressions(operation)
    world.provider.script = [PermanentFailure(Reason.RECIPIENT_REJECTED, "gone", suppress=True)]
    await world.deliver(job)
    after = world.deliveries.stored[job.delivery.id]
    assert (after.state, after.reason, after.attempt) == (State.RETRYING, Reason.INTERNAL_ERROR, 1)
    assert "ana@" not in str(after.detail)
    assert world.provider.sent == []


async def test_what_was_sent_stays_sent_whatever_becomes_of_the_list() -> None:
    world = World()
    world.provider.script = [REFUSED]
    (job,) = await world.accepted()
    await world.deliver(job)
    assert isinstance(await world.operate.replay(failed_in(world, job)), Delivery)
    world.suppressions = BrokenSuppressions("withdraw")
    await world.deliver(world.queue.dispatched[-1])
    after = world.deliveries.stored[job.delivery.id]
    assert after.state is State.SENT
    assert "whether its address stays suppressed is not known: KeyError" in str(after.detail)
    assert "ana@" not in str(after.detail)
