"""What fcm and apns promise beyond the conformance suite: their tokens, and what goes into a message."""

import asyncio
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme

from channels.apns import ApnsOptions, ApnsProvider
from channels.fcm import FcmOptions, FcmProvider
from channels.registry import make_provider
from domain.failures import DeliveryFailure, PermanentFailure, TransientFailure, UnknownOutcome
from domain.message import Message
from domain.vocabulary import Channel, Reason
from tests.conformance.http2 import Http2Peer
from tests.conformance.over_http import HttpPeer, HttpSubject, Request, Response
from tests.conformance.subject import CREATED
from tests.conformance.subjects import apns, fcm
from tests.fakes import Clock
from tests.waiting import eventually

CONTENT = {
    "title": "Order 1042",
    "text": "It is on its way.",
    "image": "https://shop.example/1042.png",
    "url": "https://shop.example/orders/1042",
    "badge": "3",
    "sound": "bell",
    "data": '{"order_id": 1042, "carrier": "DHL", "parts": [1, 2]}',
    "collapse": "order-1042",
    "ttl": "4h",
    "priority": "normal",
}


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as resources:
        yield resources


def rich(subject: HttpSubject) -> Message:
    return replace(subject.message_over(""), content=CONTENT)


async def failure_of(provider: FcmProvider | ApnsProvider, message: Message) -> DeliveryFailure:
    with pytest.raises(DeliveryFailure) as caught:
        await provider.send(message)
    return caught.value


# ---------------------------------------------------------------------------------------------------------------
# fcm
# ---------------------------------------------------------------------------------------------------------------


class TokenDesk:
    """Google's token endpoint, counted; each token has a number."""

    def __init__(self) -> None:
        self.issued = 0
        self.answer: Response | None = None

    def __call__(self, request: Request) -> Response | None:
        if request.path != "/token":
            return None
        if self.answer is not None:
            return self.answer
        granted = fcm.token(request)
        assert granted is not None
        assert granted.status == 200
        self.issued += 1
        return Response(200, granted.document | {"access_token": f"token-{self.issued}"})


async def firebase(stack: AsyncExitStack, desk: TokenDesk, **more: Any) -> tuple[FcmProvider, HttpPeer]:
    subject = replace(fcm.SUBJECT, aside=desk)
    peer = await stack.enter_async_context(subject.peer())
    options = FcmOptions.model_validate(dict(subject.options(peer.url, Path())) | {"timeout": "3s"})
    provider = FcmProvider("firebase", options, **more)
    stack.push_async_callback(provider.close)
    return provider, peer


def bearers(peer: HttpPeer) -> list[str]:
    return [request.headers["Authorization"].removeprefix("Bearer ") for request in peer.requests]


async def test_one_access_token_is_fetched_for_many_messages_at_once(stack: AsyncExitStack) -> None:
    desk = TokenDesk()
    provider, peer = await firebase(stack, desk)
    await asyncio.gather(*(provider.send(fcm.SUBJECT.message_over("")) for _ in range(20)))
    assert desk.issued == 1
    assert set(bearers(peer)) == {"token-1"}


async def test_an_access_token_is_replaced_before_it_ends(stack: AsyncExitStack) -> None:
    desk, clock = TokenDesk(), Clock(datetime.now(UTC) - timedelta(minutes=56))
    provider, peer = await firebase(stack, desk, now=clock)
    for passed in (0, 54, 2):
        clock.advance(timedelta(minutes=passed))
        await provider.send(fcm.SUBJECT.message_over(""))
    assert bearers(peer) == ["token-1", "token-1", "token-2"]


async def test_a_refused_access_token_is_replaced_once(stack: AsyncExitStack) -> None:
    desk = TokenDesk()
    provider, peer = await firebase(stack, desk)
    refused = fcm.refusal(401, "UNAUTHENTICATED")
    peer.response = refused
    failure = await failure_of(provider, fcm.SUBJECT.message_over(""))
    assert (failure.reason, failure.provider_fault) == (Reason.AUTHENTICATION, True)
    assert bearers(peer) == ["token-1", "token-2"]


async def test_a_message_goes_through_with_the_next_access_token(stack: AsyncExitStack) -> None:
    desk = TokenDesk()
    subject = replace(
        fcm.SUBJECT,
        aside=lambda request: (
            fcm.refusal(401, "UNAUTHENTICATED")
            if request.headers.get("Authorization") == "Bearer token-1"
            else desk(request)
        ),
    )
    peer = await stack.enter_async_context(subject.peer())
    provider = FcmProvider("firebase", FcmOptions.model_validate(subject.options(peer.url, Path())))
    stack.push_async_callback(provider.close)
    assert (await provider.send(subject.message_over(""))).reference == fcm.NAME
    assert bearers(peer) == ["token-2"]


async def test_a_bad_key_of_another_platform_costs_no_access_token_and_pauses_nothing(stack: AsyncExitStack) -> None:
    desk = TokenDesk()
    provider, peer = await firebase(stack, desk)
    peer.response, _ = fcm.SUBJECT.failures["THIRD_PARTY_AUTH_ERROR"]
    failure = await failure_of(provider, fcm.SUBJECT.message_over(""))
    assert (type(failure), failure.provider_fault) == (TransientFailure, False)
    assert (desk.issued, len(peer.requests)) == (1, 1)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Response(400, {"error": "invalid_grant", "error_description": fcm.EMAIL}), Reason.AUTHENTICATION),
        (Response(401, {"error": "invalid_client"}), Reason.AUTHENTICATION),
        (Response(200, {"token_type": "Bearer"}), Reason.AUTHENTICATION),
        (Response(503, text="later", headers={"Retry-After": "7"}), Reason.PROVIDER_UNAVAILABLE),
    ],
)
async def test_without_an_access_token_nothing_was_sent(
    stack: AsyncExitStack, answer: Response, reason: Reason
) -> None:
    desk = TokenDesk()
    desk.answer = answer
    provider, peer = await firebase(stack, desk)
    failure = await failure_of(provider, fcm.SUBJECT.message_over(""))
    assert (type(failure), failure.reason, failure.provider_fault) == (TransientFailure, reason, True)
    assert peer.requests == []
    assert fcm.EMAIL not in failure.detail


async def test_a_token_endpoint_that_does_not_answer_leaves_no_doubt_about_the_message(stack: AsyncExitStack) -> None:
    subject = replace(fcm.SUBJECT, aside=lambda _: None)  # the request for a token counts as one that sends
    peer = await stack.enter_async_context(subject.peer())
    peer.hold = True
    options = dict(subject.options(peer.url, Path())) | {"timeout": "300ms"}
    provider = FcmProvider("firebase", FcmOptions.model_validate(options))
    stack.push_async_callback(provider.close)
    failure = await failure_of(provider, subject.message_over(""))
    assert (type(failure), failure.reason) == (TransientFailure, Reason.TIMEOUT)
    assert [request.path for request in peer.requests] == ["/token"]


async def test_every_field_reaches_each_platform_in_its_own_form(stack: AsyncExitStack) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    provider, peer = await firebase(stack, TokenDesk(), now=lambda: now)
    await provider.send(replace(rich(fcm.SUBJECT), created_at=now - timedelta(hours=1)))
    sent = peer.requests[0].json["message"]
    assert sent["data"] == {
        "url": "https://shop.example/orders/1042",
        "order_id": "1042",
        "carrier": "DHL",
        "parts": "[1,2]",
    }
    assert sent["notification"]["image"] == "https://shop.example/1042.png"
    shown = {"tag": "order-1042", "sound": "bell", "notification_count": 3}
    assert sent["android"] == {
        "collapse_key": "order-1042",
        "priority": "NORMAL",
        "ttl": "10800s",
        "notification": shown,
    }
    expires = str(int((now + timedelta(hours=3)).timestamp()))
    assert sent["apns"] == {
        "headers": {"apns-expiration": expires, "apns-collapse-id": "order-1042", "apns-priority": "5"},
        "payload": {"aps": {"badge": 3, "sound": "bell", "mutable-content": 1}},
        "fcm_options": {"image": "https://shop.example/1042.png"},
    }
    assert sent["webpush"] == {
        "headers": {"TTL": "10800", "Topic": "order-1042", "Urgency": "normal"},
        "notification": {"tag": "order-1042"},
        "fcm_options": {"link": "https://shop.example/orders/1042"},
    }


async def test_a_quota_without_retry_after_is_left_alone_for_a_minute(stack: AsyncExitStack) -> None:
    provider, peer = await firebase(stack, TokenDesk())
    peer.response = fcm.refusal(429, "RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED")
    failure = await failure_of(provider, fcm.SUBJECT.message_over(""))
    assert failure.retry_after == timedelta(seconds=60)


@pytest.mark.parametrize(("name", "everybodys"), [("a device's quota", False), ("the project's quota", True)])
async def test_a_device_that_gets_too_much_pauses_nobody_else(
    stack: AsyncExitStack, name: str, everybodys: bool
) -> None:
    provider, peer = await firebase(stack, TokenDesk())
    peer.response, _ = fcm.SUBJECT.failures[name]
    failure = await failure_of(provider, fcm.SUBJECT.message_over(""))
    assert (failure.reason, failure.provider_fault) == (Reason.RATE_LIMITED, everybodys)


async def test_which_devices_are_dead(stack: AsyncExitStack) -> None:
    provider, peer = await firebase(stack, TokenDesk())
    dead = {}
    for name in ("UNREGISTERED", "a token that is none", "SENDER_ID_MISMATCH", "another field"):
        peer.response, _ = fcm.SUBJECT.failures[name]
        dead[name] = (await failure_of(provider, fcm.SUBJECT.message_over(""))).suppress
    assert dead == {
        "UNREGISTERED": True,
        "a token that is none": True,
        "SENDER_ID_MISMATCH": False,
        "another field": False,
    }


async def test_the_field_that_is_wrong_is_named(stack: AsyncExitStack) -> None:
    provider, peer = await firebase(stack, TokenDesk())
    peer.response, _ = fcm.SUBJECT.failures["another field"]
    failure = await failure_of(provider, fcm.SUBJECT.message_over(""))
    assert failure.detail.endswith("message.data[0].value")


async def test_asking_firebase_sends_nothing(stack: AsyncExitStack) -> None:
    provider, peer = await firebase(stack, TokenDesk())
    assert "may send" in await provider.check()
    (asked,) = peer.requests
    assert asked.json["validate_only"] is True
    assert "token" not in asked.json["message"]
    peer.response = fcm.refusal(403, "PERMISSION_DENIED")
    with pytest.raises(TransientFailure):
        await provider.check()


async def test_the_service_account_may_be_a_file(stack: AsyncExitStack, tmp_path: Path) -> None:
    peer = await stack.enter_async_context(fcm.SUBJECT.peer())
    provider = FcmProvider("firebase", FcmOptions.model_validate(fcm.options_in(tmp_path, peer.url)))
    stack.push_async_callback(provider.close)
    assert (await provider.send(fcm.SUBJECT.message_over(""))).reference == fcm.NAME


@pytest.mark.parametrize(
    "credentials",
    ["not JSON", "[]", '{"project_id": "p", "client_email": "a@b", "private_key": "gibberish"}', '{"project_id": 1}'],
)
def test_credentials_that_are_none_are_named_and_not_shown(credentials: str) -> None:
    with pytest.raises(ValueError, match="credentials should be the JSON of a service account") as caught:
        FcmOptions.model_validate({"credentials": credentials})
    assert "gibberish" not in str(caught.value)
    assert "not JSON" not in str(caught.value)


# ---------------------------------------------------------------------------------------------------------------
# apns
# ---------------------------------------------------------------------------------------------------------------


async def apple(stack: AsyncExitStack, folder: Path, **more: Any) -> tuple[ApnsProvider, Http2Peer]:
    peer = await stack.enter_async_context(apns.SUBJECT.peer())
    assert isinstance(peer, Http2Peer)
    options = ApnsOptions.model_validate(dict(apns.options(peer.url, folder)) | {"timeout": "3s"})
    provider = ApnsProvider("iphones", options, **more)
    stack.push_async_callback(provider.close)
    return provider, peer


async def test_many_messages_share_one_connection_to_apple(stack: AsyncExitStack, tmp_path: Path) -> None:
    provider, peer = await apple(stack, tmp_path)
    await asyncio.gather(*(provider.send(apns.said()) for _ in range(50)))
    assert (len(peer.requests), peer.opened) == (50, 1)
    assert len({request.headers["authorization"] for request in peer.requests}) == 1


async def test_a_provider_token_is_signed_anew_after_fifty_minutes(stack: AsyncExitStack, tmp_path: Path) -> None:
    clock = Clock(datetime.now(UTC) - timedelta(minutes=51))
    provider, peer = await apple(stack, tmp_path, now=clock)
    for passed in (0, 49, 2):
        clock.advance(timedelta(minutes=passed))
        await provider.send(apns.said())
    first, second, third = [request.headers["authorization"] for request in peer.requests]
    assert first == second != third


@pytest.mark.parametrize(("age", "sent"), [(19, 2), (21, 3)])
async def test_an_expired_provider_token_is_replaced_but_not_too_often(
    stack: AsyncExitStack, tmp_path: Path, age: int, sent: int
) -> None:
    clock = Clock(datetime.now(UTC) - timedelta(minutes=age))
    provider, peer = await apple(stack, tmp_path, now=clock)
    await provider.send(apns.said())
    clock.advance(timedelta(minutes=age))
    peer.response = apns.refusal(403, "ExpiredProviderToken")
    failure = await failure_of(provider, apns.said())
    assert (failure.reason, failure.provider_fault) == (Reason.AUTHENTICATION, True)
    assert len(peer.requests) == sent
    assert len({request.headers["authorization"] for request in peer.requests}) == sent - 1


async def test_many_requests_that_meet_an_expired_provider_token_share_the_next(
    stack: AsyncExitStack, tmp_path: Path
) -> None:
    clock = Clock(datetime.now(UTC) - timedelta(minutes=21))
    provider, peer = await apple(stack, tmp_path, now=clock)
    await provider.send(apns.said())
    clock.advance(timedelta(minutes=21))
    peer.response, peer.hold = apns.refusal(403, "ExpiredProviderToken"), True
    sending = [asyncio.create_task(provider.send(apns.said())) for _ in range(3)]
    await eventually(lambda: len(peer.requests) == 4)
    peer.hold = False
    await eventually(lambda: len(peer.requests) == 7)
    outcomes = await asyncio.gather(*sending, return_exceptions=True)
    assert all(isinstance(each, TransientFailure) for each in outcomes), "also the new one is refused, in this test"
    used = [request.headers["authorization"] for request in peer.requests]
    assert len(set(used[:4])) == len(set(used[4:])) == 1
    assert len(set(used)) == 2


async def test_a_message_for_apple_has_every_field(stack: AsyncExitStack, tmp_path: Path) -> None:
    provider, peer = await apple(stack, tmp_path)
    await provider.send(rich(apns.SUBJECT))
    (request,) = peer.requests
    assert request.json == {
        "aps": {
            "alert": {"title": "Order 1042", "body": "It is on its way."},
            "badge": 3,
            "sound": "bell",
            "mutable-content": 1,
        },
        "url": "https://shop.example/orders/1042",
        "image": "https://shop.example/1042.png",
        "order_id": 1042,
        "carrier": "DHL",
        "parts": [1, 2],
    }
    assert request.headers["apns-priority"] == "5"
    assert request.headers["apns-collapse-id"] == "order-1042"
    assert request.headers["apns-expiration"] == str(int((CREATED + timedelta(hours=4)).timestamp()))


@pytest.mark.parametrize("kind", ["close", "reset"])
async def test_a_connection_to_apple_that_breaks_is_an_unknown_outcome(
    stack: AsyncExitStack, tmp_path: Path, kind: str
) -> None:
    provider, peer = await apple(stack, tmp_path)
    await provider.send(apns.said())
    peer.breaks = kind
    assert type(await failure_of(provider, apns.said())) is UnknownOutcome
    assert (await provider.send(apns.said())).reference == apns.APNS_ID


async def test_a_request_that_apple_has_not_looked_at_is_repeated(stack: AsyncExitStack, tmp_path: Path) -> None:
    provider, peer = await apple(stack, tmp_path)
    await provider.send(apns.said())
    peer.breaks = "goaway"
    assert (await provider.send(apns.said())).reference == apns.APNS_ID
    assert (len(peer.requests), peer.opened) == (2, 2)


async def test_an_answer_of_apple_that_breaks_off_after_its_status_is_that_status(
    stack: AsyncExitStack, tmp_path: Path
) -> None:
    provider, peer = await apple(stack, tmp_path)
    peer.breaks = "status"
    assert await provider.send(apns.said()) == "HTTP 200"
    peer.breaks, peer.response = "status", Response(503)
    failure = await failure_of(provider, apns.said())
    assert (type(failure), failure.reason) == (TransientFailure, Reason.PROVIDER_UNAVAILABLE)


async def test_a_stranger_in_place_of_apple_is_told_nothing(stack: AsyncExitStack, tmp_path: Path) -> None:
    peer = await stack.enter_async_context(apns.SUBJECT.peer())
    another = tmp_path / "another.pem"
    another.write_bytes(trustme.CA().cert_pem.bytes())
    options = dict(apns.options(peer.url, tmp_path)) | {"ca_file": str(another)}
    provider = ApnsProvider("iphones", ApnsOptions.model_validate(options))
    stack.push_async_callback(provider.close)
    failure = await failure_of(provider, apns.said())
    assert (type(failure), failure.reason) == (TransientFailure, Reason.TLS)
    assert peer.requests == []


async def test_neither_the_device_nor_the_authorization_is_logged(
    stack: AsyncExitStack, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    provider, peer = await apple(stack, tmp_path)
    await provider.send(apns.said())
    token = peer.requests[0].headers["authorization"].removeprefix("bearer ")
    assert apns.DEVICE not in caplog.text
    assert token not in caplog.text


async def test_a_token_that_is_no_device_token_is_not_sent(stack: AsyncExitStack, tmp_path: Path) -> None:
    provider, peer = await apple(stack, tmp_path)
    whom = {"push": [{"provider": "apns", "token": "../../3/device/00"}]}
    failure = await failure_of(provider, replace(apns.said(), recipient=whom))
    assert (type(failure), failure.reason) == (PermanentFailure, Reason.BAD_ADDRESS)
    assert peer.opened == 0


async def test_which_devices_of_apple_are_dead(stack: AsyncExitStack, tmp_path: Path) -> None:
    provider, peer = await apple(stack, tmp_path)
    dead = {}
    for name in ("Unregistered", "ExpiredToken", "BadDeviceToken", "DeviceTokenNotForTopic"):
        peer.response, _ = apns.SUBJECT.failures[name]
        dead[name] = (await failure_of(provider, apns.said())).suppress
    assert dead == {
        "Unregistered": True,
        "ExpiredToken": True,
        "BadDeviceToken": False,
        "DeviceTokenNotForTopic": False,
    }


async def test_asking_apple_reaches_no_device(stack: AsyncExitStack, tmp_path: Path) -> None:
    provider, peer = await apple(stack, tmp_path)
    peer.response = apns.refusal(400, "BadDeviceToken")
    assert "are taken" in await provider.check()
    assert peer.requests[0].path == "/3/device/" + "0" * 64
    peer.response = apns.refusal(403, "InvalidProviderToken")
    with pytest.raises(TransientFailure):
        await provider.check()


@pytest.mark.parametrize("key", ["gibberish", fcm.PEM])
def test_a_key_that_is_none_of_apples_is_named_and_not_shown(key: str) -> None:
    settings = {"private_key": key, "key_id": apns.KEY_ID, "team_id": apns.TEAM_ID, "topic": apns.TOPIC}
    with pytest.raises(ValueError, match="private_key should be a P-256 key in PEM form") as caught:
        ApnsOptions.model_validate(settings)
    assert key not in str(caught.value)


def test_without_http2_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    settings = {"private_key": apns.PEM, "key_id": apns.KEY_ID, "team_id": apns.TEAM_ID, "topic": apns.TOPIC}
    with pytest.raises(ValueError, match=r"pip install 'notipy\[apns\]'"):
        make_provider(Channel.PUSH, "iphones", "apns", settings)
