"""When a provider is left alone, and when it is used again."""

import asyncio
from datetime import timedelta
from random import Random

import pytest

from domain.circuit import (
    CONFIGURATION,
    FIRST_WAIT,
    FORGIVEN_AT_MOST,
    JITTER,
    LONGEST_WAIT,
    THRESHOLD,
    TRIAL_TOLD_FOR,
    Circuit,
    Mode,
    Passage,
)
from domain.failures import DeliveryFailure, PermanentFailure, TransientFailure, UnknownOutcome
from domain.vocabulary import Reason
from tests.fakes import Clock


def down(reason: Reason = Reason.CONNECTION_REFUSED, retry_after: timedelta | None = None) -> TransientFailure:
    return TransientFailure(reason, "nobody there", provider_fault=True, retry_after=retry_after)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def circuit(clock: Clock) -> Circuit:
    return Circuit("primary", clock, Random(1))


async def admission(circuit: Circuit) -> Passage | None:
    """As a pool of one: None while nothing goes to the provider."""
    while not circuit.admits:
        if circuit.mode is Mode.OPEN:
            return None
        await circuit.tried()
    return circuit.enter()


def opened(circuit: Circuit) -> Circuit:
    for _ in range(THRESHOLD):
        circuit.ended(down())
    return circuit


def test_it_opens_after_several_faults_in_a_row(circuit: Circuit) -> None:
    modes = []
    for _ in range(THRESHOLD):
        circuit.ended(down())
        modes.append(circuit.mode)
    assert modes == [Mode.CLOSED] * (THRESHOLD - 1) + [Mode.OPEN]
    assert circuit.why == "provider primary is paused (connection_refused)"


@pytest.mark.parametrize(
    "answer",
    [
        None,
        PermanentFailure(Reason.RECIPIENT_REJECTED, "550"),
        TransientFailure(Reason.MAILBOX_UNAVAILABLE, "451 greylisted"),
    ],
)
def test_an_answer_shows_that_the_provider_works(circuit: Circuit, answer: DeliveryFailure | None) -> None:
    for _ in range(THRESHOLD * 3):
        circuit.ended(down())
        circuit.ended(answer)
    assert circuit.mode is Mode.CLOSED


@pytest.mark.parametrize("reason", sorted(CONFIGURATION))
def test_one_fault_of_configuration_is_enough(circuit: Circuit, reason: Reason) -> None:
    circuit.ended(down(reason))
    assert circuit.mode is Mode.OPEN


def test_the_settings_may_be_wrong_in_every_way_that_an_adapter_tells() -> None:
    sender = {Reason.SENDER_REJECTED, Reason.REDIRECT_REFUSED}
    assert {Reason.AUTHENTICATION, Reason.TLS, Reason.NOT_CONFIGURED} | sender == CONFIGURATION


def test_a_limit_pauses_a_while_without_being_asked_for_it(circuit: Circuit, clock: Clock) -> None:
    circuit.ended(TransientFailure(Reason.RATE_LIMITED, "a device's own"))
    assert circuit.mode is Mode.CLOSED
    circuit.ended(down(Reason.RATE_LIMITED))
    assert circuit.until is not None
    assert FIRST_WAIT <= circuit.until - clock() <= FIRST_WAIT * (1 + JITTER)


def test_a_provider_that_asks_to_be_left_alone_is(circuit: Circuit, clock: Clock) -> None:
    circuit.ended(down(Reason.RATE_LIMITED, retry_after=timedelta(minutes=2)))
    assert circuit.until is not None
    assert circuit.until >= clock() + timedelta(minutes=2)


def test_questions_come_less_and_less_often_but_never_stop(circuit: Circuit, clock: Clock) -> None:
    opened(circuit)
    waits = []
    for _ in range(12):
        assert circuit.until is not None
        waits.append(circuit.until - clock())
        assert not circuit.due()
        clock.time = circuit.until
        assert circuit.due()
        circuit.asked(down())
    assert FIRST_WAIT <= waits[0] <= FIRST_WAIT * (1 + JITTER)
    assert all(wait <= LONGEST_WAIT * (1 + JITTER) for wait in waits)
    assert waits[-1] >= LONGEST_WAIT


@pytest.mark.parametrize("retry_after", [None, timedelta(minutes=10)])
def test_a_clock_that_is_set_back_makes_no_pause_longer(
    circuit: Circuit, clock: Clock, retry_after: timedelta | None
) -> None:
    circuit.ended(down(Reason.RATE_LIMITED, retry_after=retry_after))
    assert not circuit.due()
    clock.advance(timedelta(hours=-2))
    assert circuit.due()
    circuit.asked(down())
    assert not circuit.due()
    clock.advance(LONGEST_WAIT)
    assert circuit.due()


async def test_nothing_passes_while_it_is_open_and_one_tries_afterwards(circuit: Circuit) -> None:
    opened(circuit)
    assert await admission(circuit) is None
    circuit.asked(None)
    first = await admission(circuit)
    assert first == Passage(trial=True)
    others = [asyncio.create_task(admission(circuit)) for _ in range(3)]
    await asyncio.sleep(0)
    assert not any(other.done() for other in others)
    with circuit.passing(first):
        circuit.ended(None)
    assert [await other for other in others] == [Passage()] * 3
    assert circuit.mode is Mode.CLOSED


async def a_trial_and_another(circuit: Circuit) -> tuple[Passage, asyncio.Task[Passage | None]]:
    """Of an open circuit: the trial that it admits, and who waits for its end."""
    opened(circuit)
    circuit.asked(None)
    trial = await admission(circuit)
    assert trial is not None
    waiting = asyncio.create_task(admission(circuit))
    await asyncio.sleep(0)
    return trial, waiting


async def test_a_trial_that_fails_opens_it_again_for_longer(circuit: Circuit, clock: Clock) -> None:
    trial, waiting = await a_trial_and_another(circuit)
    with circuit.passing(trial):
        circuit.ended(down())
    assert await waiting is None
    assert circuit.until is not None
    assert circuit.until - clock() >= FIRST_WAIT * 2


async def test_a_trial_that_proves_nothing_lets_the_next_one_try(circuit: Circuit) -> None:
    trial, waiting = await a_trial_and_another(circuit)
    with circuit.passing(trial):
        pass  # its attempt belonged to somebody else
    assert await waiting == Passage(trial=True)


def test_only_what_was_certainly_not_sent_is_forgiven(circuit: Circuit) -> None:
    assert not circuit.forgives(down(), 0), "the circuit is closed: the policy decides"
    opened(circuit)
    assert circuit.forgives(down(), 0)
    assert not circuit.forgives(down(), FORGIVEN_AT_MOST), "it may be the delivery that provokes the fault"
    assert not circuit.forgives(UnknownOutcome(Reason.CONNECTION_LOST, "", provider_fault=True), 0)
    assert not circuit.forgives(TransientFailure(Reason.MAILBOX_UNAVAILABLE, "451"), 0)


def test_a_circuit_that_waits_for_a_delivery_is_not_told_as_paused_for_ever(circuit: Circuit, clock: Clock) -> None:
    opened(circuit)
    assert circuit.told is Reason.CONNECTION_REFUSED
    circuit.asked(None)
    assert circuit.told is Reason.CONNECTION_REFUSED
    for step in (TRIAL_TOLD_FOR, timedelta(hours=-2)):  # the clock is set back
        clock.advance(step)
        assert circuit.told is None


def test_an_answer_to_what_was_under_way_when_it_opened_does_not_close_it(circuit: Circuit) -> None:
    opened(circuit)
    circuit.ended(None)
    assert circuit.mode is Mode.OPEN
