"""The same work by Celery, as its documentation advises for work that must not be lost.

A worker is a parent and its prefork pool; `--processes` says how many workers, `--concurrency` how many pool processes
each has. Quorum queues over a topic exchange (native delayed delivery, which retries need, takes no direct one),
confirmed publishes, late acknowledgements, majority writes, clients that are opened once in each pool process.
"""

# mypy: disable-error-code="import-untyped,no-untyped-call,untyped-decorator"
import asyncio
import smtplib
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any
from uuid import uuid4

import aio_pika
import orjson
from celery import Celery, Task
from celery.signals import worker_process_init, worker_process_shutdown
from kombu.connection import Connection
from kombu.entity import Exchange, Queue
from kombu.exceptions import OperationalError
from kombu.serialization import dumps
from pymongo import MongoClient
from pymongo.collection import Collection
from pymongo.errors import BulkWriteError, DuplicateKeyError, PyMongoError

from benchmarks.peers.feeding import Feed, feeding, fill
from benchmarks.peers.notification import (
    DURABLE,
    SENDER,
    Document,
    already_there,
    claim_document,
    delivery_documents,
    event_document,
    mail,
    prepare_database,
    sent,
)
from benchmarks.peers.processes import Addresses, arguments, supervise

ACCEPT, DELIVER = "peer.accept", "peer.deliver"
EXCHANGE = Exchange("peer", type="topic", durable=True)
QUORUM = {"x-queue-type": "quorum", "x-overflow": "reject-publish"}
QUEUES = [Queue(name, EXCHANGE, routing_key=name, queue_arguments=QUORUM) for name in (ACCEPT, DELIVER)]
PREFETCH = 32
"""Messages of each queue that a worker holds for each of its pool processes. The tasks are short: with few, the pool
waits for the parent, and the advised 1 is for tasks that take minutes."""

app = Celery("peer")
# task_default_queue_type is for an application that names no queues; it could not give them their overflow
app.conf.update(
    task_queues=QUEUES,
    task_routes={name: {"queue": name} for name in (ACCEPT, DELIVER)},
    task_create_missing_queues=False,
    task_default_queue=ACCEPT,
    task_serializer="json",
    task_default_delivery_mode="persistent",
    broker_transport_options={"confirm_publish": True},
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_ignore_result=True,
    worker_prefetch_multiplier=PREFETCH,
    worker_detect_quorum_queues=True,  # a limit for each consumer: quorum queues know no other
    worker_cancel_long_running_tasks_on_connection_loss=True,
    worker_disable_rate_limits=True,
    worker_enable_remote_control=False,
    worker_send_task_events=False,
    worker_redirect_stdouts=False,
    broker_connection_retry_on_startup=True,
)
QUIET = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel=WARNING"]
RETRIES = {"retry_backoff": 5, "retry_backoff_max": 6 * 60 * 60, "retry_jitter": True, "max_retries": 6}


# -- for the harness --------------------------------------------------------------------------------------------------


async def prepare(amqp_url: str, mongo_url: str) -> None:
    """Declare the queues and create the indexes."""
    await asyncio.to_thread(prepare_database, mongo_url)
    await asyncio.to_thread(_declare, amqp_url)


def _declare(amqp_url: str) -> None:
    with Connection(amqp_url) as connection:
        for queue in QUEUES:
            queue(connection.default_channel).declare()


def feeder(amqp_url: str) -> AbstractAsyncContextManager[Feed]:
    """What publishes events one by one: `await feed(body)` returns when the event is confirmed."""
    return feeding(amqp_url, EXCHANGE.name, ACCEPT, _event_message)


async def publish(amqp_url: str, bodies: Sequence[bytes]) -> None:
    """Fill the backlog."""
    await fill(feeder(amqp_url), bodies)


def _event_message(body: bytes) -> aio_pika.Message:
    """The message that `accept.delay(event)` publishes; by hand, because Celery's own client blocks."""
    task_id = uuid4().hex
    message = app.amqp.as_task_v2(task_id, ACCEPT, (orjson.loads(body),), ignore_result=True)
    content_type, encoding, payload = dumps(message.body, "json")
    return aio_pika.Message(
        payload.encode(),
        headers=message.headers,
        content_type=content_type,
        content_encoding=encoding,
        correlation_id=task_id,
        message_id=task_id,
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
    )


# -- what a pool process holds ----------------------------------------------------------------------------------------


class Clients:
    """The connections of one pool process: opened after the fork, kept from task to task."""

    def open(self, addresses: Addresses) -> None:
        """Connect to the database; to the SMTP server with the first mail."""
        self._mongo: MongoClient[Document] = MongoClient(addresses.mongo)
        database = self._mongo.get_default_database(write_concern=DURABLE)
        self.events, self.deliveries, self.attempts = (database[name] for name in ("events", "deliveries", "attempts"))
        self._server = addresses.smtp
        self._smtp: smtplib.SMTP | None = None

    def send(self, recipient: str, content: bytes) -> None:
        """Hand one mail over; a connection over which anything went wrong is not used again."""
        smtp, self._smtp = self._smtp or smtplib.SMTP(*self._server, local_hostname="localhost", timeout=30), None
        smtp.sendmail(SENDER, [recipient], content)
        self._smtp = smtp

    def close(self) -> None:
        """Disconnect."""
        if self._smtp is not None:
            self._smtp.close()
        self._mongo.close()


clients = Clients()


# -- tasks ------------------------------------------------------------------------------------------------------------


@app.task(name=ACCEPT, bind=True, autoretry_for=(PyMongoError, OperationalError), **RETRIES)
def accept(self: Task, event: Mapping[str, Any]) -> None:
    """Store the event and its deliveries, then order each delivery."""
    event_id = self.request.id
    _insert(clients.events, [event_document(event_id, event)])
    for batch in delivery_documents(event_id, event["recipients"]):
        _insert(clients.deliveries, batch)
        with app.producer_or_acquire() as producer:
            for delivery in batch:
                deliver.apply_async((delivery["_id"], delivery["email"], event["data"]), producer=producer)


@app.task(name=DELIVER, bind=True, autoretry_for=(PyMongoError, OSError), **RETRIES)  # smtplib's errors are OSErrors
def deliver(self: Task, delivery: str, email: str, data: Mapping[str, Any]) -> None:
    """Claim → render → send → record."""
    try:
        clients.attempts.insert_one(claim_document(delivery, self.request.retries + 1))
    except DuplicateKeyError:
        # whether the claim that was made before has come to nothing: its process ended before it was recorded
        if clients.deliveries.find_one({"_id": delivery, "state": "queued"}) is None:
            return
    clients.send(email, mail(delivery, email, data))
    clients.deliveries.update_one({"_id": delivery}, sent())


def _insert(collection: Collection[Document], documents: list[Document]) -> None:
    """Insert in one write; what is there already, from the same event that came before, stays."""
    try:
        collection.insert_many(documents, ordered=False)
    except BulkWriteError as error:
        already_there(error, documents)


# -- the process ------------------------------------------------------------------------------------------------------


def work(addresses: Addresses, concurrency: int) -> int:
    """Be a worker until SIGTERM; returns the exit code."""
    worker_process_init.connect(lambda **_: clients.open(addresses), weak=False)
    worker_process_shutdown.connect(lambda **_: clients.close(), weak=False)
    app.conf.broker_url = addresses.amqp
    return int(app.start(["--quiet", "worker", f"--concurrency={concurrency}", *QUIET]) or 0)


def main() -> int:
    """Run as many workers as asked for."""
    parser = arguments(__doc__)
    parser.add_argument("--concurrency", type=int, default=4, metavar="N", help="pool processes of each (%(default)s)")
    chosen = parser.parse_args()
    if chosen.processes > 1:
        return supervise("benchmarks.peers.celery_peer", chosen.processes, sys.argv[1:])
    return work(Addresses(chosen.amqp, chosen.mongo, chosen.smtp), chosen.concurrency)


if __name__ == "__main__":
    sys.exit(main())
