"""A recipient's inbox: a real MongoDB, and the exchange of a real RabbitMQ over which it is told."""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from channels.surroundings import Surroundings
from channels.taxonomy import Meaning
from domain.inbox import EXCHANGE
from domain.vocabulary import Channel
from storage.database import Database, connect
from storage.inbox import MongoInbox
from tests.conformance.rabbitmq import Broker, BrokerPeer, broker_peer
from tests.conformance.subject import TEXT, Fault, Ground, Subject, message

ANA = "user.7-ana"


@dataclass(frozen=True)
class Item:
    """What is stored, and what was told of it."""

    stored: dict[str, Any]
    key: str
    told: dict[str, Any]


@dataclass
class InboxPeer:
    """The database, and whoever listens."""

    database: Database
    broker: BrokerPeer
    url: str = ""
    connections: int = 0
    opened: int = 0

    @property
    def surroundings(self) -> Surroundings:
        return replace(self.broker.surroundings, inbox=MongoInbox(self.database))

    async def taken(self) -> Sequence[Item]:
        return [await self._item(each.routing_key, json.loads(each.body)) for each in await self.broker.taken()]

    async def _item(self, key: str | None, told: dict[str, Any]) -> Item:
        stored = await self.database.collection("inbox").find_one({"_id": told["id"]})
        return Item(dict(stored or {}), str(key), told)


@asynccontextmanager
async def inbox(_: Subject, answer: Broker | Fault, ground: Ground) -> AsyncIterator[InboxPeer]:
    async with (
        connect(ground.fixture("database")) as database,
        broker_peer(ground.fixture("broker"), EXCHANGE, answer) as broker,
    ):
        yield InboxPeer(database, broker)
        await database.collection("inbox").delete_many({})


def requested(item: Item) -> None:
    content = {"title": f"{TEXT}!", "text": TEXT}
    at = item.stored.pop("at")
    standing = {"unseen": True, "unread": True}
    assert item.stored == {"_id": "d1/1", "recipient": ANA, "content": content, "archived": False, **standing}
    assert item.key == "user~2E7-ana"
    told = {"kind": "added", "id": "d1/1", "recipient": ANA, "content": content, "archived": False, **standing}
    since = datetime.fromisoformat(item.told.pop("at")) - at
    assert timedelta(0) <= since < timedelta(milliseconds=1), "MongoDB keeps milliseconds"
    assert item.told == told


SUBJECT = Subject(
    kind="inbox",
    channel=Channel.INBOX,
    options=lambda _, __: {},
    message=message(Channel.INBOX, {"id": ANA}),
    address=ANA,
    success=Broker.TAKES,
    failures={
        "no such exchange": (Broker.HAS_NO_EXCHANGE, Meaning.CONFIGURATION),
        "an exchange that is not ours": (Broker.FORBIDS, Meaning.CONFIGURATION),
        # it is stored, and told twice is harmless: no doubt is left
        "lost before the confirmation": (Fault.LOST, Meaning.TRANSIENT),
    },
    # nothing in a message or its recipient is refused; while the database is away, a send waits
    classes=frozenset({Meaning.TRANSIENT, Meaning.CONFIGURATION}),
    faults=(Fault.ABSENT,),
    serve=inbox,
    requested=requested,
    reference="d1/1",
    idempotency=lambda item: str(item.stored["_id"]),
    connections=0,
    stranger={"email": "ana@example.org"},
)
