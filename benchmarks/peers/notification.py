"""What both peers store and send: the words, the mail and the documents, so that neither has less of them."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import formatdate
from itertools import islice
from typing import Any

from jinja2 import Environment, StrictUndefined
from pymongo import ASCENDING, IndexModel, MongoClient, WriteConcern
from pymongo.errors import BulkWriteError

Document = dict[str, Any]

SENDER = "bench@example.org"
BATCH = 500
"""Deliveries of one event that are stored in one write, as NotiPy does."""
DURABLE = WriteConcern(w="majority", j=True)
_DUPLICATE_KEY = 11000
INDEXES = [
    IndexModel([("event", ASCENDING)], name="event"),
    IndexModel([("state", ASCENDING), ("updated_at", ASCENDING)], name="age"),
]
"""Of the deliveries: the least with which one can ask what became of an event, and what is stuck."""

_TEMPLATES = Environment(undefined=StrictUndefined, autoescape=False)
_SUBJECT = _TEMPLATES.from_string("Order {{ order_id }} shipped")
_TEXT = _TEMPLATES.from_string("Your order {{ order_id }} is on its way with {{ carrier }}.")


def prepare_database(mongo_url: str) -> None:
    """Create the indexes in the database that the URL names."""
    with MongoClient[Document](mongo_url) as client:
        client.get_default_database()["deliveries"].create_indexes(INDEXES)


def event_document(event_id: str, event: Mapping[str, Any]) -> Document:
    """An event as it is stored."""
    return {"_id": event_id, "received_at": datetime.now(UTC), **event}


def delivery_documents(event_id: str, recipients: Sequence[Mapping[str, Any]]) -> Iterator[list[Document]]:
    """One for each recipient, in batches; an event that comes again gets the same ids."""
    now = datetime.now(UTC)
    documents = (
        {
            "_id": f"{event_id}:{number}",
            "event": event_id,
            "email": recipient["email"],
            "state": "queued",
            "created_at": now,
            "updated_at": now,
        }
        for number, recipient in enumerate(recipients)
    )
    while batch := list(islice(documents, BATCH)):
        yield batch


def claim_document(delivery: str, attempt: int) -> Document:
    """A claim on one attempt: its id is what only one can insert."""
    return {"_id": f"{delivery}:{attempt}", "claimed_at": datetime.now(UTC)}


def already_there(error: BulkWriteError, documents: Sequence[Document]) -> frozenset[str]:
    """The ids of the documents that an unordered insert has found there already.

    Raises:
        BulkWriteError: that was not all that went wrong.
    """
    details = error.details or {}
    faults = details["writeErrors"]
    if details["writeConcernErrors"] or any(fault["code"] != _DUPLICATE_KEY for fault in faults):
        raise error
    return frozenset(documents[fault["index"]]["_id"] for fault in faults)


def sent() -> Document:
    """The update that records a delivery as sent."""
    return {"$set": {"state": "sent", "updated_at": datetime.now(UTC)}}


def mail(delivery: str, recipient: str, data: Mapping[str, Any]) -> bytes:
    """The mail as it is handed to the SMTP server.

    Written by hand: `email.message.EmailMessage` takes a hundred times as long, which would measure nothing but that.
    """
    return (
        f"From: {SENDER}\r\nTo: {recipient}\r\nSubject: {_SUBJECT.render(data)}\r\n"
        f"Date: {formatdate()}\r\nMessage-ID: <{delivery}@example.org>\r\n"
        "MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
        f"{_TEXT.render(data)}\r\n"
    ).encode()
