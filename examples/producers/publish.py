#!/usr/bin/env python3
"""Publish the smallest event that NotiPy takes, with pika.

    AMQP_URL=amqp://guest:guest@127.0.0.1:5672/%2F python publish.py ana@example.org 1042

It returns 0 only when RabbitMQ has confirmed that the event is stored in NotiPy's queue.
"""

import json
import os
import sys
from urllib.parse import urlsplit

import pika


def publish(url: str, email: str, order_id: int) -> None:
    """Publish "order shipped".

    Raises:
        pika.exceptions.UnroutableError: there is no NotiPy behind this virtual host.
        pika.exceptions.NackError: the queue is full; nothing was stored, so publish again later.
    """
    connection = pika.BlockingConnection(pika.URLParameters(url))
    try:
        channel = connection.channel()
        channel.confirm_delivery()  # from here on, publishing waits for the broker's confirmation
        channel.basic_publish(
            exchange="notipy.events",
            routing_key="shop.order.shipped",  # <source>.<type>
            body=json.dumps(
                {"recipients": [{"email": email}], "data": {"order_id": order_id, "carrier": "DHL"}}
            ).encode(),
            properties=pika.BasicProperties(
                message_id=f"ord-{order_id}",  # the event's id: publishing it again is harmless
                content_type="application/json",
                delivery_mode=pika.DeliveryMode.Persistent,
            ),
            mandatory=True,  # an event that no queue takes comes back as an error
        )
    finally:
        connection.close()


if __name__ == "__main__":
    email = sys.argv[1] if len(sys.argv) > 1 else "ana@example.org"
    order_id = int(sys.argv[2]) if len(sys.argv) > 2 else 1042
    url = os.environ.get("AMQP_URL", "amqp://guest:guest@127.0.0.1:5672/%2F")
    try:
        publish(url, email, order_id)
    except (pika.exceptions.AMQPConnectionError, OSError) as error:
        why = str(error) or "the connection was refused"
        sys.exit(f"Not published: RabbitMQ at {urlsplit(url).hostname} (AMQP_URL) cannot be reached: {why}")
    print(f"Published shop ord-{order_id}")
