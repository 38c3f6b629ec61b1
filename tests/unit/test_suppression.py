"""Which addresses are the same, and where a suppressed one stops a delivery."""

from dataclasses import replace
from datetime import timedelta
from typing import Any
from unittest.mock import AsyncMock

import pytest

from channels.push import target
from domain.deliver import Settled
from domain.delivery import Delivery
from domain.failures import PermanentFailure, TransientFailure
from domain.operate import Refused
from domain.suppression import Suppression, address_key, addresses_of, normalised
from domain.vocabulary import Channel, Reason, State, SuppressionReason
from tests.fakes import START, MemorySuppressions
from tests.unit.world import World

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
        (Channel.WEBHOOK, "https://a.example/X", "https://a.example/x", False),
        (Channel.INBOX, "user-7", "user-7", True),
    ],
)
def test_what_is_one_address(channel: Channel, one: str, other: str, same: bool) -> None:
    assert (address_key(channel, one) == address_key(channel, other)) is same


def test_an_address_of_one_channel_is_none_of_another() -> None:
    assert address_key(Channel.CHAT, "7") != address_key(Channel.INBOX, "7")


def test_an_odd_domain_is_still_compared() -> None:
    assert normalised(Channel.EMAIL, "A@" + "ü" * 80) == "a@" + "ü" * 80


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


async def test_a_replay_to_a_suppressed_address_is_refused_until_it_is_suppressed_no_more() -> None:
    world = World()
    world.provider.script = [PermanentFailure(Reason.RECIPIENT_REJECTED, "gone", suppress=True)]
    (job,) = await world.accepted()
    await world.deliver(job)
    failed = world.deliveries.stored[job.delivery.id]
    refused = await world.operate.replay(failed)
    assert isinstance(refused, Refused)
    assert "suppression" in refused.why
    assert await world.operate.replayable(failed) == refused
    assert world.deliveries.stored[job.delivery.id] == failed
    world.suppressions.stored.clear()
    assert isinstance(await world.operate.replay(failed), Delivery)
    await world.suppressions.add(suppression())
    await world.deliver(world.queue.dispatched[-1])
    assert world.provider.sent == []
    assert world.deliveries.stored[job.delivery.id].state is State.SUPPRESSED


class BrokenSuppressions(MemorySuppressions):
    """A list of which one entry cannot be read, or nothing can be written."""

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
