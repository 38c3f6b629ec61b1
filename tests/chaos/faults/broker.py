"""RabbitMQ fails: killed, out of memory or disk, robbed of a queue or of everything."""

import asyncio
from collections.abc import Awaitable, Callable

import aio_pika
from aio_pika.abc import AbstractConnection

from tests.chaos.judge import Allowances
from tests.chaos.run import Fault, Run
from tests.waiting import eventually

_ALARM_SECONDS = 4.0


async def _killed(run: Run) -> None:
    run.own.kill_rabbitmq()
    await asyncio.sleep(run.rng.uniform(0.0, 2.0))
    await run.own.start_rabbitmq()


async def _connections_closed(run: Run) -> None:
    """Three times, the producer's among them."""
    for _ in range(3):
        # the management interface is a second behind: until it knows of one
        await eventually(lambda: asyncio.to_thread(run.arena.admin.close_connections, run.vhost), timeout=20)
        await asyncio.sleep(run.rng.uniform(0.3, 1.5))


async def _few_mails_at_a_time(run: Run) -> None:
    """So that mails wait in their queue, not in a consumer's hands."""
    run.settings["channels"]["email"]["concurrency"] = 3


async def _queue_deleted(run: Run) -> None:
    """One that holds deliveries, or retries; an operator's slip."""
    name = run.rng.choice(("notipy.channel.email.normal", "notipy.retry.500ms", "notipy.retry.1s"))
    run.expect(len(run.producer.confirmed) < len(run.load), "everything was published before")
    connection = await _connected(run)
    async with connection:
        channel = await connection.channel()

        async def filled() -> bool:
            found = await channel.declare_queue(name, passive=True)
            return bool(found.declaration_result.message_count)

        await eventually(filled, timeout=20)
        # once: RabbitMQ 3.10 does not survive the same quorum queue being deleted and declared many times a second
        deleted = await channel.queue_delete(name)
    run.note(f"{name} with {deleted.message_count} messages")


async def _events_queue_deleted(run: Run) -> None:
    """When it is empty, so that no event is lost that was only there; the producer goes on."""
    await run.producer.pause()
    await run.planned()
    run.expect(len(run.producer.confirmed) < len(run.load), "everything was published before")
    connection = await _connected(run)
    async with connection:
        await (await connection.channel()).queue_delete("notipy.events")
    run.producer.go_on()


async def _connected(run: Run) -> AbstractConnection:
    return await aio_pika.connect(run.arena.vhost_url(run.vhost), client_properties={"connection_name": "chaos"})


def _alarm(raised: Callable[[Run, bool], Awaitable[None]]) -> Callable[[Run], Awaitable[None]]:
    async def inject(run: Run) -> None:
        await raised(run, True)
        try:
            confirmed = len(run.producer.confirmed)
            await asyncio.sleep(_ALARM_SECONDS)
            run.note(f"{len(run.producer.confirmed) - confirmed} confirms under the alarm")
        finally:
            await raised(run, False)

    return inject


async def _wiped(run: Run) -> None:
    """Every event is stored, a part of the deliveries sent: the rest stands in queues that are no more."""
    await eventually(lambda: run.publishing is not None and run.publishing.done(), timeout=60)
    await run.planned()
    arrived, countable = run.arrivals.count, run.countable
    run.own.kill_rabbitmq()
    run.note(f"wiped after {arrived} of {countable} mails and calls")
    run.expect(arrived < countable * 0.9, "there was nothing left to lose")
    await run.own.start_rabbitmq(wiped=True)


FAULTS = (
    Fault("rabbit-killed", "RabbitMQ is killed and started again", _killed, kills_servers=True),
    Fault("rabbit-connections-closed", "RabbitMQ closes every connection, three times", _connections_closed),
    Fault(
        "rabbit-queue-deleted",
        "a queue is deleted with what is in it",
        _queue_deleted,
        prepare=_few_mails_at_a_time,
        begins=(0.01, 0.15),
        allowed=Allowances(unrouted=True, recovery_seconds=60),
    ),
    Fault(
        "rabbit-events-queue-deleted",
        "the queue of events is deleted, empty",
        _events_queue_deleted,
        begins=(0.01, 0.1),
        allowed=Allowances(unrouted=True),
    ),
    Fault(
        "rabbit-memory-alarm",
        "RabbitMQ raises a memory alarm for seconds",
        _alarm(lambda run, raised: run.own.memory_alarm(raised)),
        kills_servers=True,
    ),
    Fault(
        "rabbit-disk-alarm",
        "RabbitMQ raises a disk alarm for seconds",
        _alarm(lambda run, raised: run.own.disk_alarm(raised)),
        kills_servers=True,
    ),
    Fault(
        "rabbit-wiped",
        "RabbitMQ loses all its data in the middle of 2,000 deliveries; an empty one takes its place",
        _wiped,
        prepare=_few_mails_at_a_time,  # so that there is something left to lose
        events=20,
        recipients=68,
        begins=(0.02, 0.15),
        kills_servers=True,
        vhost="/",  # an empty broker has this one
        allowed=Allowances(dead_letters_lost=True, unrouted=True),
    ),
)
