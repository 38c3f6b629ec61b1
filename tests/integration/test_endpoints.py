"""Endpoints that are gone, from the refusal to the suppression of what comes next."""

from typing import Any

import pytest

from config.settings import Settings
from consumers.app import running
from deploy.webhook_sink import WebhookSink
from domain.vocabulary import Reason, State
from tests.running import Stack

HOOK = {"name": "hook", "on": "shop.order.shipped", "channels": {"webhook": {"headers": {"X-Order": "{{ order_id }}"}}}}


def order(url: str) -> dict[str, Any]:
    return {"recipients": [{"id": "user-7", "webhook": url}], "data": {"order_id": 1042}}


@pytest.fixture
def config(config: dict[str, Any]) -> dict[str, Any]:
    config["channels"]["webhook"]["retry"] = ["200ms"] * 10
    config["channels"]["webhook"]["providers"][0]["disable_after"] = "500ms"
    return config


@pytest.mark.parametrize(("path", "attempts"), [("/gone", 1), ("/fail/503/99", 3)])
async def test_what_comes_after_the_end_of_an_endpoint_is_suppressed(
    settings: Settings, stack: Stack, hooks: WebhookSink, path: str, attempts: int
) -> None:
    await stack.apply(HOOK)
    async with running(settings):
        first = await stack.publish(order(hooks.url + path))
        (failed,) = await stack.final(first)
        calls = len(hooks.calls)
        second = await stack.publish(order(hooks.url + path))
        (suppressed,) = await stack.final(second)
    assert (failed.state, failed.reason) == (State.FAILED, Reason.ENDPOINT_GONE)
    assert attempts <= calls < 11
    assert hooks.calls[0].headers["X-Order"] == "1042"
    assert suppressed.state is State.SUPPRESSED
    assert len(hooks.calls) == calls
