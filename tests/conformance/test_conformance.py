"""The same promises for every provider with an HTTP API. `subjects/` says how each provider's server talks."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from channels.registry import KINDS as OWN
from channels.registry import kinds, make_provider
from channels.taxonomy import CONSEQUENCES, Meaning
from domain.circuit import Circuit, Mode
from domain.failures import DeliveryFailure, PermanentFailure, TransientFailure, UnknownOutcome
from domain.ports import Provider
from domain.vocabulary import Reason
from tests.conformance.subject import CREATED, Peer, Request, Response, Subject
from tests.conformance.subjects import subjects
from tests.contract.peers import serving
from tests.waiting import eventually

SUBJECTS = subjects()
KINDS = {
    Meaning.TRANSIENT: TransientFailure,
    Meaning.RATE_LIMITED: TransientFailure,
    Meaning.CONFIGURATION: TransientFailure,
    Meaning.RECIPIENT: PermanentFailure,
    Meaning.MESSAGE: PermanentFailure,
    Meaning.UNKNOWN: UnknownOutcome,
}
PAUSING = frozenset({Meaning.RATE_LIMITED, Meaning.CONFIGURATION})
Make = Callable[..., Provider]


def name_of(subject: Subject) -> str:
    return subject.kind


ELSEWHERE = {
    "smtp": "tests/contract/test_channels.py",
    "amqp": "tests/unit/test_development_providers.py",
    "console": "tests/unit/test_development_providers.py",
    "file": "tests/contract/test_channels.py",
    "inbox": "tests/contract/test_inbox.py",
    "apprise": "tests/unit/test_apprise.py",
}
"""The kinds that speak no HTTP of their own, and where their promises are tried."""


def test_every_kind_keeps_its_promises_here_or_elsewhere() -> None:
    assert {subject.kind for subject in SUBJECTS}.isdisjoint(ELSEWHERE)
    assert {subject.kind for subject in SUBJECTS} | ELSEWHERE.keys() == OWN.keys()
    for kind, suite in ELSEWHERE.items():
        assert kind in (Path(__file__).parents[2] / suite).read_text()


@pytest.fixture(params=SUBJECTS, ids=name_of)
def subject(request: pytest.FixtureRequest) -> Subject:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
async def make(subject: Subject, tmp_path: Path) -> AsyncIterator[Make]:
    """Makes the provider against a server; what was made is closed at the end."""
    made: list[Provider] = []

    def provider(url: str, **options: Any) -> Provider:
        settings = dict(subject.options(url, tmp_path)) | {"timeout": "3s"} | options
        made.append(make_provider(subject.channel, "primary", subject.kind, settings, subject.surroundings))
        return made[-1]

    yield provider
    for each in made:
        await each.close()


def told_of(error: BaseException) -> str:
    """Everything that an error says of itself and of what it came from."""
    current: BaseException | None = error
    words = ""
    while current is not None:
        words += f"{current} {current!r} {getattr(current, 'detail', '')}"
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return words


def pauses(failure: DeliveryFailure) -> bool:
    """Whether this one failure is enough for the provider's circuit."""
    circuit = Circuit("primary", lambda: CREATED)
    circuit.ended(failure)
    return circuit.mode is Mode.OPEN


async def failure_of(provider: Provider, subject: Subject, url: str) -> DeliveryFailure:
    with pytest.raises(DeliveryFailure) as caught:
        await provider.send(subject.message_over(url))
    for secret in (*subject.secrets, subject.address):
        assert secret not in told_of(caught.value)
    return caught.value


async def test_a_message_is_taken_and_named(subject: Subject, make: Make) -> None:
    async with subject.peer() as peer:
        answer = await make(peer.url).send(subject.message_over(peer.url))
        assert answer.isprintable()
        assert answer.reference == subject.reference
        (request,) = peer.requests
    subject.requested(request)


async def test_the_idempotency_key_is_sent_where_it_is_supported(subject: Subject, make: Make) -> None:
    if subject.idempotency is None:
        return
    async with subject.peer() as peer:
        provider = make(peer.url)
        message = subject.message_over(peer.url)
        for _ in range(2):
            await provider.send(message)
        await provider.send(replace(message, idempotency_key="d1/2"))
        first, second, other = [subject.idempotency(request) for request in peer.requests]
    assert first
    assert first == second != other


def failures() -> list[Any]:
    return [pytest.param(each, name, id=f"{each.kind}-{name}") for each in SUBJECTS for name in each.failures]


@pytest.mark.parametrize(("subject", "name"), failures())
async def test_a_refusal_is_classified(subject: Subject, name: str, tmp_path: Path) -> None:
    response, meaning = subject.failures[name]
    async with subject.peer(response) as peer:
        settings = dict(subject.options(peer.url, tmp_path)) | {"timeout": "3s"}
        provider = make_provider(subject.channel, "primary", subject.kind, settings, subject.surroundings)
        failure = await failure_of(provider, subject, peer.url)
        await provider.close()
    assert type(failure) is KINDS[meaning]
    assert failure.detail.isprintable()
    assert failure.suppress <= (meaning is Meaning.RECIPIENT)
    if not subject.shared:
        assert not failure.provider_fault
    if meaning is Meaning.RATE_LIMITED:
        assert failure.reason is Reason.RATE_LIMITED
        assert failure.provider_fault
        if "Retry-After" in response.headers:
            assert failure.retry_after == timedelta(seconds=int(response.headers["Retry-After"]))
    if subject.shared and meaning in PAUSING:
        assert pauses(failure)
    if meaning in {Meaning.RECIPIENT, Meaning.MESSAGE} or not subject.shared:
        assert not pauses(failure)
    if meaning is Meaning.CONFIGURATION:
        assert failure.provider_fault
        assert failure.reason in {Reason.AUTHENTICATION, Reason.NOT_CONFIGURED, Reason.SENDER_REJECTED, Reason.TLS}


def limits() -> list[Any]:
    found = [(each, *answer) for each in SUBJECTS for answer in each.failures.values()]
    limited = {each.kind: (each, response) for each, response, meaning in found if meaning is Meaning.RATE_LIMITED}
    return [pytest.param(*each, id=kind) for kind, each in limited.items()]


@pytest.mark.parametrize(("subject", "response"), limits())
async def test_a_limit_that_says_no_time_pauses_too(subject: Subject, response: Response, tmp_path: Path) -> None:
    headers = {name: value for name, value in response.headers.items() if name != "Retry-After"}
    async with subject.peer(replace(response, headers=headers)) as peer:
        settings = dict(subject.options(peer.url, tmp_path)) | {"timeout": "3s"}
        provider = make_provider(subject.channel, "primary", subject.kind, settings, subject.surroundings)
        assert pauses(await failure_of(provider, subject, peer.url))
        await provider.close()


def test_every_class_of_failure_is_tried(subject: Subject) -> None:
    meanings = {meaning for _, meaning in subject.failures.values()}
    assert Meaning.TRANSIENT in meanings
    assert Meaning.CONFIGURATION in meanings or not subject.shared
    assert meanings & {Meaning.RECIPIENT, Meaning.MESSAGE}


async def test_no_answer_in_time_is_an_unknown_outcome(subject: Subject, make: Make) -> None:
    async with subject.peer() as peer:
        provider = make(peer.url, timeout="300ms")
        peer.hold = True
        failure = await failure_of(provider, subject, peer.url)
    assert type(failure) is UnknownOutcome
    assert failure.reason is Reason.TIMEOUT


async def test_a_connection_lost_with_the_request_under_way_is_an_unknown_outcome(subject: Subject, make: Make) -> None:
    if subject.serve is not None:
        return  # it has a test of its own
    async with _breaking(subject, b"") as (url, _):
        failure = await failure_of(make(url), subject, url)
    assert type(failure) is UnknownOutcome


async def test_an_answer_that_breaks_off_after_its_status_is_that_status(subject: Subject, make: Make) -> None:
    if subject.serve is not None or subject.success.status == 204:
        return  # it has a test of its own, or has no body that could break off
    head = f"HTTP/1.1 {subject.success.status} OK\r\nContent-Length: 1000\r\n\r\n{{"
    async with _breaking(subject, head.encode()) as (url, _):
        if subject.kind in NEED_THE_BODY and subject.success.document is not None:  # Slack's webhooks answer "ok"
            assert type(await failure_of(make(url), subject, url)) is UnknownOutcome
        else:
            assert (await make(url).send(subject.message_over(url))).isprintable()


NEED_THE_BODY = frozenset({"slack", "telegram", "vonage", "http", "ses"})
"""Those whose status does not say whether the message was taken: a 200 may be a refusal. And `ses`, whose library
tells the status only of an answer that it has read."""


async def test_nobody_there_is_transient(subject: Subject, make: Make, unused_tcp_port: int) -> None:
    url = f"http://127.0.0.1:{unused_tcp_port}"
    failure = await failure_of(make(url), subject, url)
    assert type(failure) is TransientFailure
    assert failure.reason is Reason.CONNECTION_REFUSED
    assert failure.provider_fault is subject.shared


async def test_connections_are_kept_and_closed(subject: Subject, make: Make) -> None:
    async with subject.peer() as peer:
        provider = make(peer.url)
        for _ in range(3):
            await provider.send(subject.message_over(peer.url))
        assert peer.opened <= 1 + (subject.aside(Request("POST", "/", {}, {}, b"")) is not None)
        await provider.close()
        await eventually(lambda: peer.connections == 0)


async def test_a_cancelled_send_leaves_no_connection(subject: Subject, make: Make) -> None:
    async with subject.peer() as peer:
        peer.hold = True
        provider = make(peer.url)
        sending = asyncio.create_task(provider.send(subject.message_over(peer.url)))
        await eventually(lambda: len(peer.requests) == 1)
        sending.cancel()
        with suppress(asyncio.CancelledError):
            await sending
        await provider.close()
        await eventually(lambda: peer.connections == 0)


async def test_secrets_are_nowhere(subject: Subject, make: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with subject.peer() as peer:
        provider = make(peer.url)
        await provider.send(subject.message_over(peer.url))
        peer.response = Response(500, text=" ".join(subject.secrets))
        with suppress(DeliveryFailure):
            await provider.send(subject.message_over(peer.url))
        with suppress(DeliveryFailure):
            await provider.check()
    told = f"{provider!r} {caplog.text} {vars(provider) if hasattr(provider, '__dict__') else ''}"
    for secret in subject.secrets:
        assert secret not in told
    assert subject.address not in f"{provider!r} {caplog.text}"


async def test_a_wrong_setting_is_named_and_not_shown(subject: Subject, make: Make) -> None:
    with pytest.raises(ValueError, match="colour") as caught:
        make("http://127.0.0.1:9", colour="chartreuse")
    for word in (*subject.secrets, "chartreuse"):
        assert word not in str(caught.value)


async def test_a_message_that_is_too_long_is_not_sent(subject: Subject, make: Make) -> None:
    if subject.too_long is None:
        return
    async with subject.peer() as peer:
        with pytest.raises(PermanentFailure) as caught:
            await make(peer.url).send(subject.too_long)
        assert peer.requests == []
    assert caught.value.reason is Reason.MESSAGE_TOO_LARGE


def test_who_can_be_reached_is_told_by_the_address(subject: Subject, make: Make) -> None:
    provider = make("http://127.0.0.1:9")
    assert provider.takes(subject.message_over("http://127.0.0.1:9").recipient)
    assert not provider.takes({"id": "u1"}) or subject.kind in {"http", "file", "console", "inbox", "amqp"}


def test_its_table_names_its_source(subject: Subject) -> None:
    table = kinds()[subject.kind].errors
    if table is None:
        return
    assert table.provider == subject.kind
    assert table.source
    codes = [rule.code for rule in table.rules]
    assert len(set(codes)) == len(codes)
    assert all(rule.words and rule.meaning in CONSEQUENCES for rule in table.rules)


@asynccontextmanager
async def _breaking(subject: Subject, answer: bytes) -> AsyncIterator[tuple[str, Peer]]:
    """A server that reads a request that sends, writes this, and hangs up. Others it answers."""
    peer = Peer()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            start, *lines = head.strip().split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            method, target, _ = start.split(" ")
            aside = subject.aside(Request(method, target.partition("?")[0], {}, headers, body))
            if aside is None:
                break
            told = f"Content-Type: application/json\r\nContent-Length: {len(aside.body)}"
            writer.write(f"HTTP/1.1 {aside.status} OK\r\n{told}\r\n\r\n".encode() + aside.body)
            await writer.drain()
        writer.write(answer)
        await writer.drain()

    async with serving(talk) as port:
        yield f"http://127.0.0.1:{port}", peer
