"""When the channel of the publishes is replaced; `benchmarks --cluster` shows why, on a real cluster."""

import asyncio
from typing import Any, cast

import pytest
from aio_pika.abc import AbstractChannel
from aio_pika.exceptions import DeliveryError, PublishError
from aiormq import spec
from aiormq.abc import DeliveredMessage
from pamqp.header import ContentHeader

from consumers import confirms
from consumers.confirms import ConfirmedChannel


class _Channel:
    """Fails with what it is given, or confirms when told to."""

    def __init__(self) -> None:
        self.fault: Exception | None = None
        self.let = asyncio.Event()
        self.let.set()
        self.is_closed = False
        self.bodies: list[bytes] = []

    async def get_underlay_channel(self) -> "_Channel":
        return self

    async def basic_publish(self, body: bytes, **_: Any) -> None:
        self.bodies.append(body)
        await self.let.wait()
        if self.fault is not None:
            raise self.fault

    async def close(self) -> None:
        self.is_closed = True


class _Broker:
    def __init__(self) -> None:
        self.opened: list[_Channel] = []
        self.away = False

    async def open(self) -> AbstractChannel:
        await asyncio.sleep(0)
        if self.away:
            raise ConnectionError("away")
        self.opened.append(_Channel())
        return cast("AbstractChannel", self.opened[-1])


@pytest.fixture
def broker() -> _Broker:
    return _Broker()


@pytest.fixture
def channel(broker: _Broker) -> ConfirmedChannel:
    return ConfirmedChannel(broker.open)


def refusal() -> DeliveryError:
    return DeliveryError(None, cast("Any", None))


async def test_many_share_one_channel(broker: _Broker, channel: ConfirmedChannel) -> None:
    await asyncio.gather(*(channel.publish(b"%d" % n) for n in range(5)))
    assert len(broker.opened) == 1
    await channel.close()
    assert broker.opened[0].is_closed


async def test_after_a_refusal_another_takes_its_place(
    broker: _Broker, channel: ConfirmedChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(confirms, "RENEWED_AFTER", 0.0)
    await channel.publish(b"fine")
    first = broker.opened[0]
    first.fault = refusal()
    with pytest.raises(DeliveryError):
        await channel.publish(b"refused")
    broker.away = True
    with pytest.raises(ConnectionError):
        await channel.publish(b"away")
    broker.away = False
    await asyncio.gather(channel.publish(b"again"), channel.publish(b"and again"))
    assert [each.bodies for each in broker.opened] == [[b"fine", b"refused"], [b"again", b"and again"]]
    await channel.close()
    assert all(each.is_closed for each in broker.opened)


async def test_what_is_under_way_on_the_one_before_is_waited_for(
    broker: _Broker, channel: ConfirmedChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(confirms, "RENEWED_AFTER", 0.0)
    await channel.publish(b"one")
    first = broker.opened[0]
    first.let.clear()
    slow = asyncio.create_task(channel.publish(b"slow"))
    await asyncio.sleep(0)
    waiting, first.let = first.let, asyncio.Event()
    first.let.set()
    first.fault = refusal()
    with pytest.raises(DeliveryError):
        await channel.publish(b"refused")
    first.fault = None
    await channel.publish(b"on the second")
    assert broker.opened[1].bodies == [b"on the second"]
    assert not first.is_closed
    waiting.set()
    await slow
    await channel.close()
    assert first.is_closed


async def test_one_that_is_new_is_kept_however_often_it_refuses(broker: _Broker, channel: ConfirmedChannel) -> None:
    await channel.publish(b"fine")
    broker.opened[0].fault = refusal()
    for _ in range(5):
        with pytest.raises(DeliveryError):
            await channel.publish(b"to a full queue")
    assert len(broker.opened) == 1


async def test_a_message_without_a_queue_is_no_refusal(
    broker: _Broker, channel: ConfirmedChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(confirms, "RENEWED_AFTER", 0.0)
    await channel.publish(b"fine")
    returned = DeliveredMessage(spec.Basic.Return(), ContentHeader(), b"", cast("Any", None))
    broker.opened[0].fault = PublishError(returned, spec.Basic.Ack())
    with pytest.raises(PublishError):
        await channel.publish(b"to nowhere")
    broker.opened[0].fault = None
    await channel.publish(b"fine")
    assert len(broker.opened) == 1
