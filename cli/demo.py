"""`notipy demo` and `notipy run --embedded`: NotiPy with everything around it, on this machine alone."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import typer
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from cli.catalog_files import read_catalog
from cli.playground import EXAMPLES, HOME, Host, Playground, hosted, metrics_port, playground
from config.logging import configure_logging
from config.settings import LoggingSettings, SettingsError
from consumers import codec
from consumers.app import Core
from consumers.dead_letters import DeadEvent, dead_event, walk
from consumers.topology import DEAD_EVENTS, dead_queue
from deploy.embedded import terminate_as_interrupt
from deploy.errors import EmbeddedError
from domain.delivery import Change, Delivery
from domain.event import event_key
from domain.operate import Refused
from domain.ports import DeadFilter
from domain.vocabulary import Channel, State
from storage.deliveries import DeliveryFilter

DEMO_CHANNELS = (Channel.EMAIL, Channel.SMS, Channel.WEBHOOK)
# Short, so that what takes minutes in production can be watched.
DEMO_TUNING: Mapping[str, Any] = {
    "channels": {"retry": ["500ms", "1s", "1s"]},
    "retry_tiers": ["500ms", "1s", "2s"],
    "sweeper": {"interval": "500ms", "overdue": "30s"},
    "metrics": {"host": "127.0.0.1", "port": 0},
    "logging": {"level": "error"},
    "status": {"publish": "all"},
    "grace": "5s",
    "catalog_refresh": "200ms",
}
SCHEDULED_AFTER = timedelta(seconds=3)
PATIENCE = 45.0
"""Seconds that the deliveries of one act may take; on a slow machine they take ten."""
INTERRUPTED = 130
_LOOK_EVERY = 0.1
_SINK = "https://hooks.example.org"
_GOOD = "[green]✓[/]"
_BAD = "[red]✗[/]"
_STYLES: Mapping[State, str] = {
    State.SENT: "green",
    State.FAILED: "red",
    State.RETRYING: "yellow",
    State.HELD: "cyan",
    State.SUPPRESSED: "dim",
}


@dataclass(frozen=True)
class Expected:
    """Where a delivery has to end."""

    channel: Channel
    recipient: str
    state: State = State.SENT
    attempt: int = 1
    epoch: int = 1

    def __str__(self) -> str:
        return f"{self.state}, attempt {self.attempt}, epoch {self.epoch}"


def email(recipient: str, **more: Any) -> Expected:
    """A mail that has to be sent, unless `more` says otherwise."""
    return Expected(Channel.EMAIL, recipient, **more)


def no_phone(recipient: str) -> Expected:
    """An SMS to somebody who has no phone number."""
    return Expected(Channel.SMS, recipient, State.SUPPRESSED, attempt=0)


@dataclass(frozen=True)
class Sample:
    """A sample event: its file, what it shows, and what has to become of it.

    Attributes:
        id: for an event whose file has none: it goes along as `message_id`, with `source` and `type` in the key.
        again: publish it a second time.
        replayed: what has to become of it after the replay, where that differs.
    """

    file: str
    shows: str
    expected: tuple[Expected, ...]
    id: str | None = None
    again: bool = False
    replayed: tuple[Expected, ...] | None = None


SAMPLES: Sequence[Sample] = (
    Sample(
        "order-shipped.json",
        "e-mail and SMS; published twice, delivered once",
        (email("user-7"), Expected(Channel.SMS, "user-7")),
        again=True,
    ),
    Sample("password-reset.json", "the lane for urgent ones, and an expiry", (email("user-7"),)),
    Sample("invoice.json", "an attachment", (email("user-7"),)),
    Sample(
        "incident-alert.json",
        "a signed webhook whose receiver answers 503 once, and e-mail",
        (Expected(Channel.WEBHOOK, "team-platform", attempt=2), email("team-platform")),
    ),
    Sample("order-shipped.cloudevent.json", "the same as a CloudEvent", (email("user-8"),)),
    Sample("inline-content.json", "words that come with the event", (email("user-12"),)),
    Sample(
        "smallest.json",
        "recipients and data alone",
        (email("ana@example.org"), no_phone("ana@example.org")),
        id="ord-1047-shipped",
    ),
    Sample(
        "order-shipped.busy-server.json",
        "a mail server that answers 451 twice",
        (email("user-9", attempt=3), no_phone("user-9")),
    ),
    Sample("order-shipped.scheduled.json", "send_at in three seconds", (email("user-11"),)),
    Sample(
        "order-shipped.no-mailbox.json",
        "a mailbox that does not exist: 550",
        (email("user-10", state=State.FAILED),),
        replayed=(email("user-10", epoch=2),),
    ),
)
REJECTED = Sample("rejected/bad-address.json", "an address that is none", ())


@dataclass(frozen=True)
class Published:
    """A sample as it went out."""

    sample: Sample
    id: str
    source: str
    type: str
    body: bytes = field(repr=False)

    @property
    def key(self) -> str:
        """Its key in the database."""
        return event_key(self.source, self.id)

    def expected(self, *, replayed: bool) -> tuple[Expected, ...]:
        """What has to become of it before or after the replay."""
        return self.sample.replayed or self.sample.expected if replayed else self.sample.expected


@dataclass(frozen=True)
class Check:
    """Something that has to be so at the end."""

    text: str
    holds: bool
    found: str = ""


# ---------------------------------------------------------------------------------------------------------------
# notipy demo
# ---------------------------------------------------------------------------------------------------------------


def demo_command() -> None:
    """Start everything, send the sample events, show what becomes of them, and stop.

    Exit code 0 only if every sample delivery reached the state that it should.
    """
    console = Console(highlight=False)
    with _told(console), hosted("demo", _progress(console)) as host:
        checks = asyncio.run(_demo(host, console))
        differing = [check for check in checks if not check.holds]
        for check in checks:
            console.print(f"  {_GOOD if check.holds else _BAD} {escape(check.text)}")
            if not check.holds:
                console.print(f"      found: {escape(check.found)}")
        if differing:
            console.print(f"\n[red]{len(differing)} of {len(checks)} things are not as they should be.[/]")
            console.print(f"The servers' logs are in {HOME / 'log'}.")
            raise typer.Exit(1)
        console.print("\n[green]Everything is as it should be.[/] `make run` starts the same and leaves it running.")


async def _demo(host: Host, console: Console) -> Sequence[Check]:
    config = host.directory / "notipy.yaml"
    async with playground(host, config, DEMO_CHANNELS, DEMO_TUNING, lambda s: _quiet(s.logging)) as play:
        core = play.application.core
        _say_where_to_look(play, console)
        applied = await apply_catalog(core, EXAMPLES / "catalog")
        _heading(console, f"Applied examples/catalog: {', '.join(applied)}")
        await play.application.core.catalog.refresh()
        published = [_published(sample, play) for sample in SAMPLES]
        rejected = _published(REJECTED, play)
        _heading(console, "Publishing the sample events")
        await _publish(core, [*published, rejected], console)
        _heading(console, "What becomes of them")
        watch = Watch(core, published, console)
        await watch.until(replayed=False)
        parked = await _parked(core)
        dead = await _dead_event(core, rejected.id)
        _heading(console, "Dead letters")
        _show_dead(console, parked, rejected, dead)
        _heading(console, "The mailbox has been created: replay, as `notipy dead replay --channel email` does")
        replays = [await _replay(core, delivery) for delivery in parked]
        await watch.until(replayed=True)
        _heading(console, "How they ended")
        console.print(watch.table())
        _say_what_is_kept(play, console)
        _heading(console, "Checks")
        return [
            *watch.checks(),
            *_sent_once(play, published),
            *(Check(f"replaying {delivery.event_id} started epoch 2", not why, why) for delivery, why in replays),
            _rejection(dead),
            await _duplicates(play),
        ]


def _published(sample: Sample, play: Playground) -> Published:
    """The event of a sample's file: what only a run knows is filled in.

    On servers that outlive this run the ids are this run's own: a second demo there would be all duplicates.
    """
    text = (EXAMPLES / "events" / sample.file).read_text(encoding="utf-8").replace(_SINK, play.webhooks.url)
    document = json.loads(text)
    if "send_at" in document:
        document["send_at"] = (datetime.now(UTC) + SCHEDULED_AFTER).isoformat()
    event_id = str(document.get("id") or sample.id)
    if not play.host.private:
        event_id = f"{event_id}-{secrets.token_hex(3)}"
    if "id" in document:
        document["id"] = event_id
    source, kind = document.get("source", "shop"), document.get("type", "order.shipped")
    return Published(sample, event_id, source, kind, json.dumps(document).encode())


async def _publish(core: Core, events: Iterable[Published], console: Console) -> None:
    for event in events:
        for _ in range(2 if event.sample.again else 1):
            await core.publisher.event(f"{event.source}.{event.type}", event.body, event.id)
        console.print(f"  {event.source}.{event.type}  [bold]{event.id}[/]  [dim]{escape(event.sample.shows)}[/]")


async def _parked(core: Core) -> list[Delivery]:
    return [delivery async for delivery in core.deliveries.dead(DeadFilter(channel=Channel.EMAIL), 100)]
