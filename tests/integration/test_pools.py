"""Several providers for a channel, against real servers: who takes over, who is taken back, how fast each is used."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import aio_pika
import pytest
import yaml
from aio_pika.abc import AbstractConnection
from aiosmtpd.smtp import SMTP, Envelope, Session

from cli.checks import check_all
from config.settings import Settings
from consumers.app import Application, running
from consumers.outside import AT_ONCE, Outside
from consumers.publisher import Publisher
from deploy.processes import free_ports
from deploy.rabbit_admin import RabbitAdmin
from deploy.smtp_sink import SmtpSink
from domain.circuit import Mode
from domain.delivery import Delivery
from domain.failures import DeliveryFailure, TransientFailure, UnknownOutcome
from domain.pool import Member
from domain.vocabulary import Channel, Reason, State
from storage.shares import MongoShares
from tests.conftest import SharedServers
from tests.forking import Forker
from tests.running import ORDER_SHIPPED, Stack, order, total
from tests.waiting import eventually

RUN, EVENTS, DIES_AFTER, CONCURRENCY = 1000, 10, 300, 50


@dataclass
class MailServer:
    """A real SMTP server that dies when it has kept `dies_after` mails: it hangs up on everybody and is gone.

    `keys` are the deliveries' keys, as their Message-IDs have them, of the mails that it has kept and said so.
    """

    port: int
    dies_after: int | None = None
    keys: list[str] = field(default_factory=list)
    at: list[float] = field(default_factory=list)
    _protocols: list[SMTP] = field(default_factory=list)
    _server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"smtp://127.0.0.1:{self.port}?tls=none"

    async def start(self) -> None:
        self._server = await asyncio.get_running_loop().create_server(self._protocol, "127.0.0.1", self.port)

    def die(self) -> None:
        if self._server is not None:
            self._server.close()
        for protocol in self._protocols:
            if isinstance(protocol.transport, asyncio.WriteTransport):
                protocol.transport.abort()
            if protocol._handler_coroutine is not None:
                protocol._handler_coroutine.cancel()
        self._protocols.clear()

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        if self.dies_after is not None and len(self.keys) >= self.dies_after:
            self.dies_after = None
            self.die()
            return "421 4.3.2 never said"
        assert isinstance(envelope.content, bytes)
        self.keys += [line for line in envelope.content.decode().splitlines() if line.lower().startswith("message-id")]
        self.at.append(time.monotonic())
        return "250 2.0.0 Kept"

    def _protocol(self) -> SMTP:
        self._protocols.append(SMTP(self))
        return self._protocols[-1]


@asynccontextmanager
async def servers_of_mail(*dies_after: int | None) -> AsyncIterator[list[MailServer]]:
    servers = [MailServer(port, at) for port, at in zip(free_ports(len(dies_after)), dies_after, strict=True)]
    for server in servers:
        await server.start()
    try:
        yield servers
    finally:
        for server in servers:
            server.die()


def with_pool(config: dict[str, Any], servers: Sequence[MailServer], **more: Any) -> Settings:
    names = ("first", "second", "third")
    email = {
        "retry": ["100ms", "200ms", "200ms"],
        "concurrency": CONCURRENCY,
        "providers": [
            {"name": name, "kind": "smtp", "url": server.url, "from": "shop@example.org", "timeout": "2s", **more}
            for name, server in zip(names, servers, strict=False)
        ],
    }
    return Settings.model_validate({**config, "status": {"publish": "final"}, "channels": {"email": email}})


async def publish(stack: Stack, events: int, each: int, prefix: str) -> list[str]:
    """Events with so many recipients each."""
    people = [
        [{"email": f"{prefix}-{event}-{number}@example.org"} for number in range(each)] for event in range(events)
    ]
    return [await stack.publish({**order(), "recipients": several}) for several in people]


async def finals(stack: Stack, events: Sequence[str], each: int) -> list[Delivery]:
    return [delivery for event in events for delivery in await stack.final(event, count=each, timeout=40)]


def members(application: Application) -> Sequence[Member]:
    return application.pools[Channel.EMAIL].members


async def test_the_first_provider_dies_and_the_second_sends_the_rest_once_until_the_first_is_back(
    config: dict[str, Any], stack: Stack
) -> None:
    await stack.apply(ORDER_SHIPPED)
    async with (
        servers_of_mail(DIES_AFTER, None) as (first, second),
        running(with_pool(config, [first, second])) as application,
    ):
        deliveries = await finals(stack, await publish(stack, EVENTS, RUN // EVENTS, "run"), RUN // EVENTS)
        assert len(deliveries) == RUN
        assert {delivery.state for delivery in deliveries} == {State.SENT}
        assert (len(first.keys), len(second.keys)) == (DIES_AFTER, RUN - DIES_AFTER)
        assert max(Counter(first.keys + second.keys).values()) == 1, "none twice"
        check_records(deliveries)
        assert members(application)[0].circuit.mode is Mode.OPEN
        assert total(application, "notipy_provider_paused", provider="first") == 1
        assert "provider first is paused" in (await application.health.look()).paused[0]
        assert not application.consumers.paused(), "the channel goes on"

        await first.start()
        await eventually(lambda: members(application)[0].circuit.mode is not Mode.OPEN, timeout=20)
        await finals(stack, await publish(stack, 1, 1, "trial"), 1)
        back = await finals(stack, await publish(stack, 2, 10, "back"), 10)
        assert (len(first.keys), len(second.keys)) == (DIES_AFTER + 21, RUN - DIES_AFTER)
        assert {delivery.provider for delivery in back} == {"first"}
        await eventually(lambda: total(application, "notipy_provider_paused") == 0)


def check_records(deliveries: Sequence[Delivery]) -> None:
    """Every attempt names its provider; those that failed over do not count, and only a doubtful one is marked."""
    assert Counter(delivery.provider for delivery in deliveries) == {"first": DIES_AFTER, "second": RUN - DIES_AFTER}
    for delivery in deliveries:
        attempts = [change for change in delivery.history if change.attempt]
        assert all(change.provider in {"first", "second"} for change in attempts)
        assert len({(change.attempt, change.provider) for change in attempts}) == delivery.attempt
        assert delivery.attempt - delivery.forgiven <= 2
        doubtful = [change for change in attempts if change.possible_duplicate]
        assert delivery.possible_duplicate == bool(doubtful)
    assert any(delivery.attempt > 1 for delivery in deliveries), "those that met the dead one went on with the other"
    assert sum(delivery.possible_duplicate for delivery in deliveries) <= 3 * CONCURRENCY


async def test_when_none_can_be_used_all_waits_and_flows_again_with_whichever_is_back(
    config: dict[str, Any], stack: Stack
) -> None:
    await stack.apply(ORDER_SHIPPED)
    async with servers_of_mail(None, None) as (first, second):
        first.die()
        second.die()
        async with running(with_pool(config, [first, second])) as application:
            events = await publish(stack, 2, 20, "dark")
            await eventually(lambda: application.pools[Channel.EMAIL].why is not None, timeout=20)
            await eventually(lambda: "notipy.channel.email.normal" in application.consumers.paused())
            await second.start()
            deliveries = await finals(stack, events, 20)
    assert {delivery.state for delivery in deliveries} == {State.SENT}
    assert (len(first.keys), len(set(second.keys))) == (0, 40)
    assert max(delivery.attempt - delivery.forgiven for delivery in deliveries) <= 2


async def test_a_process_killed_between_the_first_provider_and_the_second_loses_and_repeats_nothing(
    config: dict[str, Any], forker: Forker, stack: Stack, smtp: SmtpSink, tmp_path: Path
) -> None:
    await stack.apply(ORDER_SHIPPED)
    (sink,) = config["channels"]["email"]["providers"]
    (nobody,) = free_ports(1)
    dead = {**sink, "name": "dead", "url": f"smtp://127.0.0.1:{nobody}?tls=none"}
    # leases so long that none of this is the sweeper's work
    config |= {"lease": "10m", "sweeper": {"interval": "200ms", "overdue": "10m"}}
    config["channels"] = {"email": {**config["channels"]["email"], "providers": [dead, sink]}}
    file, killed = tmp_path / "notipy.yaml", tmp_path / "killed.yaml"
    file.write_text(yaml.safe_dump(config))
    killed.write_text(yaml.safe_dump({**config, "failpoints": "recorded:kill:1"}))
    event = await stack.publish(order())
    async with forker.consumer(killed, log=tmp_path / "killed.log") as process:
        await asyncio.wait_for(process.wait(), 30)
    (between,) = await stack.deliveries(event)
    assert (between.state, between.attempt, between.provider) == (State.RETRYING, 1, "dead")
    async with forker.consumer(file, log=tmp_path / "again.log"):
        (delivery,) = await stack.final(event, timeout=40)
    assert (delivery.state, delivery.provider, delivery.possible_duplicate) == (State.SENT, "sink", False)
    assert len(smtp.mails) == 1


async def test_the_doctor_asks_each_of_them(config: dict[str, Any], stack: Stack) -> None:
    async with servers_of_mail(None, None) as (first, second):
        second.die()
        findings = await check_all(with_pool(config, [first, second]))
    asked = {finding.check: finding for finding in findings if finding.check.startswith("provider ")}
    assert {name: finding.result for name, finding in asked.items()} == {
        "provider email/first": "ok",
        "provider email/second": "failed",
    }
    assert "channels.email.providers.1" in asked["provider email/second"].advice


async def test_two_processes_share_a_rate(config: dict[str, Any], stack: Stack) -> None:
    await stack.apply(ORDER_SHIPPED)
    async with servers_of_mail(None) as (only,):
        settings = with_pool(config, [only], rate="40/s")
        async with running(settings) as one, running(settings) as two:
            rates = [members(process)[0].limiter for process in (one, two)]

            def halved() -> bool:
                return [limiter and limiter.bucket.rate for limiter in rates] == [20, 20]

            await eventually(halved)
            deliveries = await finals(stack, await publish(stack, 12, 10, "slow"), 10)

            def counted() -> bool:  # a moment after the last is on record
                return sum(total(process, "notipy_attempts_total", outcome="sent") for process in (one, two)) == 120

            await eventually(counted)
        took = only.at[-1] - only.at[0]
    assert all(delivery.attempt == 1 for delivery in deliveries)
    assert took >= (120 - 40) / 40 - 0.2, "one second's worth at once, the rest at the rate"
    leases = await stack.core.database.collection("leases").find_one({"_id": "rate/email/first"})
    assert leases is not None
    assert leases["members"] == [], "whoever stops leaves"


async def test_a_share_is_anothers_when_its_lease_has_ended(stack: Stack) -> None:
    one, two = (MongoShares(stack.core.database, "rate/sms/p", owner) for owner in ("host.a/1", "host.b/2"))
    lease = timedelta(seconds=30)
    assert await one.renew(lease) == 1
    assert await one.renew(lease) == 1
    assert await two.renew(timedelta(milliseconds=300)) == 2
    assert await one.renew(lease) == 2

    async def alone() -> bool:
        return await one.renew(lease) == 1

    await eventually(alone)
    await asyncio.gather(*(MongoShares(stack.core.database, "rate/sms/p", f"w-{n}").renew(lease) for n in range(20)))
    assert await one.renew(lease) == 21
    await one.leave()
    assert await two.renew(lease) == 21


# ---------------------------------------------------------------------------------------------------------------
# What providers may use of NotiPy: publishes to exchanges that are not its own
# ---------------------------------------------------------------------------------------------------------------


async def reaches(publisher: Publisher, exchange: str) -> bool:
    try:
        await publisher.outside.publish(exchange, "k", b"{}", {})
    except DeliveryFailure as fault:
        return not fault.provider_fault
    return True


async def test_a_publish_outside_is_confirmed_also_where_no_queue_is_bound(stack: Stack) -> None:
    exchange = await stack.channel.declare_exchange("shop.out", "topic", auto_delete=False)
    await stack.core.publisher.outside.publish("shop.out", "nobody.cares", b"{}", {})
    queue = await stack.channel.declare_queue(exclusive=True)
    await queue.bind(exchange, "a.*")
    await stack.core.publisher.outside.publish("shop.out", "a.b", b'{"n":1}', {"x-notipy-delivery": "d"})
    message = await queue.get(no_ack=True)
    assert (message.body, message.headers["x-notipy-delivery"]) == (b'{"n":1}', "d")
    assert message.delivery_mode == aio_pika.DeliveryMode.PERSISTENT


async def test_an_exchange_that_does_not_exist_fails_its_own_publishes_alone(stack: Stack) -> None:
    publisher = stack.core.publisher
    await stack.channel.declare_exchange("shop.there", "topic", auto_delete=False)
    several = [publisher.outside.publish(name, "k", b"{}", {}) for name in ("shop.missing", "shop.there") * 10]
    results = await asyncio.gather(*several, return_exceptions=True)
    for fault in results[::2]:
        assert isinstance(fault, TransientFailure), fault
        assert (fault.reason, fault.provider_fault) == (Reason.NOT_CONFIGURED, True)
        assert "there is no exchange 'shop.missing'" in fault.detail
    assert results[1::2] == [None] * 10
    assert not stack.channel.is_closed, "the connection is as it was"
    await stack.channel.declare_exchange("shop.missing", "topic", auto_delete=False)
    await eventually(lambda: reaches(publisher, "shop.missing"))


async def test_an_exchange_that_is_deleted_under_way_disturbs_nobody_else(stack: Stack) -> None:
    publisher = stack.core.publisher
    for _ in range(5):
        await stack.channel.declare_exchange("shop.gone", "topic")
        await eventually(lambda: reaches(publisher, "shop.gone"))
        await asyncio.gather(*(publisher.outside.publish("shop.gone", "k", b"{}", {}) for _ in range(30)))
        await stack.channel.exchange_delete("shop.gone")
        several = (publisher.outside.publish("shop.gone", "k", b"{}", {}) for _ in range(30))
        results = await asyncio.gather(*several, return_exceptions=True)
        assert all(isinstance(fault, DeliveryFailure) and fault.provider_fault for fault in results), results
    assert publisher._connection.connected.is_set()
    assert not stack.channel.is_closed, "the connection is as it was"


async def test_a_full_queue_refuses_a_publish_outside_that_others_may_have(stack: Stack) -> None:
    exchange = await stack.channel.declare_exchange("shop.full", "topic", auto_delete=False)
    other = await stack.channel.declare_queue(exclusive=True)
    await other.bind(exchange, "#")
    limits: dict[str, Any] = {"x-max-length": 1, "x-overflow": "reject-publish"}
    queue = await stack.channel.declare_queue("shop.full", arguments=limits)
    await queue.bind(exchange, "#")
    await stack.core.publisher.outside.publish("shop.full", "k", b"{}", {})
    with pytest.raises(UnknownOutcome) as refused:
        await stack.core.publisher.outside.publish("shop.full", "k", b"{}", {})
    assert (refused.value.reason, refused.value.provider_fault) == (Reason.PROVIDER_UNAVAILABLE, True)
    assert [(await other.get(no_ack=True)).body for _ in range(2)] == [b"{}", b"{}"]


async def test_after_a_lost_connection_publishes_outside_go_on(
    stack: Stack, servers: SharedServers, vhost: str
) -> None:
    publisher = stack.core.publisher
    await stack.channel.declare_exchange("shop.out", "topic", auto_delete=False)
    await publisher.outside.publish("shop.out", "k", b"{}", {})
    admin, name = RabbitAdmin(servers.management_url), vhost.rsplit("/", 1)[1]
    await eventually(lambda: asyncio.to_thread(lambda: list(admin.list_connections(name))), timeout=20)
    await asyncio.to_thread(admin.close_connections, name)

    await eventually(lambda: reaches(publisher, "shop.out"), timeout=20)


async def test_a_broker_that_hangs_leaves_nothing_in_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consumers.outside.OPEN_SECONDS", 0.05)

    async def hangs() -> AbstractConnection:
        await asyncio.Event().wait()
        raise AssertionError

    outside = Outside(hangs)
    several = (outside.publish("shop.out", "k", b"{}", {}) for _ in range(3 * AT_ONCE))
    for fault in await asyncio.gather(*several, return_exceptions=True):
        assert isinstance(fault, TransientFailure), fault
        assert (fault.reason, fault.provider_fault) == (Reason.TIMEOUT, True)
    assert outside._lines["shop.out"].left._value == AT_ONCE, "every place was given back"


async def test_those_that_wait_for_a_connection_do_not_each_try_in_vain() -> None:
    tried = 0

    async def refuses() -> AbstractConnection:
        nonlocal tried
        tried += 1
        await asyncio.sleep(0)
        raise ConnectionRefusedError

    outside = Outside(refuses)
    several = (outside.publish("shop.out", "k", b"{}", {}) for _ in range(AT_ONCE))
    for fault in await asyncio.gather(*several, return_exceptions=True):
        assert isinstance(fault, TransientFailure), fault
        assert (fault.reason, fault.provider_fault) == (Reason.CONNECTION_REFUSED, True)
    assert tried == 1
