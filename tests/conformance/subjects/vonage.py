"""Vonage, as the documentation of its SMS API has it."""

from base64 import b64decode
from urllib.parse import parse_qs

from channels.taxonomy import Meaning
from domain.vocabulary import Channel
from tests.conformance.over_http import HttpSubject, Request, Response
from tests.conformance.subject import TEXT, message
from tests.published import faults

KEY, SECRET = "abcd1234", "a secret of Vonage's"
PHONE = "+4915112345678"
REFERENCE = "0A0000000123ABCD1"


def taken(reference: str = REFERENCE) -> dict[str, str]:
    prices = {"remaining-balance": "3.14159265", "message-price": "0.03330000", "network": "12345"}
    return {"to": PHONE[1:], "message-id": reference, "status": "0", **prices}


def refused(code: str) -> dict[str, str]:
    return {"to": PHONE[1:], "status": code, "error-text": f"{PHONE[1:]} was refused, says {SECRET}"}


def answer(*parts: dict[str, str], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(status, {"message-count": str(len(parts)), "messages": parts}, headers=headers or {})


def form_of(request: Request) -> dict[str, str]:
    return {name: value for name, (value,) in parse_qs(request.body.decode(), strict_parsing=True).items()}


def requested(request: Request) -> None:
    assert (request.method, request.path) == ("POST", "/sms/json")
    scheme, _, login = request.headers["Authorization"].partition(" ")
    assert (scheme, b64decode(login).decode()) == ("Basic", f"{KEY}:{SECRET}")
    assert request.headers["Content-Type"] == "application/x-www-form-urlencoded"
    assert faults("vonage", form_of(request)) == []
    sent = {"from": "Shop", "to": "4915112345678", "text": TEXT, "type": "unicode", "client-ref": "d1/1"}
    assert form_of(request) == sent


SUBJECT = HttpSubject(
    kind="vonage",
    channel=Channel.SMS,
    options=lambda url, _: {"base_url": url, "api_key": KEY, "api_secret": SECRET, "from": "Shop"},
    message=message(Channel.SMS, {"phone": PHONE}),
    address=PHONE[1:],
    success=answer(taken(), taken("another part's")),
    failures={
        "1": (answer(refused("1"), headers={"Retry-After": "7"}), Meaning.RATE_LIMITED),
        "3": (answer(refused("3")), Meaning.MESSAGE),
        "4": (answer(refused("4")), Meaning.CONFIGURATION),
        "5": (answer(refused("5")), Meaning.TRANSIENT),
        "7": (answer(refused("7")), Meaning.RECIPIENT),
        "9": (answer(refused("9")), Meaning.CONFIGURATION),
        "12": (answer(refused("12")), Meaning.MESSAGE),
        "15": (answer(refused("15")), Meaning.RECIPIENT),
        "29": (answer(refused("29")), Meaning.RECIPIENT),
        "33": (answer(refused("33")), Meaning.RECIPIENT),
        "an unknown code": (answer(refused("99")), Meaning.MESSAGE),
        "a part of it": (answer(taken(), refused("1")), Meaning.UNKNOWN),
        "no document": (Response(200, text="<html>"), Meaning.UNKNOWN),
        "no messages": (answer(), Meaning.UNKNOWN),
        "401": (Response(401, {"error_title": "Unauthorized"}), Meaning.CONFIGURATION),
        "429": (Response(429, text="slow down", headers={"Retry-After": "7"}), Meaning.RATE_LIMITED),
        "503": (Response(503, text="<html>"), Meaning.TRANSIENT),
    },
    requested=requested,
    body_tells=True,
    secrets=(SECRET,),
    reference=REFERENCE,
    too_long=message(Channel.SMS, {"phone": PHONE}, content={"text": "x" * 3201}),
)
