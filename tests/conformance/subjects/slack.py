"""Slack, as its documentation has chat.postMessage and incoming webhooks."""

from channels.taxonomy import Meaning
from domain.message import Message
from domain.vocabulary import Channel
from tests.conformance.over_http import HttpSubject, Request, Response
from tests.conformance.subject import TEXT, message
from tests.published import faults

TOKEN = "xoxb-a-token-of-a-bot"
HOOK = "/services/T0001/B0001/the-secret-of-a-webhook"
CHANNEL = "C0123456789"
STAMP = "1503435956.000247"
SENT = {"ok": True, "channel": CHANNEL, "ts": STAMP, "message": {"type": "message", "text": TEXT}}


def refusal(code: str, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    said = {"ok": False, "error": code, "needed": f"{CHANNEL} {TOKEN}"}
    return Response(status, said, headers=headers or {})


def posted(request: Request) -> None:
    assert (request.method, request.path) == ("POST", "/api/chat.postMessage")
    assert request.headers["Authorization"] == f"Bearer {TOKEN}"
    assert request.headers["Content-Type"] == "application/json; charset=utf-8"
    assert faults("slack", request.json) == []
    assert request.json["channel"] == CHANNEL
    said(request)


def hooked(request: Request) -> None:
    assert (request.method, request.path) == ("POST", HOOK)
    assert request.headers["Content-Type"] == "application/json"
    assert "Authorization" not in request.headers
    assert faults("slack webhook", request.json) == []
    assert "channel" not in request.json, "a webhook's channel cannot be overridden"
    said(request)


def said(request: Request) -> None:
    assert request.json == request.json | {"text": f"{TEXT}!\n{TEXT}", "mrkdwn": False, "link_names": False}


def too_long(address: str) -> Message:
    return message(Channel.CHAT, {"chat": address}, content={"text": "x" * 40_001})


SUBJECTS = (
    HttpSubject(
        kind="slack",
        channel=Channel.CHAT,
        options=lambda url, _: {"base_url": f"{url}/api", "token": TOKEN},
        message=message(Channel.CHAT, {"chat": f"slack:{CHANNEL}"}),
        address=CHANNEL,
        success=Response(200, SENT),
        failures={
            "invalid_auth": (refusal("invalid_auth"), Meaning.CONFIGURATION),
            "not_authed": (refusal("not_authed"), Meaning.CONFIGURATION),
            "token_revoked": (refusal("token_revoked"), Meaning.CONFIGURATION),
            "account_inactive": (refusal("account_inactive"), Meaning.CONFIGURATION),
            "missing_scope": (refusal("missing_scope"), Meaning.CONFIGURATION),
            "channel_not_found": (refusal("channel_not_found"), Meaning.RECIPIENT),
            "not_in_channel": (refusal("not_in_channel"), Meaning.RECIPIENT),
            "is_archived": (refusal("is_archived"), Meaning.RECIPIENT),
            "restricted_action": (refusal("restricted_action"), Meaning.RECIPIENT),
            "ratelimited": (refusal("ratelimited", 429, {"Retry-After": "7"}), Meaning.RATE_LIMITED),
            "rate_limited": (refusal("rate_limited"), Meaning.RATE_LIMITED),
            "msg_too_long": (refusal("msg_too_long"), Meaning.MESSAGE),
            "no_text": (refusal("no_text"), Meaning.MESSAGE),
            "fatal_error": (refusal("fatal_error"), Meaning.UNKNOWN),
            "internal_error": (refusal("internal_error", 500), Meaning.UNKNOWN),
            "service_unavailable": (refusal("service_unavailable", 503), Meaning.TRANSIENT),
            "an unknown code": (refusal("a_new_code"), Meaning.MESSAGE),
            "no document": (Response(200, text="<html>"), Meaning.UNKNOWN),
            "no document of a failure": (Response(502, text="<html>"), Meaning.UNKNOWN),
        },
        requested=posted,
        body_tells=True,
        secrets=(TOKEN,),
        reference=f"{CHANNEL}/{STAMP}",
        too_long=too_long(f"slack:{CHANNEL}"),
    ),
    HttpSubject(
        kind="slack",
        channel=Channel.CHAT,
        options=lambda url, _: {"webhook_url": url + HOOK, "channel": "#orders"},
        message=message(Channel.CHAT, {"chat": "primary:#orders"}),
        address="#orders",
        success=Response(200, text="ok"),
        failures={
            "invalid_payload": (Response(400, text="invalid_payload"), Meaning.MESSAGE),
            "no_text": (Response(400, text="no_text"), Meaning.MESSAGE),
            "user_not_found": (Response(400, text="user_not_found"), Meaning.CONFIGURATION),
            "action_prohibited": (Response(403, text="action_prohibited"), Meaning.CONFIGURATION),
            "general": (Response(403, text="posting_to_general_channel_denied"), Meaning.CONFIGURATION),
            "invalid_token": (Response(403, text="invalid_token"), Meaning.CONFIGURATION),
            "channel_not_found": (Response(404, text="channel_not_found"), Meaning.CONFIGURATION),
            "no_service": (Response(404, text="no_service"), Meaning.CONFIGURATION),
            "no_team": (Response(404, text="no_team"), Meaning.CONFIGURATION),
            "channel_is_archived": (Response(410, text="channel_is_archived"), Meaning.CONFIGURATION),
            "too fast": (Response(429, text="ratelimited", headers={"Retry-After": "7"}), Meaning.RATE_LIMITED),
            "rollup_error": (Response(500, text="rollup_error"), Meaning.TRANSIENT),
            "words": (Response(400, text=f"Not to {HOOK}, not to #orders"), Meaning.MESSAGE),
        },
        requested=hooked,
        secrets=(HOOK,),
        too_long=too_long("slack:"),
    ),
)
