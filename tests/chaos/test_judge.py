"""The judge finds what it is there to find, each made up here."""

from dataclasses import replace

import pytest

from tests.chaos.judge import Allowances, Evidence, Measure, Parked, StoredDelivery, judge
from tests.chaos.load import Published, Wanted

MAIL, HOOK, REJECTED = "user@e1.example.org", "http://127.0.0.1:1/ok?e=1", "reject-550@e2.example.org"
SENT = StoredDelivery("d1", "ord-1", "email", MAIL, "sent", "accepted")
HOOKED = StoredDelivery("d2", "ord-1", "webhook", HOOK, "sent", "accepted")
FAILED = StoredDelivery("d3", "ord-2", "email", REJECTED, "failed", "recipient_rejected")
GOOD = Evidence(
    published=(
        Published("ord-1", "order.paid", b"", (Wanted("email", MAIL), Wanted("webhook", HOOK))),
        Published("ord-2", "order.shipped", b"", (Wanted("email", REJECTED, "recipient_rejected"),)),
        Published("log-1", "order.viewed", b"", ()),
    ),
    events={"ord-1": ("planned", 2), "ord-2": ("planned", 1), "log-1": ("unmatched", 0)},
    deliveries=(SENT, HOOKED, FAILED),
    claims={"d1": 1, "d2": 1, "d3": 1},
    arrived={"d1": 1, "d2": 1},
    semantics={"webhook": "at_most_once"},
    left={"notipy.events": 0, "notipy.channel.email.normal": 0},
    parked=(Parked("notipy.dead.email", "d3", "recipient_rejected"),),
    measures=(Measure("channels", 20, 20),),
)


STRICT = Allowances()


def found(evidence: Evidence, allowed: Allowances = STRICT) -> str:
    return "\n".join(judge(evidence, allowed).violations)


def with_deliveries(*deliveries: StoredDelivery, **changes: object) -> Evidence:
    kept = {each.id: each for each in (*GOOD.deliveries, *deliveries)}
    return replace(GOOD, deliveries=tuple(kept.values()), **changes)  # type: ignore[arg-type]


def test_what_is_in_order_is_found_so() -> None:
    judgement = judge(GOOD, Allowances())
    assert judgement.violations == ()
    assert (judgement.accepted, judgement.delivered, judgement.duplicates, judgement.lost) == (3, 2, 0, 0)


def test_a_confirmed_event_that_is_not_stored_is_lost() -> None:
    events = {key: value for key, value in GOOD.events.items() if key != "ord-1"}
    evidence = replace(GOOD, events=events, deliveries=(FAILED,), arrived={})
    assert judge(evidence, Allowances()).lost == 1
    assert "lost: a confirmed event is not stored" in found(evidence)


def test_a_delivery_that_was_never_planned_is_lost() -> None:
    evidence = replace(
        GOOD, deliveries=(SENT, FAILED), arrived={"d1": 1}, events={**GOOD.events, "ord-1": ("planned", 1)}
    )
    assert "lost: a delivery was never planned" in found(evidence)


def test_what_is_sent_and_never_arrived_is_lost() -> None:
    assert "lost: `sent` and never arrived: d1" in found(replace(GOOD, arrived={"d2": 1}))


def test_what_arrived_and_is_not_stored_is_found() -> None:
    assert "is not stored: stranger" in found(replace(GOOD, arrived={**GOOD.arrived, "stranger": 1}))


def test_a_duplicate_without_a_flag_is_found() -> None:
    evidence = replace(GOOD, arrived={"d1": 2, "d2": 1}, claims={**GOOD.claims, "d1": 2})
    assert "unflagged: arrived 2 times: d1" in found(evidence)


def test_an_arrival_through_a_provider_that_the_history_does_not_name_is_found() -> None:
    evidence = with_deliveries(replace(SENT, attempts={"mail": 1}), through={"d1": {"spare": 1}})
    assert "unattributed: arrived 1 times through spare, which its history names 0 times: d1" in found(evidence)
    assert not found(replace(evidence, through={"d1": {"mail": 1}}))


def test_a_duplicate_with_its_flag_is_counted() -> None:
    evidence = with_deliveries(replace(SENT, flagged=True), arrived={"d1": 2, "d2": 1}, claims={**GOOD.claims, "d1": 2})
    judgement = judge(evidence, Allowances())
    assert judgement.violations == ()
    assert judgement.duplicates == 1


def test_a_flag_excuses_no_duplicate_under_at_most_once() -> None:
    evidence = with_deliveries(
        replace(HOOKED, flagged=True), arrived={"d1": 1, "d2": 2}, claims={**GOOD.claims, "d2": 2}
    )
    assert "repeated: arrived 2 times, at_most_once: d2" in found(evidence)


def test_more_arrivals_than_claims_are_found() -> None:
    evidence = with_deliveries(replace(SENT, flagged=True), arrived={"d1": 2, "d2": 1})
    assert "unclaimed: arrived 2 times, claimed 1: d1" in found(evidence)


@pytest.mark.parametrize(
    "delivery",
    [
        replace(SENT, state="queued", reason="planned"),
        replace(SENT, state="retrying", reason="timeout"),
        replace(SENT, state="failed", reason="timeout"),
        replace(SENT, state="unknown", reason="timeout"),
        replace(SENT, state="cancelled", reason="cancelled"),
        replace(FAILED, reason="timeout"),
        replace(FAILED, state="sent", reason="accepted"),
    ],
    ids=lambda delivery: f"{delivery.state}-{delivery.reason}",
)
def test_a_state_that_nothing_explains_is_found(delivery: StoredDelivery) -> None:
    assert "unexplained" in found(with_deliveries(delivery))


def test_an_unknown_outcome_is_explained_by_at_most_once_alone() -> None:
    unknown = replace(HOOKED, state="unknown", reason="outcome_unknown")
    assert found(with_deliveries(unknown)) == ""
    assert "unexplained" in found(with_deliveries(unknown, semantics={}))


def test_what_failed_and_arrived_all_the_same_needs_a_flag() -> None:
    evidence = replace(GOOD, arrived={**GOOD.arrived, "d3": 1})
    assert "unflagged: failed (recipient_rejected), yet it arrived: d3" in found(evidence)


def test_an_event_that_is_not_planned_to_the_end_is_found() -> None:
    assert "still accepted" in found(replace(GOOD, events={**GOOD.events, "ord-1": ("accepted", 0)}))
    assert "planned 3 deliveries and has 2" in found(replace(GOOD, events={**GOOD.events, "ord-1": ("planned", 3)}))


def test_a_stuck_message_is_found() -> None:
    assert "stuck: 1 messages are left: notipy.events" in found(replace(GOOD, left={"notipy.events": 1}))
    assert "stuck" in found(replace(GOOD, left={"notipy.unrouted": 2}))
    assert found(replace(GOOD, left={"notipy.unrouted": 2}), Allowances(unrouted=True)) == ""


def test_a_dead_letter_that_is_missing_or_of_nothing_dead_is_found() -> None:
    assert "parked: no dead letter of a failed delivery: d3" in found(replace(GOOD, parked=()))
    assert found(replace(GOOD, parked=()), Allowances(dead_letters_lost=True)) == ""
    bug = (*GOOD.parked, Parked("notipy.dead.email", None, "internal_error"))
    assert "holds internal_error" in found(replace(GOOD, parked=bug))


def test_what_has_grown_is_found() -> None:
    assert "grown: channels: 20 before, 21 after" in found(replace(GOOD, measures=(Measure("channels", 20, 21),)))
    assert found(replace(GOOD, measures=(Measure("MB", 80, 120, 150),))) == ""


def test_a_slow_recovery_is_found() -> None:
    assert "slow: recovered after 31.0 s" in found(replace(GOOD, recovery=31.0), Allowances(recovery_seconds=30))


def test_a_doubt_where_nothing_was_interrupted_is_found() -> None:
    evidence = with_deliveries(replace(SENT, flagged=True))
    assert found(evidence) == ""
    assert "in doubt, though nothing was interrupted" in found(evidence, Allowances(flags=False))


def test_many_of_a_kind_are_one_line() -> None:
    left = judge(replace(GOOD, arrived={}), Allowances()).violations
    assert left == ("lost: `sent` and never arrived (2: d1, d2)",)
