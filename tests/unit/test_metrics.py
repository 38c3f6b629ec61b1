"""What the gauges show of what stands in the database."""

from dataclasses import replace
from datetime import timedelta

from consumers.metrics import Metrics
from domain.deliver import Settled
from domain.outcome import Sent
from domain.vocabulary import REPLAYABLE, Channel, Reason, State
from tests.unit.world import SMALL, World


def shown(metrics: Metrics, name: str) -> dict[str, float]:
    samples = [sample for family in metrics.registry.collect() for sample in family.samples]
    return {sample.labels["channel"]: sample.value for sample in samples if sample.name == name}


def test_each_state_that_can_be_replayed_has_a_gauge_of_its_own() -> None:
    metrics = Metrics()
    for number, state in enumerate(REPLAYABLE, start=1):
        metrics.standing({(Channel.SMS, state): number}, None)
        gauge = shown(metrics, f"notipy_deliveries_{state}")
        assert gauge == {str(channel): number * (channel is Channel.SMS) for channel in Channel}


def test_what_was_decided_is_shown_no_more() -> None:
    metrics = Metrics()
    metrics.standing({(Channel.EMAIL, State.UNKNOWN): 3, (Channel.EMAIL, State.FAILED): 1}, None)
    metrics.standing({(Channel.EMAIL, State.FAILED): 1}, None)
    assert shown(metrics, "notipy_deliveries_unknown")["email"] == 0
    assert shown(metrics, "notipy_deliveries_failed")["email"] == 1


async def test_what_was_wanted_later_is_not_late_before() -> None:
    metrics = Metrics()
    (job,) = await World().accepted(SMALL)
    at_once = replace(job.delivery, state=State.SENT, reason=Reason.ACCEPTED)
    came = at_once.created_at
    scheduled = replace(at_once, send_at=came + timedelta(days=2), updated_at=came + timedelta(days=2, seconds=3))
    for delivery in (replace(at_once, updated_at=came + timedelta(seconds=1)), scheduled):
        metrics.delivered(Settled(delivery, Sent("250 ok"), "mail", 0.1))
    assert shown(metrics, "notipy_event_to_sent_seconds_sum")["email"] == 1 + 3
