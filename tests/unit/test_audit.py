"""What is compared in an audit, as tables."""

from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.audit import (
    ADVICE,
    HOUR,
    PUBLISHING,
    Discrepancy,
    Dispatched,
    EventCount,
    Kind,
    Patience,
    Queued,
    Span,
    Sums,
    amiss,
    hour_of,
    may_hold_orphans,
    planning,
    sent_again,
    unequal,
)
from domain.delivery import Change
from domain.ports import Waiting
from domain.vocabulary import Channel, EventState, Lane, Reason, State
from tests.fakes import START

OVERDUE, LEASE = timedelta(minutes=5), timedelta(minutes=2)
EMAIL = (Channel.EMAIL, Lane.NORMAL)
MINUTE = timedelta(minutes=1)
EMPTY = Waiting(0, 0)


def event(state: EventState, planned: int) -> EventCount:
    return EventCount("e-1", state, planned)


@pytest.mark.parametrize(
    ("state", "planned", "stored", "wrong"),
    [
        (EventState.PLANNED, 2, 2, False),
        (EventState.PLANNED, 2, 1, True),
        (EventState.PLANNED, 2, 3, True),
        (EventState.PLANNED, 2, 0, True),
        (EventState.UNMATCHED, 0, 0, False),
        (EventState.UNMATCHED, 0, 1, True),
        (EventState.ACCEPTED, 0, 1, False),
        (EventState.FAILED, 1, 1, False),
    ],
)
def test_an_event_is_compared_once_its_planning_is_complete(
    state: EventState, planned: int, stored: int, wrong: bool
) -> None:
    counts = {"e-1": stored} if stored else {}
    assert bool(unequal([event(state, planned)], counts)) is wrong
    assert planning([event(state, planned)], counts) == (stored if state is EventState.ACCEPTED else 0)


def test_a_difference_has_a_name() -> None:
    assert amiss(3, 1) == (Kind.MISSING, "3 planned, 1 stored")
    assert amiss(3, 4) == (Kind.SURPLUS, "3 planned, 4 stored")
    assert set(ADVICE) == set(Kind)


@pytest.mark.parametrize(
    ("stored", "of_events", "over", "search"),
    [(5, 5, True, False), (5, 5, False, False), (6, 5, False, True), (4, 5, False, False), (4, 5, True, True)],
)
def test_orphans_are_searched_for_where_the_sums_tell_of_them(
    stored: int, of_events: int, over: bool, search: bool
) -> None:
    assert may_hold_orphans(stored, of_events, over=over) is search


def test_only_within_an_epoch_is_a_second_sending_one_too_many() -> None:
    sent = [(1, 1), (2, 1), (2, 3), (3, 1)]
    history = [Change(State.SENT, START, Reason.ACCEPTED, epoch, attempt) for epoch, attempt in sent]
    history.append(Change(State.RETRYING, START, Reason.TIMEOUT, 1, 2))
    assert sent_again(history) == {2: 2}


places = st.tuples(st.sampled_from(Channel), st.sampled_from([state for state in State if state is not State.SENDING]))
sums = st.builds(
    Sums,
    st.integers(0, 99),
    st.integers(0, 99),
    st.integers(0, 99),
    st.dictionaries(places, st.integers(1, 9)),
)


@given(st.lists(sums, max_size=5))
def test_sums_add_up(parts: list[Sums]) -> None:
    whole = sum(parts, Sums())
    assert whole.stored == sum(part.stored for part in parts) == whole.final + whole.in_flight
    assert whole.planned == sum(part.planned for part in parts)
    assert all(state in {State.FAILED, State.UNKNOWN} or not state.final for _, state in whole.moving)


def test_only_a_full_hour_of_the_clock_is_whole() -> None:
    assert Span(START, START + HOUR).whole
    assert not Span(START + MINUTE, START + HOUR).whole
    assert hour_of(START + 59 * MINUTE) == START


def test_an_exception_that_was_acknowledged_is_another_once_it_has_grown() -> None:
    first = Discrepancy(Kind.SURPLUS, "e-1", "shop", "ord-1", START, "", mark="/3")
    second = Discrepancy(Kind.SURPLUS, "e-1", "shop", "ord-1", START, "", mark="/4")
    orphan = Discrepancy(Kind.ORPHANED, "e-1", "shop", "ord-1", START, "", delivery="d-1")
    assert (first.id, orphan.id) == ("e-1", "d-1")
    assert len({first.token, second.token, orphan.token}) == 3


def lost(
    state: State = State.QUEUED,
    *,
    age: timedelta = MINUTE,
    back_in: timedelta | None = None,
    lane: Waiting | None = EMPTY,
    retries: int = 0,
) -> bool:
    """Whether a delivery that changed `age` ago, to be back from its retry in `back_in`, is lost."""
    now: datetime = START
    back = now - age if back_in is None else now + back_in
    delivery = Dispatched("d-1", *EMAIL, state, "d-1/1/1", now - age, back + OVERDUE)
    return Patience(OVERDUE, LEASE).lost(delivery, Queued({EMAIL: lane} if lane else {}, retries), now)


def test_what_an_empty_queue_should_hold_is_lost() -> None:
    assert lost()
    assert not lost(lane=Waiting(1, 0)), "it may be this one"
    assert not lost(lane=None), "of another version, or a channel that is not configured any more"
    assert not lost(age=PUBLISHING / 2), "it may be being published"


def test_a_consumer_may_hold_it_for_a_lease() -> None:
    assert not lost(lane=Waiting(0, 1))
    assert lost(lane=Waiting(0, 1), age=LEASE)


def test_a_retry_waits_in_a_retry_queue_and_then_in_its_own() -> None:
    assert not lost(State.RETRYING, back_in=MINUTE, retries=1)
    assert lost(State.RETRYING, back_in=MINUTE, lane=Waiting(0, 1)), "not back yet, so no consumer can hold it"
    assert not lost(State.RETRYING, age=10 * MINUTE, back_in=-MINUTE, lane=Waiting(0, 1))
    assert lost(State.RETRYING, age=10 * MINUTE, back_in=-3 * MINUTE, lane=Waiting(0, 1))


def test_what_the_sweeper_has_dispatched_again_counts_from_then() -> None:
    assert not lost(age=60 * MINUTE, back_in=-MINUTE, lane=Waiting(0, 1))
