"""`console`: what it keeps from a terminal. `amqp`: what it never asks of the broker."""

import io
from typing import Any

import pytest

from channels.registry import make_provider
from domain.failures import PermanentFailure
from domain.message import Message
from domain.vocabulary import Channel, Reason
from tests.fakes import START


def message(text: str = "Grüße 🚲", **recipient: Any) -> Message:
    return Message("d1", "d1/1", Channel.CHAT, {"id": "user.7", **recipient}, {"title": "Hi", "text": text}, START)


async def test_a_terminal_obeys_nothing_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    console = make_provider(Channel.CHAT, "console", "console", {})
    await console.send(message("\x1b]0;owned\x07\x1b[2J\u202e"))
    shown = capsys.readouterr().out
    assert "owned" in shown
    assert all(character.isprintable() or character == "\n" for character in shown)


async def test_a_long_message_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    console = make_provider(Channel.CHAT, "console", "console", {"max_chars": 200})
    await console.send(message("x" * 5000))
    shown = capsys.readouterr().out
    assert len(shown) < 400
    assert "characters more" in shown


async def test_what_the_output_cannot_show_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, "latin-1"))
    await make_provider(Channel.CHAT, "console", "console", {}).send(message())
    assert "Grüße ?" in written.getvalue().decode("latin-1")


def amqp(**options: Any) -> Any:
    return make_provider(Channel.CHAT, "bridge", "amqp", {"exchange": "bridge", **options})


async def test_a_key_that_does_not_fit_ends_the_delivery() -> None:
    with pytest.raises(PermanentFailure, match="255 bytes") as caught:
        await amqp(routing_key="{{ recipient.id }}" * 2).send(message(id="ж" * 30))
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
        amqp(**options)
