"""A push service, as RFC 8030, 8291 and 8292 have it. The recipient's subscription names it."""

import base64
import json
from typing import Any

import http_ece
import orjson
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from channels.taxonomy import Meaning
from domain.message import Message
from domain.vocabulary import Channel
from tests.conformance.over_http import HttpSubject, Request, Response
from tests.conformance.subject import TEXT, message
from tests.published import jwt_faults

VAPID = generate_private_key(SECP256R1())
PEM = VAPID.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
PUBLIC = VAPID.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
DAY = 24 * 60 * 60
"""Seconds, in which a VAPID token must end (RFC 8292)."""
BROWSER = generate_private_key(SECP256R1())
AUTH = bytes(range(16))
LOCATION = "/message/qDIYHNcfAIPP_5ITvURr-d6BGt"


def base64url(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def public(key: EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def subscription(url: str) -> str:
    """What a browser would hand over."""
    keys = {"p256dh": base64url(public(BROWSER.public_key())), "auth": base64url(AUTH)}
    return json.dumps({"endpoint": f"{url}/push/JzLQ3raZJfFBR0aqvOMsLrt54w4r", "expirationTime": None, "keys": keys})


def said(url: str, **content: str) -> Message:
    given: dict[str, Any] = {"content": {"text": TEXT} | content} if content else {}
    return message(Channel.PUSH, {"push": [{"provider": "webpush", "token": subscription(url)}]}, **given)


def requested(request: Request) -> None:
    assert (request.method, request.path) == ("POST", "/push/JzLQ3raZJfFBR0aqvOMsLrt54w4r")
    assert request.headers["TTL"].isdigit()
    assert request.headers["Content-Encoding"] == "aes128gcm"
    assert len(request.headers["Topic"]) <= 32
    scheme, _, parameters = request.headers["Authorization"].partition(" ")
    values = dict(parameter.split("=", 1) for parameter in parameters.split(","))
    assert (scheme, values["k"]) == ("vapid", base64url(public(VAPID.public_key())))
    claims = {"audience": f"http://{request.headers['Host']}", "subject": "mailto:push@shop.example"}
    assert jwt_faults(values["t"], PUBLIC, "ES256", claims=claims, within=DAY) == []
    assert len(request.body) <= 4096
    read = orjson.loads(http_ece.decrypt(request.body, private_key=BROWSER, auth_secret=AUTH))
    assert (read["notification"]["title"], read["notification"]["body"]) == (f"{TEXT}!", TEXT)


def refusal(status: int, **headers: str) -> Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Response(status, text=f"no, says {base64url(AUTH)}", headers=named)


SUBJECT = HttpSubject(
    kind="webpush",
    channel=Channel.PUSH,
    options=lambda _, __: {"private_key": PEM, "subject": "mailto:push@shop.example", "allow_private": True},
    message=said,
    address="JzLQ3raZJfFBR0aqvOMsLrt54w4r",
    success=Response(201, headers={"Location": LOCATION}),
    failures={
        "404": (refusal(404), Meaning.RECIPIENT),
        "410": (refusal(410), Meaning.RECIPIENT),
        "403": (refusal(403), Meaning.TRANSIENT),
        "400": (refusal(400), Meaning.MESSAGE),
        "413": (refusal(413), Meaning.MESSAGE),
        "401": (refusal(401), Meaning.TRANSIENT),
        "429": (refusal(429, Retry_After="7"), Meaning.TRANSIENT),
        "500": (refusal(500), Meaning.TRANSIENT),
        "502": (refusal(502), Meaning.UNKNOWN),
        "503": (refusal(503, Retry_After="7"), Meaning.TRANSIENT),
        "a redirect": (refusal(307, Location="http://127.0.0.1/"), Meaning.RECIPIENT),
    },
    requested=requested,
    secrets=(PEM.splitlines()[1], base64url(AUTH)),
    reference=LOCATION,
    too_long=said("http://127.0.0.1:9", text="x" * 3993),
    shared=False,
    classes=frozenset({Meaning.TRANSIENT, Meaning.MESSAGE}),
)
