"""Devices of a recipient, each a delivery of its own; and the fields of a push message."""

import json
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from channels.push import Push, push_of, takes_target
from domain.accept import Accepted
from domain.delivery import delivery_id
from domain.event import Incoming, event_key
from domain.failures import PermanentFailure
from domain.identity import NAMESPACE
from domain.message import Message
from domain.vocabulary import Channel, Reason, State
from tests.unit.world import World

KEY = "shop.order.shipped"
PHONE, TABLET = {"provider": "fcm", "token": "phone"}, {"provider": "apns", "token": "00ff"}
CREATED = datetime(2026, 11, 22, 17, 0, tzinfo=UTC)


def body(*recipients: dict[str, Any]) -> bytes:
    content = {"push": {"text": "t"}, "email": {"subject": "s", "text": "t"}}
    return json.dumps({"recipients": recipients, "content": content}).encode()


async def planned(world: World, *recipients: dict[str, Any]) -> list[Any]:
    verdict = await world.accept(Incoming(body(*recipients), KEY, "m-1"))
    assert isinstance(verdict, Accepted)
    found = list(world.deliveries.stored.values())
    (stored,) = world.events.stored.values()
    assert verdict.planned == stored.planned == len(found)
    return found


async def test_each_device_has_a_delivery_of_its_own() -> None:
    ana = {"id": "u7", "email": "ana@example.org", "push": [PHONE, TABLET, PHONE]}
    deliveries = await planned(World(), ana)
    pushes = [each for each in deliveries if each.channel is Channel.PUSH]
    assert [each.recipient["push"] for each in pushes] == [[PHONE], [TABLET]]
    assert len({each.id for each in deliveries}) == len(deliveries) == 3
    assert {each.recipient_key for each in deliveries} == {"u7"}
    (mail,) = [each for each in deliveries if each.channel is Channel.EMAIL]
    assert mail.recipient["push"] == [PHONE, TABLET, PHONE]


async def test_the_same_device_in_two_entries_is_told_once() -> None:
    deliveries = await planned(World(), {"id": "u7", "push": [PHONE, TABLET]}, {"id": "u7", "push": [TABLET]})
    assert [each.recipient["push"] for each in deliveries if each.channel is Channel.PUSH] == [[PHONE], [TABLET]]


async def test_a_single_device_keeps_the_id_that_its_delivery_always_had() -> None:
    (delivery, _) = await planned(World(), {"id": "u7", "push": [PHONE]})
    at = "u7\n(PushTarget(provider='fcm', token='phone'),)"
    assert delivery.id == delivery_id(event_key("shop", "m-1"), "inline", at, Channel.PUSH)
    both = await planned(World(), {"id": "u7", "push": [PHONE, TABLET]})
    assert delivery.id in {each.id for each in both}


async def test_whoever_has_no_device_is_suppressed_once() -> None:
    (push, mail) = await planned(World(), {"email": "ana@example.org"})
    assert (push.state, push.reason) == (State.SUPPRESSED, Reason.NO_ADDRESS)
    assert mail.state is State.QUEUED


async def test_devices_beside_a_bad_address_are_reached_one_by_one() -> None:
    world = World()
    deliveries = await planned(world, {"id": "u7", "email": "nobody", "push": [PHONE, TABLET]})
    states = sorted((str(each.channel), each.reason) for each in deliveries)
    assert states == [("email", "bad_address"), ("push", "not_configured"), ("push", "not_configured")]


async def test_a_device_with_a_fault_stops_no_other() -> None:
    bad = {"provider": "fcm", "token": ""}
    deliveries = await planned(World(), {"push": [PHONE, bad, TABLET]}, {"id": "u8", "push": [bad]})
    pushes = [each for each in deliveries if each.channel is Channel.PUSH]
    assert [(each.recipient, each.reason) for each in pushes] == [
        ({"push": [PHONE]}, Reason.NOT_CONFIGURED),
        ({"push": [TABLET]}, Reason.NOT_CONFIGURED),
        ({}, Reason.BAD_ADDRESS),
        ({"id": "u8"}, Reason.BAD_ADDRESS),
    ]
    assert [each.recipient_key for each in pushes] == ["phone", "00ff", "#0", "u8"]
    assert pushes[2].detail.startswith("push.1.token: ")


@pytest.mark.parametrize("push", ["phone", {"provider": "fcm"}, [PHONE] * 51])
async def test_a_list_of_devices_that_is_none_is_one_fault(push: Any) -> None:
    deliveries = await planned(World(), {"email": "ana@example.org", "push": push})
    assert [(each.channel, each.reason) for each in deliveries] == [
        (Channel.PUSH, Reason.BAD_ADDRESS),
        (Channel.EMAIL, Reason.PLANNED),
    ]


def message(recipient: dict[str, Any], **content: str) -> Message:
    return Message("d1", "d1/1", Channel.PUSH, recipient, {"text": "t"} | content, CREATED)


def fields(key: str = "d1/1", /, **content: str) -> Push:
    return push_of(replace(message({"push": [PHONE]}, **content), idempotency_key=key))


@pytest.mark.parametrize(
    ("targets", "taken"),
    [
        ([{"provider": "fcm", "token": "t"}], True),
        ([{"provider": "android", "token": "t"}], True),
        ([{"provider": "apns", "token": "t"}], False),
        ([{"provider": "fcm", "token": "t"}] * 2, False),
        ([], False),
    ],
)
def test_a_target_names_the_kind_or_the_provider(targets: list[dict[str, str]], taken: bool) -> None:
    assert takes_target({"push": targets}, "fcm", "android") is taken


def test_fields_are_read_as_what_they_are() -> None:
    push = fields(
        title="T", badge=" 3 ", data='{"order_id": 1042}', ttl="4h", priority="high", url="https://x.example/1"
    )
    assert (push.title, push.badge, push.data, push.priority) == ("T", 3, {"order_id": 1042}, "high")
    assert push.url == "https://x.example/1"
    assert push.expires_at(timedelta(days=1)) == CREATED + timedelta(hours=4)
    assert push.unique == str(uuid.uuid5(NAMESPACE, "d1/1"))
    empty = fields(title="", badge="", data="", ttl="", priority="", url="", image="", collapse="", sound="")
    assert replace(empty, text="") == replace(fields(), text="")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("badge", "three"),
        ("badge", "-1"),
        ("data", "[1]"),
        ("data", "{"),
        ("ttl", "soon"),
        ("priority", "urgent"),
        ("url", "javascript:alert(1)"),
        ("image", "ftp://x.example/i.png"),
    ],
)
def test_a_field_that_is_not_what_it_should_be_is_named_and_not_shown(field: str, value: str) -> None:
    with pytest.raises(PermanentFailure) as caught:
        fields(**{field: value})
    assert caught.value.reason is Reason.TEMPLATE_ERROR
    assert caught.value.detail.startswith(f"{field}: ")
    assert value not in caught.value.detail


@pytest.mark.parametrize("recipient", [{}, {"push": []}, {"push": [PHONE, TABLET]}])
def test_a_message_goes_to_one_device(recipient: dict[str, Any]) -> None:
    with pytest.raises(PermanentFailure) as caught:
        push_of(message(recipient))
    assert caught.value.reason is Reason.BAD_ADDRESS


def test_the_time_to_live_counts_from_the_event_and_never_below_nothing() -> None:
    day = timedelta(days=1)
    assert fields().left(day, CREATED + timedelta(hours=23)) == 3600
    assert fields().left(day, CREATED + timedelta(days=2)) == 0
    assert fields(ttl="90d").left(day, CREATED) == 28 * 86400
    assert fields(ttl="60").left(day, CREATED) == 60


def test_what_replaces_what_fits_the_service() -> None:
    allowed = "A-Za-z0-9_-"
    assert fields(collapse="order-1042").collapse_id(32, allowed) == "order-1042"
    long = fields(collapse="Bestellung №1042 " * 9).collapse_id(32, allowed)
    assert long == fields(collapse="Bestellung №1042 " * 9).collapse_id(32, allowed)
    assert long != fields(collapse="Bestellung №1043 " * 9).collapse_id(32, allowed)
    own = fields().collapse_id(32, allowed)
    assert own == fields().collapse_id(32, allowed) != fields("d2/1").collapse_id(32, allowed)
    for word in (long, own):
        assert len(word) <= 32
        assert set(word) <= set("0123456789abcdef")
