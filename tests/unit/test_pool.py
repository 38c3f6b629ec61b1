"""To which provider a delivery goes, and who takes over; in memory and in simulated time."""

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from random import Random
from typing import Any

import pytest

from domain.circuit import FORGIVEN_AT_MOST, THRESHOLD, Circuit, Mode
from domain.deliver import SEND_SHARE, HeldBack, Late, NotClaimed, Settled
from domain.dispatch import Dispatch
from domain.failures import (
    UNBLAMED,
    UNSENT,
    DeliveryFailure,
    PermanentFailure,
    TransientFailure,
    UnknownOutcome,
    Unsent,
)
from domain.message import Accepted, Message
from domain.outcome import FailedOver
from domain.pool import Chosen, Member, Paused, Pool, Trying, Untaken
from domain.ports import Claim
from domain.rate import LONGEST_WAIT, Limiter, parse_rate
from domain.vocabulary import Channel, Reason, Semantics, State
from tests.fakes import Clock, ScriptedProvider
from tests.unit.world import LEASE, OVERDUE, SMALL, World

ANYBODY: Mapping[str, Any] = {"email": "ana@example.org"}


@pytest.fixture(autouse=True, params=[False, True], ids=["alone", "together"])
def alone_or_together(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever holds for a delivery holds for it among others."""
    monkeypatch.setattr(World, "together", request.param)


class ProcessEnds(BaseException):
    """In the middle of something."""


@dataclass
class Picky(ScriptedProvider):
    """Takes push tokens of its own kind alone."""

    def takes(self, recipient: Mapping[str, Any]) -> bool:
        return any(target["provider"] == self.name for target in recipient["push"])


def down(reason: Reason = Reason.CONNECTION_REFUSED, **more: Any) -> TransientFailure:
    return TransientFailure(reason, "nobody there", provider_fault=True, **more)


def member(clock: Clock, name: str, weight: int | None = None, provider: ScriptedProvider | None = None) -> Member:
    return Member(provider or ScriptedProvider(name=name), Circuit(name, clock, Random(3)), weight)


def opened(member: Member) -> Member:
    member.circuit.ended(down(Reason.AUTHENTICATION))
    return member


def chosen(pool: Pool, recipient: Mapping[str, Any] = ANYBODY, *exclude: str) -> str | None:
    choice = pool.choose(recipient, exclude)
    return choice.member.name if isinstance(choice, Chosen) else None


# ---------------------------------------------------------------------------------------------------------------
# Which of them
# ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def three(clock: Clock) -> Pool:
    return Pool([member(clock, name) for name in ("a", "b", "c")])


def test_without_weights_it_is_the_first_that_can_be_used(three: Pool) -> None:
    assert chosen(three) == "a"
    assert chosen(three, ANYBODY, "a") == "b"
    opened(three.members[1])
    assert chosen(three, ANYBODY, "a") == "c"


def test_weights_are_how_often_each_is_drawn(clock: Clock) -> None:
    pool = Pool([member(clock, "a", 1), member(clock, "b", 2), member(clock, "c", 7)], Random(11))
    drawn = Counter(chosen(pool) for _ in range(10_000))
    # three standard deviations of a binomial distribution
    assert {name: drawn[name] for name in "abc"} == pytest.approx({"a": 1000, "b": 2000, "c": 7000}, abs=140)
    opened(pool.members[2])
    drawn = Counter(chosen(pool) for _ in range(9_000))
    assert {name: drawn[name] for name in "abc"} == pytest.approx({"a": 3000, "b": 6000, "c": 0}, abs=140)


def test_when_all_are_paused_the_first_to_be_asked_is_named(three: Pool, clock: Clock) -> None:
    for each, minutes in zip(three.members, (3, 1, 2), strict=True):
        each.circuit.ended(down(retry_after=timedelta(minutes=minutes)))
    choice = three.choose(ANYBODY)
    assert isinstance(choice, Paused)
    assert (choice.member.name, choice.until) == ("b", three.members[1].circuit.until)
    assert str(three.why).count("is paused (connection_refused)") == 3
    three.members[2].circuit.asked(None)
    assert three.why is None
    assert len(three.paused) == 2


async def test_one_that_is_on_trial_gets_one_delivery_and_the_others_go_elsewhere(three: Pool) -> None:
    first = opened(three.members[0])
    first.circuit.asked(None)
    trial = three.choose(ANYBODY)
    assert isinstance(trial, Chosen)
    assert (trial.member.name, trial.passage.trial) == ("a", True)
    assert chosen(three) == "b"
    with first.circuit.passing(trial.passage):
        first.circuit.ended(None)
    assert chosen(three) == "a"


async def test_where_no_other_is_left_one_waits_for_the_trial(three: Pool) -> None:
    for each in three.members:
        opened(each)
    three.members[1].circuit.asked(None)
    assert chosen(three) == "b"
    waited_for = three.choose(ANYBODY)
    assert isinstance(waited_for, Trying)
    assert waited_for.member.name == "b"


def test_only_those_that_take_the_recipient_are_meant(clock: Clock) -> None:
    apns, fcm = (member(clock, name, provider=Picky(name=name)) for name in ("apns", "fcm"))
    pool, android = Pool([apns, fcm]), {"push": [{"provider": "fcm", "token": "abc123"}]}
    assert chosen(pool, android) == "fcm"
    opened(fcm)
    choice = pool.choose(android)
    assert isinstance(choice, Paused)
    assert choice.member.name == "fcm"
    assert pool.why is None, "the other is used"
    browser = {"push": [{"provider": "webpush", "token": "abc123"}]}
    assert pool.choose(browser) == Untaken()
    told = pool.untaken(Channel.PUSH, browser)
    assert told == "no provider of channels.push (apns, fcm) takes this kind of address: push tokens of webpush"


def test_what_only_a_paused_one_takes_comes_by_less_and_less_often_while_the_others_work(clock: Clock) -> None:
    apns, fcm = (member(clock, name, provider=Picky(name=name)) for name in ("apns", "fcm"))
    pool, iphone = Pool([apns, fcm]), {"push": [{"provider": "apns", "token": "abc123"}]}
    opened(apns)
    waits = []
    for _ in range(40):
        choice = pool.choose(iphone)
        assert isinstance(choice, Paused)
        assert choice.until is not None
        assert apns.circuit.until is not None
        waits.append(choice.until - clock())
        clock.time = max(choice.until, apns.circuit.until)
        apns.circuit.asked(down())
    assert waits[0] <= timedelta(seconds=2)
    assert max(waits) == waits[-1] == timedelta(minutes=5)
    opened(fcm)
    choice = pool.choose(iphone)
    assert isinstance(choice, Paused)
    assert choice.until == apns.circuit.until, "nothing is taken from the queue"


def test_a_provider_whose_own_code_fails_to_say_does_not_take_it(clock: Clock) -> None:
    pool = Pool([member(clock, "apns", provider=Picky(name="apns")), member(clock, "any")])
    assert chosen(pool, {"email": "ana@example.org"}) == "any"


@pytest.mark.parametrize(
    ("failure", "tried", "forgiven", "follows"),
    [
        (down(), {"a"}, 0, True),
        (down(Reason.RATE_LIMITED, retry_after=timedelta(minutes=1)), {"a"}, 0, True),
        (down(), {"a", "b"}, 0, True),
        (down(), {"a", "b", "c"}, 0, False),
        (down(), {"a"}, FORGIVEN_AT_MOST, False),
        (TransientFailure(Reason.MAILBOX_UNAVAILABLE, "451 greylisted"), {"a"}, 0, False),
        (PermanentFailure(Reason.RECIPIENT_REJECTED, "550"), {"a"}, 0, False),
        (PermanentFailure(Reason.MESSAGE_REJECTED, "554", provider_fault=True), {"a"}, 0, False),
        (UnknownOutcome(Reason.TIMEOUT, "after DATA", provider_fault=True), {"a"}, 0, False),
    ],
)
def test_another_takes_over_only_what_was_certainly_not_sent_for_its_providers_fault(
    three: Pool, failure: DeliveryFailure, tried: set[str], forgiven: int, follows: bool
) -> None:
    assert three.fails_over(failure, ANYBODY, tried, forgiven) is follows


def test_one_that_is_paused_takes_nothing_over(three: Pool) -> None:
    opened(three.members[1])
    assert three.fails_over(down(), ANYBODY, {"a"}, 0)
    opened(three.members[2])
    assert not three.fails_over(down(), ANYBODY, {"a"}, 0)


# ---------------------------------------------------------------------------------------------------------------
# A delivery's way through them
# ---------------------------------------------------------------------------------------------------------------


def pooled(*names: str, semantics: Semantics = Semantics.AT_LEAST_ONCE) -> tuple[World, list[ScriptedProvider]]:
    """A world whose first provider is `scripted`, and the others of these names."""
    world = World(semantics)
    world.others = [member(world.clock, name) for name in names]
    return world, [each.provider for each in world.others]  # type: ignore[misc]


async def first(world: World, **more: Any) -> Dispatch:
    (job,) = await world.accepted(**more)
    return job


def way(world: World, job: Dispatch) -> list[tuple[str, int, str | None]]:
    history = world.deliveries.stored[job.delivery.id].history
    return [(str(change.state), change.attempt, change.provider) for change in history if change.attempt]


async def test_a_fault_of_the_first_is_followed_by_the_second_in_the_same_call_and_does_not_count() -> None:
    world, (second,) = pooled("second")
    world.provider.script = [down()]
    job = await first(world)
    result = await world.deliver(job)
    assert isinstance(result, Settled)
    assert result.provider == "second"
    assert way(world, job) == [
        ("sending", 1, "scripted"),
        ("retrying", 1, "scripted"),
        ("sending", 2, "second"),
        ("sent", 2, "second"),
    ]
    stored = world.deliveries.stored[job.delivery.id]
    assert (stored.forgiven, stored.possible_duplicate, stored.due_at) == (1, False, None)
    assert len(second.sent) == 1
    assert sorted(world.deliveries.attempts) == [f"{job.delivery.ref}/1", f"{job.delivery.ref}/2"]
    assert not world.queue.retried


async def test_each_attempt_is_told_with_its_provider() -> None:
    world, _ = pooled("second")
    world.provider.script = [down()]
    told: list[Settled] = []
    world.on_failover = told.append
    await world.deliver(await first(world))
    ((failed_over,)) = told
    assert failed_over.provider == "scripted"
    assert isinstance(failed_over.outcome, FailedOver)
    assert [(str(change.state), change.provider) for change in world.queue.told if change.attempt] == [
        ("sending", "scripted"),
        ("retrying", "scripted"),
        ("sending", "second"),
        ("sent", "second"),
    ]


async def test_one_after_the_other_is_asked_and_none_twice() -> None:
    world, (second, third) = pooled("second", "third")
    world.provider.script, second.script = [down()], [down()]
    job = await first(world)
    await world.deliver(job)
    stored = world.deliveries.stored[job.delivery.id]
    assert (stored.state, stored.attempt, stored.forgiven) == (State.SENT, 3, 2)
    assert len(third.sent) == 1


async def test_when_the_last_is_at_fault_too_that_attempt_follows_the_policy() -> None:
    world, (second,) = pooled("second")
    world.provider.script, second.script = [down()], [down()]
    job = await first(world)
    await world.deliver(job)
    stored = world.deliveries.stored[job.delivery.id]
    assert (stored.state, stored.attempt, stored.forgiven) == (State.RETRYING, 2, 1)
    ((again, tier),) = world.queue.retried
    assert again.attempt == 3
    assert tier in world.policy.tiers[:2], "the first wait of the schedule, or its neighbour"
    await world.deliver(again)
    assert way(world, job)[-1] == ("sent", 3, "scripted"), "it begins with the first again"


async def test_when_all_are_paused_it_is_held_until_the_first_of_them_is_asked() -> None:
    world, _ = pooled("second")
    for each in world.pool.members:
        opened(each)
    job = await first(world)
    result = await world.deliver(job)
    assert isinstance(result, HeldBack)
    stored = world.deliveries.stored[job.delivery.id]
    assert (stored.state, stored.reason, stored.attempt) == (State.HELD, Reason.PROVIDER_PAUSED, 0)
    assert not world.deliveries.attempts


@pytest.mark.parametrize(
    "failure",
    [
        PermanentFailure(Reason.RECIPIENT_REJECTED, "550"),
        TransientFailure(Reason.MAILBOX_UNAVAILABLE, "451 greylisted"),
    ],
)
async def test_a_fault_of_the_recipient_is_not_tried_elsewhere(failure: DeliveryFailure) -> None:
    world, (second,) = pooled("second")
    world.provider.script = [failure]
    job = await first(world)
    await world.deliver(job)
    assert not second.sent
    assert world.deliveries.stored[job.delivery.id].attempt == 1


async def test_what_may_have_been_sent_is_repeated_by_the_policy_and_marked() -> None:
    world, (second,) = pooled("second")
    world.provider.script = [UnknownOutcome(Reason.CONNECTION_LOST, "after DATA", provider_fault=True)]
    job = await first(world)
    await world.deliver(job)
    assert not second.sent, "not at once"
    ((again, _),) = world.queue.retried
    opened(world.pool.members[0])
    await world.deliver(again)
    stored = world.deliveries.stored[job.delivery.id]
    assert (stored.state, stored.provider, stored.possible_duplicate) == (State.SENT, "second", True)


@dataclass
class Silent(ScriptedProvider):
    """It says nothing, before anything is sent to it or (None) when it has the message."""

    before: Unsent | None = UNSENT

    async def send(self, message: Message) -> Accepted:
        if self.before:
            with self.before:
                await asyncio.Event().wait()
        await asyncio.Event().wait()
        return Accepted("never")


def little_is_left_of_the_first_lease(world: World) -> None:
    real = world.deliveries.claim

    async def slow(claim: Claim) -> bool:
        if claim.id.endswith("/1"):
            world.clock.advance(LEASE * SEND_SHARE - timedelta(milliseconds=20))
        return await real(claim)

    world.deliveries.claim = slow  # type: ignore[method-assign]


async def test_what_is_cut_off_before_anything_was_sent_is_the_seconds() -> None:
    world, (second,) = pooled("second", semantics=Semantics.AT_MOST_ONCE)
    world.provider = Silent()
    little_is_left_of_the_first_lease(world)
    for number in range(THRESHOLD):
        assert world.circuit.mode is Mode.CLOSED
        job = await first(world, message_id=f"m-{number}")
        await world.deliver(job)
        stored = world.deliveries.stored[job.delivery.id]
        assert (stored.state, stored.provider, stored.forgiven) == (State.SENT, "second", 1)
        assert not stored.possible_duplicate
    assert len(second.sent) == THRESHOLD
    assert world.circuit.mode is Mode.OPEN, "they are faults of the provider"


async def test_what_is_cut_off_before_anything_was_sent_and_is_nobodys_fault_is_tried_again() -> None:
    world, (second,) = pooled("second", semantics=Semantics.AT_MOST_ONCE)
    world.provider = Silent(before=UNBLAMED)
    little_is_left_of_the_first_lease(world)
    for number in range(THRESHOLD):
        job = await first(world, message_id=f"m-{number}")
        await world.deliver(job)
        stored = world.deliveries.stored[job.delivery.id]
        assert (stored.state, stored.reason, stored.forgiven) == (State.RETRYING, Reason.TIMEOUT, 0)
    assert world.circuit.mode is Mode.CLOSED
    world.provider = ScriptedProvider()
    again, _ = world.queue.retried[-1]
    await world.deliver(again)
    stored = world.deliveries.stored[again.delivery.id]
    assert (stored.state, stored.provider, stored.possible_duplicate) == (State.SENT, "scripted", False)
    assert not second.sent


async def test_what_is_cut_off_later_may_have_been_sent() -> None:
    world, (second,) = pooled("second", semantics=Semantics.AT_MOST_ONCE)
    world.provider = Silent(before=None)
    little_is_left_of_the_first_lease(world)
    job = await first(world)
    await world.deliver(job)
    stored = world.deliveries.stored[job.delivery.id]
    assert (stored.state, stored.reason) == (State.UNKNOWN, Reason.TIMEOUT)
    assert not second.sent


async def test_at_most_once_no_second_provider_sends_what_may_have_been_sent() -> None:
    world, (second,) = pooled("second", semantics=Semantics.AT_MOST_ONCE)
    world.provider.script = [UnknownOutcome(Reason.CONNECTION_LOST, "after DATA", provider_fault=True)]
    job = await first(world)
    await world.deliver(job)
    assert world.deliveries.stored[job.delivery.id].state is State.UNKNOWN
    assert not second.sent


async def test_at_most_once_a_second_provider_sends_what_was_certainly_not_sent() -> None:
    world, (second,) = pooled("second", semantics=Semantics.AT_MOST_ONCE)
    world.provider.script = [down()]
    job = await first(world)
    await world.deliver(job)
    assert world.deliveries.stored[job.delivery.id].state is State.SENT
    assert len(second.sent) == 1


async def test_a_late_success_of_the_first_marks_what_the_second_has_sent() -> None:
    world, (second,) = pooled("second")
    job = await first(world)
    real = world.provider.send

    async def slow(message: Message) -> Accepted:
        world.clock.advance(LEASE * 2 + OVERDUE)
        await world.sweep()
        opened(world.pool.members[0])
        assert isinstance(await world.deliver(world.queue.dispatched[-1]), Settled)
        return await real(message)

    world.provider.send = slow  # type: ignore[method-assign]
    assert isinstance(await world.deliver(job), Late)
    assert (len(world.provider.sent), len(second.sent)) == (1, 1)
    stored = world.deliveries.stored[job.delivery.id]
    assert (stored.provider, stored.possible_duplicate) == ("second", True)


async def test_a_process_that_ends_between_the_two_loses_nothing() -> None:
    world, (second,) = pooled("second")
    world.provider.script = [down()]
    job = await first(world)

    def ends(_: Settled) -> None:
        raise ProcessEnds

    world.on_failover = ends
    with pytest.raises(ProcessEnds):
        await world.deliver(job)
    world.on_failover = lambda _: None
    stored = world.deliveries.stored[job.delivery.id]
    assert (stored.state, stored.due_at) == (State.RETRYING, world.clock() + OVERDUE)
    assert isinstance(await world.deliver(job, redelivered=True), NotClaimed)
    ((again, _),) = world.queue.retried
    await world.deliver(again)
    assert world.deliveries.stored[job.delivery.id].state is State.SENT
    assert len(world.provider.sent) + len(second.sent) == 1


async def test_nor_does_one_whose_message_is_lost_too() -> None:
    world, _ = pooled("second")
    world.provider.script = [down()]
    job = await first(world)
    world.on_failover = lambda _: 1 / 0
    with pytest.raises(ZeroDivisionError):
        await world.deliver(job)
    world.on_failover = lambda _: None
    world.clock.advance(OVERDUE)
    before = len(world.queue.dispatched)
    await world.sweep()
    (again,) = world.queue.dispatched[before:]
    assert again.attempt == 2
    await world.deliver(again)
    assert world.deliveries.stored[job.delivery.id].state is State.SENT


@dataclass
class Endless(ScriptedProvider):
    """The process ends in the middle of the send."""

    asked: asyncio.Event = field(default_factory=asyncio.Event)

    async def send(self, message: Message) -> Accepted:
        self.asked.set()
        await asyncio.Event().wait()
        raise AssertionError


@pytest.mark.parametrize("semantics", Semantics, ids=str)
async def test_of_an_attempt_whose_process_ended_it_is_known_whose_it_was(semantics: Semantics) -> None:
    world = World(semantics)
    second = Endless(name="second")
    world.others = [member(world.clock, "second", provider=second)]
    world.provider.script = [down()]
    delivering = asyncio.ensure_future(world.deliver(await first(world)))
    await second.asked.wait()
    delivering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await delivering
    (job,) = world.queue.dispatched
    world.clock.advance(OVERDUE + LEASE)
    await world.sweep()
    stored = world.deliveries.stored[job.delivery.id]
    assert (stored.attempt, stored.reason, stored.provider) == (2, Reason.OUTCOME_UNKNOWN, "second")
    assert stored.last_change.provider == "second"


async def test_a_replay_is_told_with_the_provider_of_its_own_attempts() -> None:
    world, _ = pooled("second")
    world.provider.script = [PermanentFailure(Reason.MESSAGE_REJECTED, "554 no"), down()]
    job = await first(world)
    await world.deliver(job)
    await world.operate.replay(world.deliveries.stored[job.delivery.id])
    await world.deliver(world.queue.dispatched[-1])
    history = world.deliveries.stored[job.delivery.id].history
    assert [(each.epoch, each.attempt, each.provider, str(each.state)) for each in history if each.attempt] == [
        (1, 1, "scripted", "sending"),
        (1, 1, "scripted", "failed"),
        (2, 1, "scripted", "sending"),
        (2, 1, "scripted", "retrying"),
        (2, 2, "second", "sending"),
        (2, 2, "second", "sent"),
    ]


async def test_one_whom_nobody_takes_fails_with_a_reason_and_can_be_replayed() -> None:
    world = World()
    world.provider = Picky(name="fcm")
    job = await first(world)
    result = await world.deliver(job)
    assert isinstance(result, Settled)
    stored = world.deliveries.stored[job.delivery.id]
    assert (stored.state, stored.reason, stored.attempt) == (State.FAILED, Reason.NOT_CONFIGURED, 1)
    assert stored.detail == "no provider of channels.email (fcm) takes this kind of address: email"
    assert stored.provider is None
    ((_, reason, _),) = world.queue.parked
    assert reason is Reason.NOT_CONFIGURED
    world.provider = ScriptedProvider()
    await world.operate.replay(stored)
    await world.deliver(world.queue.dispatched[-1])
    assert world.deliveries.stored[job.delivery.id].state is State.SENT


async def test_one_that_asks_to_be_left_alone_is_and_the_other_takes_over_meanwhile() -> None:
    world, (second,) = pooled("second")
    world.provider.script = [down(Reason.RATE_LIMITED, retry_after=timedelta(minutes=10))]
    for number in range(20):
        await world.deliver(await first(world, message_id=f"m-{number}"))
    deliveries = list(world.deliveries.stored.values())
    assert {delivery.state for delivery in deliveries} == {State.SENT}
    assert len(second.sent) == 20
    assert all(delivery.attempt - delivery.forgiven == 1 for delivery in deliveries)
    assert sum(delivery.forgiven for delivery in deliveries) == 1
    assert world.circuit.until is not None
    assert world.circuit.until >= world.clock() + timedelta(minutes=10)
    world.clock.time = world.circuit.until
    assert world.circuit.due()
    world.circuit.asked(None)
    await world.deliver(await first(world, message_id="m-back"))
    assert (len(world.provider.sent), len(second.sent)) == (1, 20)
    assert world.circuit.mode is Mode.CLOSED


async def test_a_delivery_that_alone_provokes_every_provider_comes_to_an_end() -> None:
    world, (second,) = pooled("second")
    job = await first(world)
    stored = job.delivery
    for _ in range(FORGIVEN_AT_MOST * 3):
        world.provider.script, second.script = [down()], [down()]
        for each in world.pool.members:
            each.circuit.ended(None)
            if each.circuit.mode is Mode.OPEN:
                each.circuit.asked(None)
        await world.deliver(job)
        stored = world.deliveries.stored[job.delivery.id]
        if stored.state.final:
            break
        job = job.again(stored)
    assert stored.state is State.FAILED
    assert stored.forgiven <= FORGIVEN_AT_MOST
    assert stored.attempt - stored.forgiven == world.policy.attempts


# ---------------------------------------------------------------------------------------------------------------
# No faster than the rate
# ---------------------------------------------------------------------------------------------------------------


def limited(rate: str) -> tuple[World, list[float]]:
    """A world whose only provider has a rate, and the waits, which take no time but the clock's."""
    world, waits = World(), []

    async def sleep(seconds: float) -> None:
        open_claims = {delivery.claim_id(delivery.attempt + 1) for delivery in world.deliveries.stored.values()}
        assert not open_claims & world.deliveries.attempts.keys(), "no lease runs meanwhile"
        waits.append(seconds)
        world.clock.advance(timedelta(seconds=seconds))

    world.limiter = Limiter(parse_rate(rate), world.clock, sleep)
    return world, waits


async def test_a_token_is_waited_for_before_the_attempt_is_claimed() -> None:
    world, waits = limited("2/s")
    began = world.clock()
    for number in range(6):
        await world.deliver(await first(world, message_id=f"m-{number}"))
    assert len(world.provider.sent) == 6
    assert sum(waits) == pytest.approx(2.5, abs=0.01), "one to begin with, then two in a second"
    assert world.clock() - began == timedelta(seconds=sum(waits))


async def test_what_would_wait_for_too_long_is_held_without_an_attempt() -> None:
    world, waits = limited("10/h")
    await world.deliver(await first(world))
    job = await first(world, message_id="m-2")
    result = await world.deliver(job)
    assert isinstance(result, HeldBack)
    stored = world.deliveries.stored[job.delivery.id]
    assert (stored.state, stored.reason, stored.attempt) == (State.HELD, Reason.RATE_LIMITED, 0)
    assert stored.detail == "the provider is used as fast as its rate of 10/h allows"
    assert stored.due_at == world.clock() + timedelta(minutes=6)
    world.clock.time = stored.due_at
    await world.sweep()
    await world.deliver(world.queue.dispatched[-1])
    assert world.deliveries.stored[job.delivery.id].state is State.SENT
    assert not waits


async def test_what_sends_nothing_takes_no_token() -> None:
    world, waits = limited("1/h")
    job = await first(world)
    await world.deliver(job)
    world.clock.advance(timedelta(hours=1))
    for _ in range(3):
        assert isinstance(await world.deliver(job, redelivered=True), NotClaimed)
    late = await first(world, body=SMALL[:-1] + b', "expires_at": "2026-11-22T18:00:01Z"}', message_id="m-2")
    world.clock.advance(timedelta(minutes=1))
    await world.deliver(late)
    assert world.deliveries.stored[late.delivery.id].state is State.EXPIRED
    await world.deliver(await first(world, message_id="m-3"))
    assert len(world.provider.sent) == 2
    assert not waits


async def test_what_has_waited_in_hand_for_long_is_held() -> None:
    world, waits = limited("1/s")
    await world.deliver(await first(world))
    job = await first(world, message_id="m-2")
    assert isinstance(await world.deliver(job, waited=LONGEST_WAIT), HeldBack)
    assert not waits


async def test_one_that_was_paused_while_its_turn_was_waited_for_is_not_used() -> None:
    world, _ = limited("2/s")

    async def sleep(seconds: float) -> None:
        world.clock.advance(timedelta(seconds=seconds))
        world.circuit.ended(down(Reason.AUTHENTICATION))

    await world.deliver(await first(world))
    assert world.limiter is not None
    world.limiter.sleep = sleep
    assert isinstance(await world.deliver(await first(world, message_id="m-2")), HeldBack)
    assert len(world.provider.sent) == 1
