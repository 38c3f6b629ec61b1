"""A provider or the database away: nothing is lost, nothing is spent, and everything flows again by itself."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiosmtpd.smtp import SMTP
from motor.motor_asyncio import AsyncIOMotorClient

from config.settings import Settings
from consumers.app import Application, running
from deploy.embedded import embedded_servers
from deploy.processes import free_ports
from deploy.rabbit_admin import RabbitAdmin
from deploy.smtp_sink import SmtpSink
from domain.circuit import Mode
from domain.vocabulary import Channel, Reason, State
from tests.conftest import SharedServers
from tests.contract.peers import Mailbox, password_is, real_smtp
from tests.running import ORDER_SHIPPED, Stack, order, total
from tests.waiting import eventually

QUEUE = "notipy.channel.email.normal"
COUNT = 40


def with_server(config: dict[str, Any], url: str, timeout: str = "2s") -> Settings:
    email = {
        "retry": ["100ms", "200ms", "200ms"],
        "concurrency": 10,
        "providers": [{"name": "primary", "kind": "smtp", "url": url, "from": "shop@example.org", "timeout": timeout}],
    }
    return Settings.model_validate({**config, "channels": {"email": email}})


@asynccontextmanager
async def smtp_on(port: int) -> AsyncIterator[Mailbox]:
    mailbox = Mailbox()
    server = await asyncio.get_running_loop().create_server(lambda: SMTP(mailbox), "127.0.0.1", port)
    try:
        yield mailbox
    finally:
        server.close()
        await server.wait_closed()


async def paused(application: Application) -> bool:
    (member,) = application.pools[Channel.EMAIL].members
    return member.circuit.mode is Mode.OPEN and QUEUE in application.consumers.paused()


async def publish(stack: Stack, count: int) -> list[str]:
    return [await stack.publish(order(f"user{number}@example.org")) for number in range(count)]


async def test_a_dead_provider_costs_no_attempts_and_all_is_sent_when_it_is_back(
    config: dict[str, Any], stack: Stack
) -> None:
    (port,) = free_ports(1)
    alone = {**config, "dispatch": {"normal": 1}}  # so that messages are deliveries
    settings = with_server(alone, f"smtp://127.0.0.1:{port}?tls=none")
    await stack.apply(ORDER_SHIPPED)
    async with running(settings) as application:
        events = await publish(stack, COUNT)
        await eventually(lambda: paused(application))

        why = {"provider": "primary", "reason": "connection_refused"}
        await eventually(lambda: total(application, "notipy_provider_paused", **why) == 1)
        condition = await application.health.look()
        assert condition.ready, "no other process could do better"
        assert condition.paused == ("email: provider primary is paused (connection_refused)",)
        more = await publish(stack, COUNT)

        async def they_wait_in_the_queue() -> bool:
            return await stack.depth(QUEUE) >= COUNT

        await eventually(they_wait_in_the_queue)
        async with smtp_on(port) as mailbox:
            for event in (*events, *more):
                await stack.final(event, timeout=40)
            assert len(mailbox.mails) == 2 * COUNT
        await eventually(lambda: total(application, "notipy_provider_paused") == 0)
        assert application.health.state().ready or (await application.health.look()).ready
    deliveries = await stack.deliveries()
    assert {delivery.state for delivery in deliveries} == {State.SENT}
    # those that met the closed circuit count, as does at most one more of each that was under way when it opened
    assert max(delivery.attempt - delivery.forgiven for delivery in deliveries) <= 2
    assert not [delivery for delivery in deliveries if delivery.possible_duplicate]


async def test_wrong_credentials_pause_the_provider_at_once(config: dict[str, Any], stack: Stack) -> None:
    await stack.apply(ORDER_SHIPPED)
    valid = {"password": b"wrong"}

    def authenticate(*arguments: Any) -> Any:
        return password_is(b"shop", valid["password"])(*arguments)

    async with real_smtp(authenticator=authenticate, auth_require_tls=False) as (port, mailbox):
        settings = with_server(config, f"smtp://shop:right@127.0.0.1:{port}?tls=none")
        async with running(settings) as application:
            events = await publish(stack, COUNT)
            await eventually(lambda: paused(application))
            await eventually(lambda: total(application, "notipy_provider_paused", reason="authentication") == 1)
            assert not mailbox.mails
            valid["password"] = b"right"
            for event in events:
                await stack.final(event, timeout=40)
    deliveries = await stack.deliveries()
    assert {delivery.state for delivery in deliveries} == {State.SENT}
    assert all(delivery.attempt - delivery.forgiven == 1 for delivery in deliveries)
    held = [change for delivery in deliveries for change in delivery.history if change.state is State.HELD]
    assert {change.reason for change in held} <= {Reason.AUTHENTICATION, Reason.PROVIDER_PAUSED}
    assert len(mailbox.mails) == COUNT


@pytest.mark.timeout(180)
async def test_without_database_nothing_is_taken_and_nothing_counts_as_handed_out(
    config: dict[str, Any], vhost: str, tmp_path: Path, smtp: Any
) -> None:
    with embedded_servers(tmp_path / "mongod", amqp=False, log=print) as servers:
        settings = Settings.model_validate({**config, "mongo_url": servers.mongo_url, "events": {"concurrency": 10}})
        async with Stack.open(settings) as stack:
            await stack.apply(ORDER_SHIPPED)
            async with running(settings) as application, aiohttp.ClientSession() as http:
                await stack.final(await stack.publish(order()))
                assert application.page is not None
                page = f"http://127.0.0.1:{application.page.port}/readyz"
                os.kill(servers.pids["mongod"], signal.SIGSTOP)
                waiting = [await stack.publish(order()) for _ in range(50)]

                async def unready() -> bool:
                    async with http.get(page) as answer:
                        return answer.status == 503 and "database unreachable" in await answer.text()

                async def nobody_takes_events() -> bool:
                    held = application.consumers.in_progress
                    return "notipy.events" in application.consumers.paused() and held == 10

                await eventually(unready, timeout=40)
                await eventually(nobody_takes_events, timeout=40)
                assert await stack.depth("notipy.events") >= len(waiting) - 10
                os.kill(servers.pids["mongod"], signal.SIGCONT)
                for event in waiting:
                    await stack.final(event, timeout=40)

                async def ready() -> bool:
                    async with http.get(page) as answer:
                        return answer.status == 200

                await eventually(ready, timeout=20)
            assert len(smtp.mails) == len(waiting) + 1
            assert {delivery.possible_duplicate for delivery in await stack.deliveries()} == {False}


async def test_a_deleted_queue_is_declared_again_and_what_was_in_it_is_sent(
    settings: Settings, stack: Stack, smtp: Any
) -> None:
    await stack.apply(ORDER_SHIPPED)
    async with running(settings, ["events", "sweeper"]):
        event = await stack.publish(order())
        await stack.reach(event, State.QUEUED)
    async with running(settings):
        await stack.channel.queue_delete(QUEUE)
        again = await stack.publish(order())
        await stack.final(event, timeout=40)
        await stack.final(again, timeout=40)

        async def nothing_unrouted() -> bool:
            return await stack.depth("notipy.unrouted") == 0

        await eventually(nothing_unrouted, timeout=20)
    assert {delivery.state for delivery in await stack.deliveries()} == {State.SENT}


async def test_what_is_under_way_when_the_channel_is_lost_goes_on_and_is_sent_once(
    config: dict[str, Any], stack: Stack, servers: SharedServers, vhost: str
) -> None:
    mailbox, answer = Mailbox(), asyncio.Event()

    class Slow(SMTP):
        async def smtp_RCPT(self, arg: str) -> None:
            await answer.wait()
            await super().smtp_RCPT(arg)

    server = await asyncio.get_running_loop().create_server(lambda: Slow(mailbox), "127.0.0.1", 0)
    patient = {**config, "lease": "2m", "sweeper": {"interval": "200ms", "overdue": "2m"}}
    url = f"smtp://127.0.0.1:{server.sockets[0].getsockname()[1]}?tls=none"
    settings = with_server(patient, url, timeout="1m")
    await stack.apply(ORDER_SHIPPED)
    admin, name = RabbitAdmin(servers.management_url), vhost.rsplit("/", 1)[1]
    async with running(settings) as application:
        event = await stack.publish(order())
        await stack.reach(event, State.SENDING)
        # all three, the consumer's among them: the broker lists each some seconds after it was made
        await eventually(lambda: asyncio.to_thread(lambda: len(list(admin.list_connections(name))) == 3), timeout=20)
        await asyncio.to_thread(admin.close_connections, name)
        # the message has come again, and found its attempt claimed
        await eventually(lambda: total(application, "notipy_not_claimed_total", why="claimed") == 1, timeout=40)
        answer.set()
        (delivery,) = await stack.final(event, timeout=40)
    server.close()
    await server.wait_closed()
    assert (delivery.state, delivery.attempt, delivery.possible_duplicate) == (State.SENT, 1, False)
    assert len(mailbox.mails) == 1


async def test_a_database_that_lets_nothing_be_written_parks_nothing(
    config: dict[str, Any], vhost: str, tmp_path: Path, smtp: SmtpSink
) -> None:
    """It answers, so that nothing is paused; as one whose disk or quota is full, or that is being moved."""
    with embedded_servers(tmp_path / "mongod", amqp=False, log=print) as servers:
        settings = Settings.model_validate({**config, "mongo_url": servers.mongo_url})
        async with Stack.open(settings) as stack:
            await stack.apply(ORDER_SHIPPED)
            async with running(settings), _refusing(servers.mongo_url):
                events = [await stack.publish(order()) for _ in range(20)]
                await eventually(lambda: _nothing_left(stack))
                assert await stack.depth("notipy.dead.events") == 0
            async with running(settings):
                for event in events:
                    assert (await stack.final(event))[0].state is State.SENT
                assert await stack.depth("notipy.dead.events") == 0
    assert len(smtp.mails) == len(events)


@asynccontextmanager
async def _refusing(mongo_url: str) -> AsyncIterator[None]:
    client: AsyncIOMotorClient[dict[str, Any]] = AsyncIOMotorClient(mongo_url)
    try:
        await client.admin.command({"setUserWriteBlockMode": 1, "global": True})
        yield
    finally:
        await client.admin.command({"setUserWriteBlockMode": 1, "global": False})
        client.close()


async def _nothing_left(stack: Stack) -> bool:
    return await stack.depth("notipy.events") == 0
