"""Chat over several services at once, against real servers: each address goes to its own."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from config.settings import Settings
from consumers.app import running
from domain.vocabulary import Reason, State
from tests.conformance.over_http import HttpPeer, HttpSubject, Response
from tests.conformance.subjects import discord, slack, telegram
from tests.running import Stack

SERVICES: Mapping[str, HttpSubject] = {
    "slack": slack.SUBJECTS[0],
    "telegram": telegram.SUBJECT,
    "discord": discord.SUBJECT,
}
PAYLOAD = """{"blocks": [{"type": "section", "text": {"type": "plain_text", "text": {{ what | tojson }}}}]}"""
INCIDENT: Mapping[str, Any] = {
    "name": "incident",
    "on": "shop.incident",
    "required": ["what"],
    "channels": {"chat": {"title": "Incident", "text": "{{ what }}", "url": "https://status.example/{{ number }}"}},
}
WHAT = 'disk "full" on <db-1> @everyone'


@asynccontextmanager
async def services(config: dict[str, Any], folder: Path) -> AsyncIterator[tuple[Settings, Mapping[str, HttpPeer]]]:
    """Settings of a pool with one provider of each, and their servers."""
    async with AsyncExitStack() as stack:
        peers = {kind: await stack.enter_async_context(subject.peer()) for kind, subject in SERVICES.items()}
        providers = [
            {"name": f"our-{kind}", "kind": kind, **subject.options(peers[kind].url, folder)}
            for kind, subject in SERVICES.items()
        ]
        chat = {"retry": ["100ms"], "providers": providers}
        yield Settings.model_validate({**config, "channels": {"chat": chat}}), peers


def incident(*addresses: str) -> dict[str, Any]:
    return {"recipients": [{"chat": address} for address in addresses], "data": {"what": WHAT, "number": 7}}


async def test_each_address_goes_to_its_own_service(config: dict[str, Any], stack: Stack, tmp_path: Path) -> None:
    await stack.apply(INCIDENT)
    addresses = ["slack:#ops", "our-slack:C0123456789", "-1001234567890", "discord:", "whatsapp:1", "our-telegram:"]
    async with services(config, tmp_path) as (settings, peers), running(settings):
        event = await stack.publish(incident(*addresses), key="shop.incident")
        found = await stack.final(event, count=len(addresses))
        sent = {kind: [request.json for request in peer.requests] for kind, peer in peers.items()}
    states = {delivery.recipient["chat"]: (delivery.state, delivery.reason) for delivery in found}
    lost = {states.pop("whatsapp:1"), states.pop("our-telegram:")}
    assert lost == {(State.FAILED, Reason.NOT_CONFIGURED)}, "no such service; and no chat is set where none is named"
    assert set(states.values()) == {(State.SENT, Reason.ACCEPTED)}
    assert {body["channel"] for body in sent["slack"]} == {"#ops", "C0123456789"}
    assert [body["chat_id"] for body in sent["telegram"]] == [-1001234567890]
    assert [body["allowed_mentions"] for body in sent["discord"]] == [{"parse": []}]
    assert "https://status.example/7" in sent["slack"][0]["text"]
    assert "@everyone" not in sent["telegram"][0]["text"]


async def test_a_payload_is_rendered_and_posted_with_the_rest(
    config: dict[str, Any], stack: Stack, tmp_path: Path
) -> None:
    chat = {"text": "{{ what }}", "payload": PAYLOAD}
    await stack.apply({**INCIDENT, "channels": {"chat": chat}})
    async with services(config, tmp_path) as (settings, peers), running(settings):
        event = await stack.publish(incident("slack:#ops"), key="shop.incident")
        (delivery,) = await stack.final(event)
        (request,) = peers["slack"].requests
    assert delivery.state is State.SENT
    assert request.json["blocks"][0]["text"] == {"type": "plain_text", "text": WHAT}
    assert request.json["text"] == 'disk "full" on &lt;db-1&gt; @everyone'


async def test_a_refusal_with_200_ends_the_delivery(config: dict[str, Any], stack: Stack, tmp_path: Path) -> None:
    await stack.apply(INCIDENT)
    async with services(config, tmp_path) as (settings, peers), running(settings):
        peers["slack"].response = Response(200, {"ok": False, "error": "is_archived"})
        event = await stack.publish(incident("slack:#ops", "telegram:1"), key="shop.incident")
        found = await stack.final(event, count=2)
    states = {delivery.recipient["chat"]: (delivery.state, delivery.reason) for delivery in found}
    assert states == {
        "slack:#ops": (State.FAILED, Reason.RECIPIENT_REJECTED),
        "telegram:1": (State.SENT, Reason.ACCEPTED),
    }
