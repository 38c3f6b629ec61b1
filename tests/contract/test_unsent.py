"""What is cut off on its way to an HTTP provider: whether anything was sent, over real sockets."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from channels.connection_options import ConnectionOptions
from channels.fetch import AttachmentFetcher, Limits
from channels.http import Api, GuardedApi
from channels.registry import make_provider
from domain.circuit import Mode
from domain.event import Attachment
from domain.failures import TransientFailure, UnknownOutcome, unsent_by_provider, was_unsent
from domain.ports import Provider
from domain.vocabulary import Channel, Reason, Semantics, State
from tests.conformance.over_http import unaccepting_port
from tests.conformance.subject import Subject, message
from tests.conformance.subjects import fcm, sendgrid, ses
from tests.contract.peers import serving
from tests.unit.test_pool import first, little_is_left_of_the_first_lease, pooled
from tests.waiting import eventually

SHORT = ConnectionOptions(timeout=timedelta(milliseconds=200))
LONG = ConnectionOptions(timeout=timedelta(seconds=10), connections=1)
APIS: dict[str, Callable[[ConnectionOptions], Api]] = {
    "the provider's": Api,
    "the recipient's": lambda options: GuardedApi(options, allow_private=True),
}
every_api = pytest.mark.parametrize("whose", APIS)


@dataclass
class Taciturn:
    """A server that answers this many requests, and says nothing to the next; or hangs up upon it."""

    answers: int = 0
    hangs_up: bool = False
    port: int = 0
    connections: int = 0
    requests: int = 0

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        while await reader.readuntil(b"\r\n\r\n{}"):
            self.requests += 1
            if self.requests > self.answers:
                break
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        if not self.hangs_up:
            await asyncio.Event().wait()


@asynccontextmanager
async def taciturn(**how: Any) -> AsyncIterator[Taciturn]:
    server = Taciturn(**how)
    async with serving(server.talk) as server.port:
        yield server


@asynccontextmanager
async def api(whose: str, options: ConnectionOptions) -> AsyncIterator[Api]:
    made = APIS[whose](options)
    yield made
    await made.close()


async def cut_off(sending: Awaitable[object], when: Callable[[], object] | None = None) -> TimeoutError:
    """How the end of the lease ends it, a tenth of a second from now or as soon as that is so."""
    limit = asyncio.timeout(0.1 if when is None else None)

    async def within_lease() -> None:
        async with limit:
            await sending

    task = asyncio.create_task(within_lease())
    if when is not None:
        await eventually(when)
        limit.reschedule(0)
    with pytest.raises(TimeoutError) as caught:
        await task
    return caught.value


@every_api
async def test_nothing_was_sent_while_tls_is_waited_for(whose: str) -> None:
    async with serving(never) as port, api(whose, SHORT) as client:
        error = await cut_off(client.request("POST", f"https://127.0.0.1:{port}/", json={}))
        with pytest.raises(TransientFailure) as caught:
            await client.request("POST", f"https://127.0.0.1:{port}/", json={})
    blamed = whose == "the provider's"
    assert (was_unsent(error), unsent_by_provider(error)) == (True, blamed)
    assert (caught.value.reason, caught.value.provider_fault) == (Reason.TIMEOUT, blamed)


@every_api
async def test_nothing_was_sent_while_a_name_is_looked_up(whose: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", never)
    async with api(whose, SHORT) as client:
        error = await cut_off(client.request("POST", "https://api.example.org/", json={}))
    assert was_unsent(error)


@every_api
async def test_nothing_was_sent_by_one_that_waits_for_a_connection(whose: str) -> None:
    async with taciturn() as server, api(whose, LONG) as client:
        url = f"http://127.0.0.1:{server.port}/"
        busy = asyncio.create_task(client.request("POST", url, json={}))
        await eventually(lambda: server.requests == 1)
        error = await cut_off(client.request("POST", url, json={}))
        busy.cancel()
        await asyncio.wait([busy])
    assert was_unsent(error)
    assert server.requests == 1


@every_api
async def test_over_a_kept_connection_it_may_have_been_sent_when_it_is_cut_off(whose: str) -> None:
    async with taciturn(answers=1) as server, api(whose, LONG) as client:
        url = f"http://127.0.0.1:{server.port}/"
        await client.request("POST", url, json={})
        error = await cut_off(client.request("POST", url, json={}), lambda: server.requests == 2)
    assert not was_unsent(error)
    assert server.connections == 1


@every_api
@pytest.mark.parametrize("hangs_up", [False, True], ids=["silence", "the connection lost"])
async def test_over_a_kept_connection_it_may_have_been_sent_without_an_answer(whose: str, hangs_up: bool) -> None:
    async with taciturn(answers=1, hangs_up=hangs_up) as server, api(whose, SHORT) as client:
        url = f"http://127.0.0.1:{server.port}/"
        await client.request("POST", url, json={})
        with pytest.raises(UnknownOutcome):
            await client.request("POST", url, json={})
    assert (server.connections, server.requests) == (1, 2)


async def never(*_: object, **__: object) -> Any:
    """It does not end by itself."""
    await asyncio.Event().wait()


def provider_of(subject: Subject, url: str, folder: Path) -> Provider:
    options = dict(subject.options(url, folder)) | {"timeout": "10s"}
    return make_provider(subject.channel, "primary", subject.kind, options)


async def test_nothing_was_sent_while_an_access_token_is_waited_for(tmp_path: Path) -> None:
    asked = asyncio.Event()

    async def ask(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"grant_type=")
        asked.set()
        await never()

    async with serving(ask) as port:
        provider = provider_of(fcm.SUBJECT, f"http://127.0.0.1:{port}", tmp_path)
        error = await cut_off(provider.send(fcm.SUBJECT.message_over("")), asked.is_set)
        await provider.close()
    assert unsent_by_provider(error)


async def test_nothing_was_sent_while_the_settings_of_aws_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = provider_of(ses.SUBJECT, "http://127.0.0.1:1", tmp_path)
    monkeypatch.setattr(provider, "_open", never)
    error = await cut_off(provider.send(ses.SUBJECT.message_over("")))
    await provider.close()
    assert unsent_by_provider(error)


async def test_nothing_was_sent_while_an_attachment_is_fetched_and_the_provider_is_not_blamed() -> None:
    limits = Limits(count=1, each=100, total=100, timeout=timedelta(seconds=10))
    files = AttachmentFetcher(limits, allow_private=True)
    async with unaccepting_port() as port:
        attachment = Attachment(filename="a.pdf", content_type="application/pdf", url=f"http://127.0.0.1:{port}/a.pdf")
        mail = message(Channel.EMAIL, {"email": "ana@example.org"}, attachments=(attachment,))
        error = await cut_off(files.of(mail, timedelta(seconds=10)))
        await files.close()
    assert (was_unsent(error), unsent_by_provider(error)) == (True, False)


async def test_at_most_once_another_provider_takes_over_where_the_first_cannot_be_reached(tmp_path: Path) -> None:
    """No end of a lease in the middle of connecting leaves a delivery `unknown`."""
    world, (second,) = pooled("second", semantics=Semantics.AT_MOST_ONCE)
    little_is_left_of_the_first_lease(world)
    job = await first(world)
    async with serving(never) as port:
        world.provider = unreached = provider_of(sendgrid.SUBJECT, f"https://127.0.0.1:{port}", tmp_path)  # type: ignore[assignment]
        await world.deliver(job)
        await unreached.close()
    stored = world.deliveries.stored[job.delivery.id]
    assert (stored.state, stored.provider, stored.possible_duplicate) == (State.SENT, "second", False)
    assert len(second.sent) == 1
    assert world.circuit.mode is Mode.CLOSED, "it was its first fault"
