"""What `notipy doctor` checks. Each check ends in findings, whatever happens: one failure hides no other."""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from cli.failures import CommandFailed
from cli.output import counted
from cli.session import broker, storage
from cli.topology import look, told, topology_of
from config.settings import Settings, SettingsError, strange_variables
from consumers.app import provider_of
from consumers.topology import EVENTS
from domain.failures import DeliveryFailure
from domain.text import describe
from domain.vocabulary import Channel, Reason
from storage.migrations import Migrations

if TYPE_CHECKING:
    from cli.topology import Seen
    from consumers.stores import Stores

PATIENCE = 15.0
"""Seconds that a provider may take to answer."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found, and what to do next if it is not good."""

    check: str
    result: Literal["ok", "warning", "failed"]
    detail: str
    advice: str = ""

    def record(self) -> dict[str, Any]:
        """What `--json` prints."""
        return asdict(self)


async def check_all(settings: Settings) -> Sequence[Finding]:
    """Every check, at once; their findings in a fixed order."""
    named = [
        (channel, place) for channel, chosen in settings.channels.items() for place in range(len(chosen.providers))
    ]
    providers = [_provider(settings, channel, place) for channel, place in named]
    found = await asyncio.gather(_broker(settings), _database(settings), *providers)
    nothing = Finding(
        "providers", "warning", "no channel has a provider: nothing can be sent", "Set channels.<channel>.providers."
    )
    told = [*_environment(), *(finding for findings in found for finding in findings)]
    return told if providers else [*told, nothing]


def _environment() -> Sequence[Finding]:
    if not (strange := strange_variables()):
        return []
    detail = f"{', '.join(strange)}: no setting has this name, so it has no effect"
    return [Finding("environment", "warning", detail, "The README lists the settings; `__` stands between levels.")]


# ---------------------------------------------------------------------------------------------------------------
# The broker
# ---------------------------------------------------------------------------------------------------------------


async def _broker(settings: Settings) -> Sequence[Finding]:
    try:
        async with broker(settings) as connection:
            version = _version(connection)
            seen = await look(connection, topology_of(settings))
    except CommandFailed as failure:
        return [Finding("broker", "failed", str(failure), failure.hint)]
    where = settings.masked()["amqp_url"]
    return [Finding("broker", "ok", f"RabbitMQ {version} at {where}"), _topology(seen), _consumers(seen)]


def _version(connection: Any) -> str:
    properties = getattr(getattr(connection.transport, "connection", None), "server_properties", {})
    version = properties.get("version", "of an unknown version")
    return version.decode() if isinstance(version, bytes) else str(version)


def _topology(seen: "Sequence[Seen]") -> Finding:
    wrong = [item for item in seen if item.state != "present"]
    if not wrong:
        return Finding("topology", "ok", f"{len(seen)} exchanges and queues are declared")
    advice = "`notipy topology --declare` declares what is missing, `notipy topology` shows the rest."
    return Finding("topology", "failed", told(seen, wrong), advice)


def _consumers(seen: "Sequence[Seen]") -> Finding:
    queues = {item.name: item for item in seen if item.kind == "queue"}
    idle = [
        name for name, item in queues.items() if name.startswith((EVENTS, "notipy.channel.")) and not item.consumers
    ]
    if not idle:
        return Finding("consumers", "ok", "every queue has a consumer")
    waiting = sum(queues[name].messages or 0 for name in idle)
    told_waiting = f"; {counted(waiting, 'message')} wait{'s' * (waiting == 1)} there" if waiting else ""
    return Finding(
        "consumers",
        "warning",
        f"nobody consumes {', '.join(idle[:3])}{f' and {len(idle) - 3} more' if idle[3:] else ''}{told_waiting}",
        "Start `notipy run`; without --roles it takes every role."
        if EVENTS in idle
        else "While a channel's providers are paused nothing is taken from its queues: see the provider's check below; "
        "/readyz and the log `provider.paused` say why. "
        "Else no `notipy run` takes the role: without --roles it takes all.",
    )


# ---------------------------------------------------------------------------------------------------------------
# The database and the catalog
# ---------------------------------------------------------------------------------------------------------------


async def _database(settings: Settings) -> Sequence[Finding]:
    try:
        async with storage(settings) as stores:
            version, replicas = await stores.database.version(), await stores.database.replica_set()
            server, schema = _server(settings, version, replicas), await _schema(Migrations(stores.database))
            return [server, schema, await _catalog(settings, stores)]
    except CommandFailed as failure:
        return [Finding("database", "failed", str(failure), failure.hint)]


def _server(settings: Settings, version: str, replicas: str | None) -> Finding:
    where = f"MongoDB {version} at {settings.masked()['mongo_url']}"
    if replicas:
        return Finding("database", "ok", f"{where}, replica set {replicas}")
    return Finding(
        "database",
        "warning",
        f"{where}, a server that stands alone",
        "Run a replica set, so that what was accepted outlives a machine.",
    )


async def _schema(migrations: Migrations) -> Finding:
    version = (await migrations.look()).version
    if version < migrations.newest:
        advice = "`notipy run` of this version does so while it works."
        return Finding("schema", "warning", f"version {version}, to be brought to {migrations.newest}", advice)
    newer = f", newer than this NotiPy's {migrations.newest}, which can use it" if version > migrations.newest else ""
    return Finding("schema", "ok", f"version {version}{newer}")


async def _catalog(settings: Settings, stores: "Stores") -> Finding:
    await stores.catalog.refresh()
    current = stores.catalog.current
    used = {channel for notification in current for channel in notification.definition.channels}
    if lacking := sorted(used - set(settings.channels)):
        return Finding(
            "catalog",
            "failed",
            f"its notifications use channels that have no provider: {', '.join(lacking)}",
            " ".join(f"Set channels.{channel}.providers." for channel in lacking),
        )
    if not current:
        return Finding("catalog", "warning", "no notification is in force", "`notipy apply PATH` puts some in force.")
    return Finding("catalog", "ok", f"{len(current)} notifications, over {', '.join(sorted(used))}")


# ---------------------------------------------------------------------------------------------------------------
# The providers
# ---------------------------------------------------------------------------------------------------------------


async def _provider(settings: Settings, channel: Channel, place: int) -> Sequence[Finding]:
    chosen = settings.channels[channel].providers[place]
    name = f"provider {channel}/{chosen.name}"
    try:
        provider = provider_of(settings, channel, place)
    except SettingsError as error:
        return [Finding(name, "failed", f"wrong settings: {describe(error.faults)}", "Correct the settings.")]
    try:
        async with asyncio.timeout(PATIENCE):
            return [Finding(name, "ok", f"{chosen.kind}: {await provider.check()}")]
    except DeliveryFailure as failure:
        return [Finding(name, "failed", str(failure), _advice(failure, f"channels.{channel}.providers.{place}"))]
    except TimeoutError:
        return [Finding(name, "failed", f"no answer within {PATIENCE:g} s", "See that it can be reached from here.")]
    finally:
        await provider.close()


def _advice(failure: DeliveryFailure, place: str) -> str:
    if failure.reason is Reason.AUTHENTICATION:
        return f"Correct the credentials of {place}, or the variables that they come from, and start `notipy run` anew."
    if failure.reason is Reason.TLS:
        return f"See that {place} asks for the encryption that the server has, and trusts its certificate."
    return f"See that it runs and that {place} names it."
