"""Webhooks: verified by others' library in another language; endpoints that are gone; where none may lead."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from channels.guard import refused
from channels.rendering import TemplateRenderer
from channels.surroundings import NOWHERE, Surroundings
from channels.webhook import WebhookOptions, WebhookProvider
from domain.failures import DeliveryFailure, PermanentFailure, TransientFailure, UnknownOutcome
from domain.message import Message
from domain.notification import check_content
from domain.vocabulary import Channel, Reason
from tests.contract.peers import http_server
from tests.fakes import START, Clock, MemoryEndpoints
from tests.nodejs import installed, script

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER_SECRET = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
PAYLOAD = json.dumps({"said": "Grüße, Ána 🚲 „42“"}, ensure_ascii=False)
Hooks = Callable[..., WebhookProvider]


def hook(url: str, **content: str) -> Message:
    return Message("d1", "d1/1", Channel.WEBHOOK, {"webhook": url}, {"payload": PAYLOAD} | content, START)


@pytest.fixture
async def hooks() -> AsyncIterator[Hooks]:
    """Makes a provider; what was made is closed at the end."""
    made: list[WebhookProvider] = []

    def make(surroundings: Surroundings = NOWHERE, clock: Clock | None = None, **options: Any) -> WebhookProvider:
        settings = {"secret": SECRET, "allow_private": True, "timeout": "5s"} | options
        parsed = WebhookOptions.model_validate(settings)
        made.append(WebhookProvider("hooks", parsed, surroundings, **({"now": clock} if clock else {})))
        return made[-1]

    yield make
    for provider in made:
        await provider.close()


async def failure_of(provider: WebhookProvider, message: Message) -> DeliveryFailure:
    with pytest.raises(DeliveryFailure) as caught:
        await provider.send(message)
    return caught.value


# --- in another language ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def receiver() -> Path:
    """The script of a receiver with the JavaScript library of Standard Webhooks."""
    return installed(Path(__file__).parents[1] / "node") / "receiver.mjs"


@asynccontextmanager
async def receiving(receiver: Path, secret: str) -> AsyncIterator[tuple[str, Callable[[], Any]]]:
    """Its URL, and what it says next."""
    async with script(receiver, secret) as process:
        assert process.stdout is not None
        lines = process.stdout

        async def next_line() -> Any:
            return json.loads(await asyncio.wait_for(lines.readline(), 10))

        port = (await next_line())["port"]
        yield f"http://127.0.0.1:{port}/hook", next_line


@pytest.mark.parametrize("secret", [SECRET, OTHER_SECRET])
async def test_the_library_for_javascript_verifies_each_signature(receiver: Path, hooks: Hooks, secret: str) -> None:
    async with receiving(receiver, secret) as (url, told):
        assert await hooks(secrets=[OTHER_SECRET]).send(hook(url)) == "HTTP 204"
        assert await told() == {"id": "d1/1", "verified": json.loads(PAYLOAD)}


async def test_the_library_for_javascript_refuses_what_another_secret_signed(receiver: Path, hooks: Hooks) -> None:
    async with receiving(receiver, OTHER_SECRET) as (url, told):
        failure = await failure_of(hooks(), hook(url))
        assert "No matching signature found" in (await told())["refused"]
    assert (type(failure), failure.reason) == (PermanentFailure, Reason.AUTHENTICATION)


# --- endpoints that are gone ------------------------------------------------------------------------------------------


class Endpoint:
    """A receiver that answers as it is told."""

    def __init__(self) -> None:
        self.status = 200
        self.headers: list[Any] = []

    async def answer(self, request: web.Request) -> web.Response:
        self.headers.append(request.headers.copy())
        return web.Response(status=self.status)


@pytest.mark.parametrize("status", [401, 404, 500])
async def test_a_refusal_suppresses_nobody(hooks: Hooks, status: int) -> None:
    endpoint = Endpoint()
    endpoint.status = status
    async with http_server(endpoint.answer) as url:
        assert not (await failure_of(hooks(), hook(url))).suppress


async def test_gone_is_gone(hooks: Hooks) -> None:
    endpoint = Endpoint()
    endpoint.status = 410
    async with http_server(endpoint.answer) as url:
        failure = await failure_of(hooks(), hook(url))
    assert (type(failure), failure.reason, failure.suppress) == (PermanentFailure, Reason.ENDPOINT_GONE, True)


async def test_an_endpoint_that_has_only_failed_for_five_days_is_given_up(hooks: Hooks) -> None:
    store, clock, endpoint = MemoryEndpoints(), Clock(), Endpoint()
    provider = hooks(Surroundings(endpoints=store), clock)
    async with http_server(endpoint.answer) as url:
        endpoint.status = 503
        first = await failure_of(provider, hook(url))
        clock.advance(timedelta(days=5))
        await failure_of(provider, hook(url))
        last = await failure_of(provider, hook(url))
    assert (type(first), first.suppress) == (TransientFailure, False)
    assert (type(last), last.reason, last.suppress) == (PermanentFailure, Reason.ENDPOINT_GONE, True)
    assert "127.0.0.1" not in last.detail


async def test_one_that_is_not_there_at_all_is_given_up_too(hooks: Hooks, unused_tcp_port: int) -> None:
    clock = Clock()
    provider = hooks(Surroundings(endpoints=MemoryEndpoints()), clock, disable_after="1h")
    await failure_of(provider, hook(f"http://127.0.0.1:{unused_tcp_port}"))
    clock.advance(timedelta(hours=1))
    assert (await failure_of(provider, hook(f"http://127.0.0.1:{unused_tcp_port}"))).suppress


async def test_one_behind_a_gateway_that_reaches_nobody_is_given_up_without_another_request(hooks: Hooks) -> None:
    clock, endpoint = Clock(), Endpoint()
    provider = hooks(Surroundings(endpoints=MemoryEndpoints()), clock, disable_after="1h")
    async with http_server(endpoint.answer) as url:
        endpoint.status = 502
        for _ in range(2):
            assert type(await failure_of(provider, hook(url))) is UnknownOutcome
            clock.advance(timedelta(hours=1))
        last = await failure_of(provider, hook(url))
    assert (type(last), last.reason, last.suppress) == (PermanentFailure, Reason.ENDPOINT_GONE, True)
    assert len(endpoint.headers) == 2


async def test_one_that_has_answered_between_is_not(hooks: Hooks) -> None:
    clock, endpoint = Clock(), Endpoint()
    provider = hooks(Surroundings(endpoints=MemoryEndpoints()), clock)
    async with http_server(endpoint.answer) as url:
        for day in range(9):
            endpoint.status = 200 if day == 4 else 503
            if day == 4:
                await provider.send(hook(url))
            else:
                assert not (await failure_of(provider, hook(url))).suppress
            clock.advance(timedelta(days=1))


async def test_nobody_is_given_up_where_the_setting_says_so(hooks: Hooks) -> None:
    store, clock, endpoint = MemoryEndpoints(), Clock(), Endpoint()
    provider = hooks(Surroundings(endpoints=store), clock, disable_after=None)
    async with http_server(endpoint.answer) as url:
        endpoint.status = 503
        await failure_of(provider, hook(url))
        clock.advance(timedelta(days=50))
        await failure_of(provider, hook(url))
        assert not (await failure_of(provider, hook(url))).suppress
    assert store.known == {}


# --- headers ----------------------------------------------------------------------------------------------------------


async def test_a_notification_has_headers_of_its_own(hooks: Hooks) -> None:
    written = {"headers": {"X-Order": "{{ order }}", "x-api-key": "its own"}}
    assert check_content(Channel.WEBHOOK, written) == ()
    context = {"order": 1042, "event": {"type": "t", "time": "t"}, "data": {}}
    content = TemplateRenderer().render(Channel.WEBHOOK, written, context)
    endpoint = Endpoint()
    async with http_server(endpoint.answer) as url:
        await hooks(headers={"X-Api-Key": "k", "X-From": "shop"}).send(hook(url, **content))
    (headers,) = endpoint.headers
    assert (headers["X-Order"], headers["X-From"]) == ("1042", "shop")
    assert headers.getall("X-Api-Key") == ["its own"]


@pytest.mark.parametrize("name", ["Host", "content-length", "webhook-id", "a b", "", "X-Ü"])
def test_a_header_that_a_notification_cannot_have(name: str) -> None:
    (fault,) = check_content(Channel.WEBHOOK, {"headers": {name: "x"}})
    assert fault.field.startswith("webhook.headers")


async def test_a_header_cannot_bring_another(hooks: Hooks) -> None:
    endpoint = Endpoint()
    async with http_server(endpoint.answer) as url:
        failure = await failure_of(hooks(), hook(url, **{"headers.X-A": "1\r\nwebhook-id: 2"}))
    assert (type(failure), failure.reason) == (PermanentFailure, Reason.MESSAGE_REJECTED)
    assert endpoint.headers == []


# --- where none may lead ----------------------------------------------------------------------------------------------


async def test_a_name_that_leads_elsewhere_once_it_was_checked_is_refused(
    hooks: Hooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: whoever looks first sees a public address, whoever connects gets another one."""
    answers = ["93.184.216.34", "127.0.0.1"]
    lookup = socket.getaddrinfo

    def rebinding(host: Any, port: Any, *rest: Any, **options: Any) -> Any:
        return lookup(answers.pop(0) if host == "rebinding.example" else host, port, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    endpoint = Endpoint()
    async with http_server(endpoint.answer) as url:
        port = int(url.rsplit(":", 1)[1].strip("/"))
        assert not refused(str(socket.getaddrinfo("rebinding.example", port)[0][4][0]))
        failure = await failure_of(hooks(allow_private=False), hook(f"http://rebinding.example:{port}/"))
    assert (type(failure), failure.reason) == (PermanentFailure, Reason.ADDRESS_REFUSED)
    assert answers == []
    assert endpoint.headers == []


@pytest.mark.parametrize("target", ["http://169.254.169.254/latest/meta-data/", "http://127.0.0.1:1/", "/elsewhere"])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_leads_nowhere(hooks: Hooks, target: str, status: int) -> None:
    paths: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        paths.append(request.path)
        return web.Response(status=status, headers={"Location": target})

    async with http_server(answer) as url:
        failure = await failure_of(hooks(), hook(url))
    assert (type(failure), failure.reason) == (PermanentFailure, Reason.REDIRECT_REFUSED)
    assert paths == ["/"]
