"""Apprise: the library itself, speaking to a real server."""

import asyncio
import logging
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web

from channels.registry import make_provider
from domain.failures import DeliveryFailure, PermanentFailure, TransientFailure, UnknownOutcome
from domain.message import Message
from domain.vocabulary import Channel, Reason
from tests.contract.peers import http_server
from tests.fakes import START
from tests.waiting import eventually

TOKEN = "s3cr3t-token"


@dataclass
class Service:
    """A service that takes JSON, as Apprise's `json://` writes it."""

    url: str = ""
    status: int = 200
    got: list[dict[str, Any]] = field(default_factory=list)
    hold: asyncio.Event | None = None


@asynccontextmanager
async def service() -> AsyncIterator[Service]:
    peer = Service()

    async def answer(request: web.Request) -> web.Response:
        peer.got.append(await request.json())
        if peer.hold is not None:
            await peer.hold.wait()
        return web.Response(status=peer.status, text=TOKEN)

    async with http_server(answer) as url:
        peer.url = url.replace("http://", f"json://user:{TOKEN}@")
        yield peer


def message(**recipient: Any) -> Message:
    return Message("d1", "d1/1", Channel.CHAT, recipient, {"title": "Hi", "text": "Grüße 🚲"}, START)


def apprise(*urls: str, **options: Any) -> Any:
    settings = {"urls": list(urls), "timeout": "5s"} if urls else {"timeout": "5s"}
    return make_provider(Channel.CHAT, "apprise", "apprise", settings | options)


async def failure_of(provider: Any, sent: Message) -> DeliveryFailure:
    with pytest.raises(DeliveryFailure) as caught:
        await provider.send(sent)
    assert TOKEN not in f"{caught.value} {caught.value.detail}"
    return caught.value


async def test_a_message_is_handed_to_every_service(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with service() as one, service() as other:
        provider = apprise(one.url, other.url)
        assert await provider.send(message()) == "taken by 2 of 2 services"
        assert [(got["title"], got["message"]) for got in one.got + other.got] == [("Hi", "Grüße 🚲")] * 2
        await provider.close()
    assert TOKEN not in f"{caplog.text} {provider!r} {vars(provider)}"


async def test_whether_what_is_not_taken_was_sent_is_unknown() -> None:
    async with service() as one, service() as other:
        provider = apprise(one.url, other.url)
        one.status = 500
        assert type(await failure_of(provider, message())) is UnknownOutcome
        other.status = 500
        failure = await failure_of(provider, message())
        assert type(failure) is UnknownOutcome
        assert failure.provider_fault
        await provider.close()


async def test_a_service_that_takes_it_and_answers_too_late_for_the_library_leaves_it_open() -> None:
    async with service() as one:
        one.hold = asyncio.Event()
        provider = apprise(f"{one.url}?rto=0.2")
        failure = await failure_of(provider, message())
        assert (type(failure), failure.reason) == (UnknownOutcome, Reason.OUTCOME_UNKNOWN)
        assert len(one.got) == 1
        one.hold.set()
        await provider.close()


async def test_no_answer_in_time_is_an_unknown_outcome_and_a_busy_pool_is_not() -> None:
    async with service() as one:
        one.hold = asyncio.Event()
        provider = apprise(one.url, timeout="300ms", threads=1)
        first = asyncio.create_task(failure_of(provider, message()))
        await eventually(lambda: len(one.got) == 1)
        second = await failure_of(provider, message())
        assert type(await first) is UnknownOutcome
        assert type(second) is TransientFailure
        assert (second.reason, len(one.got)) == (Reason.TIMEOUT, 1)
        one.hold.set()
        await provider.close()
        await eventually(lambda: not [each for each in threading.enumerate() if each.name.startswith("apprise-")])


@pytest.mark.parametrize(
    ("chat", "fixed", "own"),
    [
        ("#orders", True, False),
        ("apprise:", True, False),
        ("apprise:orders", True, False),
        ("ops:orders", True, False),
        ("slack:#orders", False, False),
        ("other:orders", False, False),
        ("ntfy://ntfy.example/ana", False, True),
        ("apprise:ntfy://ntfy.example/ana", False, True),
        ("", False, False),
    ],
)
async def test_whose_address_is_another_services_is_left_to_that(chat: str, fixed: bool, own: bool) -> None:
    to_all = make_provider(Channel.CHAT, "ops", "apprise", {"urls": ["json://host"]})
    to_each = make_provider(Channel.CHAT, "ops", "apprise", {"allow_recipient_urls": True})
    assert (to_all.takes({"chat": chat}), to_each.takes({"chat": chat})) == (fixed, own)
    await to_all.close()
    await to_each.close()


def test_an_address_of_mail_or_a_number_is_not_answered_by_a_fixed_url() -> None:
    for channel in (Channel.EMAIL, Channel.SMS, Channel.PUSH):
        with pytest.raises(ValueError, match="is no kind of provider"):
            make_provider(channel, "ops", "apprise", {"urls": ["json://host"]})


async def test_a_recipients_url_is_used_only_if_that_is_allowed() -> None:
    async with service() as one, service() as own:
        shut = apprise(one.url)
        assert not shut.takes({"chat": own.url})
        await shut.send(message(chat=own.url))
        assert (len(one.got), len(own.got)) == (1, 0)
        allowed = apprise(allow_recipient_urls=True)
        assert allowed.takes({"chat": own.url})
        assert not allowed.takes({"chat": "#general"})
        await allowed.send(message(chat=own.url))
        assert len(own.got) == 1
        own.status = 500
        assert not (await failure_of(allowed, message(chat=own.url))).provider_fault
        assert type(await failure_of(allowed, message(chat="pigeon://coop"))) is PermanentFailure
        await shut.close()
        await allowed.close()


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({}, "needs urls, or allow_recipient_urls"),
        ({"urls": [f"pigeon://{TOKEN}"]}, r"urls\.0: is no URL"),
        ({"urls": [f"json://{TOKEN}@host"], "threads": 0}, "threads"),
    ],
)
def test_a_wrong_setting_is_named_and_not_shown(options: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=fault) as caught:
        make_provider(Channel.CHAT, "apprise", "apprise", options)
    assert TOKEN not in str(caught.value)


def test_without_the_library_it_is_told_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "apprise", None)
    with pytest.raises(ValueError, match=r"pip install 'notipy\[apprise\]'"):
        apprise("json://host")
