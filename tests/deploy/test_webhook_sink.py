"""The webhook sink, called by a real client."""

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import pytest
from standardwebhooks import Webhook

from deploy.webhook_sink import WebhookSink

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
BODY = '{"hello": "wörld"}'


@pytest.fixture
async def sink(tmp_path: Path) -> AsyncIterator[WebhookSink]:
    async with WebhookSink(tmp_path / "calls", SECRET) as sink:
        yield sink


async def post(sink: WebhookSink, path: str, webhook_id: str = "d-1", signature: str | None = None) -> tuple[int, str]:
    """Status and Retry-After of a call that is signed correctly, unless a signature is given."""
    now = datetime.now(UTC)
    headers = {
        "webhook-id": webhook_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": signature or Webhook(SECRET).sign(webhook_id, now, BODY),
    }
    async with (
        aiohttp.ClientSession() as session,
        session.post(sink.url + path, data=BODY.encode(), headers=headers) as response,
    ):
        return response.status, response.headers.get("Retry-After", "")


async def test_a_signed_call_is_accepted_and_recorded(sink: WebhookSink) -> None:
    assert await post(sink, "/ok") == (204, "")

    [call] = sink.calls
    assert (call.path, call.webhook_id, call.verified, call.status, call.body) == ("/ok", "d-1", True, 204, BODY)
    [line] = (sink.directory / "calls.jsonl").read_text().splitlines()
    assert json.loads(line)["webhook_id"] == "d-1"


async def test_it_fails_so_often_per_webhook_id(sink: WebhookSink) -> None:
    answers = [await post(sink, "/fail/503/2?retry_after=7") for _attempt in range(3)]

    assert answers == [(503, "7"), (503, "7"), (204, "")]
    assert await post(sink, "/fail/503/2", webhook_id="d-2") == (503, "")


async def test_gone_is_gone(sink: WebhookSink) -> None:
    assert await post(sink, "/gone") == (410, "")


@pytest.mark.parametrize("signature", ["v1,AAAA", "nonsense", "v1,é"])
async def test_a_wrong_signature_is_refused_and_recorded(sink: WebhookSink, signature: str) -> None:
    assert await post(sink, "/ok", signature=signature) == (401, "")

    assert [call.verified for call in sink.calls] == [False]
