"""Every sample is what it says: the catalog loads, each event is one, each meets a notification with all it needs."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from channels.numbers import PhoneNumbers
from channels.rendering import TemplateRenderer
from channels.schema import JsonSchemaCheck
from cli.catalog_files import load_catalog
from cli.samples import REJECTED, SAMPLES, to_publish
from domain.delivery import Delivery
from domain.event import Event, EventRejected, Incoming, parse_event
from domain.notification import Definition, Notification, matching
from domain.plan import Planner
from domain.vocabulary import Channel, Lane, Reason, State

EXAMPLES = Path(__file__).parents[2] / "examples"
EVENTS = sorted((EXAMPLES / "events").glob("*.json"))
REJECTED_EVENTS = sorted((EXAMPLES / "events" / "rejected").glob("*.json"))
NOW = datetime(2026, 11, 22, 17, tzinfo=UTC)
MAX_BYTES = 4 * 1024 * 1024


def read(path: Path) -> Event:
    """As if it had been published under the key of an order that was shipped."""
    return parse_event(Incoming(path.read_bytes(), "shop.order.shipped", "ord-1"), NOW, MAX_BYTES)


@pytest.fixture(scope="module")
def catalog() -> list[Definition]:
    found = load_catalog([EXAMPLES / "catalog"])
    assert not found.faults
    assert not found.warnings
    return list(found.definitions.values())


def plan(event: Event, catalog: list[Definition]) -> list[Delivery]:
    planner = Planner(
        TemplateRenderer(), JsonSchemaCheck(), frozenset(Channel), timedelta(minutes=5), numbers=PhoneNumbers()
    )
    found = matching([Notification(version=1, definition=each) for each in catalog], event.topic)
    return list(planner.plan(event, found, NOW, NOW))


def test_the_catalog_holds_what_the_readme_says(catalog: list[Definition]) -> None:
    by_name = {definition.name: definition for definition in catalog}
    assert sorted(by_name) == ["incident-alert", "invoice", "order-shipped", "password-reset"]
    assert by_name["password-reset"].lane is Lane.HIGH
    assert by_name["password-reset"].expires_after == timedelta(minutes=15)
    assert by_name["invoice"].channels[Channel.EMAIL]["attachments"] == 1
    assert set(by_name["incident-alert"].channels) == {Channel.WEBHOOK, Channel.EMAIL}


@pytest.mark.parametrize("path", EVENTS, ids=lambda path: path.stem)
def test_an_event_is_one_and_somebody_is_told(path: Path, catalog: list[Definition]) -> None:
    deliveries = plan(read(path), catalog)
    states = {delivery.state for delivery in deliveries}
    assert states & {State.QUEUED, State.HELD}
    assert states <= {State.QUEUED, State.HELD, State.SUPPRESSED}


@pytest.mark.parametrize("path", REJECTED_EVENTS, ids=lambda path: path.stem)
def test_a_rejected_event_says_which_field_is_wrong(path: Path) -> None:
    with pytest.raises(EventRejected) as caught:
        read(path)
    assert caught.value.reason is Reason.INVALID
    assert [fault.field for fault in caught.value.faults] == ["recipients.0.email"]


@pytest.mark.parametrize("path", EVENTS, ids=lambda path: path.stem)
def test_every_template_renders(path: Path, catalog: list[Definition]) -> None:
    event, renderer = read(path), TemplateRenderer()
    about = {"id": event.id, "source": event.source, "type": event.type, "time": event.time.isoformat()}
    definitions = {each.name: each.contents for each in catalog}
    for delivery in plan(event, catalog):
        content = (definitions.get(delivery.notification) or event.content or {})[delivery.channel]
        context = {**event.data, "data": event.data, "event": about, "recipient": delivery.recipient}
        rendered = renderer.render(delivery.channel, content, context)
        assert all(text.strip() for text in rendered.values())


def test_the_demo_shows_every_event_and_expects_what_is_planned(catalog: list[Definition]) -> None:
    assert {sample.file for sample in SAMPLES} == {path.name for path in EVENTS}
    assert (EXAMPLES / "events" / REJECTED.file) in REJECTED_EVENTS
    for sample in SAMPLES:
        published = to_publish(sample, "http://127.0.0.1:1", unique=False)
        event = parse_event(Incoming(published.body, published.routing_key, published.id), NOW, MAX_BYTES)
        planned = {(delivery.channel, delivery.recipient_key) for delivery in plan(event, catalog)}
        assert planned == {(wanted.channel, wanted.recipient) for wanted in sample.expected}
