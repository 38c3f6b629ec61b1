"""Discord's Execute Webhook, as its API reference has it."""

from channels.taxonomy import Meaning
from domain.vocabulary import Channel
from tests.conformance.over_http import HttpSubject, Request, Response
from tests.conformance.subject import TEXT, message
from tests.published import faults

TOKEN = "the-token-of-a-webhook-3d89bb7572e0fb30d8128367b3b1b44fecd1726de135cbe28a41f8b2f777c372"
PATH = f"/api/webhooks/223704706495545344/{TOKEN}"
THREAD = "1234567890123456789"
MESSAGE_ID = "1098765432109876543"
SENT = {"id": MESSAGE_ID, "type": 0, "content": TEXT, "channel_id": THREAD, "webhook_id": "223704706495545344"}


def refusal(status: int, code: int, headers: dict[str, str] | None = None) -> Response:
    return Response(status, {"code": code, "message": f"Not to {THREAD}, says {TOKEN}"}, headers=headers or {})


def limited(seconds: float) -> Response:
    said = {"message": "You are being rate limited.", "retry_after": seconds, "global": False}
    return Response(429, said, headers={"Retry-After": "7"})


def requested(request: Request) -> None:
    assert (request.method, request.path) == ("POST", PATH)
    assert dict(request.query) == {"wait": "true", "thread_id": THREAD}
    assert request.headers["Content-Type"] == "application/json"
    assert request.headers["User-Agent"].startswith("DiscordBot (")
    assert faults("discord", request.json) == []
    assert request.json["content"] == f"**{TEXT}!**\n{TEXT}"
    assert request.json["allowed_mentions"] == {"parse": []}


SUBJECT = HttpSubject(
    kind="discord",
    channel=Channel.CHAT,
    options=lambda url, _: {"webhook_url": url + PATH},
    message=message(Channel.CHAT, {"chat": f"discord:{THREAD}"}),
    address=THREAD,
    success=Response(200, SENT),
    failures={
        "10015": (refusal(404, 10015), Meaning.CONFIGURATION),
        "50027": (refusal(401, 50027), Meaning.CONFIGURATION),
        "220001": (refusal(400, 220001), Meaning.CONFIGURATION),
        "10003": (refusal(404, 10003), Meaning.RECIPIENT),
        "50083": (refusal(400, 50083), Meaning.RECIPIENT),
        "50035": (refusal(400, 50035), Meaning.MESSAGE),
        "50006": (refusal(400, 50006), Meaning.MESSAGE),
        "40005": (refusal(413, 40005), Meaning.MESSAGE),
        "200000": (refusal(400, 200000), Meaning.MESSAGE),
        "too fast": (limited(7.0), Meaning.RATE_LIMITED),
        "20028": (refusal(429, 20028, {"Retry-After": "7"}), Meaning.RATE_LIMITED),
        "130000": (refusal(503, 130000), Meaning.TRANSIENT),
        "an unknown code": (refusal(400, 99999), Meaning.MESSAGE),
        "no document": (Response(502, text="<html>"), Meaning.UNKNOWN),
    },
    requested=requested,
    secrets=(TOKEN,),
    reference=MESSAGE_ID,
    too_long=message(Channel.CHAT, {"chat": "discord:"}, content={"text": "x" * 2001}),
)
