from datetime import timedelta

import pytest

from domain.circuit import FORGIVEN_AT_MOST, Circuit
from domain.deliver import HELD_SPREAD, HeldBack, Late, NotClaimed, Settled
from domain.delivery import Change, Delivery
from domain.dispatch import STALE_AFTER, Dispatch
from domain.failures import PermanentFailure, TransientFailure, UnknownOutcome
from domain.message import Accepted
from domain.pool import Member
from domain.ports import Claim
from domain.vocabulary import Reason, Semantics, State
from tests.fakes import ScriptedProvider
from tests.unit.world import LEASE, OVERDUE, SMALL, World


@pytest.fixture(autouse=True, params=[False, True], ids=["alone", "together"])
def alone_or_together(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever holds for a delivery holds for it among others."""
    monkeypatch.setattr(World, "together", request.param)


async def first(world: World, body: bytes = SMALL) -> Dispatch:
    (job,) = await world.accepted(body)
    return job


async def test_an_attempt_is_claimed_sent_and_recorded() -> None:
    world = World()
    job = await first(world)
    result = await world.deliver(job)
    assert isinstance(result, Settled)
    stored = world.deliveries.stored[job.delivery.id]
    assert (stored.state, stored.reason, stored.attempt, stored.due_at) == (State.SENT, Reason.ACCEPTED, 1, None)
    assert [change.state for change in stored.history] == [State.QUEUED, State.SENDING, State.SENT]
    assert world.provider.sent[0].idempotency_key == f"{job.delivery.id}/1"


async def test_whoever_redelivers_it_is_sent_once() -> None:
    world = World()
    job = await first(world)
    await world.deliver(job)
    assert isinstance(await world.deliver(job, redelivered=True), NotClaimed)
    assert len(world.provider.sent) == 1


async def test_a_transient_failure_goes_to_a_retry_tier_and_is_due_after_it() -> None:
    world = World()
    world.provider.script = [TransientFailure(Reason.RATE_LIMITED, "451 later")]
    job = await first(world)
    await world.deliver(job)
    stored = world.deliveries.stored[job.delivery.id]
    ((again, tier),) = world.queue.retried
    assert stored.state is State.RETRYING
    assert again.attempt == 2
    assert stored.due_at is not None
    assert stored.due_at > world.clock() + tier
    await world.deliver(again)
    assert world.deliveries.stored[job.delivery.id].attempt == 2


async def test_a_wait_longer_than_any_tier_is_held() -> None:
    world = World()
    world.provider.script = [TransientFailure(Reason.RATE_LIMITED, "later", retry_after=timedelta(hours=1))]
    job = await first(world)
    await world.deliver(job)
    stored = world.deliveries.stored[job.delivery.id]
    assert stored.state is State.HELD
    assert not world.queue.retried
    assert stored.due_at is not None
    assert stored.due_at >= world.clock() + timedelta(hours=1)


async def test_a_permanent_failure_is_parked() -> None:
    world = World()
    world.provider.script = [PermanentFailure(Reason.RECIPIENT_REJECTED, "550 no such user")]
    job = await first(world)
    await world.deliver(job)
    ((parked, reason, detail),) = world.queue.parked
    assert (reason, detail) == (Reason.RECIPIENT_REJECTED, "550 no such user")
    assert parked.delivery.state is State.FAILED


async def test_the_last_attempt_gives_up() -> None:
    world = World()
    world.provider.script = [TransientFailure(Reason.TIMEOUT, "slow")] * 7
    job = await first(world)
    for _ in range(world.policy.attempts):
        await world.deliver(job)
        job = job.again(world.deliveries.stored[job.delivery.id])
    stored = world.deliveries.stored[job.delivery.id]
    assert stored.state is State.FAILED
    assert stored.reason is Reason.TIMEOUT
    assert "gave up after 7 attempts" in str(stored.detail)
    assert len([change for change in stored.history if change.state is State.SENDING]) == 7


@pytest.mark.parametrize(
    ("semantics", "state"), [(Semantics.AT_LEAST_ONCE, State.RETRYING), (Semantics.AT_MOST_ONCE, State.UNKNOWN)]
)
async def test_an_unknown_outcome_follows_the_channels_semantics(semantics: Semantics, state: State) -> None:
    world = World(semantics)
    world.provider.script = [UnknownOutcome(Reason.CONNECTION_LOST, "after DATA")]
    job = await first(world)
    await world.deliver(job)
    stored = world.deliveries.stored[job.delivery.id]
    assert stored.state is state
    assert stored.possible_duplicate == (semantics is Semantics.AT_LEAST_ONCE)


async def test_a_providers_bug_is_an_unknown_outcome_and_tells_no_address() -> None:
    world = World()
    world.provider.script = [KeyError("ana@example.org")]
    job = await first(world)
    await world.deliver(job)
    stored = world.deliveries.stored[job.delivery.id]
    assert (stored.state, stored.reason) == (State.RETRYING, Reason.INTERNAL_ERROR)
    assert "KeyError" in str(stored.detail)
    assert "ana@" not in str(stored.history)


async def test_what_has_expired_is_not_sent() -> None:
    world = World()
    job = await first(world, SMALL[:-1] + b', "expires_at": "2026-11-22T17:10:00Z"}')
    world.clock.advance(timedelta(minutes=11))
    await world.deliver(job)
    stored = world.deliveries.stored[job.delivery.id]
    assert (stored.state, stored.attempt) == (State.EXPIRED, 0)
    assert not world.provider.sent


async def test_a_lost_retry_message_is_published_again_on_redelivery() -> None:
    world = World()
    world.provider.script = [TransientFailure(Reason.TIMEOUT, "slow")]
    job = await first(world)
    await world.deliver(job)
    world.queue.retried.clear()
    result = await world.deliver(job, redelivered=True)
    assert isinstance(result, NotClaimed)
    assert len(world.queue.retried) == 1
    assert world.queue.retried[0][0].attempt == 2


async def test_the_end_that_another_provider_came_to_is_told_when_the_message_of_the_first_comes_again() -> None:
    world = World()
    world.provider.script = [TransientFailure(Reason.CONNECTION_REFUSED, "x", provider_fault=True)]
    world.others = [Member(ScriptedProvider(name="second"), Circuit("second", world.clock))]
    job = await first(world)
    told = world.queue.status

    async def ends_its_process(delivery: Delivery, change: Change, *, patient: bool = False) -> None:
        if change.state is State.SENT:
            raise SystemError
        await told(delivery, change, patient=patient)

    world.queue.status = ends_its_process  # type: ignore[method-assign]
    with pytest.raises(SystemError):
        await world.deliver(job)
    world.queue.status = told  # type: ignore[method-assign]
    stored = world.deliveries.stored[job.delivery.id]
    assert (stored.state, stored.attempt) == (State.SENT, 2)
    result = await world.deliver(job, redelivered=True)
    assert isinstance(result, NotClaimed)
    assert result.why == "decided"
    assert [(change.state, change.attempt) for change in world.queue.told].count((State.SENT, 2)) == 1


async def test_a_message_of_an_attempt_that_others_have_followed_publishes_nothing() -> None:
    world = World()
    world.provider.script = [TransientFailure(Reason.TIMEOUT, "slow")] * 2
    job = await first(world)
    await world.deliver(job)
    await world.deliver(world.queue.retried[0][0])
    world.queue.retried.clear()
    world.queue.told.clear()
    result = await world.deliver(job, redelivered=True)
    assert isinstance(result, NotClaimed)
    assert (result.why, world.queue.retried, world.queue.told) == ("superseded", [], [])


async def test_a_consumer_that_died_leaves_its_claim_to_the_sweeper() -> None:
    world = World()
    job = await first(world)
    await world.deliveries.claim(world.deliver.claim_of(job))
    result = await world.deliver(job, redelivered=True)
    assert isinstance(result, NotClaimed)
    assert world.deliveries.stored[job.delivery.id].due_at == world.clock() + LEASE


@pytest.mark.parametrize(
    ("reference", "stored"),
    [
        (42, "42"),
        (["a"], None),
        ({"id": 1}, None),
        (True, None),
        (1.5, None),
        pytest.param(1 << 4000, None, id="huge"),
        ("", None),
        ("x" * 9999, "x" * 500),
        ("a\udce4", "a"),
    ],
)
async def test_whatever_a_provider_calls_it_a_message_that_was_taken_is_sent(
    reference: object, stored: str | None
) -> None:
    world = World()
    world.provider.script = [Accepted("250 ok\r\n\x00\udce4", reference)]
    job = await first(world)
    await world.deliver(job)
    delivery = world.deliveries.stored[job.delivery.id]
    assert (delivery.state, delivery.reference) == (State.SENT, stored)
    assert (delivery.history[-1].detail or "").isprintable()


@pytest.mark.parametrize("answer", [None, "250 ok", 7, {"id": 1}])
async def test_whatever_a_provider_returns_a_message_that_was_taken_is_sent(answer: object) -> None:
    world = World()

    async def send(_: object) -> object:
        return answer

    world.provider.send = send  # type: ignore[method-assign,assignment]
    job = await first(world)
    await world.deliver(job)
    assert world.deliveries.stored[job.delivery.id].state is State.SENT


async def test_one_that_wakes_after_its_lease_says_so() -> None:
    world = World()
    job = await first(world)
    claimed = world.deliver

    async def late() -> None:
        world.clock.advance(LEASE * 2)
        await world.sweep()

    real = world.provider.send

    async def slow(message: object) -> Accepted:
        await late()
        return await real(message)  # type: ignore[arg-type]

    world.provider.send = slow  # type: ignore[method-assign]
    world.clock.advance(timedelta(0))
    world.deliveries.stored[job.delivery.id] = job.delivery.__class__(
        **{name: getattr(job.delivery, name) for name in job.delivery.__dataclass_fields__} | {"due_at": world.clock()}
    )
    result = await claimed(job)
    assert isinstance(result, Late)
    stored = world.deliveries.stored[job.delivery.id]
    assert stored.possible_duplicate
    assert "after its lease" in str(stored.history[-1].detail)


async def test_a_claim_that_took_longer_than_its_lease_sends_nothing() -> None:
    world = World()
    job = await first(world)
    real = world.deliveries.claim

    async def slow(claim: Claim) -> bool:
        world.clock.advance(LEASE)
        return await real(claim)

    world.deliveries.claim = slow  # type: ignore[method-assign]
    await world.deliver(job)
    assert not world.provider.sent
    assert world.deliveries.stored[job.delivery.id].reason is Reason.TIMEOUT
    assert not world.deliveries.stored[job.delivery.id].possible_duplicate


@pytest.mark.parametrize("claims_are_kept", [True, False])
async def test_an_order_older_than_its_claims_may_be_is_looked_up_before_it_is_carried_out(
    claims_are_kept: bool,
) -> None:
    world = World()
    job = await first(world)
    await world.deliver(job)
    if not claims_are_kept:
        world.deliveries.attempts.clear()
    world.clock.advance(STALE_AFTER)
    assert isinstance(await world.deliver(job), NotClaimed)
    world.deliveries.stored.clear()
    assert isinstance(await world.deliver(job), NotClaimed)
    assert len(world.provider.sent) == 1


async def test_an_old_order_whose_delivery_still_waits_for_it_is_carried_out() -> None:
    world = World()
    job = await first(world)
    world.clock.advance(STALE_AFTER * 2)
    assert isinstance(await world.deliver(job), Settled)


def down() -> TransientFailure:
    return TransientFailure(Reason.AUTHENTICATION, "535 no", provider_fault=True)


async def test_a_fault_that_opens_the_circuit_is_held_and_does_not_count() -> None:
    world = World()
    world.provider.script = [down()]
    job = await first(world)
    await world.deliver(job)
    stored = world.deliveries.stored[job.delivery.id]
    assert (stored.state, stored.reason, stored.attempt, stored.forgiven) == (
        State.HELD,
        Reason.AUTHENTICATION,
        1,
        1,
    )
    assert stored.due_at is not None
    assert world.circuit.until is not None
    assert timedelta(0) <= stored.due_at - world.circuit.until <= HELD_SPREAD
    assert not world.queue.retried


async def test_while_the_circuit_is_open_nothing_is_claimed() -> None:
    world = World()
    job = await first(world)
    world.circuit.ended(down())
    result = await world.deliver(job)
    assert isinstance(result, HeldBack)
    stored = world.deliveries.stored[job.delivery.id]
    assert (stored.state, stored.reason, stored.attempt) == (State.HELD, Reason.PROVIDER_PAUSED, 0)
    assert not world.deliveries.attempts
    assert "provider scripted is paused (authentication)" in (stored.detail or "")


@pytest.mark.parametrize("paused", [True, False])
async def test_what_is_held_expires_in_time(paused: bool) -> None:
    world = World()
    job = await first(world, SMALL[:-1] + b', "expires_at": "2026-11-22T17:10:00Z"}')
    wait = timedelta(minutes=50)
    if paused:
        world.circuit.ended(TransientFailure(Reason.RATE_LIMITED, "429", provider_fault=True, retry_after=wait))
    world.provider.script = [TransientFailure(Reason.RATE_LIMITED, "later", retry_after=wait)]
    await world.deliver(job)
    stored = world.deliveries.stored[job.delivery.id]
    assert (stored.state, stored.due_at) == (State.HELD, job.delivery.expires_at)
    world.clock.advance(timedelta(minutes=10))
    await world.sweep()
    assert world.deliveries.stored[job.delivery.id].state is State.EXPIRED


async def test_what_is_decided_is_not_held_back() -> None:
    world = World()
    job = await first(world)
    await world.deliver(job)
    world.circuit.ended(down())
    assert isinstance(await world.deliver(job, redelivered=True), NotClaimed)
    assert world.deliveries.stored[job.delivery.id].state is State.SENT


async def test_the_attempts_of_the_policy_are_those_that_count() -> None:
    world = World()
    job = await first(world)
    for number in range(FORGIVEN_AT_MOST):
        world.provider.script = [down()]
        await world.deliver(job)
        stored = world.deliveries.stored[job.delivery.id]
        assert (stored.attempt, stored.forgiven) == (number + 1, number + 1)
        world.circuit.asked(None)
        job = job.again(stored)
    refused = TransientFailure(Reason.MAILBOX_UNAVAILABLE, "451 later")
    for _ in range(world.policy.attempts):
        world.provider.script = [refused]
        await world.deliver(job)
        stored = world.deliveries.stored[job.delivery.id]
        job = job.again(stored)
    stored = world.deliveries.stored[job.delivery.id]
    assert stored.state is State.FAILED
    assert stored.attempt - stored.forgiven == world.policy.attempts


async def test_a_failure_whose_process_ended_before_it_was_parked_is_parked_by_the_sweeper() -> None:
    world = World()
    world.provider.script = [PermanentFailure(Reason.RECIPIENT_REJECTED, "550 no")]
    job = await first(world)
    world.queue.park = None  # type: ignore[method-assign, assignment]
    with pytest.raises(TypeError):
        await world.deliver(job)
    del world.queue.park
    stored = world.deliveries.stored[job.delivery.id]
    assert (stored.state, stored.tell_at) == (State.FAILED, world.clock() + OVERDUE)
    world.clock.advance(OVERDUE)
    await world.sweep()
    ((parked, reason, _),) = world.queue.parked
    assert (parked.delivery.id, reason) == (job.delivery.id, Reason.RECIPIENT_REJECTED)
    assert world.deliveries.stored[job.delivery.id].tell_at is None


async def test_a_failure_that_was_parked_is_told_no_more() -> None:
    world = World()
    world.provider.script = [PermanentFailure(Reason.RECIPIENT_REJECTED, "550 no")]
    job = await first(world)
    await world.deliver(job)
    assert world.deliveries.stored[job.delivery.id].tell_at is None


async def test_a_failure_that_finds_its_dead_letter_queue_full_is_parked_when_there_is_room() -> None:
    world = World()
    world.provider.script = [PermanentFailure(Reason.RECIPIENT_REJECTED, "550 no")]
    job = await first(world)
    world.queue.full = True
    await world.deliver(job)
    assert world.queue.told[-1].state is State.FAILED, "whoever listens is told at once"
    assert world.deliveries.stored[job.delivery.id].tell_at == world.clock() + OVERDUE
    world.clock.advance(OVERDUE)
    assert (await world.sweep()).faults == ["notipy.dead.email takes nothing: it is full"]
    world.queue.full = False
    world.clock.advance(OVERDUE)
    assert (await world.sweep()).told == 1
    ((parked, reason, _),) = world.queue.parked
    assert (parked.delivery.id, reason) == (job.delivery.id, Reason.RECIPIENT_REJECTED)
    assert world.deliveries.stored[job.delivery.id].tell_at is None
