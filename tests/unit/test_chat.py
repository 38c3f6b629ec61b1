"""Chat: whose address it is, what is said, and that data can neither mark up nor mention."""

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels import discord, mattermost, slack, teams, telegram
from channels.chat import KINDS, Content, wait_of
from channels.http import Answer
from channels.registry import kinds, make_provider
from config.settings import Settings
from domain.failures import PermanentFailure
from domain.message import Message
from domain.notification import check_content
from domain.ports import Provider
from domain.vocabulary import Channel, Reason
from tests.conformance import cards

NOW = datetime(2026, 11, 22, 17, 0, tzinfo=UTC)
HOOK = "https://hooks.slack.com/services/T0001/B0001/secret"
CHANNEL_ID = "4xp9fdt77pncbef59f4k1qe83o"
THREAD = "1234567890123456789"
WORKFLOW = "https://prod-1.westeurope.logic.azure.com:443/workflows/1/triggers/manual/paths/invoke?sig=s"
POWER = "https://default1.a.environment.api.powerplatform.com/powerautomate/automations/direct/workflows/1/invoke?sig=s"

SETTINGS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "slack by token": ("slack", {"token": "xoxb-1", "channel": "C000DEFAULT"}),
    "slack by hook": ("slack", {"webhook_url": HOOK, "channel": "#ops"}),
    "teams": ("teams", {"webhook_url": WORKFLOW}),
    "discord": ("discord", {"webhook_url": "https://discord.com/api/webhooks/1/t"}),
    "telegram": ("telegram", {"token": "123456:" + "A" * 35, "chat_id": -100123}),
    "mattermost by token": ("mattermost", {"base_url": "https://chat.example", "token": "t"}),
    "mattermost by hook": ("mattermost", {"webhook_url": "https://chat.example/hooks/k"}),
}


def provider(case: str, name: str = "mine", **more: Any) -> Provider:
    kind, options = SETTINGS[case]
    return make_provider(Channel.CHAT, name, kind, {**options, **more})


def content(title: str = "", text: str = "", url: str = "", *, markdown: bool = False, **payload: Any) -> Content:
    return Content(title, text, url, markdown, payload)


def message(**said: str) -> Message:
    return Message("d1", "d1/1", Channel.CHAT, {"chat": "slack:"}, said, NOW)


# --- addresses --------------------------------------------------------------------------------------------------------

ADDRESSES = {
    "slack:C0123456": {"slack by token"},
    "SLACK:C0123456": {"slack by token"},
    "slack:#general": {"slack by token"},
    "slack:#ops": {"slack by token", "slack by hook"},
    "slack:": {"slack by token", "slack by hook"},
    "slack:123456789": set(),
    "slack:@ana": set(),
    "C0123456789": {"slack by token"},
    "U0123456789": {"slack by token"},
    "#general": {"slack by token"},
    "telegram:123456789": {"telegram"},
    "telegram:-1001234567890": {"telegram"},
    "telegram:@channel": {"telegram"},
    "telegram:": {"telegram"},
    "telegram:#general": set(),
    f"telegram:{THREAD}": set(),
    "-1001234567890": {"telegram"},
    "123456789": {"telegram"},
    "@channel": {"telegram"},
    "discord:": {"discord"},
    f"discord:{THREAD}": {"discord"},
    THREAD: {"discord"},
    "discord:123456789": set(),
    "mattermost:": {"mattermost by hook"},
    f"mattermost:{CHANNEL_ID}": {"mattermost by token", "mattermost by hook"},
    "mattermost:@ana": {"mattermost by hook"},
    "mattermost:#town-square": {"mattermost by hook"},
    "mattermost:town-square": {"mattermost by hook"},
    CHANNEL_ID: {"mattermost by token"},
    "town-square": set(),
    "teams:": {"teams"},
    "teams:general": set(),
    "general": set(),
    "mine:": {"slack by token", "slack by hook", "teams", "discord", "telegram", "mattermost by hook"},
    "mine:C0123456": {"slack by token"},
    "other:C0123456": set(),
    "whatsapp:123456789": set(),
    HOOK: set(),
    f"slack:{HOOK}": set(),
    "": set(),
}


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_is_taken_by_its_service_alone(address: str) -> None:
    assert {case for case in SETTINGS if provider(case).takes({"chat": address})} == ADDRESSES[address]


@pytest.mark.parametrize("address", [address for address in ADDRESSES if ":" not in address])
def test_what_has_no_prefix_is_one_services_or_nobodys(address: str) -> None:
    takers = {SETTINGS[case][0] for case in SETTINGS if provider(case).takes({"chat": address})}
    assert len(takers) <= 1


FORMS = st.one_of(
    st.from_regex(slack.TARGET, fullmatch=True),
    st.from_regex(telegram.TARGET, fullmatch=True),
    st.from_regex(discord.THREAD, fullmatch=True),
    st.from_regex(mattermost.CHANNEL_ID, fullmatch=True),
    st.from_regex(mattermost.CHANNEL, fullmatch=True),
    st.text(max_size=40),
)
EVERYBODY = [provider(case) for case in SETTINGS]


@given(FORMS)
def test_no_form_of_an_address_is_two_services(address: str) -> None:
    assert len({type(each) for each in EVERYBODY if each.takes({"chat": address})}) <= 1


@given(FORMS, st.sampled_from(sorted(KINDS - {"apprise"})))
def test_a_prefix_is_never_overruled(address: str, kind: str) -> None:
    takers = {type(each).__name__ for each in EVERYBODY if each.takes({"chat": f"{kind}:{address}"})}
    assert takers <= {f"{kind.title()}Provider"}


def test_a_recipient_without_a_chat_is_taken_by_nobody() -> None:
    assert not any(provider(case).takes({"id": "u1", "email": "ana@example.org"}) for case in SETTINGS)


def test_a_provider_that_is_named_after_another_service_does_not_take_its_addresses() -> None:
    assert not provider("slack by hook", name="teams").takes({"chat": "teams:"})


def test_every_kind_of_chat_is_known_to_the_rule() -> None:
    assert {kind for kind, spec in kinds().items() if spec.channels == {Channel.CHAT}} == KINDS


@pytest.mark.parametrize(
    ("address", "takers"),
    [
        (HOOK, {"slack"}),
        ("https://hooks.slack-gov.com/services/T/B/s", {"slack"}),
        ("https://discord.com/api/webhooks/1/token", {"discord"}),
        ("https://discord.com/api/v10/webhooks/1/token?thread_id=2", {"discord"}),
        (WORKFLOW, {"teams"}),
        (POWER, {"teams"}),
        (f"https://chat.example/hooks/{CHANNEL_ID}", {"mattermost"}),
        ("https://elsewhere.example/hook", set()),
        ("https://hooks.slack.com.evil.example/services/T/B/s", set()),
        ("https://evil.example/?https://discord.com/api/webhooks/1/t", set()),
        (f"mattermost:{HOOK}", {"mattermost"}),
        ("slack:https://proxy.example/services/T/B/s", {"slack"}),
        ("slack:http://proxy.example/services/T/B/s", set()),
    ],
)
def test_a_url_of_the_recipients_is_taken_where_that_is_allowed(address: str, takers: set[str]) -> None:
    found = {
        kind
        for kind in KINDS - {"telegram", "apprise"}
        if make_provider(Channel.CHAT, "mine", kind, {"allow_recipient_url": True}).takes({"chat": address})
    }
    assert found == takers
    assert not any(provider(case).takes({"chat": address}) for case in SETTINGS)


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options", "fault"),
    [
        ("slack", {}, "needs webhook_url or token"),
        ("slack", {"token": "xoxb-hidden", "webhook_url": HOOK}, "has both"),
        ("slack", {"webhook_url": "hooks.slack.com/hidden"}, "webhook_url: should be the whole URL"),
        ("slack", {"token": "xoxb-hidden", "channel": "general"}, "channel"),
        ("teams", {}, "needs webhook_url"),
        ("teams", {"webhook_url": "https://contoso.webhook.office.com/webhookb2/hidden"}, "retired"),
        ("discord", {"thread_id": THREAD, "allow_recipient_url": True}, "thread_id needs webhook_url"),
        ("telegram", {}, "token"),
        ("telegram", {"token": "hidden"}, "token: should be the bot's token"),
        ("telegram", {"token": "123456:" + "A" * 35, "chat_id": "ana"}, "chat_id: should be the number"),
        ("mattermost", {"token": "hidden"}, "token and base_url need each other"),
        ("mattermost", {"base_url": "https://chat.example", "token": "hidden", "channel": "town-square"}, "channel"),
    ],
)
def test_wrong_settings_are_named_and_not_shown(kind: str, options: Mapping[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=fault) as caught:
        make_provider(Channel.CHAT, "mine", kind, options)
    assert "hidden" not in str(caught.value)


def test_a_webhooks_url_is_masked_where_settings_are_shown() -> None:
    provider_settings = {"name": "ops", "kind": "slack", "webhook_url": HOOK}
    settings = Settings.model_validate({"channels": {"chat": {"providers": [provider_settings]}}})
    assert HOOK not in str(settings.masked())
    assert HOOK not in repr(settings)


# --- content ----------------------------------------------------------------------------------------------------------


def test_the_catalog_takes_a_payload_a_url_and_a_format() -> None:
    said = {"title": "T", "text": "t", "url": "{{ link }}", "format": "markdown", "payload": '{"blocks": []}'}
    assert not check_content(Channel.CHAT, said)
    (fault,) = check_content(Channel.CHAT, said | {"format": "html"})
    assert fault.field == "chat.format"


def test_content_is_read_as_rendered() -> None:
    read = Content.of(message(title="T", text="t", url=" https://e.example/a|ü ", format="markdown", payload='{"a":1}'))
    assert read == content("T", "t", "https://e.example/a%7C%C3%BC", markdown=True, a=1)
    assert Content.of(message(text="t")) == content(text="t")


@pytest.mark.parametrize("url", ["javascript:alert(1)", "//e.example", "https://", "e.example", "https://a@b.example"])
def test_only_a_url_of_the_web_is_a_link(url: str) -> None:
    with pytest.raises(PermanentFailure) as caught:
        Content.of(message(text="t", url=url))
    assert caught.value.reason is Reason.MESSAGE_REJECTED


def test_a_payload_is_an_object() -> None:
    with pytest.raises(PermanentFailure, match="payload should be a JSON object"):
        Content.of(message(text="t", payload="[1]"))


def test_a_url_cannot_end_the_link_that_it_stands_in() -> None:
    url = Content.of(message(title="t", url="https://e.example/a)](<https://evil.example>|*b")).url
    assert not set(url) & set("()<>|")
    assert slack.request_body(content("t", url=url, markdown=True))["text"] == f"*<{url}|t>*"


# --- what data cannot do ----------------------------------------------------------------------------------------------

EVIL = "@everyone @here @channel <!channel> <@U1> <#C1> *b* _i_ `c` ~s~ [l](https://e.example) > # || & @ana"


@given(st.text())
def test_escaping_takes_nothing_away(text: str) -> None:
    unescaped = slack.escape(text).replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    assert unescaped == text
    for escape in (telegram.escape, discord.escape, mattermost.escape):
        assert re.sub(r"\\(.)", r"\1", escape(text), flags=re.DOTALL).replace("\u200b", "") == text.replace(
            "\u200b", ""
        )


def test_slack_shows_plain_text_as_it_is() -> None:
    body = slack.request_body(content("<!here>", EVIL))
    assert body["mrkdwn"] is False
    assert body["link_names"] is False
    assert "parse" not in body, "parse=full would link names"
    title, text = body["text"].split("\n")
    assert title == "&lt;!here&gt;"
    assert text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&") == EVIL
    assert not set(text) & set("<>")


def test_slacks_markup_keeps_links_and_loses_mentions() -> None:
    said = content("a&b", "*bold* <https://e.example|l> <!channel> <@U1> <!subteam^S1> <#C1>", markdown=True)
    body = slack.request_body(said)
    assert body["mrkdwn"] is True
    assert body["text"].startswith("*a&amp;b*\n*bold* <https://e.example|l> &lt;!channel> &lt;@U1>")
    assert not any(mention in body["text"] for mention in ("<!", "<@", "<#"))


def test_telegram_has_no_markup_in_plain_text_and_nobody_is_mentioned() -> None:
    body = telegram.request_body(content("@ana", EVIL))
    assert "parse_mode" not in body
    assert body["text"].replace("\u200b", "") == f"@ana\n{EVIL}"
    assert "@e" not in body["text"]
    assert "@a" not in body["text"]
    assert body["entities"] == [{"type": "bold", "offset": 0, "length": 5}], "of the title, its broken ping included"


def test_an_e_mail_address_is_no_mention() -> None:
    assert telegram.request_body(content(text="ana@example.org"))["text"] == "ana@example.org"


def test_telegrams_markup_has_an_escaped_title_and_no_mention_by_id() -> None:
    said = content("1.5 (new)!", "*b* [x](tg://user?id=1) @ana", "https://e.example", markdown=True)
    body = telegram.request_body(said)
    assert body["parse_mode"] == "MarkdownV2"
    assert body["text"].startswith("*[1\\.5 \\(new\\)\\!](https://e.example)*\n*b* ")
    assert "tg://" not in body["text"]
    assert "@ana" not in body["text"]


def test_discord_mentions_nobody_and_shows_plain_text_as_it_is() -> None:
    body = discord.request_body(content(text=EVIL))
    assert body["allowed_mentions"] == {"parse": []}
    assert "\\*b\\* \\_i\\_ \\`c\\` \\~s\\~ \\[l\\](https://e.example) \\> \\# \\|\\| & @ana" in body["content"]
    assert discord.request_body(content(text=EVIL, markdown=True))["allowed_mentions"] == {"parse": []}


def test_a_url_in_plain_text_still_leads_somewhere() -> None:
    url = "https://e.example/some_long_path?a_b=c~d#e-f"
    assert discord.request_body(content(text=f"a_b {url}"))["content"] == f"a\\_b {url}"
    assert mattermost.request_body(content(text=url), "text")["text"] == url


def test_mattermost_mentions_nobody_and_shows_plain_text_as_it_is() -> None:
    text = mattermost.request_body(content("@all", EVIL), "text")["text"]
    for name in ("everyone", "here", "channel", "ana", "all"):
        assert f"@{name}" not in text
    assert "\\*b\\* \\_i\\_ \\`c\\` \\~s\\~ \\[l\\]" in text
    assert (
        "@channel" not in mattermost.request_body(content(text="x.@channel _@channel", markdown=True), "text")["text"]
    )


def test_a_card_of_plain_text_has_no_element_with_markup() -> None:
    body = teams.request_body(content("*T*", "*b*\n\n[l](https://e.example)\nlast", "https://e.example"))
    card = body["attachments"][0]["content"]
    cards.check(card)
    assert cards.texts(card) == ["*T*", "*b*", "[l](https://e.example)", "last"]
    assert {element["type"] for element in cards.elements(card)} == {"RichTextBlock", "TextRun", "Action.OpenUrl"}


def test_a_card_of_markdown_has_it_in_a_text_block() -> None:
    card = teams.request_body(content("T", "**b**", markdown=True))["attachments"][0]["content"]
    cards.check(card)
    assert [element["type"] for element in cards.elements(card)] == ["RichTextBlock", "TextRun", "TextBlock"]


# --- payload ----------------------------------------------------------------------------------------------------------


def test_a_payload_replaces_fields_of_the_request() -> None:
    blocks = [{"type": "divider"}]
    assert slack.request_body(content("T", "t", blocks=blocks))["blocks"] == blocks
    assert discord.request_body(content("T", "t", content=None, embeds=[{"title": "x"}]))["content"] is None
    keyboard = {"inline_keyboard": [[{"text": "Open", "url": "https://e.example"}]]}
    assert telegram.request_body(content("T", "t", reply_markup=keyboard))["reply_markup"] == keyboard
    card = teams.request_body(content("T", "t", body=[]))["attachments"][0]["content"]
    assert (card["body"], card["type"]) == ([], "AdaptiveCard")
    assert mattermost.request_body(content("T", "t", props={"card": "x"}), "text")["props"] == {"card": "x"}


def test_telegrams_payload_cannot_make_markup_of_plain_text() -> None:
    with pytest.raises(PermanentFailure, match=r"need payload\.text"):
        telegram.request_body(content("T", "t", parse_mode="HTML"))
    body = telegram.request_body(Content("T", "t", "", False, {"parse_mode": "HTML", "text": "<b>x</b>"}))
    assert body == {"text": "<b>x</b>", "parse_mode": "HTML"}


def test_the_text_of_a_payload_has_the_same_limit() -> None:
    requests: list[tuple[Callable[[Content], object], dict[str, str]]] = [
        (slack.request_body, {"text": "x" * 40_001}),
        (discord.request_body, {"content": "x" * 2001}),
        (telegram.request_body, {"text": "x" * 4097}),
        (partial(mattermost.request_body, field="text"), {"text": "x" * 16_384}),
        (teams.request_body, {"speak": "x" * 28_672}),
    ]
    for request_body, payload in requests:
        with pytest.raises(PermanentFailure) as caught:
            request_body(Content("", "t", "", False, payload))
        assert caught.value.reason is Reason.MESSAGE_TOO_LARGE


# --- how long to wait -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "header", "wait"),
    [
        (0.65, "1", timedelta(seconds=0.65)),
        (7, None, timedelta(seconds=7)),
        (None, "7", timedelta(seconds=7)),
        ("7", None, None),
        (-1, None, None),
        (float("inf"), "3", timedelta(seconds=3)),
        (10**30, None, timedelta(days=7)),
        (None, None, None),
    ],
)
def test_the_wait_is_the_bodys_or_the_headers(seconds: object, header: str | None, wait: timedelta | None) -> None:
    answer = Answer(429, {"Retry-After": header} if header else {}, orjson.dumps({}))
    assert wait_of(answer, seconds, NOW) == wait
