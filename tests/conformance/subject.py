"""What the suite has to know of a provider, whatever it speaks: its settings, a message, and its other side."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

import orjson

from channels.surroundings import Surroundings
from channels.taxonomy import Meaning
from domain.message import Message
from domain.vocabulary import Channel

CREATED = datetime(2026, 11, 22, 17, 0, tzinfo=UTC)
TEXT = "Grüße, Ána 🚲 „42“"
"""What a message says in every test: it must arrive letter by letter."""


class Fault(StrEnum):
    """What can go wrong on the way to any provider, if its way has such a part."""

    ABSENT = "nobody there"
    SILENT_BEFORE = "silence before the message"
    LOST_BEFORE = "the connection lost before the message"
    SILENT = "no answer to the message"
    LOST = "the connection lost with the message under way"


class Peer(Protocol):
    """The other side of a provider, running."""

    @property
    def url(self) -> str:
        """Where it is, as `Subject.options` takes it."""
        ...

    @property
    def surroundings(self) -> Surroundings:
        """What the provider is given of NotiPy."""
        ...

    @property
    def connections(self) -> int:
        """Those to it that are open now."""
        ...

    @property
    def opened(self) -> int:
        """Those to it that were ever opened."""
        ...

    async def taken(self) -> Sequence[Any]:
        """What it was handed so far, in order."""
        ...


def _no_fixture(name: str) -> Any:
    raise LookupError(f"there is no {name} here")


@dataclass(frozen=True)
class Ground:
    """What the other side stands on.

    Attributes:
        folder: of the test's own.
        fixture: pytest's, by name: a real server is started when somebody asks for one.
    """

    folder: Path = Path()
    fixture: Callable[[str], Any] = _no_fixture


NO_GROUND = Ground()
Serve = Callable[[Any, Any, Ground], AbstractAsyncContextManager[Peer]]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One kind of provider.

    How its other side answers is a value that `serve` alone understands: over HTTP a `Response`, over SMTP a reply at
    some point of the conversation; or a `Fault`, which has the same name everywhere.

    Attributes:
        kind: as the settings name it.
        options: its settings, given the URL of its other side and a folder for files that it needs.
        message: with `TEXT` in what it says, to a recipient whose address is `address`; or what makes one, given the
            URL of the other side, where that is in the recipient's address.
        success: how the other side takes the message.
        failures: how it does not; by a name for the test, with what that means.
        classes: of failures, which `failures` and `faults` must have an example of; `MESSAGE` stands for the
            recipient's, too. Those that the provider cannot tell are left out, and its page in docs/providers says so.
        faults: those that its way can have and that mean what they usually do. Where one means something else, it is
            among `failures`.
        serve: the other side, given the subject, the answer, and what to stand on.
        shared: whether all recipients are reached over one server; else each names one, whose faults are no fault of
            the provider's and pause nothing.
        requested: asserts of what was handed over that it is as the other side's documentation asks, and says `TEXT`.
        secrets: of the settings: they must appear in no error, no log and no `repr`.
        reference: what `success` calls the message.
        tells_unsent: whether whoever cuts it off before the message was on its way is told so.
        idempotency: reads the idempotency key out of what was handed over; None: the provider has none to send.
        connections: that three messages, one after the other, may open; 0: it opens none of its own.
        too_long: a message that the adapter must refuse by itself (`message_too_large`), if it has a limit.
        stranger: a recipient that it must leave to others; None: it takes anybody.
    """

    kind: str
    channel: Channel
    options: Callable[[str, Path], Mapping[str, Any]]
    message: Message | Callable[[str], Message]
    address: str
    success: Any
    failures: Mapping[str, tuple[Any, Meaning]]
    requested: Callable[[Any], None]
    serve: Serve
    secrets: tuple[str, ...] = ()
    classes: frozenset[Meaning] = frozenset({Meaning.TRANSIENT, Meaning.CONFIGURATION, Meaning.MESSAGE})
    faults: tuple[Fault, ...] = ()
    reference: str | None = None
    tells_unsent: bool = True
    idempotency: Callable[[Any], str | None] | None = None
    connections: int = 1
    too_long: Message | None = None
    shared: bool = True
    stranger: Mapping[str, Any] | None = field(default_factory=lambda: {"id": "u1"})

    def message_over(self, url: str) -> Message:
        """The message, where the other side is at this URL."""
        return self.message if isinstance(self.message, Message) else self.message(url)

    def peer(self, answer: Any = None, ground: Ground = NO_GROUND) -> AbstractAsyncContextManager[Any]:
        """A `Peer` that answers with this; by default with `success`."""
        return self.serve(self, self.success if answer is None else answer, ground)


def message(channel: Channel, recipient: Mapping[str, Any], **more: Any) -> Message:
    """One that says `TEXT`; `more`: other fields of `Message`."""
    content: Mapping[Channel, Mapping[str, str]] = {
        Channel.EMAIL: {"subject": f"{TEXT}!", "text": TEXT, "html": f"<p>{TEXT}</p>"},
        Channel.SMS: {"text": TEXT},
        Channel.WEBHOOK: {"payload": orjson.dumps({"said": TEXT}).decode()},
    }
    said = content.get(channel, {"title": f"{TEXT}!", "text": TEXT})
    made = Message("d1", "d1/1", channel, recipient, said, CREATED)
    return replace(made, **more)
