"""An API that no provider was written for, described by settings: one with JSON, one with a form and little else."""

from typing import Any
from urllib.parse import parse_qs

from channels.taxonomy import Meaning
from domain.vocabulary import Channel
from tests.conformance.over_http import HttpSubject, Request, Response
from tests.conformance.subject import TEXT, message

TOKEN = "a token of the gateway's"
PHONE = "+4915112345678"
TAKEN = {"status": "ok", "messages": [{"id": "m-42"}]}


def gateway(url: str) -> dict[str, Any]:
    return {
        "url": url + "/v1/{{ channel }}/{{ recipient.phone }}?ref={{ delivery }}",
        "headers": {"Authorization": f"Bearer {TOKEN}", "Idempotency-Key": "{{ idempotency_key }}"},
        "json": {"to": ["{{ recipient.phone }}"], "text": "{{ text }}", "flash": False, "tags": ["sms", 7]},
        "success": {"status": [200, 202], "path": "status", "equals": "ok"},
        "reference": "messages.0.id",
        "errors": {
            "path": "error.code",
            "rules": {
                "42": "recipient",
                "unavailable": "transient",
                "slow": "rate_limited",
                "login": "configuration",
                "text": "message",
                "maybe": "unknown",
            },
        },
    }


def refused(code: str | int, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    error = {"code": code, "message": f"{PHONE} was refused, says {TOKEN}"}
    return Response(status, {"status": "error", "error": error}, headers=headers or {})


def requested(request: Request) -> None:
    assert (request.method, request.path) == ("POST", f"/v1/sms/{PHONE}")
    assert request.query == {"ref": "d1"}
    assert request.headers["Authorization"] == f"Bearer {TOKEN}"
    assert request.headers["Content-Type"] == "application/json"
    assert request.json == {"to": [PHONE], "text": TEXT, "flash": False, "tags": ["sms", 7]}


def form_requested(request: Request) -> None:
    assert (request.method, request.path) == ("PUT", "/send")
    assert request.headers["Content-Type"] == "application/x-www-form-urlencoded"
    form = {name: value for name, (value,) in parse_qs(request.body.decode(), strict_parsing=True).items()}
    assert form == {"to": PHONE, "text": TEXT, "key": TOKEN}


COMMON: dict[str, Any] = {
    "kind": "http",
    "channel": Channel.SMS,
    "message": message(Channel.SMS, {"phone": PHONE}),
    "address": PHONE,
    "secrets": (TOKEN,),
    "stranger": None,
}
STATUSES: dict[str, tuple[Response, Meaning]] = {
    "400": (Response(400, text="no"), Meaning.MESSAGE),
    "401": (Response(401, text="who?"), Meaning.CONFIGURATION),
    "429": (Response(429, text="slow", headers={"Retry-After": "7"}), Meaning.RATE_LIMITED),
    "503": (Response(503, text="<html>"), Meaning.TRANSIENT),
}
SUBJECTS = [
    HttpSubject(
        **COMMON,
        options=lambda url, _: gateway(url),
        success=Response(202, TAKEN),
        failures=STATUSES
        | {
            "42": (refused(42), Meaning.RECIPIENT),
            "unavailable": (refused("unavailable"), Meaning.TRANSIENT),
            "slow": (refused("slow", 400, {"Retry-After": "7"}), Meaning.RATE_LIMITED),
            "login": (refused("login"), Meaning.CONFIGURATION),
            "text": (refused("text", 500), Meaning.MESSAGE),
            "maybe": (refused("maybe"), Meaning.UNKNOWN),
            "an unknown code": (refused("99"), Meaning.MESSAGE),
            "an unknown code with a status": (refused("99", 500), Meaning.TRANSIENT),
            "another status": (Response(201, TAKEN), Meaning.MESSAGE),
            "no document": (Response(200, text="<html>"), Meaning.UNKNOWN),
        },
        requested=requested,
        body_tells=True,
        reference="m-42",
        idempotency=lambda request: request.headers.get("Idempotency-Key"),
    ),
    HttpSubject(
        **COMMON,
        options=lambda url, _: {
            "url": url + "/send",
            "method": "PUT",
            "form": {"to": "{{ recipient.phone }}", "text": "{{ text }}", "key": TOKEN},
        },
        success=Response(204),
        failures=STATUSES,
        requested=form_requested,
    ),
]
