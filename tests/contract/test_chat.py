"""Chat: recipients' own URLs; what a check asks."""

import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from channels.registry import make_provider
from domain.failures import DeliveryFailure, PermanentFailure, TransientFailure
from domain.message import Message
from domain.ports import Provider
from domain.vocabulary import Channel, Reason
from tests.conformance.over_http import HttpPeer, HttpSubject, Request, Response, http_peer
from tests.conformance.subjects import discord, mattermost, slack, teams, telegram
from tests.fakes import START

SUBJECTS: Mapping[str, HttpSubject] = {
    "slack by token": slack.SUBJECTS[0],
    "slack by hook": slack.SUBJECTS[1],
    "teams": teams.SUBJECT,
    "discord": discord.SUBJECT,
    "telegram": telegram.SUBJECT,
    "mattermost by hook": mattermost.SUBJECTS[0],
    "mattermost by token": mattermost.SUBJECTS[1],
}
Make = Callable[..., Provider]


def chat(address: str, **content: str) -> Message:
    return Message("d1", "d1/1", Channel.CHAT, {"chat": address}, {"text": "Hello"} | content, START)


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    """Makes a provider of a subject against a server; what was made is closed at the end."""
    made: list[Provider] = []

    def provider(case: str, url: str, **options: Any) -> Provider:
        subject = SUBJECTS[case]
        settings = dict(subject.options(url, tmp_path)) | {"timeout": "3s"} | options
        made.append(make_provider(Channel.CHAT, "primary", subject.kind, settings))
        return made[-1]

    yield provider
    for each in made:
        await each.close()


async def failure_of(provider: Provider, message: Message) -> DeliveryFailure:
    with pytest.raises(DeliveryFailure) as caught:
        await provider.send(message)
    return caught.value


# --- a recipient's own webhook ----------------------------------------------------------------------------------------

OWN = {"allow_recipient_url": True, "allow_private": True, "webhook_url": None}


@pytest.mark.parametrize("case", ["slack by hook", "teams", "discord", "mattermost by hook"])
async def test_a_recipients_own_url_is_posted_to(case: str, make: Make) -> None:
    subject = SUBJECTS[case]
    async with subject.peer() as peer:
        await make(case, peer.url, **OWN).send(chat(f"{subject.kind}:{peer.url}/own"))
        (request,) = peer.requests
    assert (request.method, request.path) == ("POST", "/own")
    assert "channel" not in request.json
    assert request.query.get("wait") == ("true" if case == "discord" else None)


async def test_it_may_have_one_beside_a_token(make: Make) -> None:
    async with SUBJECTS["slack by hook"].peer() as peer:
        options = {"allow_recipient_url": True, "allow_private": True}
        await make("slack by token", peer.url, **options).send(chat(f"slack:{peer.url}/own"))
        (request,) = peer.requests
    assert request.path == "/own"
    assert "Authorization" not in request.headers


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "[::1]", "169.254.169.254", "[::ffff:10.0.0.1]", "2130706433"]
)
async def test_it_may_not_lead_into_a_private_network(host: str, make: Make, unused_tcp_port: int) -> None:
    options = OWN | {"allow_private": False}
    provider = make("slack by hook", "http://127.0.0.1:9", **options)
    failure = await failure_of(provider, chat(f"slack:https://{host}:{unused_tcp_port}/hidden"))
    assert (type(failure), failure.reason) == (PermanentFailure, Reason.ADDRESS_REFUSED)
    assert not failure.provider_fault
    assert "hidden" not in str(failure)


@pytest.mark.parametrize(
    ("response", "kind", "reason"),
    [
        (Response(404, text="no_service"), PermanentFailure, Reason.ENDPOINT_REJECTED),
        (Response(403, text="invalid_token"), PermanentFailure, Reason.ENDPOINT_REJECTED),
        (Response(302, headers={"Location": "http://127.0.0.1/"}), PermanentFailure, Reason.ENDPOINT_REJECTED),
        (Response(400, text="invalid_payload"), PermanentFailure, Reason.MESSAGE_REJECTED),
        (Response(429, headers={"Retry-After": "7"}), TransientFailure, Reason.RATE_LIMITED),
        (Response(503), TransientFailure, Reason.PROVIDER_UNAVAILABLE),
    ],
)
async def test_its_failures_do_not_pause_the_provider(
    response: Response, kind: type[DeliveryFailure], reason: Reason, make: Make
) -> None:
    async with SUBJECTS["slack by hook"].peer(response) as peer:
        failure = await failure_of(make("slack by hook", peer.url, **OWN), chat(f"slack:{peer.url}/own"))
    assert (type(failure), failure.reason) == (kind, reason)
    assert not failure.provider_fault


async def test_nobody_there_does_not_pause_the_provider(make: Make, unused_tcp_port: int) -> None:
    provider = make("teams", "http://127.0.0.1:9", **OWN)
    failure = await failure_of(provider, chat(f"teams:http://127.0.0.1:{unused_tcp_port}/own"))
    assert (type(failure), failure.reason) == (TransientFailure, Reason.CONNECTION_REFUSED)
    assert not failure.provider_fault


async def test_an_address_that_is_not_taken_is_not_sent_to(make: Make) -> None:
    for case, subject in SUBJECTS.items():
        async with subject.peer() as peer:
            failure = await failure_of(make(case, peer.url), chat("whatsapp:1"))
            assert peer.requests == []
        assert (type(failure), failure.reason) == (PermanentFailure, Reason.BAD_ADDRESS)


# --- particulars ------------------------------------------------------------------------------------------------------


async def test_discords_wait_has_fractions_of_a_second(make: Make) -> None:
    limited = Response(429, {"message": "You are being rate limited.", "retry_after": 0.65, "global": False})
    async with SUBJECTS["discord"].peer(limited) as peer:
        failure = await failure_of(make("discord", peer.url), chat("discord:"))
    assert failure.retry_after == timedelta(seconds=0.65)


async def test_telegrams_wait_is_in_the_document(make: Make) -> None:
    limited = {"ok": False, "error_code": 429, "description": "Too Many Requests", "parameters": {"retry_after": 12}}
    async with SUBJECTS["telegram"].peer(Response(429, limited)) as peer:
        failure = await failure_of(make("telegram", peer.url), chat("telegram:1"))
    assert failure.retry_after == timedelta(seconds=12)


async def test_a_group_that_became_a_supergroup_is_followed_once(make: Make) -> None:
    moved, sent = -1009876543210, []
    refusal = SUBJECTS["telegram"].failures["upgraded"][0].document | {"parameters": {"migrate_to_chat_id": moved}}

    def answer(request: Request) -> Response | None:
        sent.append(request.json["chat_id"])
        return Response(400, refusal) if len(sent) == 1 else None

    subject = replace(SUBJECTS["telegram"], aside=answer)
    async with http_peer(subject, subject.success) as peer:
        assert (await make("telegram", peer.url).send(chat("telegram:-4321"))).reference
    assert sent == [-4321, moved]


async def test_what_stands_after_the_colon_can_be_left_to_the_settings(make: Make) -> None:
    async with SUBJECTS["telegram"].peer() as peer:
        await make("telegram", peer.url, chat_id=4321).send(chat("telegram:"))
        assert peer.requests[0].json["chat_id"] == 4321
    async with SUBJECTS["slack by token"].peer() as peer:
        await make("slack by token", peer.url, channel="#ops").send(chat("slack:"))
        assert peer.requests[0].json["channel"] == "#ops"
    async with SUBJECTS["mattermost by hook"].peer() as peer:
        provider = make("mattermost by hook", peer.url)
        await provider.send(chat("mattermost:"))
        await provider.send(chat("mattermost:@ana"))
        assert [request.json.get("channel") for request in peer.requests] == [None, "@ana"]
    async with SUBJECTS["discord"].peer() as peer:
        await make("discord", peer.url).send(chat("discord:"))
        assert "thread_id" not in peer.requests[0].query


@pytest.mark.parametrize(
    ("case", "payload"),
    [
        ("slack by token", {"channel": "C0ELSEWHERE"}),
        ("telegram", {"chat_id": 1}),
        ("mattermost by hook", {"channel": "elsewhere"}),
        ("mattermost by token", {"channel_id": "elsewhere"}),
    ],
)
async def test_a_payload_cannot_say_where_to(case: str, payload: Mapping[str, Any], make: Make) -> None:
    subject = SUBJECTS[case]
    async with subject.peer() as peer:
        message = subject.message_over(peer.url)
        said = {**message.content, "payload": json.dumps(payload)}
        await make(case, peer.url).send(replace(message, content=said))
        subject.requested(peer.requests[0])


# --- check ------------------------------------------------------------------------------------------------------------


def asked(peer: HttpPeer) -> list[tuple[str, str, bytes]]:
    return [(request.method, request.path, request.body) for request in peer.requests]


@pytest.mark.parametrize(
    ("case", "response", "told", "request_"),
    [
        ("slack by token", Response(200, {"ok": True, "team": "Shop"}), "of Shop", ("POST", "/api/auth.test", b"{}")),
        ("slack by hook", Response(400, text="no_text"), "is there", ("POST", slack.HOOK, b"{}")),
        ("discord", Response(200, {"name": "Captain"}), "Captain", ("GET", discord.PATH, b"")),
        (
            "telegram",
            Response(200, {"ok": True, "result": {"first_name": "Bot"}}),
            "Bot",
            ("POST", f"/bot{telegram.TOKEN}/getMe", b"{}"),
        ),
        ("mattermost by hook", Response(200, {"status": "OK"}), "answers", ("GET", "/api/v4/system/ping", b"")),
        ("mattermost by token", Response(200, {"username": "bot"}), "of bot", ("GET", "/api/v4/users/me", b"")),
    ],
)
async def test_a_check_sends_nothing(
    case: str, response: Response, told: str, request_: tuple[str, str, bytes], make: Make
) -> None:
    async with SUBJECTS[case].peer(response) as peer:
        assert told in await make(case, peer.url).check()
        assert asked(peer) == [request_]


@pytest.mark.parametrize("case", [case for case in SUBJECTS if case != "teams"])
async def test_a_check_finds_wrong_credentials(case: str, make: Make) -> None:
    subject = SUBJECTS[case]
    async with subject.peer(Response(401)) as peer:
        with pytest.raises(TransientFailure) as caught:
            await make(case, peer.url).check()
    assert (caught.value.reason, caught.value.provider_fault) == (Reason.AUTHENTICATION, True)


async def test_a_workflow_is_not_started_by_a_check(make: Make) -> None:
    async with SUBJECTS["teams"].peer() as peer:
        assert "cannot be tried" in await make("teams", peer.url).check()
        assert peer.requests == []
