"""A workflow of Microsoft Teams, as Microsoft's documentation has its request and its errors."""

from channels.taxonomy import Meaning
from domain.vocabulary import Channel
from tests.conformance import cards
from tests.conformance.over_http import HttpSubject, Request, Response
from tests.conformance.subject import TEXT, message
from tests.published import faults

SIGNATURE = "the-signature-of-a-workflow"
PATH = "/workflows/643e69f83c8944438d68119179a10a64/triggers/manual/paths/invoke"
QUERY = {"api-version": "2016-06-01", "sp": "/triggers/manual/run", "sv": "1.0", "sig": SIGNATURE}
URL = PATH + "?api-version=2016-06-01&sp=%2Ftriggers%2Fmanual%2Frun&sv=1.0&sig=" + SIGNATURE


def refusal(status: int, code: str, headers: dict[str, str] | None = None) -> Response:
    said = {"error": {"code": code, "message": f"The workflow at {URL} does not run."}}
    return Response(status, said, headers=headers or {})


def requested(request: Request) -> None:
    assert (request.method, request.path) == ("POST", PATH)
    assert dict(request.query) == QUERY
    assert request.headers["Content-Type"] == "application/json"
    assert request.json.keys() == {"type", "attachments"}
    assert request.json["type"] == "message"
    (attachment,) = request.json["attachments"]
    assert attachment["contentType"] == "application/vnd.microsoft.card.adaptive"
    assert faults("teams", request.json) == []
    cards.check(attachment["content"])
    assert cards.texts(attachment["content"]) == [f"{TEXT}!", TEXT]


SUBJECT = HttpSubject(
    kind="teams",
    channel=Channel.CHAT,
    options=lambda url, _: {"webhook_url": url + URL},
    message=message(Channel.CHAT, {"chat": "teams:"}),
    address=PATH,
    success=Response(202),
    failures={
        "turned off": (refusal(400, "WorkflowTriggerIsNotEnabled"), Meaning.CONFIGURATION),
        "no signature": (refusal(401, "DirectApiAuthorizationRequired"), Meaning.CONFIGURATION),
        "not found": (refusal(404, "WorkflowNotFound"), Meaning.CONFIGURATION),
        "gone": (Response(410), Meaning.CONFIGURATION),
        "schema": (refusal(400, "TriggerInputSchemaMismatch"), Meaning.MESSAGE),
        "too large": (refusal(413, "RequestEntityTooLarge"), Meaning.MESSAGE),
        "too fast": (refusal(429, "WorkflowTriggerThrottled", {"Retry-After": "7"}), Meaning.RATE_LIMITED),
        "bad gateway": (refusal(502, "BadGateway"), Meaning.UNKNOWN),
        "no document": (Response(503, text=f"<html>{URL}"), Meaning.TRANSIENT),
        "an unknown code": (refusal(400, SIGNATURE), Meaning.MESSAGE),
    },
    requested=requested,
    secrets=(SIGNATURE,),
    too_long=message(Channel.CHAT, {"chat": "teams:"}, content={"text": "x" * 28 * 1024}),
)
