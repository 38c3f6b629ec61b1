"""Telegram's Bot API, as its documentation has sendMessage."""

from channels.taxonomy import Meaning
from domain.vocabulary import Channel
from tests.conformance.over_http import HttpSubject, Request, Response
from tests.conformance.subject import TEXT, message
from tests.published import faults

TOKEN = "123456:ABC-DEF1234ghIkl-zyx57W2v1u123ew11"
CHAT = -1001234567890
SENT = {"ok": True, "result": {"message_id": 42, "date": 1763830800, "chat": {"id": CHAT, "type": "supergroup"}}}


def refusal(status: int, description: str, **parameters: int) -> Response:
    said = {"ok": False, "error_code": status, "description": description, "parameters": parameters, "hint": TOKEN}
    return Response(status, said, headers={"Retry-After": "7"} if status == 429 else {})


def requested(request: Request) -> None:
    assert (request.method, request.path) == ("POST", f"/bot{TOKEN}/sendMessage")
    assert request.headers["Content-Type"] == "application/json"
    assert faults("telegram", request.json) == []
    title = len(f"{TEXT}!".encode("utf-16-le")) // 2
    assert title == len(TEXT) + 2, "entities are counted in UTF-16 code units, of which the bicycle has two"
    assert request.json == {
        "chat_id": CHAT,
        "text": f"{TEXT}!\n{TEXT}",
        "entities": [{"type": "bold", "offset": 0, "length": title}],
    }


SUBJECT = HttpSubject(
    kind="telegram",
    channel=Channel.CHAT,
    options=lambda url, _: {"base_url": url, "token": TOKEN},
    message=message(Channel.CHAT, {"chat": f"telegram:{CHAT}"}),
    address=str(CHAT),
    success=Response(200, SENT),
    failures={
        "unauthorised": (refusal(401, "Unauthorized"), Meaning.CONFIGURATION),
        "not found": (refusal(404, "Not Found"), Meaning.CONFIGURATION),
        "chat not found": (refusal(400, "Bad Request: chat not found"), Meaning.RECIPIENT),
        "blocked": (refusal(403, "Forbidden: bot was blocked by the user"), Meaning.RECIPIENT),
        "deactivated": (refusal(403, "Forbidden: user is deactivated"), Meaning.RECIPIENT),
        "kicked": (refusal(403, "Forbidden: bot was kicked from the supergroup chat"), Meaning.RECIPIENT),
        "not started": (refusal(403, "Forbidden: bot can't initiate conversation with a user"), Meaning.RECIPIENT),
        "another 403": (refusal(403, f"Forbidden: not to {CHAT}"), Meaning.RECIPIENT),
        "upgraded": (
            refusal(400, "Bad Request: group chat was upgraded to a supergroup chat", migrate_to_chat_id=CHAT - 1),
            Meaning.RECIPIENT,
        ),
        "too long": (refusal(400, "Bad Request: message is too long"), Meaning.MESSAGE),
        "entities": (refusal(400, f"Bad Request: can't parse entities: Character '!' {CHAT}"), Meaning.MESSAGE),
        "another 400": (refusal(400, f"Bad Request: something about {CHAT}"), Meaning.MESSAGE),
        "too fast": (refusal(429, "Too Many Requests: retry after 7", retry_after=7), Meaning.RATE_LIMITED),
        "a refusal with 200": (
            Response(200, {"ok": False, "error_code": 401, "description": "Unauthorized"}),
            Meaning.CONFIGURATION,
        ),
        "down": (refusal(500, "Internal Server Error"), Meaning.TRANSIENT),
        "a gateway": (refusal(502, "Bad Gateway"), Meaning.UNKNOWN),
        "no document": (Response(200, text="<html>"), Meaning.UNKNOWN),
    },
    requested=requested,
    body_tells=True,
    secrets=(TOKEN,),
    reference=f"{CHAT}/42",
    too_long=message(Channel.CHAT, {"chat": f"telegram:{CHAT}"}, content={"text": "x" * 4097}),
)
