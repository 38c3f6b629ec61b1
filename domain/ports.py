"""What the use cases need from the outside, as small protocols.

An implementation waits out an outage of its server (with backoff) rather than raise: a use case that
awaits holds its message un-acknowledged, which is what stops the flow.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Protocol

from domain.delivery import Change, Delivery
from domain.dispatch import Dispatch
from domain.event import Incoming
from domain.inbox import InboxItem, Marking
from domain.message import Accepted, Message
from domain.notification import Definition, Notification
from domain.text import Fault
from domain.vocabulary import Channel, EventState, Lane, Reason, State


class Now(Protocol):
    """The clock."""

    def __call__(self) -> datetime:
        """The time, aware, in UTC."""
        ...


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event as the database has it.

    Attributes:
        plan: the names and versions that its deliveries pin.
        resumed: how often the sweeper has taken up its planning.
        token: of the writer that added it.
    """

    key: str
    body: bytes
    id: str
    source: str
    type: str
    time: datetime
    received_at: datetime
    state: EventState
    plan: tuple[tuple[str, int], ...]
    planned: int = 0
    token: str = ""
    resumed: int = 0


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A stored document that this version cannot read: a newer one, or a hand, has written it.

    Attributes:
        id: of the delivery; of an event, its key.
        why: what is wrong with it.
        due_at: when it was to be looked after.
        tell_at: when its end was to be told.
    """

    id: str
    why: str
    due_at: datetime | None = None
    tell_at: datetime | None = None


class Events(Protocol):
    """The accepted events."""

    async def add(
        self, event: StoredEvent, due_at: datetime, deliveries: Sequence[Delivery] = (), *, durable: bool = True
    ) -> bool:
        """Store it, then its first deliveries; False, and neither, if another writer's of the same key is stored.

        A delivery that is stored already stays as it is. `due_at`: when the sweeper looks, unless it is settled before.
        Without `durable` the event itself may be lost until it is settled, and other processes may not see it yet.
        """
        ...

    async def get(self, key: str) -> StoredEvent | None:
        """The stored event."""
        ...

    async def settle(self, key: str, state: EventState, planned: int) -> bool:
        """Mark, durably, that its planning is complete: nothing more is due. False if no such event is stored."""
        ...

    async def reopen(self, event: StoredEvent, due_at: datetime) -> bool:
        """Store its new state, plan, token and `resumed`, and make it due, if it is unmatched still: one caller wins.

        A caller is known by its token: what it repeats after an outage, it has won still.
        """
        ...

    async def due(self, now: datetime, limit: int) -> Sequence[StoredEvent | Unreadable]:
        """Events whose planning was not completed in time."""
        ...

    async def postpone(self, key: str, due_at: datetime, taken_up: int = 1) -> None:
        """Look again later, and count that it was taken up; `taken_up`: -1 to take the count back, 0 for neither."""
        ...


class Purpose(StrEnum):
    """What an attempt is claimed for."""

    SEND = "send"
    CANCEL = "cancel"
    EXPIRE = "expire"
    """By the sweeper, to end the delivery: its time is over, or it cannot be sent any more."""


@dataclass(frozen=True, slots=True)
class Claim:
    """An attempt that somebody has won.

    Attributes:
        token: tells the winner's own claim from another's.
        purpose: what it was won for. Nothing was sent under a claim for another purpose than sending, so that one
            whose owner has died leaves no doubt.
        provider: who was to be asked; None where nobody was. It may have sent what its owner did not live to record.
    """

    id: str
    token: str
    claimed_at: datetime
    lease_until: datetime
    purpose: Purpose = Purpose.SEND
    provider: str | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """What became of a delivery, to be written.

    Attributes:
        expected_attempt: at which it must stand.
        changes: that it went through.
    """

    delivery: Delivery
    expected_attempt: int
    changes: Sequence[Change]


@dataclass(frozen=True, slots=True)
class DeadFilter:
    """Which deliveries that came to a bad end an operator means; None: any. `unknown` ones are asked for by name."""

    state: State = State.FAILED
    channel: Channel | None = None
    reason: Reason | None = None
    source: str | None = None
    type: str | None = None
    since: datetime | None = None
    until: datetime | None = None


class Deliveries(Protocol):
    """The deliveries and the claims on their attempts."""

    async def add(self, deliveries: Sequence[Delivery]) -> None:
        """Store them durably; one that is stored already is left as it is."""
        ...

    async def get(self, delivery_id: str) -> Delivery | None:
        """The delivery as stored."""
        ...

    async def by_reference(self, reference: str, providers: Collection[str]) -> Delivery | None:
        """The delivery that one of these providers took under this reference."""
        ...

    async def ids_of_event(self, event_key: str) -> Sequence[str]:
        """The ids of an event's deliveries."""
        ...

    async def claim(self, claim: Claim) -> bool:
        """Win the attempt, or learn that somebody else has: one caller wins, whoever redelivers what."""
        ...

    async def claim_all(self, claims: Sequence[Claim]) -> Sequence[bool | Exception]:
        """As `claim` for each; what one of them has met alone stands in the place of its result."""
        ...

    async def claims(self, ids: Sequence[str]) -> Mapping[str, Claim]:
        """The claims of these ids that exist."""
        ...

    async def record(self, delivery: Delivery, expected_attempt: int, changes: Sequence[Change]) -> bool:
        """Write the delivery's new state and append the changes.

        Only if the stored delivery is not final and stands at `expected_attempt` of the same epoch;
        False where it does not: somebody else has decided meanwhile.
        """
        ...

    async def record_all(self, records: Sequence[Record]) -> Sequence[bool | Exception]:
        """As `record` for each; what one of them has met alone stands in the place of its result."""
        ...

    async def note(self, delivery_id: str, change: Change, *, once: bool = False, reference: str | None = None) -> bool:
        """Append to the history alone: what a claim that had lost its lease found out too late, or a receipt tells.

        `once`: only if it has no change to the same state, for the same reason, in the same epoch; whether it had none.
        `reference`: what the change's provider called the message; kept where the delivery has no other, nor another
        provider, nor another epoch.
        """
        ...

    async def due(self, now: datetime, limit: int) -> Sequence[Delivery | Unreadable]:
        """Those not final whose `due_at` has passed, the most overdue first."""
        ...

    async def postpone(self, delivery: Delivery | Unreadable, at: datetime) -> None:
        """Look again at that time, unless somebody has set another since the delivery was read.

        At one that is due, or at one whose end is to be told.
        """
        ...

    async def untold(self, now: datetime, limit: int) -> Sequence[Delivery | Unreadable]:
        """Final ones whose `tell_at` has passed: whoever recorded their end has not been able to tell of it."""
        ...

    async def told(self, delivery: Delivery) -> None:
        """Its end is told: `tell_at` is no more, unless it has changed since the delivery was read."""
        ...

    async def reopen(self, before: Delivery, after: Delivery, change: Change) -> bool:
        """Move a final delivery on, if it still stands in the state and epoch of `before`: one caller wins."""
        ...

    async def refine(self, before: Delivery, after: Delivery, change: Change) -> bool:
        """As `reopen`, for many at a time.

        Of two callers with the very same change at one moment both may be told True.
        """
        ...

    def dead(self, chosen: DeadFilter, limit: int | None) -> AsyncIterator[Delivery]:
        """The parked deliveries of a filter, those that have been dead for longest first."""
        ...


class Catalog(Protocol):
    """The notifications in force."""

    def matching(self, topic: str) -> Sequence[Notification]:
        """Those on this topic, as of at most five seconds ago."""
        ...

    async def version(self, name: str, version: int) -> Notification | None:
        """One immutable version, also one that is no longer in force."""
        ...


@dataclass(frozen=True, slots=True)
class Waiting:
    """A queue as the broker counts it."""

    messages: int
    consumers: int


class QueueFull(Exception):
    """A queue takes no more, and has not for a while. The delivery is on record, and the sweeper looks after it."""


class DispatchQueue(Protocol):
    """The queues of the broker. Each call returns after the broker's confirmation."""

    async def dispatch(self, job: Dispatch, *, alone: bool = False) -> None:
        """To the queue of its channel and lane.

        `alone`: in a message that no other delivery shares, and that counts as handed out before.

        Raises:
            QueueFull: nothing was published; the sweeper will, when the delivery is due.
        """
        ...

    async def dispatch_all(self, jobs: Sequence[Dispatch]) -> Sequence[Exception | None]:
        """As `dispatch` for each; what one of them has met alone stands in its place."""
        ...

    async def retry(self, job: Dispatch, tier: timedelta) -> None:
        """To a retry queue; the broker hands it to its channel after `tier`.

        Raises:
            QueueFull: nothing was published; the sweeper will, when the delivery is due.
        """
        ...

    async def park(self, job: Dispatch, reason: Reason, detail: str) -> None:
        """To its channel's dead-letter queue.

        Raises:
            QueueFull: nothing was published; the sweeper will, at the delivery's `tell_at`.
        """
        ...

    async def reject(
        self,
        incoming: Incoming,
        reason: Reason,
        faults: Sequence[Fault],
        where: str = "events",
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """A message that cannot be used, to `notipy.dead.<where>`; `about`: headers of its own that it keeps."""
        ...

    async def status(self, delivery: Delivery, change: Change, *, patient: bool = False) -> None:
        """Tell whoever listens, if settings say that this kind of change is told.

        `patient`: it may wait a moment for others to be told with it.
        """
        ...

    async def statuses(self, changed: Sequence[tuple[Delivery, Change]]) -> None:
        """As `status` for each, patiently."""
        ...

    async def waiting(self, channel: Channel, lane: Lane) -> Waiting:
        """What waits in a channel's queue, and who takes it."""
        ...


class TemplateError(Exception):
    """A template cannot be read, or cannot be rendered with this data; the message says which field and why."""

    reason = Reason.TEMPLATE_ERROR


class MessageTooLarge(TemplateError):
    """What was rendered is longer than its channel takes."""

    reason = Reason.MESSAGE_TOO_LARGE


class Renderer(Protocol):
    """Templates."""

    def check(self, channel: Channel, content: Mapping[str, Any]) -> Sequence[Fault]:
        """What is wrong with the templates themselves."""
        ...

    def missing(
        self, channel: Channel, content: Mapping[str, Any], data: Mapping[str, Any], locale: str | None = None
    ) -> Sequence[str]:
        """The names that the templates for a recipient of this locale use for certain and the data lacks."""
        ...

    def render(self, channel: Channel, content: Mapping[str, Any], context: Mapping[str, Any]) -> Mapping[str, str]:
        """Render every field.

        Raises:
            TemplateError: a name is missing, or the template costs more than allowed.
        """
        ...

    def copies(self, content: Mapping[str, str]) -> Sequence[str]:
        """The addresses in the `cc` and `bcc` of a rendered mail, as far as they can be read."""
        ...

    def without_copies(self, content: Mapping[str, str], addresses: Collection[str]) -> Mapping[str, str]:
        """The rendered mail with none of these among its copies."""
        ...


class SchemaCheck(Protocol):
    """JSON Schema."""

    def faults(self, definition: Definition, data: Mapping[str, Any]) -> Sequence[Fault]:
        """Where the data does not follow the definition's schema."""
        ...


@dataclass(frozen=True, slots=True)
class Failing:
    """An endpoint that has done nothing but fail.

    Attributes:
        since: its first failure.
        last: the failure that was noted before this one; or this one.
    """

    since: datetime
    last: datetime


class Endpoints(Protocol):
    """Which recipients' endpoints have done nothing but fail, and since when; by digests of their URLs."""

    async def failing(self, key: str, now: datetime, *, afresh: bool = False) -> Failing:
        """Note a failure. `afresh`: it is the first one, whatever was before."""
        ...

    async def answered(self, keys: Collection[str]) -> None:
        """Note that these have answered: what was known of them is over."""
        ...


class NotANumber(Exception):
    """It is no phone number that can be dialled; the message says why, without it."""


class Numbers(Protocol):
    """Phone numbers."""

    def normalised(self, number: str) -> str:
        """The one form in which it is dialled from anywhere (E.164).

        Raises:
            NotANumber: what is wrong with it.
        """
        ...


class Files(Protocol):
    """Files that go along with the deliveries of an event, fetched once for all of them."""

    async def once(
        self, event_key: str, source: str, fetch: Callable[[], Awaitable[bytes]], within: timedelta
    ) -> bytes:
        """The file of a source, fetched by whoever asks for it first, in whichever process; the others wait.

        `source` names what is fetched, and under which rules: a failure counts for all who ask for the same.
        `within`: how long `fetch` may take.

        Raises:
            DeliveryFailure: what `fetch` raised, also to those who ask shortly afterwards.
        """
        ...


class Inbox(Protocol):
    """The inboxes of all recipients."""

    async def add(self, item: InboxItem) -> bool:
        """Store it durably; False if it is there already, and stays as it is."""
        ...

    async def mark(self, marking: Marking) -> None:
        """Set the mark on those of the items that are there and the recipient's own; repeating it changes nothing."""
        ...


class Provider(Protocol):
    """One way of sending over a channel; the channel's contract suite holds for each."""

    name: str

    def takes(self, recipient: Mapping[str, Any]) -> bool:
        """Whether it can reach this recipient at all: by the form of the address, without asking anybody."""
        ...

    async def send(self, message: Message) -> Accepted:
        """Send once and return the provider's answer.

        Raises:
            DeliveryFailure: transient, permanent or unknown, with a reason.
        """
        ...

    async def check(self) -> str:
        """Reach the provider without sending anything; say in a line what was found.

        Raises:
            DeliveryFailure: it cannot be used as configured.
        """
        ...

    async def close(self) -> None:
        """Give back its connections."""
        ...
