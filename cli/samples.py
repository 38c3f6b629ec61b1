"""The sample events of `notipy demo`, and what has to become of each."""

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from cli.playground import EXAMPLES
from domain.event import event_key
from domain.vocabulary import Channel, State

SCHEDULED_AFTER = timedelta(seconds=3)
_RECEIVER = "https://hooks.example.org"
"""In the samples' URLs; the demo's own receiver takes its place."""


@dataclass(frozen=True, slots=True)
class Expected:
    """Where a delivery has to end; `recipient` is the id, or the address of one that has none."""

    channel: Channel
    recipient: str
    state: State = State.SENT
    attempt: int = 1
    epoch: int = 1

    def __str__(self) -> str:
        return f"{self.state}, attempt {self.attempt}, epoch {self.epoch}"


@dataclass(frozen=True, slots=True)
class Sample:
    """One event: its file, what it shows, and what has to become of it.

    Attributes:
        id: of an event whose file has none; it goes along as `message_id`, source and type in the routing key.
        again: publish it twice.
        replayed: where the deliveries end after the replay, if elsewhere.
    """

    file: str
    shows: str
    expected: tuple[Expected, ...] = ()
    id: str | None = None
    again: bool = False
    replayed: tuple[Expected, ...] | None = None


def _email(recipient: str, **otherwise: Any) -> Expected:
    return Expected(Channel.EMAIL, recipient, **otherwise)


def _no_phone(recipient: str) -> Expected:
    return Expected(Channel.SMS, recipient, State.SUPPRESSED, attempt=0)


SAMPLES: Sequence[Sample] = (
    Sample(
        "order-shipped.json",
        "e-mail and SMS; published twice, delivered once",
        (_email("user-7"), Expected(Channel.SMS, "user-7")),
        again=True,
    ),
    Sample("password-reset.json", "the lane of the urgent, and an expiry", (_email("user-7"),)),
    Sample("invoice.json", "an attachment", (_email("user-7"),)),
    Sample(
        "incident-alert.json",
        "a signed webhook, whose receiver answers 503 once, and e-mail",
        (Expected(Channel.WEBHOOK, "team-platform", attempt=2), _email("team-platform")),
    ),
    Sample("order-shipped.cloudevent.json", "a CloudEvent", (_email("user-8"),)),
    Sample("inline-content.json", "an event that brings its own words", (_email("user-12"),)),
    Sample(
        "smallest.json",
        "recipients and data, nothing else",
        (_email("ana@example.org"), _no_phone("ana@example.org")),
        id="ord-1047-shipped",
    ),
    Sample(
        "order-shipped.busy-server.json",
        "a mail server that answers 451 twice",
        (_email("user-9", attempt=3), _no_phone("user-9")),
    ),
    Sample("order-shipped.scheduled.json", "send_at in three seconds", (_email("user-11"),)),
    Sample(
        "order-shipped.no-mailbox.json",
        "a mailbox that does not exist: 550",
        (_email("user-10", state=State.FAILED),),
        replayed=(_email("user-10", epoch=2),),
    ),
)
REJECTED = Sample("rejected/bad-address.json", "an address that is none")


@dataclass(frozen=True, slots=True)
class Published:
    """A sample as it goes out."""

    sample: Sample
    id: str
    source: str
    type: str
    body: bytes = field(repr=False)

    @property
    def key(self) -> str:
        """Of the event in the database."""
        return event_key(self.source, self.id)

    @property
    def routing_key(self) -> str:
        """What it is published under."""
        return f"{self.source}.{self.type}"

    def expected(self, *, replayed: bool) -> tuple[Expected, ...]:
        """What has to become of it, before or after the replay."""
        return self.sample.replayed or self.sample.expected if replayed else self.sample.expected


def to_publish(sample: Sample, receiver_url: str, *, unique: bool) -> Published:
    """Read a sample's file and fill in what only a run knows: the webhook receiver, and when "in three seconds" is.

    Args:
        sample: which.
        receiver_url: of the webhook receiver.
        unique: give the event an id that was never used; on a database that outlives the demo the second one
            would find all of its events stored already.
    """
    text = (EXAMPLES / "events" / sample.file).read_text(encoding="utf-8").replace(_RECEIVER, receiver_url)
    document: dict[str, Any] = json.loads(text)
    event_id = str(document.get("id") or sample.id) + (f"-{secrets.token_hex(3)}" if unique else "")
    known: Mapping[str, Any] = {"id": event_id, "send_at": (datetime.now(UTC) + SCHEDULED_AFTER).isoformat()}
    document |= {name: value for name, value in known.items() if name in document}
    source, kind = document.get("source", "shop"), document.get("type", "order.shipped")
    return Published(sample, event_id, source, kind, json.dumps(document).encode())
