"""MongoDB fails: killed, without a primary, slow, or with errors of every kind that a write can meet."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

import aio_pika
from pymongo.errors import PyMongoError

from tests.chaos.arena import ReplicaSet
from tests.chaos.judge import Allowances
from tests.chaos.load import Producer
from tests.chaos.run import LEASE_SECONDS, Fault, Run

_WRITES = ["insert", "update"]
_FAILING_SECONDS = 4.0
_SHUTDOWN, _STEPPED_DOWN, _INTERRUPTED, _NOT_WRITABLE = 91, 189, 11602, 10107  # the server's error codes
_WRITE_CONCERN_FAILED = 64


async def _killed(run: Run) -> None:
    run.own.kill_mongod()
    await asyncio.sleep(run.rng.uniform(0.0, 2.0))
    await run.own.start_mongod()


async def _three_members(run: Run) -> None:
    run.replica_set = ReplicaSet(run.own)
    run.resources.callback(run.replica_set.stop)
    await run.replica_set.start()
    run.use_mongo(run.replica_set.url)


async def _stepped_down(run: Run) -> None:
    assert run.replica_set is not None
    before = await run.replica_set.primary()
    with suppress(PyMongoError):  # it closes the connection that asks
        await run.client.admin.command({"replSetStepDown": 20, "secondaryCatchUpPeriodSecs": 5})
    await _other_primary(run.replica_set, before)


async def _primary_killed(run: Run) -> None:
    assert run.replica_set is not None
    before = await run.replica_set.primary()
    run.replica_set.kill_member(before)
    await _other_primary(run.replica_set, before)


async def _other_primary(members: ReplicaSet, before: int) -> None:
    while await members.primary() == before:  # noqa: ASYNC110 - nobody tells of an election
        await asyncio.sleep(0.1)


def _failing(choose: Callable[[Run], Mapping[str, Any]]) -> Callable[[Run], Awaitable[None]]:
    """MongoDB's own fail point, for NotiPy's writes alone: https://github.com/mongodb/mongo/wiki/The-failCommand-fail-point."""

    async def inject(run: Run) -> None:
        chosen = choose(run)
        data = {"failCommands": _WRITES, "appName": "notipy", **chosen}
        await run.client.admin.command({"configureFailPoint": "failCommand", "mode": "alwaysOn", "data": data})
        try:
            await asyncio.sleep(_FAILING_SECONDS)
        finally:
            off = await run.client.admin.command({"configureFailPoint": "failCommand", "mode": "off"})
        run.expect(off.get("count"), "MongoDB failed no command")

    return inject


def _slow(_run: Run) -> Mapping[str, Any]:
    return {"blockConnection": True, "blockTimeMS": round((LEASE_SECONDS + 1) * 1000)}


def _unsure(run: Run) -> Mapping[str, Any]:
    """The write is made; whether it will last is not known."""
    code = run.rng.choice((_WRITE_CONCERN_FAILED, _SHUTDOWN))
    run.note(f"code {code}")
    return {"writeConcernError": {"code": code, "errmsg": "injected"}}


def _refused(run: Run) -> Mapping[str, Any]:
    """The write is not made."""
    code = run.rng.choice((_SHUTDOWN, _STEPPED_DOWN, _INTERRUPTED, _NOT_WRITABLE))
    run.note(f"code {code}")
    return {"errorCode": code}


async def _copied(run: Run) -> None:
    """Every event comes three times and each delivery's order twice: claims and inserts meet duplicate keys."""
    url = run.arena.vhost_url(run.vhost)
    connection = await aio_pika.connect(url, client_properties={"connection_name": "chaos"})
    async with connection:
        channel = await connection.channel(publisher_confirms=True)
        copies = await channel.declare_queue(exclusive=True)
        await copies.bind("notipy.channels", "#")
        exchange = await channel.get_exchange("notipy.channels", ensure=False)
        again = asyncio.create_task(_published_again(run))
        copied = 0
        while not again.done() or copied < len(run.load) // 4:
            message = await copies.get(no_ack=True, fail=False, timeout=5)
            if message is None:
                await asyncio.sleep(0.02)
                if again.done():
                    break
            elif "x-chaos" not in message.headers:
                headers = {**message.headers, "x-chaos": True}
                copy = aio_pika.Message(message.body, headers=headers, content_type=message.content_type)
                await exchange.publish(copy, message.routing_key or "")
                copied += 1
        await again
        run.note(f"{copied} orders copied")
        run.expect(copied, "no order was copied")


async def _published_again(run: Run) -> None:
    """By two producers at once, of which neither knows of the other."""
    others = [Producer(run.arena.vhost_url(run.vhost)) for _ in range(2)]
    try:
        await asyncio.gather(*(each.publish(run.load[: len(run.load) // 2], rate=100) for each in others))
    finally:
        for each in others:
            await each.close()


FAULTS = (
    Fault("mongo-killed", "MongoDB is killed and started again", _killed, kills_servers=True),
    Fault(
        "mongo-stepdown", "the primary of three steps down", _stepped_down, prepare=_three_members, kills_servers=True
    ),
    Fault(
        "mongo-primary-killed",
        "the primary of three is killed",
        _primary_killed,
        prepare=_three_members,
        kills_servers=True,
        allowed=Allowances(recovery_seconds=30),
    ),
    Fault("mongo-slow-writes", "writes take longer than the lease", _failing(_slow), kills_servers=True),
    Fault("mongo-write-concern", "writes are made and not confirmed", _failing(_unsure), kills_servers=True),
    Fault("mongo-write-errors", "writes are refused, as in an election", _failing(_refused), kills_servers=True),
    Fault("mongo-duplicate-keys", "everything comes several times at once", _copied, events=600),
)
