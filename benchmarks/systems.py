"""What is measured: NotiPy and its peers, each as processes on a virtual host, a database and a mail server."""

import json
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import aio_pika
import yaml

from benchmarks.bench import DATA, NOTIFICATION
from benchmarks.peers import celery_peer, floor
from benchmarks.peers.feeding import Feed, feeding, fill
from config.settings import Settings
from consumers.app import open_core
from consumers.topology import EVENTS
from domain.notification import Definition


@dataclass(frozen=True)
class Place:
    """Where a system runs, alone."""

    amqp: str
    mongo: str
    smtp_port: int
    folder: Path


class System(Protocol):
    """What every system can be asked for."""

    @property
    def name(self) -> str:
        """As the table shows it."""
        ...

    async def prepare(self, place: Place) -> None:
        """Before any event."""
        ...

    def feeder(self, place: Place) -> AbstractAsyncContextManager[Feed]:
        """What publishes one event and returns when it is confirmed."""
        ...

    async def fill(self, place: Place, bodies: Sequence[bytes]) -> None:
        """Publish a backlog."""
        ...

    def command(self, place: Place, processes: int) -> Sequence[str]:
        """What starts it."""
        ...


@dataclass(frozen=True)
class NotiPy:
    """NotiPy itself, with as many mails under way and connections as the floor; more `channels` and `settings`."""

    name: str = "notipy"
    channels: Mapping[str, Any] = field(default_factory=dict)
    content: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    async def prepare(self, place: Place) -> None:
        self._file(place).write_text(yaml.safe_dump(self._document(place)))
        definition = NOTIFICATION
        if self.content:
            values = NOTIFICATION.model_dump(exclude_unset=True, mode="json")
            definition = Definition.model_validate({**values, "channels": {**values["channels"], **self.content}})
        async with open_core(self.settings_of(place)) as core:
            plan = await core.catalog.plan([definition], prune=False)
            await core.catalog.apply([definition], plan)

    def settings_of(self, place: Place) -> Settings:
        """What it runs with."""
        return Settings.model_validate(self._document(place))

    def feeder(self, place: Place) -> AbstractAsyncContextManager[Feed]:
        def message(body: bytes) -> aio_pika.Message:
            return aio_pika.Message(body, message_id=uuid4().hex, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)

        return feeding(place.amqp, EVENTS, "bench.order.shipped", message)

    async def fill(self, place: Place, bodies: Sequence[bytes]) -> None:
        await fill(self.feeder(place), bodies)

    def command(self, place: Place, processes: int) -> Sequence[str]:
        given = ["--config", str(self._file(place)), "run", "--workers", str(processes)]
        return [sys.executable, "-m", "cli.main", *given]

    def _file(self, place: Place) -> Path:
        return place.folder / "notipy.yaml"

    def _document(self, place: Place) -> dict[str, Any]:
        provider = {
            "name": "sink",
            "kind": "smtp",
            "url": f"smtp://127.0.0.1:{place.smtp_port}?tls=none",
            "from": "bench@example.org",
            "connections": floor.CONNECTIONS,
        }
        email = {"concurrency": floor.PREFETCH, "providers": [provider]}
        return {
            "amqp_url": place.amqp,
            "mongo_url": place.mongo,
            "channels": {"email": email, **self.channels},
            "metrics": {"port": None},
            "logging": {"level": "warning"},
            **self.settings,
        }


@dataclass(frozen=True)
class Peer:
    """One of `benchmarks/peers`."""

    name: str
    module: str
    prepared: Callable[[str, str], Awaitable[None]]
    feeding: Callable[[str], AbstractAsyncContextManager[Feed]]
    filling: Callable[[str, Sequence[bytes]], Awaitable[None]]
    arguments: Sequence[str] = ()

    async def prepare(self, place: Place) -> None:
        await self.prepared(place.amqp, place.mongo)

    def feeder(self, place: Place) -> AbstractAsyncContextManager[Feed]:
        return self.feeding(place.amqp)

    async def fill(self, place: Place, bodies: Sequence[bytes]) -> None:
        await self.filling(place.amqp, bodies)

    def command(self, place: Place, processes: int) -> Sequence[str]:
        servers = ["--amqp", place.amqp, "--mongo", place.mongo, "--smtp", f"127.0.0.1:{place.smtp_port}"]
        given = [*servers, "--processes", str(processes), *self.arguments]
        return [sys.executable, "-m", self.module, *given]


NOTIPY = NotiPy()
FLOOR = Peer("floor", floor.__name__, floor.prepare, floor.feeder, floor.publish)
CELERY = Peer("celery", celery_peer.__name__, celery_peer.prepare, celery_peer.feeder, celery_peer.publish)
CELERY_16 = Peer(
    "celery, 16 in its pool",
    celery_peer.__name__,
    celery_peer.prepare,
    celery_peer.feeder,
    celery_peer.publish,
    ["--concurrency", "16"],
)


def event(*numbers: int, **more: str) -> bytes:
    """One event to these recipients, the same for every system."""
    recipients = [{"email": f"u{number}@example.org", **more} for number in numbers]
    return json.dumps({"recipients": recipients, "data": DATA}).encode()
