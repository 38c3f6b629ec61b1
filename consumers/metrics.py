"""What Prometheus scrapes. One registry, right with several worker processes too.

No label holds an id, an address or anything else without bound.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from typing import assert_never

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

from domain.accept import Accepted, Duplicate, Rejected, Unmatched, Verdict
from domain.audit import Kind
from domain.deliver import HeldBack, Late, NotClaimed, Result, Settled
from domain.delivery import Delivery
from domain.outcome import Sent
from domain.sweep import Swept
from domain.vocabulary import IN_FLIGHT, Channel, Reason, State, SuppressionReason

_SEND_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_LATENCY_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 15, 60, 300, 1800, 7200, 43200)
_OUTCOME = ("channel", "provider", "outcome", "reason")


class Metrics:
    """Every metric of NotiPy; names start with `notipy_` and end with their unit."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a time of creation beside each counter doubles the page and tells nobody anything
        self.registry = registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"notipy_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, mode: str, *labels: str) -> Gauge:
            return Gauge(f"notipy_{name}", text, labels, multiprocess_mode=mode, registry=registry)  # type: ignore[arg-type]

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"notipy_{name}", text, labels, buckets=buckets, registry=registry)

        # of what is counted with each message, the metric of each combination of labels is looked up once
        self._events = cache(counter("events", "Events by what became of them.", "outcome", "reason").labels)
        self._deliveries = cache(counter("deliveries", "Deliveries that reached a final state.", *_OUTCOME).labels)
        self._attempts = cache(counter("attempts", "Attempts by the state that they led to.", *_OUTCOME).labels)
        self._not_claimed = counter(
            "not_claimed", "Work orders that somebody else had or had decided; harmless.", "channel", "why"
        )
        self._dispatches = cache(
            counter("dispatches", "Messages published to the channels' queues.", "channel", "lane").labels
        )
        self._dispatched = cache(
            counter(
                "dispatched_deliveries",
                "Deliveries in those messages; under load several share one.",
                "channel",
                "lane",
            ).labels
        )
        self._receipts = counter("receipts", "Receipts by what they said and what came of them.", "status", "outcome")
        self._suppressed = counter(
            "suppressed_addresses", "Addresses that were suppressed by what a provider said.", "channel", "reason"
        )
        self._copies = counter("suppressed_copies", "Copies left out of mails because they are suppressed.")
        self._swept = counter("swept", "What was found overdue and driven on, by what was wrong.", "reason")
        self._deleted = counter("deleted", "What was older than it is kept, by what it was.", "class")
        self._segments = counter("sms_segments", "Segments of SMS that a provider has taken.", "provider", "encoding")
        latency = "From its arrival, or its send_at, to the provider's acceptance."
        self._latency = cache(histogram("event_to_sent_seconds", latency, _LATENCY_BUCKETS, "channel").labels)
        send = "One attempt, rendering included."
        self._send = cache(histogram("send_seconds", send, _SEND_BUCKETS, "channel", "provider").labels)
        self.paused = gauge(
            "provider_paused",
            "Processes that hand nothing to a provider, because it is at fault.",
            "livesum",
            "channel",
            "provider",
            "reason",
        )
        self.in_flight = gauge("in_flight", "Messages in progress.", "livesum", "role")
        self._pending = gauge("deliveries_pending", "Deliveries that are not final.", "mostrecent", "channel", "state")
        self._failed = gauge(
            "deliveries_failed", "Deliveries that failed and can be replayed.", "mostrecent", "channel"
        )
        self._unknown = gauge(
            "deliveries_unknown",
            "Deliveries of which nobody knows whether they were sent; they can be replayed.",
            "mostrecent",
            "channel",
        )
        self.dead = gauge("dead_letters", "Messages in the dead-letter queues.", "mostrecent", "channel")
        self.unrouted = gauge("unrouted_messages", "Messages that no queue took; not zero is a fault.", "mostrecent")
        self.overdue = gauge("oldest_overdue_seconds", "How long the most overdue delivery has been so.", "mostrecent")
        self._planned = gauge("audit_planned", "Deliveries that accepted events were planned to have.", "mostrecent")
        self._stored = gauge("audit_stored", "Deliveries that are stored, final or in flight.", "mostrecent")
        self._exceptions = gauge(
            "audit_exceptions", "Events and deliveries that are not accounted for.", "mostrecent", "kind"
        )
        self._audited_at = gauge("audit_timestamp_seconds", "When the last audit ended.", "mostrecent")
        self.up = gauge("up", "Whether a server answers this process.", "livemin", "server")
        self.ready = gauge("ready", "Processes that are connected and consuming.", "livesum")
        self.tasks = gauge("tasks", "Tasks of the event loop; they come and go with the messages.", "livesum")
        self.heartbeat = gauge("heartbeat_timestamp_seconds", "When the slowest process last looked.", "livemin")

    def accepted(self, verdict: Verdict) -> None:
        """Count what became of an event."""
        match verdict:
            case Accepted(_, _, final):
                outcome, reason = "accepted", ""
                for (channel, state, why), count in final.items():
                    self._deliveries(str(channel), "", str(state), str(why)).inc(count)
            case Unmatched():
                outcome, reason = "unmatched", ""
            case Duplicate():
                outcome, reason = "duplicate", ""
            case Rejected(why):
                outcome, reason = "rejected", str(why)
            case _:  # pragma: no cover
                assert_never(verdict)
        self._events(outcome, reason).inc()

    def delivered(self, result: Result) -> None:
        """Count what became of a work order."""
        match result:
            case Settled(delivery, outcome, provider, seconds):
                self._settled(delivery, provider, seconds)
                if isinstance(outcome, Sent) and outcome.copies_suppressed:
                    self._copies.inc(outcome.copies_suppressed)
            case Late(delivery, _, provider):
                labels = (str(delivery.channel), provider, "late", str(delivery.reason))
                self._attempts(*labels).inc()
            case HeldBack(delivery, _):
                why = "rate_limited" if delivery.reason is Reason.RATE_LIMITED else "paused"
                self._not_claimed.labels(str(delivery.channel), why).inc()
            case NotClaimed(delivery, why):
                self._not_claimed.labels(str(delivery.channel), why).inc()
            case _:  # pragma: no cover
                assert_never(result)

    def received(self, status: str, outcome: str) -> None:
        """Count what became of a receipt."""
        self._receipts.labels(status, outcome).inc()

    def suppressed(self, channel: Channel, reason: SuppressionReason) -> None:
        """Count an address that nothing more is sent to."""
        self._suppressed.labels(str(channel), str(reason)).inc()

    def sms_sent(self, provider: str, encoding: str, segments: int) -> None:
        """Count the segments of an SMS."""
        self._segments.labels(provider, encoding).inc(segments)

    def dispatched(self, channel: str, lane: str, deliveries: int) -> None:
        """Count a message to a channel's queue."""
        self._dispatches(channel, lane).inc()
        self._dispatched(channel, lane).inc(deliveries)

    def swept(self, swept: Swept) -> None:
        """Count what a round of the sweeper found."""
        for reason, count in swept.deliveries.items():
            self._swept.labels(str(reason)).inc(count)
        for (channel, state, why), count in swept.final.items():
            self._deliveries(str(channel), "", str(state), str(why)).inc(count)
        if swept.faults:
            self._swept.labels("fault").inc(len(swept.faults))
        for name, count in {"event": swept.events, "poison": swept.poison, "untold": swept.told}.items():
            if count:
                self._swept.labels(name).inc(count)

    def deleted(self, counts: Mapping[str, int]) -> None:
        """Count what retention has removed."""
        for name, count in counts.items():
            self._deleted.labels(name).inc(count)

    def standing(self, counts: Mapping[tuple[Channel, State], int], oldest: datetime | None) -> None:
        """Show what the database holds."""
        # every combination, also those that are none: what several processes show cannot be taken back, only set
        for channel in Channel:
            self._failed.labels(str(channel)).set(counts.get((channel, State.FAILED), 0))
            self._unknown.labels(str(channel)).set(counts.get((channel, State.UNKNOWN), 0))
            for state in IN_FLIGHT:
                self._pending.labels(str(channel), str(state)).set(counts.get((channel, state), 0))
        overdue = (datetime.now(UTC) - oldest).total_seconds() if oldest else 0.0
        self.overdue.set(max(0.0, overdue))

    def audited(self, planned: int, stored: int, counts: Mapping[Kind, int], at: datetime) -> None:
        """Show what the last audit has found."""
        self._planned.set(planned)
        self._stored.set(stored)
        self._audited_at.set(at.timestamp())
        for kind in Kind:  # also those that are none: what was shown cannot be taken back, only set
            self._exceptions.labels(str(kind)).set(counts.get(kind, 0))

    def _settled(self, delivery: Delivery, provider: str, seconds: float) -> None:
        channel = str(delivery.channel)
        labels = (channel, provider, str(delivery.state), str(delivery.reason))
        if delivery.state not in {State.EXPIRED, State.SUPPRESSED}:  # nothing was attempted
            self._attempts(*labels).inc()
            self._send(channel, provider).observe(seconds)
        if delivery.state.final:
            self._deliveries(*labels).inc()
        if delivery.state is State.SENT and delivery.epoch == 1:  # a replay comes whenever an operator wants it
            self._latency(channel).observe((delivery.updated_at - delivery.wanted_at).total_seconds())
