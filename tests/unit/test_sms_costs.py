"""What an SMS costs: told in the preview, counted when it is sent, and limited."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from channels.rendering import TemplateRenderer
from cli.main import app
from consumers.metrics import Metrics
from consumers.segments import CountingSegments
from domain.failures import TransientFailure, UnknownOutcome
from domain.message import Message
from domain.notification import check_content
from domain.ports import MessageTooLarge
from domain.vocabulary import Channel, Reason
from tests.fakes import START, ScriptedProvider


def rendered(text: str, **content: Any) -> str:
    return TemplateRenderer().render(Channel.SMS, {"text": text, **content}, {})["text"]


@pytest.mark.parametrize(
    ("text", "content", "fault"),
    [
        ("x" * 1531, {}, "text: takes 11 segments as GSM-7; max_segments is 10"),
        ("ж" * 135, {"max_segments": 2}, "takes 3 segments as UCS-2, because .*; max_segments is 2"),
        ("x" * 161, {"max_segments": 1}, "takes 2 segments"),
    ],
)
def test_a_text_that_costs_too_much_is_not_sent(text: str, content: dict[str, Any], fault: str) -> None:
    with pytest.raises(MessageTooLarge, match=fault) as caught:
        rendered(text, **content)
    assert text[:20] not in str(caught.value)


def test_a_text_that_fits_is_sent() -> None:
    assert rendered("x" * 1530) == "x" * 1530
    assert rendered("ж" * 134, max_segments=2)


@pytest.mark.parametrize("most", [0, 256, "many"])
def test_the_limit_is_a_number(most: Any) -> None:
    (fault,) = check_content(Channel.SMS, {"text": "t", "max_segments": most})
    assert fault.field == "sms.max_segments"


def sms(text: str) -> Message:
    return Message("d1", "d1/1", Channel.SMS, {"phone": "+4915112345678"}, {"text": text}, START)


async def test_what_a_provider_has_taken_is_counted() -> None:
    metrics, refusal = Metrics(), TransientFailure(Reason.RATE_LIMITED, "later")
    provider = ScriptedProvider(["ok", "ok", refusal, UnknownOutcome(Reason.TIMEOUT, "?"), "ok"])
    counting = CountingSegments(provider, metrics.sms_sent)
    for text in ("x" * 161, "ж", "lost", "unknown", "x"):
        try:
            await counting.send(sms(text))
        except (TransientFailure, UnknownOutcome):
            continue
    value = metrics.registry.get_sample_value
    told = {
        encoding: value("notipy_sms_segments_total", {"provider": "scripted", "encoding": encoding})
        for encoding in ("GSM-7", "UCS-2")
    }
    assert told == {"GSM-7": 3.0, "UCS-2": 1.0}


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    (tmp_path / "hello.yaml").write_text('name: hello\non: shop.hello\nchannels: {sms: {text: "{{ said }}"}}\n')
    return tmp_path


def preview(catalog: Path, said: str, *options: str) -> str:
    data = json.dumps({"said": said})
    args = ["render", "hello", "--channel", "sms", "--catalog", str(catalog), "--data", data, *options]
    ended = CliRunner().invoke(app, args)
    assert ended.exit_code == 0, ended.output
    return ended.stdout


def test_the_preview_says_what_it_costs_and_why(catalog: Path) -> None:
    (record,) = map(json.loads, preview(catalog, "„so“ " + "x" * 70, "--json").splitlines())
    assert {name: record[name] for name in ("encoding", "segments", "units", "forcing")} == {
        "encoding": "UCS-2",
        "segments": 2,
        "units": 75,
        "forcing": ["„", "“"],
    }
    shown = preview(catalog, "„so“ " + "x" * 70)
    assert "2 (UCS-2)" in shown
    assert "„ U+201E “ U+201C" in shown
    plain = preview(catalog, "so")
    assert "1 (GSM-7)" in plain
    assert "U+" not in plain
