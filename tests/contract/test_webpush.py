"""Web Push, read by a push service that others wrote; and where it may not lead."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import http_ece
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    SECP384R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from channels.webpush import MAX_PAYLOAD, ORIGINS, Vapid, WebPushOptions, WebPushProvider, encrypted, subscription_of
from domain.failures import DeliveryFailure, PermanentFailure, TransientFailure
from domain.message import Message
from domain.vocabulary import Channel, Reason
from tests.conformance.over_http import Response
from tests.conformance.subject import CREATED, TEXT
from tests.conformance.subjects import webpush
from tests.conformance.subjects.webpush import AUTH, BROWSER, VAPID, base64url, public, said, subscription
from tests.fakes import Clock
from tests.nodejs import installed, script


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as resources:
        yield resources


def provider_of(stack: AsyncExitStack, now: Any = None, **options: Any) -> WebPushProvider:
    settings = {"private_key": webpush.PEM, "subject": "mailto:push@shop.example", "allow_private": True} | options
    made = WebPushProvider("site", WebPushOptions.model_validate(settings), now=now or (lambda: datetime.now(UTC)))
    stack.push_async_callback(made.close)
    return made


async def failure_of(provider: WebPushProvider, message: Message) -> DeliveryFailure:
    with pytest.raises(DeliveryFailure) as caught:
        await provider.send(message)
    return caught.value


def to(token: str, **content: str) -> Message:
    recipient = {"push": [{"provider": "webpush", "token": token}]}
    return Message("d1", "d1/1", Channel.PUSH, recipient, {"text": TEXT} | content, CREATED)


# ---------------------------------------------------------------------------------------------------------------
# A push service that others wrote
# ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def service_script() -> Path:
    return installed(Path(__file__).parents[1] / "pushservice") / "serve.mjs"


class Service:
    """The push service of the npm package web-push-testing, which verifies VAPID and decrypts with its own http_ece."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session, self._url = session, url

    async def _ask(self, path: str, **document: Any) -> Any:
        async with self._session.post(self._url + path, json=document) as answer:
            assert answer.status == 200
            return (await answer.json())["data"] if answer.content_type == "application/json" else None

    async def subscribed(self, key: EllipticCurvePrivateKey = VAPID) -> dict[str, Any]:
        given: dict[str, Any] = await self._ask("/subscribe", applicationServerKey=base64url(public(key.public_key())))
        return given

    async def messages(self, given: dict[str, Any]) -> list[str]:
        data = await self._ask("/get-notifications", clientHash=given["clientHash"])
        return list(data["messages"])

    async def expire(self, given: dict[str, Any]) -> None:
        await self._ask(f"/expire-subscription/{given['clientHash']}")


@pytest.fixture
async def service(service_script: Path) -> AsyncIterator[Service]:
    async with script(service_script) as process, aiohttp.ClientSession() as session:
        assert process.stdout is not None
        told = json.loads(await asyncio.wait_for(process.stdout.readline(), 20))
        yield Service(session, f"http://127.0.0.1:{told['port']}")


async def test_another_implementation_reads_what_was_sent(stack: AsyncExitStack, service: Service) -> None:
    provider, given = provider_of(stack), await service.subscribed()
    answer = await provider.send(
        to(json.dumps(given), title="Order 1042", url="https://shop.example/1042", badge="3", data='{"id": 1042}')
    )
    await provider.send(to(json.dumps(given), text="and another one"))
    assert answer == "HTTP 201"
    first, second = [json.loads(each) for each in await service.messages(given)]
    tag = first["notification"].pop("tag")
    assert first == {
        "web_push": 8030,
        "notification": {
            "title": "Order 1042",
            "body": TEXT,
            "navigate": "https://shop.example/1042",
            "data": {"id": 1042},
        },
        "app_badge": 3,
    }
    assert second == {"notification": {"body": "and another one", "tag": tag}}


async def test_another_implementation_reads_the_largest_message_that_is_sent(
    stack: AsyncExitStack, service: Service
) -> None:
    provider, given = provider_of(stack), await service.subscribed()
    room = MAX_PAYLOAD - len(json.dumps({"notification": {"body": "", "tag": "0" * 32}}, separators=(",", ":")))
    await provider.send(to(json.dumps(given), text="x" * room))
    assert (await failure_of(provider, to(json.dumps(given), text="x" * (room + 1)))).reason is Reason.MESSAGE_TOO_LARGE
    (read,) = await service.messages(given)
    assert len(read) == MAX_PAYLOAD
    assert json.loads(read)["notification"]["body"] == "x" * room


async def test_a_subscription_that_has_expired_is_dead(stack: AsyncExitStack, service: Service) -> None:
    provider, given = provider_of(stack), await service.subscribed()
    await service.expire(given)
    failure = await failure_of(provider, to(json.dumps(given)))
    assert (type(failure), failure.suppress) == (PermanentFailure, True)


async def test_another_sites_subscription_is_not_reached(stack: AsyncExitStack, service: Service) -> None:
    given = await service.subscribed(generate_private_key(SECP256R1()))
    failure = await failure_of(provider_of(stack), to(json.dumps(given)))
    assert (type(failure), failure.suppress) == (PermanentFailure, False)
    assert await service.messages(given) == []


# ---------------------------------------------------------------------------------------------------------------
# The rest
# ---------------------------------------------------------------------------------------------------------------


async def test_which_subscriptions_are_dead(stack: AsyncExitStack) -> None:
    provider, dead = provider_of(stack), {}
    async with webpush.SUBJECT.peer() as peer:
        for status in (403, 404, 410, 413):
            peer.response = Response(status)
            dead[status] = (await failure_of(provider, said(peer.url))).suppress
    assert dead == {403: False, 404: True, 410: True, 413: False}


async def test_a_push_service_is_left_alone_for_as_long_as_it_asks(stack: AsyncExitStack) -> None:
    provider = provider_of(stack)
    async with webpush.SUBJECT.peer(Response(429, headers={"Retry-After": "7"})) as peer:
        failure = await failure_of(provider, said(peer.url))
    assert (type(failure), failure.reason) == (TransientFailure, Reason.RATE_LIMITED)
    assert (failure.retry_after, failure.provider_fault) == (timedelta(seconds=7), False)


async def test_the_token_for_a_push_service_is_kept_until_an_hour_before_its_end(stack: AsyncExitStack) -> None:
    clock = Clock(datetime.now(UTC))
    provider = provider_of(stack, clock)
    async with webpush.SUBJECT.peer() as peer, webpush.SUBJECT.peer() as another:
        for passed in (0, 10, 2):
            clock.advance(timedelta(hours=passed))
            await provider.send(said(peer.url))
        await provider.send(said(another.url))
        first, second, third = [request.headers["Authorization"] for request in peer.requests]
        (elsewhere,) = [request.headers["Authorization"] for request in another.requests]
    assert first == second != third != elsewhere


def test_the_tokens_of_a_thousand_push_services_are_kept_and_no_more() -> None:
    options = WebPushOptions.model_validate({"private_key": webpush.PEM, "subject": "mailto:push@shop.example"})
    vapid = Vapid(options, lambda: datetime.now(UTC))
    for number in range(ORIGINS + 1):
        vapid.authorization(f"https://{number}.example")
    assert len(vapid._tokens) == ORIGINS


def test_a_key_may_come_in_one_line_as_environments_have_it() -> None:
    settings = {"private_key": webpush.PEM.replace("\n", "\\n"), "subject": "mailto:push@shop.example"}
    assert public(WebPushOptions.model_validate(settings).key().public_key()) == public(VAPID.public_key())


async def test_urgency_topic_and_time_to_live_are_headers(stack: AsyncExitStack) -> None:
    provider = provider_of(stack, lambda: CREATED + timedelta(hours=1))
    async with webpush.SUBJECT.peer() as peer:
        await provider.send(said(peer.url, priority="high", collapse="order-1042", ttl="4h"))
        (request,) = peer.requests
    assert request.headers["Urgency"] == "high"
    assert request.headers["Topic"] == "order-1042"
    assert request.headers["TTL"] == "10800"


async def test_what_is_repeated_has_the_topic_of_what_it_repeats(stack: AsyncExitStack) -> None:
    provider = provider_of(stack)
    async with webpush.SUBJECT.peer() as peer:
        for key in ("d1/1", "d1/1", "d2/1"):
            await provider.send(replace(said(peer.url), idempotency_key=key))
        first, again, other = [request.headers["Topic"] for request in peer.requests]
    assert first == again != other


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1:9",
        "https://127.1:9",
        "https://2130706433:9",
        "https://[::1]:9",
        "https://[::ffff:127.0.0.1]:9",
        "https://169.254.169.254",
        "https://localhost:9",
    ],
)
async def test_an_endpoint_in_a_private_network_is_refused(stack: AsyncExitStack, url: str) -> None:
    provider = provider_of(stack, allow_private=False)
    failure = await failure_of(provider, said(url))
    assert (type(failure), failure.reason) == (PermanentFailure, Reason.ADDRESS_REFUSED)
    assert not failure.suppress


KEYS = {"p256dh": base64url(public(BROWSER.public_key())), "auth": base64url(AUTH)}


@pytest.mark.parametrize(
    "token",
    [
        "not JSON",
        "[]",
        "{}",
        json.dumps({"endpoint": "https://push.example/1"}),
        json.dumps({"endpoint": 5, "keys": KEYS}),
        json.dumps({"endpoint": "/push/1", "keys": KEYS}),
        json.dumps({"endpoint": "http://push.example/1", "keys": KEYS}),
        json.dumps({"endpoint": "ftp://push.example/1", "keys": KEYS}),
        json.dumps({"endpoint": "https://me@push.example/1", "keys": KEYS}),
        json.dumps({"endpoint": "https://push.example/1", "keys": KEYS | {"auth": "AAAA"}}),
        json.dumps({"endpoint": "https://push.example/1", "keys": KEYS | {"auth": "not base64!"}}),
        json.dumps({"endpoint": "https://push.example/1", "keys": KEYS | {"auth": 5}}),
        json.dumps({"endpoint": "https://push.example/1", "keys": KEYS | {"p256dh": base64url(b"\4" + bytes(64))}}),
        json.dumps({"endpoint": "https://push.example/1", "keys": "keys"}),
    ],
)
def test_what_is_no_subscription_is_a_bad_address(token: str) -> None:
    with pytest.raises(PermanentFailure) as caught:
        subscription_of(token)
    assert caught.value.reason is Reason.BAD_ADDRESS
    assert "push.example" not in caught.value.detail


def test_each_message_is_encrypted_with_a_key_of_its_own() -> None:
    whom = subscription_of(subscription("https://push.example"))
    one, another = encrypted(b"text", whom), encrypted(b"text", whom)
    assert one[:86] != another[:86]
    for sealed in (one, another):
        assert http_ece.decrypt(sealed, private_key=BROWSER, auth_secret=AUTH) == b"text"


def test_a_subscription_may_have_padded_keys() -> None:
    keys = {name: value + "=" * (-len(value) % 4) for name, value in KEYS.items()}
    read = subscription_of(json.dumps({"endpoint": "https://push.example:443/1", "keys": keys}))
    assert (read.auth, read.origin) == (AUTH, "https://push.example")


async def test_the_key_may_be_the_raw_number_or_a_file(stack: AsyncExitStack, tmp_path: Path) -> None:
    raw = base64url(VAPID.private_numbers().private_value.to_bytes(32))
    file = tmp_path / "vapid.pem"
    file.write_text(webpush.PEM, encoding="ascii")
    for settings in ({"private_key": raw}, {"private_key": None, "private_key_file": str(file)}):
        async with webpush.SUBJECT.peer() as peer:
            await provider_of(stack, **settings).send(said(peer.url))
            (request,) = peer.requests
        webpush.requested(request)


@pytest.mark.parametrize(
    "key",
    [
        "gibberish",
        base64url(bytes(16)),
        generate_private_key(SECP384R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
    ],
)
def test_a_key_that_is_none_is_named_and_not_shown(key: str) -> None:
    with pytest.raises(ValueError, match="private_key should be a P-256 key") as caught:
        WebPushOptions.model_validate({"private_key": key, "subject": "mailto:push@shop.example"})
    assert key not in str(caught.value)
