"""The Apple Push Notification service, as Apple's documentation of its requests and answers has it."""

import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from channels.taxonomy import Meaning
from domain.message import Message
from domain.vocabulary import Channel
from tests.conformance.http2 import ca_pem, http2_peer
from tests.conformance.over_http import HttpSubject, Request, Response
from tests.conformance.subject import TEXT, message
from tests.published import faults, jwt_faults

KEY = generate_private_key(SECP256R1())
PEM = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
PUBLIC = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
KEY_ID, TEAM_ID, TOPIC = "ABC123DEFG", "DEF123GHIJ", "com.example.shop"
DEVICE = "00fc13adff785122b4ad28809a3420982341241421348097878e577c991de8f0"
APNS_ID = "EABEAE54-14A8-11E5-B60B-1697F925EC7B"


def options(url: str, folder: Path) -> Mapping[str, Any]:
    file = folder / "apple.pem"
    file.write_text(ca_pem(), encoding="ascii")
    account = {"private_key": PEM, "key_id": KEY_ID, "team_id": TEAM_ID, "topic": TOPIC}
    return {"base_url": url, "ca_file": str(file)} | account


def said(**content: str) -> Message:
    given: dict[str, Any] = {"content": {"text": TEXT} | content} if content else {}
    return message(Channel.PUSH, {"push": [{"provider": "apns", "token": DEVICE}]}, **given)


def authorized(request: Request) -> bool:
    """Apple's rules for a provider token: its signature, its claims, and its age of at most an hour."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    try:
        claims = jwt.decode(token, KEY.public_key(), algorithms=["ES256"], issuer=TEAM_ID)
        head = jwt.get_unverified_header(token)
    except jwt.PyJWTError:
        return False
    young = abs(time.time() - claims["iat"]) < 3600
    return scheme == "bearer" and young and set(claims) == {"iss", "iat"} and head["kid"] == KEY_ID


def gate(request: Request) -> Response | None:
    """What Apple refuses before it looks at the message."""
    if not authorized(request):
        return Response(403, {"reason": "InvalidProviderToken"})
    if request.headers.get("apns-topic") != TOPIC:
        return Response(400, {"reason": "BadTopic"})
    return None


def faults_in(request: Request) -> list[str]:
    """By another client's types and requests, and by another library for tokens than the one that has signed them."""
    headers = {name: value for name, value in request.headers.items() if name.startswith("apns-")}
    claims = {"issuer": TEAM_ID, "maxTokenAge": "1 hour"}
    token = request.headers["authorization"].removeprefix("bearer ")
    signature = jwt_faults(token, PUBLIC, "ES256", claims=claims, kid=KEY_ID)
    return [*signature, *faults("apns", {"headers": headers, "payload": request.json})]


def requested(request: Request) -> None:
    assert (request.method, request.path) == ("POST", f"/3/device/{DEVICE}")
    assert faults_in(request) == []
    assert str(uuid.UUID(request.headers["apns-id"])) == request.headers["apns-id"]
    assert request.headers["apns-push-type"] == "alert"
    assert int(request.headers["apns-expiration"]) > time.time()
    assert len(request.headers["apns-collapse-id"].encode()) <= 64
    assert request.json["aps"] == {"alert": {"title": f"{TEXT}!", "body": TEXT}}
    assert len(request.body) <= 4096


def refusal(status: int, reason: str, **headers: str) -> Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Response(status, {"reason": reason}, headers={"apns-id": APNS_ID} | named)


SUBJECT = HttpSubject(
    kind="apns",
    channel=Channel.PUSH,
    options=options,
    message=said(),
    address=DEVICE,
    success=Response(200, headers={"apns-id": APNS_ID}),
    failures={
        "BadDeviceToken": (refusal(400, "BadDeviceToken"), Meaning.RECIPIENT),
        "DeviceTokenNotForTopic": (refusal(400, "DeviceTokenNotForTopic"), Meaning.RECIPIENT),
        "Unregistered": (Response(410, {"reason": "Unregistered", "timestamp": 1629000000000}), Meaning.RECIPIENT),
        "ExpiredToken": (refusal(410, "ExpiredToken"), Meaning.RECIPIENT),
        "BadTopic": (refusal(400, "BadTopic"), Meaning.CONFIGURATION),
        "MissingTopic": (refusal(400, "MissingTopic"), Meaning.CONFIGURATION),
        "TopicDisallowed": (refusal(400, "TopicDisallowed"), Meaning.CONFIGURATION),
        "ExpiredProviderToken": (refusal(403, "ExpiredProviderToken"), Meaning.CONFIGURATION),
        "InvalidProviderToken": (refusal(403, "InvalidProviderToken"), Meaning.CONFIGURATION),
        "MissingProviderToken": (refusal(403, "MissingProviderToken"), Meaning.CONFIGURATION),
        "TooManyProviderTokenUpdates": (
            refusal(429, "TooManyProviderTokenUpdates", Retry_After="7"),
            Meaning.RATE_LIMITED,
        ),
        "TooManyRequests": (refusal(429, "TooManyRequests"), Meaning.TRANSIENT),
        "PayloadTooLarge": (refusal(413, "PayloadTooLarge"), Meaning.MESSAGE),
        "BadCollapseId": (refusal(400, "BadCollapseId"), Meaning.MESSAGE),
        "IdleTimeout": (refusal(400, "IdleTimeout"), Meaning.TRANSIENT),
        "InternalServerError": (refusal(500, "InternalServerError"), Meaning.TRANSIENT),
        "ServiceUnavailable": (refusal(503, "ServiceUnavailable"), Meaning.TRANSIENT),
        "Shutdown": (refusal(503, "Shutdown"), Meaning.TRANSIENT),
        "an unknown reason": (refusal(400, "SomethingNew"), Meaning.MESSAGE),
        "no document": (Response(502, text="<html>"), Meaning.UNKNOWN),
    },
    requested=requested,
    secrets=(PEM.splitlines()[1],),
    reference=APNS_ID,
    idempotency=lambda request: request.headers.get("apns-id"),
    aside=gate,
    too_long=said(text="ü" * 2040),
    serve=http2_peer,
)
