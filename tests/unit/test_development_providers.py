"""`console`: what it shows, and what it keeps from a terminal. `amqp`: what it asks of the broker."""

import io
import json
from dataclasses import dataclass, field
from typing import Any

import pytest

from channels.registry import make_provider
from channels.surroundings import Surroundings
from domain.event import Attachment
from domain.failures import PermanentFailure, TransientFailure
from domain.message import Message
from domain.vocabulary import Channel, Reason
from tests.fakes import START


def message(text: str = "Grüße 🚲", **recipient: Any) -> Message:
    return Message("d1", "d1/1", Channel.CHAT, {"id": "user.7", **recipient}, {"title": "Hi", "text": text}, START)


async def test_a_message_is_one_block(capsys: pytest.CaptureFixture[str]) -> None:
    console = make_provider(Channel.CHAT, "console", "console", {})
    assert await console.send(message(chat="#ops")) == "written to standard output"
    shown = capsys.readouterr().out
    for words in ("Channel: chat", "To: #ops", "Delivery: d1", "Title: Hi", "Grüße 🚲"):
        assert words in shown


async def test_a_terminal_obeys_nothing_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    console = make_provider(Channel.CHAT, "console", "console", {})
    await console.send(message("\x1b]0;owned\x07\x1b[2J\u202e"))
    assert all(character.isprintable() or character == "\n" for character in capsys.readouterr().out)


async def test_a_long_message_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    console = make_provider(Channel.CHAT, "console", "console", {"max_chars": 200})
    await console.send(message("x" * 5000))
    shown = capsys.readouterr().out
    assert len(shown) < 400
    assert "characters more" in shown


async def test_an_output_that_is_closed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    console, closed = make_provider(Channel.CHAT, "console", "console", {}), io.StringIO()
    closed.close()
    monkeypatch.setattr("sys.stdout", closed)
    with pytest.raises(TransientFailure, match="standard output is closed"):
        await console.send(message())


@dataclass
class Broker:
    """`Surroundings.publish`."""

    published: list[dict[str, Any]] = field(default_factory=list)

    async def publish(self, exchange: str, key: str, body: bytes, headers: Any, **how: bool) -> None:
        self.published.append({"to": (exchange, key), "body": json.loads(body), "headers": headers, "how": how})


def amqp(broker: Broker, **options: Any) -> Any:
    surroundings = Surroundings(publish=broker.publish)
    return make_provider(Channel.CHAT, "bridge", "amqp", {"exchange": "bridge", **options}, surroundings)


async def test_everything_that_a_sender_needs_is_handed_over() -> None:
    broker = Broker()
    options = {"routing_key": "chat.{{ recipient.id }}", "headers": {"x-lang": "{{ recipient.locale }}"}}
    attached = Attachment(filename="a.txt", content_type="text/plain", content=b"aGk=")
    sent = Message("d1", "d1/1", Channel.CHAT, {"id": "user.7", "locale": "de"}, {"text": "t"}, START, (attached,))
    answer = await amqp(broker, **options).send(sent)
    assert (answer, answer.reference) == ("confirmed by bridge", "d1/1")
    assert broker.published == [
        {
            "to": ("bridge", "chat.user~2E7"),
            "headers": {
                "x-lang": "de",
                "x-notipy-delivery": "d1",
                "x-notipy-idempotency-key": "d1/1",
                "x-notipy-channel": "chat",
            },
            "body": {
                "delivery": "d1",
                "idempotency_key": "d1/1",
                "channel": "chat",
                "created_at": "2026-11-22T17:00:00Z",
                "recipient": {"id": "user.7", "locale": "de"},
                "content": {"text": "t"},
                "attachments": [{"filename": "a.txt", "content_type": "text/plain", "content": "aGk="}],
            },
            "how": {"mandatory": True, "persistent": True},
        }
    ]


async def test_a_key_that_does_not_fit_ends_the_delivery() -> None:
    with pytest.raises(PermanentFailure, match="255 bytes") as caught:
        await amqp(Broker(), routing_key="{{ recipient.id }}" * 2).send(message(id="ж" * 30))
    assert caught.value.reason is Reason.MESSAGE_REJECTED


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"exchange": "notipy.events"}, "none of NotiPy's own"),
        ({"exchange": ""}, "exchange"),
        ({"routing_key": "{{ recipient."}, "routing_key: is no template"),
        ({"headers": {"x": "{% if"}}, r"headers\.x: is no template"),
    ],
)
def test_a_wrong_setting_is_named(options: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        amqp(Broker(), **options)
