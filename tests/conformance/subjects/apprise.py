"""A service that takes JSON, to which the library speaks by itself (`json://`)."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from channels.taxonomy import Meaning
from domain.vocabulary import Channel
from tests.conformance.over_http import HttpPeer, Request, Response, http_peer
from tests.conformance.subject import TEXT, Fault, Ground, Subject, message

TOKEN = "s3cr3t-token-of-ops"
ROOM = "#orders-of-ana"
LIBRARYS_TIMEOUT = 1.0
"""Seconds: a thread that waits for a service cannot be cancelled, and ends with this."""


@asynccontextmanager
async def service(subject: Subject, answer: Response | Fault, ground: Ground) -> AsyncIterator[HttpPeer]:
    async with http_peer(subject, answer, ground) as peer:
        peer.url = peer.url.replace("http://", f"json://ops:{TOKEN}@") + f"?rto={LIBRARYS_TIMEOUT}"
        yield peer


def requested(request: Request) -> None:
    assert request.method == "POST"
    assert request.headers["Authorization"].startswith("Basic ")
    assert (request.json["title"], request.json["message"]) == (f"{TEXT}!", TEXT)


UNKNOWN = {
    "not authorised": Response(401, text=TOKEN),
    "a refusal": Response(400, text=f"{TOKEN} {ROOM}"),
    "too fast": Response(429),
    "down": Response(503),
    "nobody there": Fault.ABSENT,
    "the connection lost": Fault.LOST,
}

SUBJECT = Subject(
    kind="apprise",
    channel=Channel.CHAT,
    options=lambda url, _: {"urls": [url]},
    message=message(Channel.CHAT, {"chat": ROOM}),
    address=ROOM,
    success=Response(200, text="thanks"),
    # whatever it is, the library says that it was not taken, and not why: so it may have been
    failures={name: (answer, Meaning.UNKNOWN) for name, answer in UNKNOWN.items()},
    classes=frozenset({Meaning.UNKNOWN}),
    faults=(Fault.SILENT,),
    serve=service,
    requested=requested,
    secrets=(TOKEN,),
    connections=3,  # the library opens one for each
)
