"""Amazon SES, as the reference of its API v2 has it. Signatures are verified by the specification of Signature 4."""

import email
import hashlib
import hmac
from base64 import b64decode
from email import policy

from channels.taxonomy import Meaning
from domain.vocabulary import Channel
from tests.conformance.over_http import HttpSubject, Request, Response
from tests.conformance.subject import TEXT, message
from tests.published import faults

REGION = "eu-central-1"
KEY_ID = "AKIAIOSFODNN7EXAMPLE"
SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
TOKEN = "a-session-token-of-aws"
EMAIL = "ana.private@example.org"
NUMBER = "010701924b1e-0f1e-4c1d"


def refusal(status: int, code: str, words: str = "", headers: dict[str, str] | None = None) -> Response:
    told = {"message": f"{words} {EMAIL} {SECRET}".strip()}
    return Response(status, told, headers={"x-amzn-ErrorType": code} | (headers or {}))


def signed(request: Request) -> None:
    """Compute the signature again (AWS General Reference, Signature Version 4) and compare."""
    scheme, _, rest = request.headers["Authorization"].partition(" ")
    given = dict(part.strip().split("=", 1) for part in rest.split(","))
    _, day, region, service, end = given["Credential"].split("/")
    assert (scheme, region, service, end) == ("AWS4-HMAC-SHA256", REGION, "ses", "aws4_request")
    names = given["SignedHeaders"].split(";")
    assert {"host", "x-amz-date"} <= set(names)
    headers = "".join(f"{name}:{request.headers[name].strip()}\n" for name in names)
    digest = hashlib.sha256(request.body).hexdigest()
    canonical = "\n".join((request.method, request.path, "", headers, given["SignedHeaders"], digest))
    hashed = hashlib.sha256(canonical.encode()).hexdigest()
    scope = f"{day}/{region}/{service}/{end}"
    to_sign = "\n".join((scheme, request.headers["x-amz-date"], scope, hashed))
    key = f"AWS4{SECRET}".encode()
    for part in (day, region, service, end, to_sign):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    assert given["Signature"] == key.hex()


def faults_in(request: Request) -> list[str]:
    return faults("ses", {"method": request.method, "path": request.path, "document": request.json})


def requested(request: Request) -> None:
    assert (request.method, request.path) == ("POST", "/v2/email/outbound-emails")
    assert request.headers["X-Amz-Security-Token"] == TOKEN
    signed(request)
    assert faults_in(request) == []
    document = request.json
    raw = document.pop("Content")["Raw"]["Data"]
    assert document == {
        "FromEmailAddress": "no-reply@shop.example",
        "Destination": {"ToAddresses": [EMAIL], "BccAddresses": []},
        "EmailTags": [{"Name": "notipy-delivery", "Value": "d1_1"}],
        "ConfigurationSetName": "shop",
    }
    mail = email.message_from_bytes(b64decode(raw, validate=True), policy=policy.default)
    assert mail.defects == []
    assert (mail["to"], mail["subject"]) == (EMAIL, f"{TEXT}!")
    plain = mail.get_body(("plain",))
    assert plain is not None
    assert plain.get_content().strip() == TEXT


UNVERIFIED = "Email address is not verified. The following identities failed the check in region EU-CENTRAL-1:"
CONFIGURATION = {
    400: ("AccountSuspendedException", "SendingPausedException", "MailFromDomainNotVerifiedException"),
    403: (
        "AccessDeniedException",
        "UnrecognizedClientException",
        "InvalidSignatureException",
        "SignatureDoesNotMatch",
        "ExpiredTokenException",
        "InvalidClientTokenId",
        "MissingAuthenticationToken",
        "IncompleteSignature",
    ),
    404: ("NotFoundException",),
}

SUBJECT = HttpSubject(
    kind="ses",
    channel=Channel.EMAIL,
    options=lambda url, _: {
        "base_url": url,
        "region": REGION,
        "access_key_id": KEY_ID,
        "secret_access_key": SECRET,
        "session_token": TOKEN,
        "from": "Shop <no-reply@shop.example>",
        "configuration_set": "shop",
        "max_message_bytes": 100_000,
    },
    message=message(Channel.EMAIL, {"email": EMAIL}),
    address=EMAIL,
    success=Response(200, {"MessageId": NUMBER}),
    failures={
        **{
            code: (refusal(status, code), Meaning.CONFIGURATION)
            for status, codes in CONFIGURATION.items()
            for code in codes
        },
        "a sender that is not verified": (
            refusal(400, "MessageRejected", f"{UNVERIFIED} Shop <No-Reply@shop.example>,"),
            Meaning.CONFIGURATION,
        ),
        "a recipient that is not verified": (refusal(400, "MessageRejected", UNVERIFIED), Meaning.RECIPIENT),
        "MessageRejected": (refusal(400, "MessageRejected", "Transaction failed"), Meaning.MESSAGE),
        "BadRequestException": (refusal(400, "BadRequestException"), Meaning.MESSAGE),
        "TooManyRequestsException": (refusal(429, "TooManyRequestsException"), Meaning.RATE_LIMITED),
        "LimitExceededException": (refusal(400, "LimitExceededException"), Meaning.RATE_LIMITED),
        "ThrottlingException": (
            refusal(400, "ThrottlingException", "Maximum sending rate exceeded", {"Retry-After": "7"}),
            Meaning.RATE_LIMITED,
        ),
        "InternalFailure": (refusal(500, "InternalFailure"), Meaning.TRANSIENT),
        "ServiceUnavailable": (refusal(503, "ServiceUnavailable"), Meaning.TRANSIENT),
        "an unknown code": (refusal(400, "NovelException"), Meaning.MESSAGE),
        "no document": (Response(502, text="<html>"), Meaning.UNKNOWN),
    },
    requested=requested,
    tells_unsent=False,  # its library does not tell how far a request has come
    body_tells=True,  # its library tells the status of no answer that it has not read
    secrets=(SECRET, TOKEN),
    reference=NUMBER,
    too_long=message(Channel.EMAIL, {"email": EMAIL}, content={"subject": "s", "text": "x" * 100_000}),
)
