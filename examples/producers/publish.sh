#!/bin/sh
# Publish the smallest event that NotiPy takes, with amqp-publish (Debian, Ubuntu: apt-get install amqp-tools).
#
#     AMQP_URL=amqp://guest:guest@127.0.0.1:5672/%2F sh publish.sh ana@example.org 1042
#
# amqp-publish cannot set a message_id, so the event carries its id. It does not wait for the broker's confirmation
# either: good for trying things out, for scripts that may repeat themselves (the same id again is harmless), and
# nothing else.
#
# Without amqp-tools, and where the management plugin runs, its API does the same and says whether the event arrived:
#
#     curl -sS -u guest:guest -H 'content-type: application/json' \
#       http://127.0.0.1:15672/api/exchanges/%2F/notipy.events/publish -d '{
#         "routing_key": "shop.order.shipped", "payload_encoding": "string",
#         "properties": {"message_id": "ord-1042", "delivery_mode": 2, "content_type": "application/json"},
#         "payload": "{\"recipients\": [{\"email\": \"ana@example.org\"}], \"data\": {\"order_id\": 1042, \"carrier\": \"DHL\"}}"}'
set -eu

email=${1:-ana@example.org}
order_id=${2:-1042}

amqp-publish --url="${AMQP_URL:-amqp://guest:guest@127.0.0.1:5672/%2F}" \
  --exchange=notipy.events --routing-key=shop.order.shipped \
  --persistent --content-type=application/json \
  --body='{"id": "ord-'"$order_id"'", "recipients": [{"email": "'"$email"'"}], "data": {"order_id": '"$order_id"', "carrier": "DHL"}}'

echo "Sent shop ord-$order_id"
