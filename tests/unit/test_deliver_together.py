"""Deliveries that come together; that each goes the way of one alone is what test_deliver and test_pool see to."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import pytest

from consumers import codec
from consumers.handlers import DeliveryHandler
from consumers.metrics import Metrics
from domain.circuit import THRESHOLD, Circuit, Mode
from domain.deliver import SEND_SHARE, Late, NotClaimed, Result, Settled
from domain.deliver_together import DeliverTogether
from domain.dispatch import STALE_AFTER, Dispatch
from domain.errands import Runners
from domain.event import Attachment
from domain.failures import UNBLAMED, UNSENT, PermanentFailure, TransientFailure
from domain.message import Accepted, Message
from domain.pool import Member
from domain.ports import Claim, Record, TemplateError
from domain.suppression import Suppression, keys_of
from domain.vocabulary import Channel, Reason, Semantics, State, SuppressionReason
from tests.fakes import PlainRenderer, ScriptedProvider
from tests.unit.test_handlers import Message as Incoming
from tests.unit.world import LEASE, World
from tests.waiting import eventually


@dataclass
class Slow(ScriptedProvider):
    """Takes few at once, and each for as long as the test lets it."""

    at_once: int | None = 2
    active: int = 0
    most: int = 0
    going_on: asyncio.Event = field(default_factory=asyncio.Event)

    async def send(self, message: Message) -> Accepted:
        self.active += 1
        self.most = max(self.most, self.active)
        try:
            await self.going_on.wait()
        finally:
            self.active -= 1
        return await super().send(message)


async def several(world: World, number: int) -> list[Dispatch]:
    body = b'{"recipients": [{"email": "u%d@example.org"}], "data": {"order_id": 1042}}'
    numbers = range(len(world.events.stored), len(world.events.stored) + number)
    return [job for each in numbers for job in await world.accepted(body % each, message_id=f"m-{each}")]


async def deliver(
    together: DeliverTogether, jobs: Sequence[Dispatch], *, redelivered: bool = False
) -> dict[str, Result | Exception]:
    told: dict[str, Result | Exception] = {}

    def tell(job: Dispatch, result: Result | Exception) -> None:
        assert job.delivery.id not in told, "each is told of once"
        told[job.delivery.id] = result

    await together(jobs, tell, redelivered=redelivered, waited=timedelta(0))
    return told


def states(world: World, jobs: Sequence[Dispatch]) -> list[State]:
    return [world.deliveries.stored[job.delivery.id].state for job in jobs]


def counted(world: World, name: str) -> list[int]:
    """How many each call of this method has been given."""
    real, sizes = getattr(world.deliveries, name), list[int]()

    async def counting(items: Sequence[Any]) -> Any:
        sizes.append(len(items))
        return await real(items)

    setattr(world.deliveries, name, counting)
    return sizes


async def test_one_write_claims_them_and_what_has_ended_meanwhile_is_recorded_by_one() -> None:
    world = World()
    jobs = await several(world, 20)
    claimed, recorded = counted(world, "claim_all"), counted(world, "record_all")
    told = await deliver(DeliverTogether(world.alone), jobs)
    assert states(world, jobs) == [State.SENT] * 20
    assert {type(result) for result in told.values()} == {Settled}
    assert claimed == [20]
    assert sum(recorded) == 20
    assert len(recorded) < 5
    for job in jobs:
        history = world.deliveries.stored[job.delivery.id].history
        assert [change.state for change in history] == [State.QUEUED, State.SENDING, State.SENT]
    assert [change.state for change in world.queue.told if change.state.final] == [State.SENT] * 20


async def test_each_comes_to_its_own_end(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    jobs = await several(world, 8)
    _, unwritten, suppressed, expired, foreign, late, refused, flaky = jobs
    real_render, real_record = PlainRenderer.render, world.deliveries.record_all

    def render(
        self: PlainRenderer, channel: Channel, content: Mapping[str, Any], context: Mapping[str, Any]
    ) -> Mapping[str, str]:
        if context["recipient"] == unwritten.delivery.recipient:
            raise TemplateError("text: no such name")
        return real_render(self, channel, content, context)

    async def record_all(records: Sequence[Record]) -> Sequence[bool | Exception]:
        return [
            False if record.delivery.id == late.delivery.id else win
            for record, win in zip(records, await real_record(records), strict=True)
        ]

    async def send(message: Message) -> Accepted:
        failures = {
            refused.delivery.id: PermanentFailure(Reason.RECIPIENT_REJECTED, "550 5.1.1 no", suppress=True),
            flaky.delivery.id: TransientFailure(Reason.RATE_LIMITED, "451 later"),
        }
        if message.delivery_id in failures:
            raise failures[message.delivery_id]
        return await ScriptedProvider.send(world.provider, message)

    monkeypatch.setattr(PlainRenderer, "render", render)
    monkeypatch.setattr(world.deliveries, "record_all", record_all)
    monkeypatch.setattr(world.provider, "send", send)
    address, now = suppressed.delivery.recipient["email"], world.clock()
    await world.suppressions.add(Suppression(Channel.EMAIL, address, SuppressionReason.MANUAL, "operator", now))
    await world.deliveries.claim(Claim(foreign.delivery.claim_id(1), "another's", now, now + LEASE))
    over = replace(expired, delivery=replace(expired.delivery, expires_at=now))
    told = await deliver(DeliverTogether(world.alone), [over if job is expired else job for job in jobs])
    assert states(world, jobs) == [
        State.SENT,
        State.FAILED,
        State.SUPPRESSED,
        State.EXPIRED,
        State.QUEUED,
        State.SENT,
        State.FAILED,
        State.RETRYING,
    ]
    assert len(told) == 8
    assert isinstance(told[foreign.delivery.id], NotClaimed)
    assert isinstance(told[late.delivery.id], Late)
    assert world.deliveries.stored[unwritten.delivery.id].reason is Reason.TEMPLATE_ERROR
    assert world.deliveries.stored[refused.delivery.id].last_change.address_suppressed
    assert [parked.delivery.id for parked, _, _ in world.queue.parked] == [unwritten.delivery.id, refused.delivery.id]
    assert [job.delivery.id for job, _ in world.queue.retried] == [flaky.delivery.id]
    assert len(world.provider.sent) == 2


@pytest.mark.parametrize(("method", "what"), [("claim_all", Claim), ("record_all", Record)])
async def test_what_one_cannot_be_written_for_is_told_of_it_alone(method: str, what: type) -> None:
    world = World()
    jobs = await several(world, 3)
    real: Callable[..., Any] = getattr(world.deliveries, method)

    async def faulty(items: Sequence[Claim] | Sequence[Record]) -> Sequence[bool | Exception]:
        wins = await real(items)
        own = [each.id if isinstance(each, Claim) else each.delivery.claim_id(1) for each in items]
        return [
            LookupError() if name == jobs[1].delivery.claim_id(1) else win for name, win in zip(own, wins, strict=True)
        ]

    setattr(world.deliveries, method, faulty)
    told = await deliver(DeliverTogether(world.alone), jobs)
    kinds = [type(told[job.delivery.id]) for job in jobs]
    assert kinds == [Settled, LookupError, Settled]


async def test_no_more_are_handed_over_than_the_provider_has_use_for_whatever_they_came_with() -> None:
    world = World()
    provider = world.provider = Slow()
    jobs = await several(world, 12)
    together = DeliverTogether(world.alone)
    batches = [asyncio.create_task(deliver(together, jobs[start : start + 6])) for start in (0, 6)]
    await eventually(lambda: provider.active == 2)
    provider.going_on.set()
    await asyncio.gather(*batches)
    assert provider.most == 2
    assert states(world, jobs) == [State.SENT] * 12


async def test_a_providers_fault_stops_those_that_wait_for_it_at_no_cost() -> None:
    world = World()
    provider = world.provider = Slow(at_once=1)
    provider.going_on.set()
    provider.script = [TransientFailure(Reason.CONNECTION_REFUSED, "nobody there", provider_fault=True)] * 50
    jobs = await several(world, 20)
    await deliver(DeliverTogether(world.alone), jobs)
    asked = 50 - len(provider.script)
    assert asked == THRESHOLD
    assert world.circuit.mode is Mode.OPEN
    held = [world.deliveries.stored[job.delivery.id] for job in jobs]
    assert {(each.state, each.reason, each.forgiven) for each in held} == {
        (State.HELD, Reason.CONNECTION_REFUSED, 1)
    }, "those that came before it was known are recorded after"


async def test_the_end_of_the_lease_ends_all_that_are_left() -> None:
    world = World()
    provider = world.provider = Slow(at_once=1)
    jobs = await several(world, 3)
    real = world.deliveries.claim_all

    async def slow(claims: Sequence[Claim]) -> Sequence[bool | Exception]:
        world.clock.advance(LEASE * SEND_SHARE - timedelta(milliseconds=50))
        return await real(claims)

    world.deliveries.claim_all = slow  # type: ignore[method-assign]
    await deliver(DeliverTogether(world.alone), jobs)
    first, *waiting = (world.deliveries.stored[job.delivery.id] for job in jobs)
    assert (first.state, first.reason, first.possible_duplicate) == (State.RETRYING, Reason.TIMEOUT, True)
    for each in waiting:
        assert (each.state, each.reason, each.possible_duplicate) == (State.RETRYING, Reason.TIMEOUT, False)
    assert provider.active == 0


async def test_whoever_is_cancelled_leaves_nothing_under_way_and_records_nothing() -> None:
    world = World()
    provider = world.provider = Slow(at_once=1)
    jobs = await several(world, 4)
    together = DeliverTogether(world.alone)
    cancelled, other = (asyncio.create_task(deliver(together, jobs[start : start + 2])) for start in (0, 2))
    await eventually(lambda: provider.active == 1)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    provider.going_on.set()
    await other
    assert states(world, jobs) == [State.QUEUED, State.QUEUED, State.SENT, State.SENT]
    assert all(job.delivery.claim_id(1) in world.deliveries.attempts for job in jobs), "the sweeper will find them"


async def test_an_old_order_is_looked_up_before() -> None:
    world = World()
    jobs = await several(world, 2)
    await world.alone(jobs[0])
    world.deliveries.attempts.clear()
    world.clock.advance(STALE_AFTER)
    told = await deliver(DeliverTogether(world.alone), jobs, redelivered=True)
    assert isinstance(told[jobs[0].delivery.id], NotClaimed)
    assert [message.delivery_id for message in world.provider.sent] == [job.delivery.id for job in jobs]


async def test_a_runner_that_ends_leaves_the_rest_to_others() -> None:
    ran: list[int] = []
    runners = Runners(1)

    async def run(number: int, fault: type[BaseException] | None = None) -> None:
        await asyncio.sleep(0)
        ran.append(number)
        if fault:
            raise fault

    class Ends(BaseException):
        pass

    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    runners.add(lambda: run(1, Ends))
    runners.add(lambda: run(2))
    await eventually(lambda: ran == [1, 2])


# ---------------------------------------------------------------------------------------------------------------
# None stops another
# ---------------------------------------------------------------------------------------------------------------


class Waiting(ScriptedProvider):
    """Has two connections; a message with an attachment waits for that one's host, which never answers."""

    at_once = 2

    async def send(self, message: Message) -> Accepted:
        if message.attachments:
            with UNBLAMED:
                await asyncio.Event().wait()
        return await super().send(message)


async def test_what_waits_for_more_than_its_provider_keeps_no_other_waiting() -> None:
    world = World()
    world.provider = Waiting()
    attached = Attachment.model_validate({"filename": "a.pdf", "url": "https://files.example/a.pdf"})
    jobs = [_with(job, attachments=(attached,)) for job in await several(world, 5)]
    plain = await several(world, 5)
    together = DeliverTogether(world.alone)
    slow = asyncio.create_task(deliver(together, jobs))
    await asyncio.sleep(0)
    await deliver(together, plain)
    assert states(world, plain) == [State.SENT] * 5
    slow.cancel()
    await asyncio.wait([slow])
    assert world.circuit.mode is Mode.CLOSED


def _with(job: Dispatch, **more: Any) -> Dispatch:
    assert job.event is not None
    return replace(job, event=replace(job.event, **more))


async def test_an_event_that_cannot_be_read_in_time_is_no_fault_of_the_provider() -> None:
    world = World()
    world.provider = Slow(at_once=1)
    jobs = [replace(job, event=None) for job in await several(world, THRESHOLD + 1)]
    real = world.deliveries.claim_all

    async def get(_: str) -> None:
        await asyncio.Event().wait()

    async def slow(claims: Sequence[Claim]) -> Sequence[bool | Exception]:
        world.clock.advance(LEASE * SEND_SHARE - timedelta(milliseconds=50))
        return await real(claims)

    world.events.get = get  # type: ignore[assignment,method-assign]
    world.deliveries.claim_all = slow  # type: ignore[method-assign]
    await deliver(DeliverTogether(world.alone), jobs)
    assert {each.detail for each in world.deliveries.stored.values()} == {
        "the event could not be read within the lease"
    }
    assert world.circuit.mode is Mode.CLOSED


async def test_those_that_are_cancelled_while_they_connect_are_no_faults_of_the_provider() -> None:
    world = World()

    async def send(_: Message) -> Accepted:
        with UNSENT:
            await asyncio.Event().wait()
        raise AssertionError

    world.provider.send = send  # type: ignore[method-assign,assignment]
    delivering = asyncio.create_task(deliver(DeliverTogether(world.alone), await several(world, 2 * THRESHOLD)))
    await eventually(lambda: len(world.deliveries.attempts) == 2 * THRESHOLD)
    await asyncio.sleep(0)
    delivering.cancel()
    await asyncio.wait([delivering])
    await asyncio.sleep(0)
    assert world.circuit.mode is Mode.CLOSED


async def test_a_failure_that_cannot_be_understood_is_told_of_its_own_delivery_alone() -> None:
    """Another package's adapter has a number where a duration should be."""
    world = World()
    wrong = TransientFailure(Reason.RATE_LIMITED, "429", retry_after=30)  # type: ignore[arg-type]
    world.provider.script = ["ok", wrong]
    other = Member(ScriptedProvider(name="other"), Circuit("other", world.clock))
    jobs = await several(world, 6)
    few = {job.delivery.recipient["email"] for job in jobs[:3]}
    world.provider.takes = lambda recipient: recipient["email"] in few  # type: ignore[method-assign]
    world.others = [other]
    told = await deliver(DeliverTogether(world.alone), jobs)
    assert [type(told[job.delivery.id]) for job in jobs] == [Settled, TypeError, *[Settled] * 4]


async def test_an_address_that_cannot_be_looked_up_is_told_of_its_own_delivery_alone() -> None:
    world = World()
    jobs = await several(world, 3)
    (bad,) = keys_of(jobs[1].delivery)
    real = world.suppressions.among

    async def among(keys: Sequence[str]) -> Mapping[str, Suppression]:
        if bad in keys:
            raise LookupError
        return await real(keys)

    world.suppressions.among = among  # type: ignore[method-assign]
    await deliver(DeliverTogether(world.alone), jobs)
    assert states(world, jobs) == [State.SENT, State.RETRYING, State.SENT]


async def test_time_that_runs_out_while_one_is_rendered_leaves_it_certainly_unsent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(Semantics.AT_MOST_ONCE)
    jobs = await several(world, 2)

    def render(*_: object) -> Mapping[str, str]:
        raise TimeoutError("u0@example.org")

    monkeypatch.setattr(PlainRenderer, "render", render)
    await deliver(DeliverTogether(world.alone), jobs)
    assert states(world, jobs) == [State.RETRYING] * 2


async def test_replays_ask_together_whether_their_own_refusal_is_withdrawn() -> None:
    world = World()
    jobs = []
    for job in await several(world, 10):
        replayed = replace(job.delivery, epoch=2)
        world.deliveries.stored[replayed.id] = replayed
        jobs.append(replace(job, delivery=replayed))
    asking, most = 0, 0

    async def withdraw(keys: Sequence[str], delivery: str) -> bool:
        nonlocal asking, most
        asking += 1
        most = max(most, asking)
        await asyncio.sleep(0)
        asking -= 1
        return False

    world.suppressions.withdraw = withdraw  # type: ignore[method-assign]
    await deliver(DeliverTogether(world.alone), jobs)
    assert states(world, jobs) == [State.SENT] * 10
    assert most > 1


# ---------------------------------------------------------------------------------------------------------------
# The handler
# ---------------------------------------------------------------------------------------------------------------


async def message_of(world: World, number: int) -> tuple[list[Dispatch], Any]:
    jobs = await several(world, number)
    (parcel,) = codec.parcels(jobs)
    assert isinstance(parcel, codec.Parcel)
    return jobs, Incoming(parcel.body, dict(parcel.headers))


def handler(world: World, concurrency: int, together: Any = None) -> DeliveryHandler:
    together = together or DeliverTogether(world.alone)
    arguments = Channel.EMAIL, world.alone, world.operate, world.queue, Metrics(), concurrency
    return DeliveryHandler(*arguments, together=together)


async def test_no_more_attempts_are_in_progress_than_the_setting_says() -> None:
    world = World()
    provider = world.provider = Slow(at_once=None)
    jobs, message = await message_of(world, 10)
    handling = asyncio.create_task(handler(world, 3)(message))
    await eventually(lambda: provider.active == 3)
    assert len(world.deliveries.attempts) == 3
    provider.going_on.set()
    await handling
    assert provider.most == 3
    assert states(world, jobs) == [State.SENT] * 10


async def test_one_whose_end_is_swallowed_by_a_cancellation_from_below_is_parked() -> None:
    world = World()
    world.provider.script = [TransientFailure(Reason.RATE_LIMITED, "451")]
    jobs, message = await message_of(world, 3)

    async def retry(*_: object) -> None:
        raise asyncio.CancelledError

    world.queue.retry = retry  # type: ignore[assignment,method-assign]
    await handler(world, 3)(message)
    parked = [codec.read_dispatch(order.body)[0].delivery.id for order, _, _ in world.queue.rejected]
    assert parked == [jobs[0].delivery.id]
    assert states(world, jobs) == [State.RETRYING, State.SENT, State.SENT]


async def test_a_fault_of_ours_parks_those_that_are_left() -> None:
    world = World()
    jobs, message = await message_of(world, 3)

    async def faulty(jobs: Sequence[Dispatch], tell: Any, *, redelivered: bool, waited: timedelta) -> None:
        tell(jobs[0], await world.alone(jobs[0]))
        raise LookupError("u1@example.org")

    handle = handler(world, 3, faulty)
    await handle(message)
    assert "u1@" not in str([faults for _, _, faults in world.queue.rejected])
    parked = [codec.read_dispatch(order.body)[0].delivery.id for order, _, _ in world.queue.rejected]
    assert parked == [job.delivery.id for job in jobs[1:]]
    _, more = await message_of(world, 3)
    async with asyncio.timeout(5):
        await handle(more)  # all places are free again
