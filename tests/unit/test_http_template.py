"""The provider for any HTTP API: what may stand in its settings, and how values get into requests."""

from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import orjson
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from channels.http_template import HttpTemplateOptions, Request, at_path, url_part
from channels.placeholders import Placeholders
from channels.registry import make_provider
from domain.failures import PermanentFailure
from domain.message import Message
from domain.vocabulary import Channel, Reason
from tests.contract.peers import http_server
from tests.fakes import START

URL = "https://sms.example/send"
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)


def message(text: str = "Hi", phone: str = "+4915112345678") -> Message:
    return Message("d1", "d1/1", Channel.SMS, {"phone": phone}, {"text": text}, START)


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"url": "https://{{ recipient.phone }}.example/"}, "url should name its host itself"),
        ({"url": "ftp://sms.example"}, "url"),
        ({"url": "https://sms.example/a/../{{ text }}"}, "no step"),
        ({"url": URL, "json": {"a": 1}, "form": {"a": "1"}}, "has both json and form"),
        ({"url": URL, "json": {"to": ["{{ recipient."]}}, "json.to.0: is no template"),
        ({"url": URL, "headers": {"X-Key": "s3cr3t {{"}}, "headers.X-Key: is no template"),
        ({"url": URL, "success": {"path": "status"}}, "path and equals should be set together"),
        ({"url": URL, "errors": {"path": "code", "rules": {"1": "fatal"}}}, "errors.rules.1"),
        ({"url": URL, "errors": {"path": "code", "rules": {}}}, "errors.rules"),
        ({"url": URL, "reference": "a..b"}, "reference"),
        ({"url": URL, "success": {"status": [42]}}, "success.status"),
    ],
)
def test_a_wrong_setting_is_named_and_not_shown(options: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=fault) as caught:
        make_provider(Channel.SMS, "gateway", "http", options)
    assert "s3cr3t" not in str(caught.value)


@given(TEXT)
def test_whatever_is_said_stays_a_value(text: str) -> None:
    """Of a body in JSON and of a URL: nothing in a value can end it, and nothing in it is a template."""
    options = {"url": URL + "/{{ text }}?t={{ text }}&u=1", "json": {"a": {"b": "{{ text }}"}}}
    checked = HttpTemplateOptions.model_validate(options)
    _, body = Request(checked).of(message(text))
    assert orjson.loads(body) == {"a": {"b": text}}
    parts = urlsplit(Placeholders({"url": checked.base_url}).rendered(message(text), url_part)["url"])
    assert (parts.netloc, parts.fragment) == ("sms.example", "")
    assert unquote(parts.path) == f"/send/{text}"
    assert parse_qs(parts.query, keep_blank_values=True) == {"t": [text], "u": ["1"]}


async def test_a_value_is_not_a_template() -> None:
    said = "{{ recipient.phone }} {% for x in y %}"
    assert Placeholders({"t": "{{ text }}"}).rendered(message(said)) == {"t": said}


async def test_a_name_that_is_missing_ends_the_delivery_and_is_named() -> None:
    provider = make_provider(Channel.SMS, "gateway", "http", {"url": URL, "json": {"to": "{{ recipient.pager }}"}})
    with pytest.raises(PermanentFailure, match=r"json\.to: .*pager") as caught:
        await provider.send(message())
    assert caught.value.reason is Reason.TEMPLATE_ERROR


async def test_a_header_cannot_be_broken_in_two() -> None:
    provider = make_provider(Channel.SMS, "gateway", "http", {"url": URL, "headers": {"X-Text": "{{ text }}"}})
    with pytest.raises(PermanentFailure, match="line break"):
        await provider.send(message("a\r\nX-Evil: 1"))


async def test_an_answer_may_be_a_list() -> None:
    async def answered(_: web.Request) -> web.Response:
        return web.Response(text='[{"status": "queued", "id": 1042}]')

    async with http_server(answered) as url:
        success = {"path": "0.status", "equals": "queued"}
        options = {"url": url, "form": {"t": "{{ text }}"}, "success": success, "reference": "0.id"}
        provider = make_provider(Channel.SMS, "gateway", "http", options)
        assert (await provider.send(message())).reference == "1042"
        await provider.close()


@pytest.mark.parametrize(
    ("equals", "answer", "taken"),
    [
        ("0", '{"status": "0"}', True),
        ("0", '{"status": 0}', False),
        (0, '{"status": 0}', True),
        (1, '{"status": true}', False),
        (True, '{"status": true}', True),
        ("ok", '{"state": "ok"}', False),
    ],
)
async def test_a_success_is_a_value_of_its_type(equals: Any, answer: str, taken: bool) -> None:
    async def answered(_: web.Request) -> web.Response:
        return web.Response(text=answer)

    async with http_server(answered) as url:
        options = {"url": url, "form": {"t": "{{ text }}"}, "success": {"path": "status", "equals": equals}}
        provider = make_provider(Channel.SMS, "gateway", "http", options)
        if taken:
            assert await provider.send(message()) == "HTTP 200"
        else:
            with pytest.raises(PermanentFailure, match="not what the settings call a success"):
                await provider.send(message())
        await provider.close()


@pytest.mark.parametrize("path", ["{{ text }}/x", "a/{{ text }}?t=1", "a/{{ text[0] }}{{ text[1:] }}"])
@pytest.mark.parametrize("text", [".", ".."])
async def test_a_value_does_not_climb_in_the_path(path: str, text: str) -> None:
    provider = make_provider(Channel.SMS, "gateway", "http", {"url": f"{URL}/{path}"})
    with pytest.raises(PermanentFailure, match="step"):
        await provider.send(message(text))


@pytest.mark.parametrize(
    ("path", "found"),
    [("a.b.1.c", 7), ("a.b.9.c", None), ("a.x", None), ("a.b.-1", None), ("z", None), ("a.b.1.c.d", None)],
)
def test_a_path_leads_through_names_and_positions(path: str, found: int | None) -> None:
    document = {"a": {"b": [{}, {"c": 7}]}}
    assert (at_path(document, path) == 7) is (found == 7)
