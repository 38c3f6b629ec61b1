"""Firebase Cloud Messaging, as the reference of its HTTP v1 API has it; and Google's token endpoint (RFC 7523)."""

import json
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from channels.fcm import SCOPE
from channels.taxonomy import Meaning
from domain.vocabulary import Channel
from tests.conformance.over_http import HttpSubject, Request, Response
from tests.conformance.subject import TEXT, message
from tests.published import faults

KEY = generate_private_key(65537, 2048)
PEM = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
PUBLIC = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
EMAIL = "notipy@shop-1042.iam.gserviceaccount.com"
ACCESS_TOKEN = "ya29.an-access-token"
DEVICE = "fLq3:APA91b-a-registration-token"
NAME = "projects/shop-1042/messages/0:1500415314455276%31bd1c9631bd1c96"


def account(url: str) -> str:
    """A service account's JSON, whose tokens come from this server."""
    fields = {"type": "service_account", "project_id": "shop-1042", "private_key_id": "k1", "private_key": PEM}
    return json.dumps(fields | {"client_email": EMAIL, "token_uri": f"{url}/token"})


def token(request: Request) -> Response | None:
    """Google's token endpoint: it believes what the service account's key has signed, and nothing else."""
    if request.path != "/token":
        return None
    form = {name: value for name, (value,) in parse_qs(request.body.decode()).items()}
    host = request.headers.get("Host") or request.headers.get("host")
    try:
        assert form["grant_type"] == "urn:ietf:params:oauth:grant-type:jwt-bearer"
        claims = jwt.decode(
            form["assertion"],
            KEY.public_key(),
            algorithms=["RS256"],
            audience=f"http://{host}/token",
            issuer=EMAIL,
            options={"require": ["iss", "aud", "iat", "exp", "scope"]},
        )
        assert claims["scope"] == SCOPE
        assert claims["exp"] - claims["iat"] <= 3600
        assert jwt.get_unverified_header(form["assertion"])["kid"] == "k1"
    except (AssertionError, KeyError, jwt.PyJWTError):
        return Response(400, {"error": "invalid_grant", "error_description": EMAIL})
    return Response(200, {"access_token": ACCESS_TOKEN, "expires_in": 3599, "token_type": "Bearer"})


def refusal(
    status: int, google: str, fcm: str | None = None, field: str | None = None, retry_after: str | None = None
) -> Response:
    details: list[dict[str, Any]] = []
    if fcm:
        details.append({"@type": "type.googleapis.com/google.firebase.fcm.v1.FcmError", "errorCode": fcm})
    if field:
        violation = {"field": field, "description": f"Invalid value: {DEVICE}"}
        details.append({"@type": "type.googleapis.com/google.rpc.BadRequest", "fieldViolations": [violation]})
    error = {"code": status, "message": f"It failed for {DEVICE}", "status": google, "details": details}
    return Response(status, {"error": error}, headers={"Retry-After": retry_after} if retry_after else {})


def told_in_words() -> Response:
    """The second example of Firebase's page on REST error codes: the field is not named."""
    refused = refusal(400, "INVALID_ARGUMENT", "INVALID_ARGUMENT")
    refused.document["error"]["message"] = "The registration token is not a valid FCM registration token"
    return refused


def projects_quota() -> Response:
    """As Google's APIs tell of a quota of the project (google.rpc.ErrorInfo)."""
    refused = refusal(429, "RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED", retry_after="7")
    info = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "RATE_LIMIT_EXCEEDED"}
    refused.document["error"]["details"].append(info | {"domain": "googleapis.com"})
    return refused


def requested(request: Request) -> None:
    assert (request.method, request.path) == ("POST", "/v1/projects/shop-1042/messages:send")
    assert request.headers["Authorization"] == f"Bearer {ACCESS_TOKEN}"
    assert request.headers["Content-Type"] == "application/json"
    assert faults("fcm", request.json) == []
    (sent,) = request.json.values()
    assert sent["token"] == DEVICE
    assert sent["notification"] == {"title": f"{TEXT}!", "body": TEXT}


SUBJECT = HttpSubject(
    kind="fcm",
    channel=Channel.PUSH,
    options=lambda url, _: {"base_url": url, "credentials": account(url)},
    message=message(Channel.PUSH, {"push": [{"provider": "fcm", "token": DEVICE}]}),
    address=DEVICE,
    success=Response(200, {"name": NAME}),
    failures={
        "UNREGISTERED": (refusal(404, "NOT_FOUND", "UNREGISTERED"), Meaning.RECIPIENT),
        "a token that is none": (
            refusal(400, "INVALID_ARGUMENT", "INVALID_ARGUMENT", "message.token"),
            Meaning.RECIPIENT,
        ),
        "a token that is none, in words": (told_in_words(), Meaning.RECIPIENT),
        "a message that is too large": (refusal(400, "INVALID_ARGUMENT"), Meaning.MESSAGE),
        "another field": (
            refusal(400, "INVALID_ARGUMENT", "INVALID_ARGUMENT", "message.data[0].value"),
            Meaning.MESSAGE,
        ),
        "SENDER_ID_MISMATCH": (refusal(403, "PERMISSION_DENIED", "SENDER_ID_MISMATCH"), Meaning.RECIPIENT),
        "a device's quota": (refusal(429, "RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED", retry_after="7"), Meaning.TRANSIENT),
        "the project's quota": (projects_quota(), Meaning.RATE_LIMITED),
        "UNAVAILABLE": (refusal(503, "UNAVAILABLE", "UNAVAILABLE", retry_after="7"), Meaning.TRANSIENT),
        "INTERNAL": (refusal(500, "INTERNAL", "INTERNAL"), Meaning.TRANSIENT),
        "THIRD_PARTY_AUTH_ERROR": (refusal(401, "UNAUTHENTICATED", "THIRD_PARTY_AUTH_ERROR"), Meaning.TRANSIENT),
        "UNAUTHENTICATED": (refusal(401, "UNAUTHENTICATED"), Meaning.CONFIGURATION),
        "PERMISSION_DENIED": (refusal(403, "PERMISSION_DENIED"), Meaning.CONFIGURATION),
        "no such project": (refusal(404, "NOT_FOUND"), Meaning.CONFIGURATION),
        "DEADLINE_EXCEEDED": (refusal(504, "DEADLINE_EXCEEDED"), Meaning.UNKNOWN),
        "no document": (Response(502, text="<html>"), Meaning.UNKNOWN),
    },
    requested=requested,
    secrets=(PEM.splitlines()[1], ACCESS_TOKEN, EMAIL),
    reference=NAME,
    aside=token,
    too_long=message(Channel.PUSH, {"push": [{"provider": "fcm", "token": DEVICE}]}, content={"text": "ü" * 2049}),
)


def options_in(folder: Path, url: str) -> dict[str, Any]:
    """Settings with the service account in a file."""
    file = folder / "account.json"
    file.write_text(account(url), encoding="utf-8")
    return {"base_url": url, "credentials_file": str(file)}
