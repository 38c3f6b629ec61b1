"""A delivery's JSON record is a contract; its attempts come out of its history."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from cli.delivery_views import attempts_of, next_attempt_at, record_of, timeline, whole_record_of
from cli.options import DeadState, Parked
from domain.delivery import Change, Delivery
from domain.vocabulary import REPLAYABLE, Channel, Lane, Reason, State

NOW = datetime(2026, 11, 22, 17, tzinfo=UTC)
OVERDUE = timedelta(minutes=5)
CONTRACT = [
    *("id", "event_id", "source", "type", "channel", "state", "reason", "attempt", "provider", "recipient"),
    *("created_at", "updated_at", "attempts"),
]
ATTEMPT = ["epoch", "attempt", "state", "at", "provider", "reason", "detail", "possible_duplicate"]
Step = tuple[State, Reason, int, int]

PLANNED: Step = (State.QUEUED, Reason.PLANNED, 1, 0)
CLAIMED: Step = (State.SENDING, Reason.CLAIMED, 1, 1)
SENT: Step = (State.SENT, Reason.ACCEPTED, 1, 1)
RETRYING: Step = (State.RETRYING, Reason.TIMEOUT, 1, 1)
LOST: Step = (State.QUEUED, Reason.OUTCOME_UNKNOWN, 1, 1)


def delivery(*steps: Step) -> Delivery:
    history = tuple(
        Change(state, NOW + timedelta(seconds=number), reason, epoch, attempt, "mail")
        for number, (state, reason, epoch, attempt) in enumerate(steps)
    )
    last = history[-1]
    return Delivery(
        id="d-1",
        event_key="e-key",
        event_id="ord-1",
        source="shop",
        type="order.shipped",
        notification="order-shipped",
        version=3,
        channel=Channel.EMAIL,
        lane=Lane.NORMAL,
        recipient={"id": "u-1", "email": "ana@example.org"},
        recipient_key="u-1",
        state=last.state,
        reason=last.reason,
        created_at=NOW,
        updated_at=last.at,
        epoch=last.epoch,
        attempt=last.attempt,
        provider="mail",
        history=history,
    )


def test_the_record_begins_with_the_contract() -> None:
    record = record_of(delivery(PLANNED, CLAIMED, SENT))
    assert list(record)[: len(CONTRACT)] == CONTRACT
    assert record["recipient"] == {"id": "u-1", "email": "ana@example.org"}
    assert list(record["attempts"][0]) == ATTEMPT


def test_the_whole_record_has_every_change() -> None:
    assert [change["state"] for change in whole_record_of(delivery(PLANNED, CLAIMED, SENT), OVERDUE)["history"]] == [
        "queued",
        "sending",
        "sent",
    ]


@pytest.mark.parametrize(
    ("step", "due", "following"),
    [
        pytest.param(RETRYING, NOW + 2 * OVERDUE, NOW + OVERDUE, id="retrying"),
        pytest.param(RETRYING, NOW + OVERDUE, NOW + timedelta(seconds=1), id="at once, with another provider"),
        pytest.param((State.HELD, Reason.PROVIDER_PAUSED, 1, 1), NOW + OVERDUE, NOW + OVERDUE, id="held"),
        pytest.param((State.QUEUED, Reason.RELEASED, 1, 1), NOW + OVERDUE, None, id="queued"),
        pytest.param(SENT, None, None, id="sent"),
    ],
)
def test_when_the_next_attempt_is(step: Step, due: datetime | None, following: datetime | None) -> None:
    assert next_attempt_at(replace(delivery(PLANNED, step), due_at=due), OVERDUE) == following


@pytest.mark.parametrize(
    ("steps", "attempts"),
    [
        pytest.param([PLANNED], [], id="planned"),
        pytest.param([(State.SUPPRESSED, Reason.NO_ADDRESS, 1, 0)], [], id="no address"),
        pytest.param([(State.FAILED, Reason.TEMPLATE_ERROR, 1, 0)], [], id="failed at planning"),
        pytest.param([PLANNED, CLAIMED, SENT], [(1, 1, "sent")], id="sent"),
        pytest.param(
            [PLANNED, CLAIMED, RETRYING, (State.SENDING, Reason.CLAIMED, 1, 2), (State.SENT, Reason.ACCEPTED, 1, 2)],
            [(1, 1, "retrying"), (1, 2, "sent")],
            id="retried",
        ),
        pytest.param(
            [PLANNED, CLAIMED, (State.HELD, Reason.TIMEOUT, 1, 1), (State.QUEUED, Reason.RELEASED, 1, 1)],
            [(1, 1, "held")],
            id="held and released",
        ),
        pytest.param(
            [PLANNED, CLAIMED, RETRYING, (State.CANCELLED, Reason.CANCELLED, 1, 1)],
            [(1, 1, "retrying")],
            id="cancelled",
        ),
        pytest.param(
            [
                PLANNED,
                CLAIMED,
                (State.FAILED, Reason.RECIPIENT_REJECTED, 1, 1),
                (State.QUEUED, Reason.REPLAYED, 2, 0),
                (State.SENDING, Reason.CLAIMED, 2, 1),
                (State.SENT, Reason.ACCEPTED, 2, 1),
            ],
            [(1, 1, "failed"), (2, 1, "sent")],
            id="replayed",
        ),
        pytest.param([PLANNED, LOST], [(1, 1, "queued")], id="its lease ran out"),
        pytest.param([PLANNED, LOST, SENT], [(1, 1, "sent")], id="found out too late"),
        pytest.param(
            [PLANNED, CLAIMED, RETRYING, (State.FAILED, Reason.INTERNAL_ERROR, 1, 1)],
            [(1, 1, "retrying")],
            id="given up without another attempt",
        ),
    ],
)
def test_attempts_come_out_of_the_history(steps: list[Step], attempts: list[tuple[int, int, str]]) -> None:
    found = attempts_of(delivery(*steps))
    assert [(each["epoch"], each["attempt"], each["state"]) for each in found] == attempts


def test_the_live_attempt_is_one_too() -> None:
    live = replace(delivery(PLANNED), state=State.SENDING, reason=Reason.CLAIMED, attempt=1)
    assert [(each["attempt"], each["state"]) for each in attempts_of(live)] == [(1, "sending")]
    assert "sending" in str(timeline(live)[-1])


def test_an_outcome_that_is_found_out_too_late_stays_a_possible_duplicate() -> None:
    found = delivery(PLANNED, LOST, SENT)
    doubted = replace(found.history[1], possible_duplicate=True)
    assert attempts_of(replace(found, history=(found.history[0], doubted, found.history[2])))[0]["possible_duplicate"]


def test_the_options_words_are_the_vocabulary() -> None:
    assert [*map(str, Channel), "events", "receipts"] == list(map(str, Parked))
    assert set(map(str, REPLAYABLE)) == set(map(str, DeadState))
