"""A message that ends the process that takes it: it alone is parked, on this broker and on those with a limit."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from config.settings import Settings
from consumers.app import running
from consumers.dead_letters import dead_event
from deploy.rabbit_admin import RabbitAdmin
from deploy.smtp_sink import SmtpSink
from domain.dispatch import dispatch_of
from domain.event import event_key
from domain.sweep import RESUMPTIONS
from domain.vocabulary import EventState, Reason, State
from tests.conftest import SharedServers
from tests.forking import Forked, Forker
from tests.running import ORDER_SHIPPED, Stack, order
from tests.waiting import eventually

LIMIT = 4
INNOCENT = 5


@asynccontextmanager
async def restarting(forker: Forker, config: Path, *arguments: str) -> AsyncIterator[list[int]]:
    """A `notipy run` that an orchestrator starts again whenever it ends; yields the exit codes so far."""
    codes: list[int] = []
    running: list[Forked] = []
    command = ("--config", str(config), "run", *arguments)

    async def again_and_again() -> None:
        while True:
            running.append(await forker.start(*command, stdout=log, stderr=log, module="tests.integration.killer"))
            codes.append(await running[-1].wait())

    with config.with_suffix(".log").open("ab") as log:
        keeping = asyncio.create_task(again_and_again())
        try:
            yield codes
        finally:
            keeping.cancel()
            if running and running[-1].returncode is None:
                running[-1].kill()
                await running[-1].wait()


def with_limit(path: Path, config: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump({**config, "events": {"delivery_limit": LIMIT}}))
    return path


async def until_parked(stack: Stack, queue: str, codes: list[int]) -> Any:
    async def parked() -> bool:
        return await stack.depth(queue) > 0

    await eventually(parked, timeout=60)
    return await stack.take(queue)


async def test_an_event_that_ends_its_consumer_is_parked_and_those_beside_it_are_not(
    config: dict[str, Any], config_file: Path, forker: Forker, stack: Stack, smtp: SmtpSink
) -> None:
    await stack.apply(ORDER_SHIPPED)
    for number in range(INNOCENT):
        await stack.publish(order(), message_id=f"before-{number}")
    await stack.publish({**order(), "data": {"order_id": "KILLER"}}, message_id="killer")
    for number in range(INNOCENT):
        await stack.publish(order(), message_id=f"after-{number}")
    async with restarting(forker, with_limit(config_file, config)) as codes:
        parked = await until_parked(stack, "notipy.dead.events", codes)
        for number in range(INNOCENT):
            await stack.final(f"before-{number}")
            await stack.final(f"after-{number}")
    assert (parked.headers["x-notipy-reason"], parked.headers["x-notipy-message-id"]) == ("poison", "killer")
    assert set(codes) == {-signal.SIGKILL}
    assert LIMIT <= len(codes) <= LIMIT + 2
    assert await stack.depth("notipy.dead.events") == 0, "nobody else was parked"
    assert not await stack.deliveries("killer")


async def test_a_work_order_that_ends_its_consumer_is_parked_and_its_delivery_failed(
    config: dict[str, Any], config_file: Path, forker: Forker, stack: Stack, settings: Settings, smtp: SmtpSink
) -> None:
    await stack.apply(ORDER_SHIPPED)
    async with running(settings, ["events"]):
        killer = await stack.publish(order())
        innocent = await stack.publish(order())
        planned = await stack.reach(killer, State.QUEUED)
        await stack.reach(innocent, State.QUEUED)
    queue = await stack.channel.get_queue("notipy.channel.email.normal", ensure=False)
    await queue.purge()
    for event, word in ((killer, "KILLER"), (innocent, "order-shipped")):
        (delivery,) = await stack.deliveries(event)
        stored = await stack.core.events.get(delivery.event_key)
        assert stored is not None
        await stack.core.publisher.dispatch(dispatch_of(replace(delivery, notification=word), None))
    async with restarting(forker, with_limit(config_file, config), "--roles", "email") as codes:
        parked = await until_parked(stack, "notipy.dead.email", codes)
        await stack.final(killer)
        await stack.final(innocent)
    (ended,) = await stack.deliveries(killer)
    (sent,) = await stack.deliveries(innocent)
    assert parked.headers["x-notipy-reason"] == "poison"
    assert (ended.state, ended.reason) == (State.FAILED, Reason.POISON)
    assert ended.id == planned.id
    assert (parked.headers["x-notipy-delivery"], parked.headers["x-notipy-epoch"]) == (ended.id, 1)
    assert sent.state is State.SENT


async def test_a_stored_event_whose_planning_ends_the_process_is_parked(
    config: dict[str, Any], config_file: Path, forker: Forker, stack: Stack, settings: Settings, smtp: SmtpSink
) -> None:
    await stack.apply(ORDER_SHIPPED)
    async with running(settings, ["events"]):
        event = await stack.publish({**order(), "data": {"order_id": "KILLER"}})
        await stack.final(event, count=0)
        await stack.reach(event, State.QUEUED)
    raw, leases = stack.core.database.collection("events"), stack.core.database.collection("leases")
    overdue = datetime(2020, 1, 1, tzinfo=UTC)
    await stack.core.database.collection("deliveries").delete_many({})
    await raw.update_one({"id": event}, {"$set": {"state": "accepted", "due_at": overdue}})
    document = {**config, "sweeper": {"interval": "100ms", "overdue": "100ms"}}
    async with restarting(forker, with_limit(config_file, document), "--roles", "sweeper") as codes:

        async def given_up() -> bool:
            await raw.update_one({"id": event, "due_at": {"$exists": True}}, {"$set": {"due_at": overdue}})
            await leases.update_many({}, {"$set": {"until": overdue}})  # also the lead of the process that has ended
            stored = await stack.core.events.get(event_key("shop", event))
            return stored is not None and stored.state is EventState.FAILED

        await eventually(given_up, timeout=60)
        parked = await stack.take("notipy.dead.events")
    assert parked.headers["x-notipy-reason"] == "poison"
    assert len(codes) == RESUMPTIONS


async def test_what_a_broker_with_a_limit_of_its_own_parks_is_told_as_poison(
    stack: Stack, servers: SharedServers, vhost: str
) -> None:
    admin = RabbitAdmin(servers.management_url)
    admin.set_policy(vhost.rsplit("/", 1)[1], "limit", "^notipy.events$", {"delivery-limit": 2})
    queue = await stack.channel.get_queue("notipy.events", ensure=False)
    await stack.publish(order(), message_id="killer")

    async def parked() -> bool:
        message = await queue.get(fail=False)
        if message is not None:
            await message.nack(requeue=True)
        return await stack.depth("notipy.dead.events") > 0

    await eventually(parked)
    event = dead_event(await stack.take("notipy.dead.events"))
    assert (event.reason, event.message_id) == ("poison", "killer")
    assert event.routing_key == "shop.order.shipped"
    assert "handed out more often" in event.detail
