"""Twilio, as its REST API's documentation has it."""

from base64 import b64decode
from urllib.parse import parse_qs

from channels.taxonomy import Meaning
from domain.vocabulary import Channel
from tests.conformance.over_http import HttpSubject, Request, Response
from tests.conformance.subject import TEXT, message
from tests.published import faults

SID = "AC" + "0a" * 16
TOKEN = "an auth token of Twilio's"
PHONE = "+4915112345678"
SENT = {"sid": "SM" + "1b" * 16, "status": "queued", "error_code": None}


def refusal(status: int, code: int, headers: dict[str, str] | None = None) -> Response:
    words = f"The 'To' number {PHONE} is not one, says {TOKEN}"
    return Response(status, {"code": code, "message": words, "status": status}, headers=headers or {})


def faults_in(request: Request) -> list[str]:
    return faults("twilio", {"method": request.method, "path": request.path, "body": request.body.decode()})


def requested(request: Request) -> None:
    assert (request.method, request.path) == ("POST", f"/2010-04-01/Accounts/{SID}/Messages.json")
    scheme, _, login = request.headers["Authorization"].partition(" ")
    assert (scheme, b64decode(login).decode()) == ("Basic", f"{SID}:{TOKEN}")
    assert request.headers["Content-Type"] == "application/x-www-form-urlencoded"
    assert faults_in(request) == []
    form = {name: value for name, (value,) in parse_qs(request.body.decode(), strict_parsing=True).items()}
    assert form == {"To": PHONE, "From": "+15005550006", "Body": TEXT}


SUBJECT = HttpSubject(
    kind="twilio",
    channel=Channel.SMS,
    options=lambda url, _: {"base_url": url, "account_sid": SID, "auth_token": TOKEN, "from": "+15005550006"},
    message=message(Channel.SMS, {"phone": PHONE}),
    address=PHONE,
    success=Response(201, SENT),
    failures={
        "20003": (refusal(401, 20003), Meaning.CONFIGURATION),
        "20429": (refusal(429, 20429, {"Retry-After": "7"}), Meaning.RATE_LIMITED),
        "21211": (refusal(400, 21211), Meaning.RECIPIENT),
        "21408": (refusal(403, 21408), Meaning.RECIPIENT),
        "21610": (refusal(400, 21610), Meaning.RECIPIENT),
        "21614": (refusal(400, 21614), Meaning.RECIPIENT),
        "21617": (refusal(400, 21617), Meaning.MESSAGE),
        "30001": (refusal(400, 30001), Meaning.RATE_LIMITED),
        "30002": (refusal(400, 30002), Meaning.CONFIGURATION),
        "30003": (refusal(400, 30003), Meaning.TRANSIENT),
        "30008": (refusal(400, 30008), Meaning.TRANSIENT),
        "an unknown code": (refusal(400, 99999), Meaning.MESSAGE),
        "402": (Response(402, text="pay first"), Meaning.CONFIGURATION),
        "no document": (Response(503, text="<html>"), Meaning.TRANSIENT),
    },
    requested=requested,
    secrets=(TOKEN,),
    reference=str(SENT["sid"]),
    too_long=message(Channel.SMS, {"phone": PHONE}, content={"text": "x" * 1601}),
)
