"""Mattermost, as its documentation has incoming webhooks and its API of version 4."""

from channels.taxonomy import Meaning
from domain.vocabulary import Channel
from tests.conformance.over_http import HttpSubject, Request, Response
from tests.conformance.subject import TEXT, message
from tests.published import faults

TOKEN = "a-token-of-a-bot-of-mattermost"
KEY = "xxx3generated4key5of6hook7"
CHANNEL = "4xp9fdt77pncbef59f4k1qe83o"
POST = "8xp9fdt77pncbef59f4k1qe83o"
PARAMETERS = {"text", "channel", "username", "icon_url", "icon_emoji", "attachments", "type", "props", "priority"}
"""Those that the page of incoming webhooks lists."""


def refusal(status: int, code: str) -> Response:
    said = {"id": code, "message": f"Not to {CHANNEL} with {TOKEN} or {KEY}", "status_code": status, "request_id": "r"}
    return Response(status, said)


def posted(request: Request) -> None:
    assert (request.method, request.path) == ("POST", "/api/v4/posts")
    assert request.headers["Authorization"] == f"Bearer {TOKEN}"
    assert request.headers["Content-Type"] == "application/json"
    assert faults("mattermost", request.json) == []
    assert request.json == {"channel_id": CHANNEL, "message": f"**{TEXT}!**\n{TEXT}"}


def hooked(request: Request) -> None:
    assert (request.method, request.path) == ("POST", f"/hooks/{KEY}")
    assert request.headers["Content-Type"] == "application/json"
    assert request.json.keys() <= PARAMETERS
    assert request.json == {"channel": "town-square", "text": f"**{TEXT}!**\n{TEXT}"}


SUBJECTS = (
    HttpSubject(
        kind="mattermost",
        channel=Channel.CHAT,
        options=lambda url, _: {"webhook_url": f"{url}/hooks/{KEY}"},
        message=message(Channel.CHAT, {"chat": "mattermost:#town-square"}),
        address="town-square",
        success=Response(200, text="ok"),
        failures={
            "disabled": (refusal(501, "web.incoming_webhook.disabled.app_error"), Meaning.CONFIGURATION),
            "no such webhook": (refusal(400, "web.incoming_webhook.invalid.app_error"), Meaning.CONFIGURATION),
            "no such channel": (refusal(404, "web.incoming_webhook.channel.app_error"), Meaning.RECIPIENT),
            "no such user": (refusal(400, "web.incoming_webhook.user.app_error"), Meaning.RECIPIENT),
            "locked": (refusal(403, "web.incoming_webhook.channel_locked.app_error"), Meaning.RECIPIENT),
            "no text": (refusal(400, "web.incoming_webhook.text.app_error"), Meaning.MESSAGE),
            "too fast": (Response(429, text="limit exceeded", headers={"Retry-After": "7"}), Meaning.RATE_LIMITED),
            "down": (Response(503, text="<html>town-square"), Meaning.TRANSIENT),
            "an unknown id": (refusal(400, "web.new.app_error"), Meaning.MESSAGE),
        },
        requested=hooked,
        secrets=(KEY,),
        too_long=message(Channel.CHAT, {"chat": "mattermost:"}, content={"text": "x" * 16_384}),
    ),
    HttpSubject(
        kind="mattermost",
        channel=Channel.CHAT,
        options=lambda url, _: {"base_url": url, "token": TOKEN},
        message=message(Channel.CHAT, {"chat": f"mattermost:{CHANNEL}"}),
        address=CHANNEL,
        success=Response(201, {"id": POST, "channel_id": CHANNEL, "message": TEXT}),
        failures={
            "bad token": (refusal(401, "api.context.session_expired.app_error"), Meaning.CONFIGURATION),
            "not in the channel": (refusal(403, "api.context.permissions.app_error"), Meaning.RECIPIENT),
            "bad field": (refusal(400, "api.context.invalid_body_param.app_error"), Meaning.MESSAGE),
            "too long": (refusal(400, "model.post.is_valid.message_length.app_error"), Meaning.MESSAGE),
            "too fast": (Response(429, text="limit exceeded", headers={"Retry-After": "7"}), Meaning.RATE_LIMITED),
            "down": (Response(500, {"id": "app.post.save.app_error"}), Meaning.TRANSIENT),
        },
        requested=posted,
        secrets=(TOKEN,),
        reference=POST,
        too_long=message(Channel.CHAT, {"chat": f"mattermost:{CHANNEL}"}, content={"text": "x" * 16_384}),
    ),
)
