"""Phone numbers: which can be dialled, and in which form."""

import json
from dataclasses import replace
from typing import Any

import pytest

from channels.numbers import PhoneNumbers
from domain.event import Incoming
from domain.ports import NotANumber
from domain.vocabulary import Reason, State
from tests.unit.world import World, notification

SMS = {"sms": {"text": "t"}}


@pytest.mark.parametrize(
    ("number", "dialled"),
    [
        ("+4915112345678", "+4915112345678"),
        ("+49015112345678", "+4915112345678"),  # as "+49 (0)1511 2345678" is published
        ("+15005550006", "+15005550006"),  # Twilio's, for tests
        ("+447700900123", "+447700900123"),  # Ofcom's, for films
        ("+12025550123", "+12025550123"),
        ("+390612345678", "+390612345678"),  # Italy keeps its zero
        ("+80012345678", "+80012345678"),  # no country's: freephone everywhere
    ],
)
def test_a_number_has_one_form(number: str, dialled: str) -> None:
    assert PhoneNumbers().normalised(number) == dialled


@pytest.mark.parametrize(
    ("number", "fault"),
    [
        ("+491", "too short"),
        ("+1202555012", "too short"),
        ("+120255501234", "too long"),
        ("+999123456789", "no country"),
        ("+5550123", "lacks its area code|too short"),
        ("+1" + "2" * 40, "too long"),
    ],
)
def test_what_is_wrong_with_another_is_told_without_it(number: str, fault: str) -> None:
    with pytest.raises(NotANumber, match=fault) as caught:
        PhoneNumbers().normalised(number)
    assert number[3:] not in str(caught.value)


async def planned(recipient: dict[str, Any]) -> dict[str, Any]:
    """The deliveries of an event to this recipient over mail and SMS, by channel."""
    world = World()
    world.catalog.notifications[:] = [notification(channels={"email": {"subject": "s", "text": "t"}, **SMS})]
    accept = replace(world.accept, planner=replace(world.accept.planner, numbers=PhoneNumbers()))
    body = b'{"recipients": [%s]}' % json.dumps(recipient).encode()
    await accept(Incoming(body, "shop.order.shipped", "m-1"))
    return {str(delivery.channel): delivery for delivery in world.deliveries.stored.values()}


async def test_a_delivery_has_the_number_as_it_is_dialled() -> None:
    deliveries = await planned({"phone": "+49 (0)1511 2345678", "email": "ana@example.org"})
    assert deliveries["sms"].state is State.QUEUED
    assert deliveries["sms"].recipient["phone"] == "+4915112345678"


async def test_a_number_that_is_none_ends_that_delivery_alone() -> None:
    deliveries = await planned({"phone": "+1 202 555 012", "email": "ana@example.org"})
    sms = deliveries["sms"]
    assert (sms.state, sms.reason) == (State.FAILED, Reason.BAD_ADDRESS)
    assert sms.detail == "phone: is too short for a number of its country"
    assert deliveries["email"].state is State.QUEUED


async def test_its_id_does_not_change_with_the_data_of_the_library() -> None:
    """A resumed event comes to the same deliveries, also after an upgrade: ids are made of what was published."""
    world = World()
    published = {"phone": "+49 (0)1511 2345678", "email": "ana@example.org"}
    world.catalog.notifications[:] = [notification(channels={"email": {"subject": "s", "text": "t"}, **SMS})]
    await world.accepted(json.dumps({"recipients": [published]}).encode())
    assert set(world.deliveries.stored) == {delivery.id for delivery in (await planned(published)).values()}
