"""Pigeon Post, as its API reference has it."""

from channels.taxonomy import Meaning
from domain.vocabulary import Channel
from tests.conformance.over_http import HttpSubject, Request, Response
from tests.conformance.subject import TEXT, message

TOKEN = "a-token-of-the-post"


def refusal(status: int, code: str, **headers: str) -> Response:
    return Response(status, {"code": code, "told": f"not to LOFT7 with {TOKEN}"}, headers=headers)


def requested(request: Request) -> None:
    assert (request.method, request.path) == ("POST", "/pigeons")
    assert request.headers["Authorization"] == f"Bearer {TOKEN}"
    assert request.json == {"to": "LOFT7", "text": TEXT}


SUBJECT = HttpSubject(
    kind="pigeon",
    channel=Channel.CHAT,
    options=lambda url, _: {"base_url": url, "token": TOKEN},
    message=message(Channel.CHAT, {"chat": "pigeon:LOFT7"}),
    address="LOFT7",
    success=Response(200, {"ring": "r-1"}),
    failures={
        "no loft": (refusal(404, "NO_LOFT"), Meaning.RECIPIENT),
        "fog": (refusal(503, "FOG"), Meaning.TRANSIENT),
        "too many": (refusal(429, "FLOCK", **{"Retry-After": "7"}), Meaning.RATE_LIMITED),
        "wrong token": (refusal(401, "WHO"), Meaning.CONFIGURATION),
        "too heavy": (refusal(413, "HEAVY"), Meaning.MESSAGE),
    },
    requested=requested,
    secrets=(TOKEN,),
    reference="r-1",
    idempotency=lambda request: request.headers["Idempotency-Key"],
)
