"""Standard Webhooks, as its specification has it: each recipient's endpoint is a server of its own."""

from standardwebhooks import Webhook

from channels.taxonomy import Meaning
from domain.message import Message
from domain.vocabulary import Channel
from tests.conformance.over_http import HttpSubject, Request, Response
from tests.conformance.subject import TEXT, message

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OLD_SECRET = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
TOKEN = "a-token-in-the-url-of-ana"
KEY = "an-api-key-of-the-receivers"


def hook(url: str) -> Message:
    return message(Channel.WEBHOOK, {"webhook": f"{url}/hook?token={TOKEN}"})


def requested(request: Request) -> None:
    assert (request.method, request.path, dict(request.query)) == ("POST", "/hook", {"token": TOKEN})
    assert request.headers["Content-Type"].startswith("application/json")
    assert request.headers["X-Api-Key"] == KEY
    headers = {name: request.headers[name] for name in ("webhook-id", "webhook-timestamp", "webhook-signature")}
    for secret in (SECRET, OLD_SECRET):
        assert Webhook(secret).verify(request.body, headers) == {"said": TEXT}


SUBJECT = HttpSubject(
    kind="webhook",
    channel=Channel.WEBHOOK,
    options=lambda _, __: {
        "secret": SECRET,
        "secrets": [OLD_SECRET],
        "headers": {"X-Api-Key": KEY},
        "allow_private": True,
        "max_body_bytes": 1000,
    },
    message=hook,
    address=TOKEN,
    success=Response(200, text="thanks"),
    failures={
        "gone": (Response(410), Meaning.RECIPIENT),
        "not authorised": (Response(401), Meaning.MESSAGE),
        "not found": (Response(404), Meaning.MESSAGE),
        "a redirect": (Response(307, headers={"Location": "/elsewhere"}), Meaning.MESSAGE),
        "too fast": (Response(429, headers={"Retry-After": "7"}), Meaning.TRANSIENT),  # one endpoint, not the provider
        "a timeout": (Response(408), Meaning.TRANSIENT),
        "a fault": (Response(500, text="<html>"), Meaning.TRANSIENT),
        "not there for now": (Response(503, headers={"Retry-After": "7"}), Meaning.TRANSIENT),
    },
    requested=requested,
    secrets=(SECRET.removeprefix("whsec_"), OLD_SECRET.removeprefix("whsec_"), KEY),
    idempotency=lambda request: request.headers["webhook-id"],
    shared=False,
    classes=frozenset({Meaning.TRANSIENT, Meaning.MESSAGE}),
    too_long=message(Channel.WEBHOOK, {"webhook": "http://127.0.0.1:9"}, content={"payload": '"' + "x" * 1000 + '"'}),
)
