"""A recipient with several devices, over the real servers: each device for itself, and the sums agree."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from config.settings import Settings
from consumers.app import audit_of, running
from domain.conserve import Scope
from domain.delivery import Delivery
from domain.vocabulary import Reason, State
from storage.audit import MongoLedger
from tests.conformance.over_http import HttpPeer
from tests.conformance.subjects import apns, fcm, webpush
from tests.running import Stack

IPHONE = {"provider": "iphone", "token": apns.DEVICE}
ANDROID = {"provider": "fcm", "token": fcm.DEVICE}


@pytest.fixture
async def peers() -> AsyncIterator[dict[str, HttpPeer]]:
    """A server of each push service's."""
    async with AsyncExitStack() as stack:
        subjects = (fcm.SUBJECT, apns.SUBJECT, webpush.SUBJECT)
        yield {subject.kind: await stack.enter_async_context(subject.peer()) for subject in subjects}


def with_push(config: dict[str, Any], peers: dict[str, HttpPeer], folder: Path) -> Settings:
    providers = [
        {"name": name, "kind": subject.kind} | dict(subject.options(peers[subject.kind].url, folder))
        for name, subject in (("android", fcm.SUBJECT), ("iphone", apns.SUBJECT), ("browser", webpush.SUBJECT))
    ]
    push = {"retry": ["100ms", "200ms"], "providers": providers}
    return Settings.model_validate({**config, "channels": {"push": push}})


def of_device(deliveries: list[Delivery], token: str) -> Delivery:
    (found,) = [each for each in deliveries if each.recipient["push"][0]["token"] == token]
    return found


async def test_each_device_is_reached_by_its_own_service_and_a_dead_one_stops_no_other(
    config: dict[str, Any], stack: Stack, peers: dict[str, HttpPeer], tmp_path: Path
) -> None:
    peers["fcm"].response, _ = fcm.SUBJECT.failures["UNREGISTERED"]
    browser = {"provider": "webpush", "token": webpush.subscription(peers["webpush"].url)}
    gone = {"provider": "blackberry", "token": "t"}
    event = {
        "recipients": [{"id": "u7", "push": [IPHONE, ANDROID, browser, gone, IPHONE]}],
        "content": {"push": {"title": "Order {{ order_id }}", "text": "Hello"}},
        "data": {"order_id": 1042},
    }
    async with running(with_push(config, peers, tmp_path)):
        found = list(await stack.final(await stack.publish(event), count=4))
        again = list(await stack.final(await stack.publish(event), count=4))
    outcome = {each["token"]: of_device(found, each["token"]) for each in (IPHONE, ANDROID, browser, gone)}
    assert [(each.state, each.provider) for each in list(outcome.values())[:3]] == [
        (State.SENT, "iphone"),
        (State.FAILED, "android"),
        (State.SENT, "browser"),
    ]
    assert outcome["t"].reason is Reason.NOT_CONFIGURED
    assert of_device(again, fcm.DEVICE).state is State.SUPPRESSED
    assert of_device(again, apns.DEVICE).state is State.SENT
    assert [len(peers[kind].requests) for kind in ("fcm", "apns", "webpush")] == [1, 2, 2]
    assert peers["apns"].requests[0].json["aps"]["alert"]["title"] == "Order 1042"
    assert await stack.depth("notipy.dead.push") == 3
    assert (await audit_of(stack.core, MongoLedger(stack.core.database))(Scope())).found == []
