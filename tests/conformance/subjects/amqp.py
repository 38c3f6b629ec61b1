"""Another exchange of a real RabbitMQ, from which somebody else's sender consumes."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aio_pika import DeliveryMode
from aio_pika.abc import AbstractIncomingMessage

from channels.taxonomy import Meaning
from domain.event import Attachment
from domain.vocabulary import Channel
from tests.conformance.rabbitmq import Broker, BrokerPeer, broker_peer
from tests.conformance.subject import TEXT, Fault, Ground, Subject, message

EXCHANGE = "bridge"
ROOM = "#orders-of-ana"
RECIPIENT = {"id": "user.7", "locale": "de", "chat": ROOM}
ATTACHED = Attachment(filename="a.txt", content_type="text/plain", content=b"aGk=")


@asynccontextmanager
async def bridge(_: Subject, answer: Broker | Fault, ground: Ground) -> AsyncIterator[BrokerPeer]:
    async with broker_peer(ground.fixture("broker"), EXCHANGE, answer) as peer:
        yield peer


def requested(taken: AbstractIncomingMessage) -> None:
    assert (taken.exchange, taken.routing_key) == (EXCHANGE, "chat.user~2E7")
    assert (taken.delivery_mode, taken.content_type) == (DeliveryMode.PERSISTENT, "application/json")
    assert taken.headers == {
        "x-lang": "de",
        "x-notipy-delivery": "d1",
        "x-notipy-idempotency-key": "d1/1",
        "x-notipy-channel": "chat",
    }
    assert json.loads(taken.body) == {
        "delivery": "d1",
        "idempotency_key": "d1/1",
        "channel": "chat",
        "created_at": "2026-11-22T17:00:00Z",
        "recipient": RECIPIENT,
        "content": {"title": f"{TEXT}!", "text": TEXT},
        "attachments": [{"filename": "a.txt", "content_type": "text/plain", "content": "aGk="}],
    }


SUBJECT = Subject(
    kind="amqp",
    channel=Channel.CHAT,
    options=lambda _, __: {
        "exchange": EXCHANGE,
        "routing_key": "chat.{{ recipient.id }}",
        "headers": {"x-lang": "{{ recipient.locale }}"},
    },
    message=message(Channel.CHAT, RECIPIENT, attachments=(ATTACHED,)),
    address=ROOM,
    success=Broker.TAKES,
    failures={
        "no such exchange": (Broker.HAS_NO_EXCHANGE, Meaning.CONFIGURATION),
        "an exchange that is not ours": (Broker.FORBIDS, Meaning.CONFIGURATION),
        "no queue": (Broker.HAS_NO_QUEUE, Meaning.TRANSIENT),
        "a full queue": (Broker.HAS_A_FULL_QUEUE, Meaning.UNKNOWN),  # others that are bound may have it
    },
    # whatever is in a message, the broker takes it; that it answers nothing at all shows by the heartbeat or the lease
    classes=frozenset({Meaning.TRANSIENT, Meaning.CONFIGURATION, Meaning.UNKNOWN}),
    faults=(Fault.ABSENT, Fault.LOST),
    serve=bridge,
    requested=requested,
    reference="d1/1",
    idempotency=lambda taken: str(taken.headers["x-notipy-idempotency-key"]),
    connections=0,
    stranger=None,
)
