"""What `make chaos` has found, each as a small test of its own."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import pytest

from config.settings import Settings
from consumers.app import open_core, running
from deploy.rabbit_admin import RabbitAdmin
from tests.chaos.proxy import Mode, TcpProxy
from tests.conftest import SharedServers
from tests.running import ORDER_SHIPPED, Stack, order
from tests.waiting import eventually


@pytest.fixture
async def proxy(vhost: str) -> AsyncIterator[TcpProxy]:
    """The network to RabbitMQ."""
    async with TcpProxy(urlsplit(vhost).port or 0) as proxy:
        yield proxy


@pytest.fixture
def proxied(config: Mapping[str, Any], proxy: TcpProxy) -> Settings:
    """NotiPy's settings, with the proxy in place of RabbitMQ."""
    url = config["amqp_url"].replace(f":{proxy.target}", f":{proxy.port}")
    return Settings.model_validate({**config, "amqp_url": url})


@pytest.mark.parametrize("queue", ["notipy.events", "notipy.channel.email.normal", "notipy.retry.100ms"])
async def test_a_queue_that_was_deleted_is_there_again_and_bound(
    queue: str, stack: Stack, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("consumers.app.TOPOLOGY_SECONDS", 0.5)
    await stack.apply(ORDER_SHIPPED)
    async with running(settings):
        await stack.channel.queue_delete(queue)
        event = await stack.publish(order("fail-451-1@example.org"))
        (delivery,) = await stack.final(event, timeout=30)
    assert delivery.attempt == 2


async def test_a_consumer_that_the_broker_forgets_is_renewed(
    stack: Stack, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("consumers.intake.DEAF_SECONDS", 0.5)
    monkeypatch.setattr("consumers.health.EVERY", 0.1)
    await stack.apply(ORDER_SHIPPED)
    async with running(settings):
        for _ in range(5):  # of which the broker forgets one or two: the queue is never seen missing
            await stack.channel.queue_delete("notipy.events")
            await stack.core.publisher.declare()
            await stack.final(await stack.publish(order()))


async def test_a_reconnection_into_a_network_that_swallows_packets_is_given_up_and_tried_again(
    stack: Stack, proxied: Settings, proxy: TcpProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("consumers.intake.CONNECT_SECONDS", 1.0)
    monkeypatch.setattr("consumers.app.CONNECT_SECONDS", 1.0)
    await stack.apply(ORDER_SHIPPED)
    async with running(proxied):
        proxy.set(Mode.CUT)
        proxy.set(Mode.DROP)
        await eventually(lambda: proxy.swallowed_connections >= 2)
        proxy.set(Mode.PASS)
        await stack.final(await stack.publish(order()))


async def test_questions_during_outages_leave_no_channel_behind(
    proxied: Settings, proxy: TcpProxy, servers: SharedServers
) -> None:
    admin, vhost = RabbitAdmin(servers.management_url), urlsplit(proxied.amqp_url.get_secret_value()).path[1:]

    def channels() -> int:
        return sum(each.get("channels", 0) for each in admin.list_connections(vhost))

    async with open_core(proxied) as core:
        asking = [asyncio.create_task(_ask(core.publisher.counts)) for _ in range(3)]
        for _ in range(3):
            proxy.set(Mode.CUT)
            await asyncio.sleep(0.2)
            proxy.set(Mode.PASS)
            await eventually(lambda: core.connection.connected.is_set(), timeout=20)
            assert await core.publisher.counts("notipy.events") == (0, 0)
        for each in asking:
            each.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        assert await core.publisher.counts("notipy.events") == (0, 0)
        await eventually(lambda: asyncio.to_thread(lambda: channels() == 2), timeout=20)


async def _ask(counts: Any) -> None:
    """Again and again, as health does, giving up soon."""
    while True:
        try:
            async with asyncio.timeout(0.1):
                await counts("notipy.events")
        except TimeoutError:
            pass
        await asyncio.sleep(0.01)
