"""Thin message handlers: parse, call a use case, count, acknowledge."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any, Protocol

import orjson
import structlog

from consumers import codec
from consumers.inbox import carry_out, is_inbox_command
from consumers.metrics import Metrics
from consumers.received import Message
from domain.accept import Accept, Accepted, Rejected, Verdict
from domain.deliver import Deliver, HeldBack, Late, NotClaimed, Result, Settled
from domain.deliver_together import DeliverTogether
from domain.dispatch import Dispatch
from domain.event import Incoming, event_key
from domain.failures import place_of
from domain.mark_inbox import MarkInbox
from domain.operate import Operate, Refused
from domain.outcome import Hold
from domain.ports import Deliveries, DispatchQueue, Now, QueueFull
from domain.text import Fault, describe
from domain.vocabulary import Channel, Reason, State

log = structlog.get_logger()
Handle = Callable[[Message], Awaitable[None]]
MAX_COMMAND_BYTES = 64 * 1024
TIMESTAMP_UNIT = timedelta(seconds=1)
TAKEN_APART_AFTER = 2
"""So many hand-outs after which deliveries that travel together go on alone: one may be what ends its consumers."""
SUSPICIOUS_BEFORE = 2
"""So many hand-outs before the limit a message is handled alone: it may be what ends its consumers."""


class Suspects(Protocol):
    """Marks, outside of the process, on messages that are handled at this moment."""

    async def begin(self, key: str) -> int:
        """Mark it; returns how many marks it has now, so more than one if a process ended while it handled it."""
        ...

    async def end(self, key: str) -> None:
        """It did not end the process: take the marks away."""
        ...


class Guarded:
    """Runs a handler for each message of a role; what the handler cannot deal with neither loops nor blocks.

    A handler that raises has met a bug: the message is parked as `internal_error`, and a delivery remains due in the
    database. One that ends its process is found by being handed out again and again: such a message is handled
    alone, and marked in the database meanwhile. One that was marked so when its process ended is parked as `poison`
    when it has been handed out `limit` times; those that merely were in the same process as it are not.
    """

    def __init__(
        self,
        role: str,
        handle: Handle,
        queue: DispatchQueue,
        suspects: Suspects,
        metrics: Metrics,
        limit: int,
        poisoned: Callable[[Message], Awaitable[object]],
        alone: asyncio.Lock,
    ) -> None:
        self._role = role
        self._handle = handle
        self._queue = queue
        self._suspects = suspects
        self._in_flight = metrics.in_flight.labels(role)
        self._limit = limit
        self._poisoned = poisoned
        self._alone = alone

    async def __call__(self, message: Message) -> None:
        """Handle one message until it may be acknowledged."""
        self._in_flight.inc()
        try:
            times = handed_out(message)
            await (self._guarded(message) if times < self._limit - SUSPICIOUS_BEFORE else self._watched(message, times))
        finally:
            self._in_flight.dec()

    async def _guarded(self, message: Message) -> None:
        try:
            await self._handle(message)
        except Exception as error:  # noqa: BLE001 - logged, and the message parked
            log.error("message.handler_failed", role=self._role, error=place_of(error))
            await self._park(message, Reason.INTERNAL_ERROR, f"a fault of NotiPy's own: {place_of(error)}")

    async def _watched(self, message: Message, times: int) -> None:
        key = hashlib.sha256(message.body + str(message.message_id).encode()).hexdigest()
        async with self._alone:
            strikes = await self._suspects.begin(key)
            try:
                if times >= self._limit and strikes > 1:
                    await self._park_poison(message, times)
                else:
                    await self._guarded(message)
            finally:  # also when it was cancelled: only the end of the process leaves the mark
                await self._suspects.end(key)

    async def _park_poison(self, message: Message, times: int) -> None:
        log.error("message.poison", role=self._role, handed_out=times, message_id=message.message_id)
        await self._park(message, Reason.POISON, f"handed out {times} times, and ended the process that took it")
        await self._poisoned(message)

    async def _park(self, message: Message, reason: Reason, told: str) -> None:
        await self._queue.reject(incoming(message), reason, [Fault("", told)], self._role, _about(message))


def _cancelled() -> bool:
    """Whether this task is; else a cancellation comes from below, and would pass for an end in a group of tasks."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _about(message: Message) -> dict[str, object]:
    """Which delivery a work order is about: by these headers a replay or a drop finds the parked message.

    And of what type the body is, where its publisher said so: a receipt that is a mail is replayed as one.
    """
    named = (codec.DELIVERY, codec.EPOCH, codec.ATTEMPT, codec.EVENT_ID, codec.SOURCE, codec.TYPE)
    about: dict[str, object] = {name: message.headers[name] for name in named if name in message.headers}
    return about | ({codec.CONTENT_TYPE: message.content_type} if message.content_type else {})


def handed_out(message: Message) -> int:
    """How often the broker has handed the message out before, and got it back."""
    return int(str(message.headers.get("x-delivery-count") or 0))


def _again(message: Message) -> bool:
    """Whether somebody has had this order before, and may have ended between what is on record and telling of it."""
    return bool(message.redelivered) or codec.AGAIN in message.headers


class EventHandler:
    """The events queue."""

    def __init__(self, accept: Accept, metrics: Metrics) -> None:
        self._accept = accept
        self._metrics = metrics

    async def __call__(self, message: Message) -> None:
        """Accept, or park."""
        received = incoming(message)
        verdict = await self._accept(received)
        self._metrics.accepted(verdict)
        _log_verdict(verdict, received)

    async def poisoned(self, message: Message) -> None:
        """Count it; should the event be stored, the sweeper comes to the same end with it."""
        verdict = Rejected(Reason.POISON, ())
        self._metrics.accepted(verdict)
        _log_verdict(verdict, incoming(message))


class DeliveryHandler:
    """One queue of a channel.

    Args:
        concurrency: attempts in progress of those that came together with others; a message is one of them otherwise.
        stopping: whether no more attempts should be begun.
        together: how several attempts are made at once; None: each alone.
    """

    def __init__(
        self,
        channel: Channel,
        deliver: Deliver,
        operate: Operate,
        queue: DispatchQueue,
        metrics: Metrics,
        concurrency: int,
        stopping: Callable[[], bool] = lambda: False,
        together: DeliverTogether | None = None,
    ) -> None:
        self._together = together
        self._channel = channel
        self._stopping = stopping
        self._deliver = deliver
        self._operate = operate
        self._queue = queue
        self._metrics = metrics
        self._free = asyncio.Semaphore(concurrency)
        self._reading = asyncio.Lock()

    async def __call__(self, message: Message) -> None:
        """Make the attempts that the message orders."""
        several = codec.orders(message.headers)
        if several == 1:
            for job in await self._read(message):
                await self._attempt(job, _again(message))
        elif handed_out(message) >= TAKEN_APART_AFTER:
            await asyncio.gather(*(self._pass_on(job, alone=True) for job in await self._read(message)))
        else:
            await self._attempt_each(message)

    async def poisoned(self, message: Message) -> None:
        """End the delivery that the message names; it cannot be read, but for its headers."""
        named = message.headers.get(codec.DELIVERY)
        if isinstance(named, str):
            await self._operate.poisoned(named)

    async def _read(self, message: Message) -> Sequence[Dispatch]:
        try:
            return codec.read_dispatch(message.body)
        except codec.NotADispatch as fault:
            where = str(self._channel)
            await self._queue.reject(incoming(message), Reason.INVALID, [Fault("", str(fault))], where, _about(message))
            log.warning("dispatch.unusable", channel=where, detail=str(fault))
            return ()

    async def _attempt_each(self, message: Message) -> None:
        """Each as if it had come alone; the next message is read when all of this one are in progress."""
        began = monotonic()
        async with asyncio.TaskGroup() as attempts, self._reading:
            jobs, again = await self._read(message), _again(message)
            while jobs:
                number = await self._places(len(jobs))
                some, jobs = jobs[:number], jobs[number:]
                waited = timedelta(seconds=monotonic() - began)
                attempts.create_task(self._some_of_many(some, again, waited))

    async def _places(self, number: int) -> int:
        """Wait for a place among the attempts in progress, and take as many as are free."""
        await self._free.acquire()
        taken = 1
        while self._together is not None and taken < number and not self._free.locked():
            await self._free.acquire()
            taken += 1
        return taken

    async def _some_of_many(self, jobs: Sequence[Dispatch], again: bool, waited: timedelta) -> None:
        if self._together is None or len(jobs) == 1 or self._stopping():
            await asyncio.gather(*(self._one_of_many(job, again, waited) for job in jobs))
            return
        in_progress = {id(job): job for job in jobs}
        faults: list[tuple[Dispatch, Exception]] = []

        def ended(job: Dispatch, result: Result | Exception) -> None:
            del in_progress[id(job)]
            self._free.release()
            if isinstance(result, Exception):
                faults.append((job, result))
            else:
                tell(self._metrics, result)

        fault: Exception = RuntimeError("an attempt has come to no end")
        try:
            await self._together(jobs, ended, redelivered=again, waited=waited)
        except Exception as error:  # noqa: BLE001 - of each that it has left behind
            fault = error
        except asyncio.CancelledError:
            if _cancelled():
                for _ in in_progress:
                    self._free.release()
                raise
        for job in list(in_progress.values()):
            ended(job, fault)
        await asyncio.gather(*(self._faulty(job, error, again) for job, error in faults))

    async def _one_of_many(self, job: Dispatch, redelivered: bool, waited: timedelta) -> None:
        try:
            if self._stopping():  # one message may be work for longer than a stop may take: others will do the rest
                await self._pass_on(job, alone=redelivered)
            else:
                await self._attempt(job, redelivered, waited)
        except Exception as error:  # noqa: BLE001 - logged, and its order parked
            await self._faulty(job, error, redelivered)
        except asyncio.CancelledError as error:
            if _cancelled():
                raise
            await self._faulty(job, error, redelivered)
        finally:
            self._free.release()

    async def _faulty(self, job: Dispatch, error: BaseException, redelivered: bool) -> None:
        """Park the order as if it had come alone."""
        log.error("message.handler_failed", role=str(self._channel), error=place_of(error))
        order = Incoming(codec.dispatch_body(job), None, None, None, redelivered)
        told = [Fault("", f"a fault of NotiPy's own: {place_of(error)}")]
        about = codec.dispatch_headers(job)
        await self._queue.reject(order, Reason.INTERNAL_ERROR, told, str(self._channel), about)

    async def _pass_on(self, job: Dispatch, *, alone: bool = False) -> None:
        """To the queue that it came from; where that is full, the sweeper will: who waits here takes nothing."""
        with suppress(QueueFull):
            await self._queue.dispatch(job, alone=alone)

    async def _attempt(self, job: Dispatch, redelivered: bool, waited: timedelta = timedelta(0)) -> None:
        tell(self._metrics, await self._deliver(job, redelivered=redelivered, waited=waited))


class CommandHandler:
    """The control plane: `{"command": "cancel", "delivery": ID}` or `{"command": "cancel", "source": …, "id": …}`.

    `replay` takes the same, and `consumers/inbox.py` says what those of inboxes take; a command that cannot be used is
    parked in `notipy.dead.events`.
    """

    def __init__(
        self, operate: Operate, deliveries: Deliveries, queue: DispatchQueue, mark_inbox: MarkInbox, now: Now
    ) -> None:
        self._operate = operate
        self._deliveries = deliveries
        self._queue = queue
        self._mark_inbox = mark_inbox
        self._now = now

    async def __call__(self, message: Message) -> None:
        """Carry the command out, for each delivery that it names."""
        document = _document(message)
        if document is not None and is_inbox_command(document):
            faults = await carry_out(self._mark_inbox, document, self._given_at(message))
            if faults:
                await self._unusable(message, faults)
            return
        faults, command, ids = await self._read(document)
        if faults:
            await self._unusable(message, faults)
            return
        for delivery_id in ids:
            outcome = await self._carry_out(command, delivery_id)
            why = outcome.why if isinstance(outcome, Refused) else None
            log.info(
                "command.done" if why is None else "command.refused", command=command, delivery=delivery_id, why=why
            )

    async def _unusable(self, message: Message, faults: Sequence[Fault]) -> None:
        await self._queue.reject(incoming(message), Reason.BAD_COMMAND, faults)
        log.warning("command.unusable", detail=describe(faults))

    def _given_at(self, message: Message) -> datetime:
        """By the message's own time, which AMQP has in whole seconds: the end of that one; else now."""
        stamped = incoming(message).timestamp
        return stamped + TIMESTAMP_UNIT if stamped is not None else self._now()

    async def _carry_out(self, command: str, delivery_id: str) -> object:
        if command == "cancel":
            return await self._operate.cancel(delivery_id)
        delivery = await self._deliveries.get(delivery_id)
        return await self._operate.replay(delivery) if delivery else Refused("there is no such delivery")

    async def _read(self, document: dict[str, Any] | None) -> tuple[Sequence[Fault], str, list[str]]:
        if document is None:
            return [Fault("", "should be a JSON object of at most 64 KiB")], "", []
        command = document.get("command")
        if command not in {"cancel", "replay"}:
            return [Fault("command", "should be cancel, replay, or one of inboxes such as inbox.read")], "", []
        if isinstance(document.get("delivery"), str):
            return [], command, [document["delivery"]]
        if isinstance(document.get("source"), str) and isinstance(document.get("id"), str):
            found = await self._deliveries.ids_of_event(event_key(document["source"], document["id"]))
            return [], command, list(found)
        return [Fault("delivery", "should be a delivery's id; or give an event's source and id")], "", []


def _document(message: Message) -> dict[str, Any] | None:
    """A command as a JSON object; None if it is none, or too large for one."""
    try:
        document = orjson.loads(message.body) if len(message.body) <= MAX_COMMAND_BYTES else None
    except orjson.JSONDecodeError:
        return None
    return document if isinstance(document, dict) else None


def incoming(message: Message) -> Incoming:
    """The message in the domain's words."""
    stamped = message.timestamp
    return Incoming(
        body=message.body,
        # published straight to a queue, a message's key is the queue's name and says nothing of the event
        routing_key=message.routing_key if message.exchange else None,
        message_id=None if codec.WITHOUT_ID in message.headers else message.message_id,
        timestamp=_aware(stamped) if isinstance(stamped, datetime) else None,
        redelivered=bool(message.redelivered),
    )


def _aware(value: datetime) -> datetime:
    return value if value.tzinfo else value.replace(tzinfo=UTC)


def _log_verdict(verdict: Verdict, received: Incoming) -> None:
    if isinstance(verdict, Rejected):
        log.warning(
            "event.rejected",
            reason=str(verdict.reason),
            fields=[fault.field for fault in verdict.faults[:10] if fault.field],
            message_id=received.message_id,
        )
        return
    planned = verdict.planned if isinstance(verdict, Accepted) else 0
    about = {"event_id": verdict.event.id, "source": verdict.event.source, "type": verdict.event.type}
    ended = verdict.final if isinstance(verdict, Accepted) else {}
    for (channel, state, why), count in ended.items():
        tell = log.warning if state is State.FAILED else log.info
        tell(f"delivery.{state}", **about, channel=str(channel), reason=str(why), deliveries=count, attempt=0)
    log.info(
        f"event.{type(verdict).__name__.lower()}",
        **about,
        planned=planned,
    )


def tell(metrics: Metrics, result: Result) -> None:
    """Count and log what became of a work order, or of an attempt that another provider's follows at once."""
    metrics.delivered(result)
    _log_result(result)


def _log_result(result: Result) -> None:
    delivery = result.delivery
    about = {"delivery": delivery.id, "event_id": delivery.event_id, "channel": str(delivery.channel)}
    if isinstance(result, NotClaimed):
        log.debug("delivery.not_claimed", **about, why=result.why)
        return
    if isinstance(result, HeldBack):
        log.debug("delivery.held", **about, reason=str(delivery.reason), provider=result.provider)
        return
    about |= {"reason": str(delivery.reason), "provider": result.provider}
    told = {"attempt": delivery.attempt, "epoch": delivery.epoch, "detail": delivery.detail}
    if isinstance(result, Late):
        log.warning("delivery.late", **about, **told)
    elif isinstance(result, Settled):
        good = delivery.state in {State.SENT, State.SUPPRESSED}
        forgiven = isinstance(result.outcome, Hold) and result.outcome.forgiven  # `provider.paused` has told it
        say = log.info if good else log.debug if forgiven else log.warning
        say(f"delivery.{delivery.state}", **about, **(told if not good else {}))
