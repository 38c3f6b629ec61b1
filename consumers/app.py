"""The composition root: the one place that knows every adapter."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import structlog
from aio_pika import RobustConnection
from aio_pika.abc import AbstractConnection, AbstractRobustConnection
from yarl import URL

from channels.numbers import PhoneNumbers
from channels.registry import WrongOptions, make_provider
from channels.rendering import TemplateRenderer
from channels.schema import JsonSchemaCheck
from channels.surroundings import NOWHERE, Surroundings
from config.logging import told_seldom
from config.settings import Settings, SettingsError, of_provider
from consumers.auditing import Auditor, look_into
from consumers.failpoints import Failpoints, parse_failpoints
from consumers.handlers import CommandHandler, DeliveryHandler, EventHandler, Guarded, Handle, tell
from consumers.health import Health
from consumers.housekeeping import Housekeeping
from consumers.intake import CONNECT_SECONDS, RECONNECT_SECONDS, Consumers, Subscription
from consumers.metrics import Metrics
from consumers.pools import Sharing, limited, pool_of
from consumers.prober import Prober
from consumers.publisher import OUTAGES, Publisher
from consumers.receipts import WHERE as RECEIPTS_ROLE
from consumers.receipts import ReceiptHandler
from consumers.received import Message
from consumers.segments import CountingSegments
from consumers.stores import Stores, open_storage
from consumers.sweeper import Sweeper
from consumers.topology import COMMANDS, EVENTS, RECEIPTS, Topology, channel_queue
from consumers.unrouted import Unrouted
from consumers.wire import read_leniently
from domain.accept import Accept
from domain.audit import Patience
from domain.backoff import wait_out
from domain.conserve import Audit
from domain.deliver import Deliver
from domain.deliver_together import DeliverTogether
from domain.failures import place_of
from domain.mark_inbox import MarkInbox
from domain.operate import Operate
from domain.plan import Planner
from domain.ports import Now, Provider
from domain.receipt import Refine
from domain.sweep import Sweep
from domain.text import Fault
from domain.vocabulary import Channel, Lane
from storage.audit import MongoLedger
from storage.catalog import MongoCatalog
from storage.database import Database
from storage.deliveries import MongoDeliveries
from storage.endpoints import MongoEndpoints
from storage.events import MongoEvents
from storage.files import MongoFiles
from storage.inbox import MongoInbox
from storage.leadership import MongoLeadership
from storage.shares import MongoShares
from storage.suppressions import REFRESH, MongoSuppressions
from storage.suspects import MongoSuspects

if TYPE_CHECKING:
    from consumers.page import Page

log = structlog.get_logger()
HEARTBEAT_SECONDS = 10
"""Of AMQP: a dead peer is noticed after three of them."""
CANCEL_AGAIN_SECONDS = 0.5
TOPOLOGY_SECONDS = 10.0
"""How often exchanges, queues and bindings are declared anew."""
BROKER_ADVICE = "see that RabbitMQ runs, has room and raises no alarm, and that amqp_url names it"
AnyConnection = TypeVar("AnyConnection", bound=AbstractConnection)
EVENTS_ROLE, SWEEPER_ROLE = "events", "sweeper"
RECEIPTS_AT_ONCE = 50
"""Messages of receipts in progress in one process."""


def utc_now() -> datetime:
    """The clock of production."""
    return datetime.now(UTC)


@dataclass(frozen=True)
class Core:
    """What consumers and the CLI share: the stores, the queues and the use cases that need no provider."""

    settings: Settings
    database: Database
    connection: AbstractRobustConnection
    topology: Topology
    publisher: Publisher
    events: MongoEvents
    deliveries: MongoDeliveries
    catalog: MongoCatalog
    inbox: MongoInbox
    suppressions: MongoSuppressions
    renderer: TemplateRenderer
    schemas: JsonSchemaCheck
    operate: Operate
    now: Now


@asynccontextmanager
async def open_core(
    settings: Settings, *, wait: bool = False, now: Now = utc_now, role: str = "cli"
) -> AsyncIterator[Core]:
    """Connect to MongoDB and RabbitMQ, declare topology and indexes.

    Args:
        settings: as loaded.
        wait: wait for a server that is not there (a consumer does), instead of raising (a command does).
        now: the clock.
        role: the connections' name in the management UI.

    Raises:
        OSError, AMQPError, PyMongoError: without `wait`, a server cannot be reached.
    """
    async with AsyncExitStack() as stack:
        stores = await stack.enter_async_context(open_storage(settings, wait=wait))
        connection = await _connect(settings, wait, f"notipy {role} publish")
        stack.push_async_callback(connection.close)
        topology = Topology(tuple(settings.channels), settings.retry_tiers)
        fewest = min((channel.concurrency for channel in settings.channels.values()), default=1)
        publisher = Publisher(connection, topology, settings.status.publish, settings.dispatch.together, fewest)
        publisher.on_outage = told_seldom("broker.publish_waits", BROKER_ADVICE)
        publisher.on_refused = lambda key: log.warning("status.refused", key=key)
        await publisher.open()
        stack.push_async_callback(publisher.close)
        yield _core(settings, stores, connection, topology, publisher, now)


def _core(
    settings: Settings,
    stores: Stores,
    connection: AbstractRobustConnection,
    topology: Topology,
    publisher: Publisher,
    now: Now,
) -> Core:
    events, deliveries = stores.events, stores.deliveries
    return Core(
        settings=settings,
        database=stores.database,
        connection=connection,
        topology=topology,
        publisher=publisher,
        events=events,
        deliveries=deliveries,
        catalog=stores.catalog,
        inbox=stores.inbox,
        suppressions=stores.suppressions,
        renderer=TemplateRenderer(),
        schemas=JsonSchemaCheck(),
        operate=Operate(
            deliveries,
            events,
            publisher,
            now,
            settings.sweeper.overdue,
            settings.lease,
            stores.catalog,
            stores.suppressions,
        ),
        now=now,
    )


def amqp_url(settings: Settings) -> str:
    """The broker's URL with a heartbeat, unless it names one itself."""
    url = URL(settings.amqp_url.get_secret_value())
    return str(url if "heartbeat" in url.query else url.update_query(heartbeat=HEARTBEAT_SECONDS))


async def connected(connection: AnyConnection) -> AnyConnection:
    """Connect; one that fails is closed, because one that is merely forgotten complains of it when it is collected."""
    try:
        await connection.connect(timeout=CONNECT_SECONDS)
    except BaseException:
        await connection.close()
        raise
    return connection


async def _connect(settings: Settings, wait: bool, name: str) -> AbstractRobustConnection:
    url = URL(amqp_url(settings)).update_query(reconnect_interval=RECONNECT_SECONDS)

    async def connecting() -> AbstractRobustConnection:
        return await connected(RobustConnection(url, client_properties={"connection_name": name}))

    if not wait:
        return await connecting()
    return await wait_out(connecting, OUTAGES, told_seldom("broker.unreachable", BROKER_ADVICE))


def surroundings_of(core: Core) -> Surroundings:
    """What providers may use of this process."""
    return Surroundings(
        publish=core.publisher.outside.publish, endpoints=MongoEndpoints(core.database), inbox=core.inbox
    )


def providers_of(settings: Settings, surroundings: Surroundings = NOWHERE) -> dict[Channel, tuple[Provider, ...]]:
    """The providers of each configured channel; making them opens nothing.

    Raises:
        SettingsError: providers' own settings are wrong; it says which, of all of them.
    """
    made: dict[Channel, list[Provider]] = {channel: [] for channel in settings.channels}
    faults: list[Fault] = []
    for channel, chosen in settings.channels.items():
        for place in range(len(chosen.providers)):
            try:
                made[channel].append(provider_of(settings, channel, place, surroundings))
            except SettingsError as error:
                faults += error.faults
    if faults:
        raise SettingsError.of(faults, settings.file)
    return {channel: tuple(several) for channel, several in made.items()}


def provider_of(settings: Settings, channel: Channel, place: int, surroundings: Surroundings = NOWHERE) -> Provider:
    """One provider of a configured channel, by its place in the settings.

    Raises:
        SettingsError: its own settings are wrong.
    """
    chosen = settings.channels[channel].providers[place]
    try:
        return make_provider(channel, chosen.name, chosen.kind, chosen.options, surroundings)
    except ValueError as error:
        where = f"channels.{channel}.providers.{place}"
        faults = [of_provider(where, chosen.name, fault) for fault in _faults(error)]
        raise SettingsError.of(faults, settings.file) from None


def check_provider(channel: Channel, name: str, kind: str, options: Mapping[str, Any]) -> Sequence[Fault]:
    """What is wrong with a provider's own settings."""
    try:
        make_provider(channel, name, kind, options)
    except ValueError as error:
        return _faults(error)
    return ()


def _faults(error: ValueError) -> Sequence[Fault]:
    return error.faults if isinstance(error, WrongOptions) else (Fault("", str(error)),)


def failpoints_of(settings: Settings) -> Failpoints:
    """Where a process of these settings kills or stops itself; nowhere, but in tests of failures.

    Raises:
        SettingsError: what the setting should be.
    """
    try:
        return parse_failpoints(settings.failpoints)
    except ValueError as error:
        raise SettingsError(f"wrong settings: {error}") from None


def _with_failpoints(core: Core, points: Failpoints) -> Core:
    return replace(
        core,
        events=points.events(core.events),
        deliveries=points.deliveries(core.deliveries),
        publisher=points.queue(core.publisher),
    )


def all_roles(settings: Settings) -> tuple[str, ...]:
    """Everything that `notipy run` can do with these settings."""
    return (EVENTS_ROLE, *map(str, settings.channels), SWEEPER_ROLE)


@asynccontextmanager
async def running(
    settings: Settings,
    roles: Sequence[str] | None = None,
    *,
    providers: Mapping[Channel, Provider | Sequence[Provider]] | None = None,
    now: Now = utc_now,
    serve_page: bool = True,
) -> AsyncIterator["Application"]:
    """Consume until left; leaving cancels the consumers, lets what is in progress end and disconnects.

    Args:
        settings: as loaded.
        roles: `events`, channels' names, `sweeper`; all by default.
        providers: in place of those that the settings name, for tests.
        now: the clock.
        serve_page: serve metrics and health; a supervisor of several workers does so itself.

    Raises:
        SettingsError: a role or a provider is not one.
    """
    read_leniently()
    chosen = tuple(roles or all_roles(settings))
    if unknown := set(chosen) - set(all_roles(settings)):
        known = ", ".join(all_roles(settings))
        raise SettingsError(f"no such role: {', '.join(sorted(unknown))}; with these settings there are {known}")
    providers_of(settings)  # so that a wrong one stops the start before there is anything to wait for
    points = failpoints_of(settings)
    async with AsyncExitStack() as stack:
        core = await stack.enter_async_context(open_core(settings, wait=True, now=now, role=",".join(chosen)))
        files = MongoFiles(core.database, now)
        stack.push_async_callback(files.close)
        senders = providers_of(settings, replace(surroundings_of(core), files=files))
        senders |= {channel: _several(given) for channel, given in (providers or {}).items()}
        for provider in (each for several in senders.values() for each in several):
            stack.push_async_callback(provider.close)
        if points:
            core = _with_failpoints(core, points)
            senders = {channel: tuple(map(points.provider, several)) for channel, several in senders.items()}
        application = Application(core, chosen, senders, points)
        await application.start(stack, serve_page=serve_page)
        yield application


def _several(given: Provider | Sequence[Provider]) -> tuple[Provider, ...]:
    return tuple(given) if isinstance(given, Sequence) else (given,)


class Application:
    """The consumers of some roles, with their sweeper, health page and catalog."""

    def __init__(
        self,
        core: Core,
        roles: Sequence[str],
        providers: Mapping[Channel, Sequence[Provider]],
        failpoints: Failpoints = Failpoints(),  # noqa: B008 - none, and frozen
    ) -> None:
        self.core = core
        self._failpoints = failpoints
        self.metrics = Metrics()
        core.publisher.on_dispatched = self.metrics.dispatched
        core.suppressions.on_added = lambda entry: self.metrics.suppressed(entry.channel, entry.reason)
        self._roles = roles
        self._suspects, self._alone = MongoSuspects(core.database), asyncio.Lock()
        if sms := providers.get(Channel.SMS):
            counting = [CountingSegments(each, self.metrics.sms_sent) for each in sms]
            providers = {**providers, Channel.SMS: counting}
        self.pools = {
            channel: pool_of(core.settings.channels.get(channel), several, core.now, lambda: self.consumers.stopping)
            for channel, several in providers.items()
        }
        subscriptions = [*self._event_subscriptions(), *self._channel_subscriptions()]
        self.consumers = Consumers(amqp_url(core.settings), subscriptions)
        queues = [subscription.queue.name for subscription in subscriptions]
        self.health = Health(
            core.database.ping,
            self.consumers.connected,
            core.publisher.counts,
            core.publisher.declare,
            self.consumers.renew,
            queues,
            self.consumers.paused,
            lambda: [f"{channel}: {why}" for channel in self._channels for why in self.pools[channel].paused],
            self.metrics,
        )
        self.page: Page | None = None

    async def start(self, stack: AsyncExitStack, *, serve_page: bool) -> None:
        """Start everything; what was started is stopped by the stack, in reverse order."""
        settings = self.core.settings
        await self.core.catalog.refresh()
        await self.core.suppressions.refresh()
        if serve_page and settings.metrics.port is not None:
            from consumers.page import Page

            self.page = Page(self.health.state, self.metrics.registry)
            await self.page.start(settings.metrics.host, settings.metrics.port)
            stack.push_async_callback(self.page.stop)
        background(stack, self._refresh_catalog, "catalog")
        background(stack, self._refresh_suppressions, "suppressions")
        await self._share_rates(stack)
        stack.push_async_callback(self._stop_consumers, settings.grace)
        await self.consumers.start()
        background(stack, self.consumers.keep, "consumers")
        background(stack, self.health.watch, "health")
        for channel, member in ((each, member) for each in self._channels for member in self.pools[each].members):
            prober = Prober(channel, member.provider, member.circuit, self.metrics)
            background(stack, prober.run, f"{channel} provider {member.name}")
        if SWEEPER_ROLE in self._roles:
            sweeper = self._sweeper()
            background(stack, sweeper.run, "sweeper")
            background(stack, sweeper.plan, "planning")
            background(stack, self._keep_topology, "topology")
            background(stack, self._housekeeping().run, "housekeeping")
            background(stack, self._auditor().run, "audit")
        log.info("notipy.started", roles=list(self._roles))

    async def _share_rates(self, stack: AsyncExitStack) -> None:
        """Before anything is sent, and until nothing is sent any more."""
        if limiters := limited({channel: self.pools[channel] for channel in self._channels}):
            sharing = Sharing(limiters, lambda name: MongoShares(self.core.database, name, self._owner))
            await sharing.begin()
            stack.push_async_callback(sharing.leave)
            background(stack, sharing.run, "rates")

    async def _stop_consumers(self, grace: timedelta) -> None:
        log.info("notipy.stopping", in_progress=self.consumers.in_progress)
        if not await self.consumers.stop(grace):
            log.warning("notipy.grace_exceeded", in_progress=self.consumers.in_progress)

    async def _keep_topology(self) -> None:
        """A queue that was deleted comes back with its consumer, but unbound; one without a consumer does not."""
        while True:
            await asyncio.sleep(TOPOLOGY_SECONDS)
            await self.core.publisher.declare()

    async def _refresh_catalog(self) -> None:
        while True:
            await asyncio.sleep(self.core.settings.catalog_refresh.total_seconds())
            if await self.core.catalog.refresh():
                catalog = self.core.catalog
                log.info("catalog.refreshed", notifications=len(catalog.current), unreadable=sorted(catalog.unreadable))

    async def _refresh_suppressions(self) -> None:
        while True:
            await asyncio.sleep(REFRESH.total_seconds())
            await self.core.suppressions.refresh()

    def _deliver(self, channel: Channel) -> Deliver:
        core = self.core
        return Deliver(
            pool=self.pools[channel],
            suppressions=core.suppressions,
            deliveries=core.deliveries,
            events=core.events,
            catalog=core.catalog,
            queue=core.publisher,
            renderer=core.renderer,
            policy=core.settings.policy(channel),
            now=core.now,
            lease=core.settings.lease,
            overdue=core.settings.sweeper.overdue,
            on_failover=self._failpoints.failover(lambda settled: tell(self.metrics, settled)),
        )

    def _sweeper(self) -> Sweeper:
        core, settings = self.core, self.core.settings
        return Sweeper(
            sweep_of(core),
            MongoLeadership(core.database, "sweeper", self._owner),
            core.deliveries,
            core.publisher,
            self.metrics,
            core.now,
            settings.sweeper.interval,
            Unrouted(core.connection, core.publisher, core.topology).route_again,
        )

    @property
    def _channels(self) -> list[Channel]:
        """Those of this process's roles."""
        return [channel for channel in self.core.settings.channels if str(channel) in self._roles]

    def _housekeeping(self) -> Housekeeping:
        core, keep = self.core, self.core.settings.retention
        return Housekeeping(core.database, core.connection, keep, self.metrics, core.now, self._owner)

    def _auditor(self) -> Auditor:
        core = self.core
        ledger, leadership = MongoLedger(core.database), MongoLeadership(core.database, "audit", self._owner)
        return Auditor(audit_of(core, ledger), ledger, leadership, self.metrics, core.now)

    @property
    def _owner(self) -> str:
        """Under which it leads what one process of many does."""
        return f"{socket.gethostname()}/{os.getpid()}/{id(self)}"

    def _event_subscriptions(self) -> list[Subscription]:
        if EVENTS_ROLE not in self._roles:
            return []
        core = self.core
        events = EventHandler(accept_of(core), self.metrics)
        commands = CommandHandler(
            core.operate, core.deliveries, core.publisher, MarkInbox(core.inbox, core.publisher.inbox), core.now
        )
        receipts = ReceiptHandler(refine_of(core), core.publisher, self.metrics, core.settings.retry_tiers)
        return [
            self._subscription(EVENTS, core.settings.events.concurrency, EVENTS_ROLE, events, events.poisoned),
            self._subscription(COMMANDS, 10, EVENTS_ROLE, commands, _nothing_more),
            self._subscription(RECEIPTS, RECEIPTS_AT_ONCE, RECEIPTS_ROLE, receipts, _nothing_more),
        ]

    def _channel_subscriptions(self) -> list[Subscription]:
        return [lane for channel in self._channels for lane in self._lanes(channel)]

    def _lanes(self, channel: Channel) -> list[Subscription]:
        core = self.core
        deliver, concurrency = self._deliver(channel), core.settings.channels[channel].concurrency
        together = DeliverTogether(deliver)
        subscriptions = []
        for lane in Lane:
            handler = DeliveryHandler(
                channel,
                deliver,
                core.operate,
                core.publisher,
                self.metrics,
                concurrency,
                lambda: self.consumers.stopping,
                together,
            )
            queue = channel_queue(channel, lane)
            subscriptions.append(
                self._subscription(queue, concurrency, str(channel), handler, handler.poisoned, channel)
            )
        return subscriptions

    def _subscription(
        self,
        queue: str,
        concurrency: int,
        role: str,
        handler: Handle,
        poisoned: Callable[[Message], Awaitable[object]],
        channel: Channel | None = None,
    ) -> Subscription:
        core = self.core
        guarded = Guarded(
            role,
            self._failpoints.handler(handler),
            core.publisher,
            self._suspects,
            self.metrics,
            core.settings.events.delivery_limit,
            poisoned,
            self._alone,
        )
        return Subscription(core.topology.queue(queue), concurrency, guarded, lambda: self._paused(channel))

    def _paused(self, channel: Channel | None) -> str | None:
        """Why nothing should be taken from a queue now: what could not be recorded, or sent, is better left there."""
        if not self.core.database.reachable:
            return "database unreachable"
        return self.pools[channel].why if channel else None


async def _nothing_more(_: Message) -> None:
    """A poisoned command or receipt concerns nothing but itself."""


def accept_of(core: Core) -> Accept:
    """The use case of the events queue."""
    overdue = core.settings.sweeper.overdue
    return Accept(
        events=core.events,
        deliveries=core.deliveries,
        catalog=core.catalog,
        queue=core.publisher,
        planner=Planner(core.renderer, core.schemas, frozenset(core.settings.channels), overdue, PhoneNumbers()),
        now=core.now,
        max_bytes=core.settings.events.max_bytes,
        overdue=overdue,
        suppressions=core.suppressions,
    )


def refine_of(core: Core) -> Refine:
    """The use case of the receipts queue."""
    return Refine(core.deliveries, core.suppressions, core.publisher, core.now, core.settings.provider_names)


def sweep_of(core: Core) -> Sweep:
    """One round of the sweeper, which `notipy audit --repair` makes too."""
    settings = core.settings
    return Sweep(
        events=core.events,
        deliveries=core.deliveries,
        queue=core.publisher,
        accept=accept_of(core),
        policies={channel: settings.policy(channel) for channel in settings.channels},
        now=core.now,
        overdue=settings.sweeper.overdue,
        lease=settings.lease,
        outage_ended=lambda: core.database.recovered_at,
    )


def audit_of(core: Core, ledger: MongoLedger) -> Audit:
    """The audit, over the database and the queues."""
    patience = Patience(core.settings.sweeper.overdue, core.settings.lease)
    return Audit(ledger, lambda: look_into(core.publisher.counts, core.topology), core.now, patience)


def background(stack: AsyncExitStack, work: Callable[[], Any], name: str) -> None:
    """Run `work` until the stack is left. Should it end by an error, that is logged and it is begun again."""

    async def forever() -> None:
        while True:
            try:
                await work()
            except Exception as error:  # noqa: BLE001 - logged, and the work begun again
                log.error("background.failed", work=name, error=place_of(error))
            await asyncio.sleep(1)

    task = asyncio.create_task(forever(), name=f"notipy-{name}")

    async def stop() -> None:
        while not task.done():
            # more than once: until Python 3.12 asyncio.wait_for, which the AMQP client uses, may swallow a cancellation
            # that comes at the moment of the answer (bpo-37658)
            task.cancel()
            await asyncio.wait([task], timeout=CANCEL_AGAIN_SECONDS)

    stack.push_async_callback(stop)
