"""Any plain HTTP API, described by settings: for the gateways that have no provider of their own."""

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import quote, urlsplit

import orjson
from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from channels.classify import scrub
from channels.http import Answer, ApiOptions, ApiProvider, utc_now
from channels.placeholders import Placeholders, placeholder_faults
from channels.surroundings import NOWHERE, Surroundings
from channels.taxonomy import Meaning, Rule, Table, codes_of
from domain.failures import DeliveryFailure, PermanentFailure, UnknownOutcome
from domain.message import Accepted, Message
from domain.vocabulary import Reason

CONTENT_TYPES: Final = {"json": "application/json", "form": "application/x-www-form-urlencoded"}
MAX_REFERENCE: Final = 255
Scalar = str | bool | int | float
JsonPath = Annotated[str, Field(pattern=r"^[^.\s]+(\.[^.\s]+)*$", max_length=200)]
"""Names and positions joined by dots: `messages.0.id`."""
_MISSING: Final = object()


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, hide_input_in_errors=True)


class Success(_Part):
    """When the API has taken a message.

    Attributes:
        status: those of an answer that may be a success; every 2xx by default.
        path: what its JSON must hold besides.
        equals: the value there, of the same type: `"0"` is not `0`.
    """

    status: Annotated[tuple[Annotated[int, Field(ge=100, le=599)], ...], Field(min_length=1)] | None = None
    path: JsonPath | None = None
    equals: Scalar | None = None

    @model_validator(mode="after")
    def _both(self) -> Self:
        if (self.path is None) != (self.equals is None):
            raise ValueError("path and equals should be set together")
        return self


class Errors(_Part):
    """What the API's own codes mean.

    Attributes:
        path: where an answer has its code.
        rules: by code: `transient`, `rate_limited`, `recipient`, `message`, `configuration` or `unknown`.
    """

    path: JsonPath
    rules: Annotated[dict[str, Meaning], Field(min_length=1)]


class HttpTemplateOptions(ApiOptions):
    """Settings of one API.

    Attributes:
        base_url: `url` in the settings: where messages are sent, its path and query with placeholders.
        headers: with placeholders; their values are secrets.
        json_body: `json` in the settings: the body, any JSON, with placeholders in its texts.
        form: or a body as a form's fields.
        reference: where an answer has the API's name for the message.
    """

    base_url: Annotated[str, Field(alias="url", repr=False, pattern=r"^https?://[^#\x00-\x1f]+$", max_length=2048)]
    method: Literal["POST", "PUT", "PATCH", "GET"] = "POST"
    headers: dict[str, SecretStr] = Field(default_factory=dict)
    json_body: Annotated[Any, Field(alias="json", repr=False)] = None
    form: Annotated[dict[str, str] | None, Field(repr=False)] = None
    success: Success = Success()
    reference: JsonPath | None = None
    errors: Errors | None = None

    @model_validator(mode="after")
    def _usable(self) -> Self:
        parts = urlsplit(self.base_url)
        if not parts.hostname or "{" in parts.netloc:
            raise ValueError("url should name its host itself: placeholders may stand in its path and query")
        if _climbs(self.base_url):
            raise ValueError("url should have no step . or .. in its path")
        if self.json_body is not None and self.form is not None:
            raise ValueError("has both json and form: a request has one body")
        if wrong := placeholder_faults(dict(self.sources())):
            raise ValueError(f"{', '.join(wrong)}: is no template that can be read")
        return self

    def sources(self) -> Iterator[tuple[str, str]]:
        """Every text that may hold placeholders, by its place."""
        yield "url", self.base_url
        yield from ((f"headers.{name}", value.get_secret_value()) for name, value in self.headers.items())
        yield from _texts("json", self.json_body)
        yield from _texts("form", self.form)


class HttpTemplateProvider(ApiProvider[HttpTemplateOptions]):
    """Sends one request for each message."""

    def __init__(
        self,
        name: str,
        options: HttpTemplateOptions,
        _: Surroundings = NOWHERE,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        super().__init__(name, options, now=now)
        self._errors = _table(options.errors)
        self._url = Placeholders({"url": options.base_url})
        self._request = Request(options)

    def takes(self, recipient: Mapping[str, Any]) -> bool:  # noqa: ARG002
        """Whoever has the channel's address: which of it the API wants is in its templates."""
        return True

    async def send(self, message: Message) -> Accepted:
        """Make the request.

        Raises:
            DeliveryFailure: as the settings' `errors` say, else as its status is used by APIs; an unknown outcome if
                the answer does not show whether the message was taken.
        """
        url = self._address(message)
        headers, body = self._request.of(message)
        answer = await self._api.request(self._options.method, url, headers=headers, data=body)
        if not self._taken(answer):
            raise self._failure(answer)
        reference = self._reference(answer)
        return Accepted(scrub(answer.told(reference)), reference)

    async def check(self) -> str:
        """Nothing is asked: a request would send something."""
        host = urlsplit(self._options.base_url).hostname
        return f"sends to {host}; nothing but a message can show whether it answers"

    def _address(self, message: Message) -> str:
        """The URL of this message's request; a step `..` would lead to another of the API's methods."""
        url = self._url.rendered(message, url_part)["url"]
        if _climbs(url):
            raise PermanentFailure(Reason.MESSAGE_REJECTED, "a value would be the step . or .. of the URL's path")
        return url

    def _taken(self, answer: Answer) -> bool:
        success = self._options.success
        if not (answer.ok if success.status is None else answer.status in success.status):
            return False
        if success.path is None:
            return True
        found = at_path(answer.parsed, success.path)
        return type(found) is type(success.equals) and found == success.equals

    def _failure(self, answer: Answer) -> DeliveryFailure:
        """By the API's own code, if the settings know it. The API's words may hold an address, and are left out."""
        code = self._code(answer)
        rule = self._errors.rule(code) if code else None
        told = f"HTTP {answer.status}{f', code {rule.code}' if rule else ''}"
        if rule is not None or not answer.ok:
            codes = (code or "", *codes_of(answer.status))
            return self._errors.failure(codes, told, answer.retry_after(self._now()))
        if not answer.parsed:
            return UnknownOutcome(Reason.OUTCOME_UNKNOWN, f"{told}, and its body cannot be read")
        return PermanentFailure(Reason.MESSAGE_REJECTED, f"{told}, but not what the settings call a success")

    def _code(self, answer: Answer) -> str | None:
        path = self._options.errors.path if self._options.errors else None
        found = at_path(answer.parsed, path) if path else None
        return str(found) if isinstance(found, str | int) else None

    def _reference(self, answer: Answer) -> str | None:
        path = self._options.reference
        found = at_path(answer.parsed, path) if path else None
        return str(found)[:MAX_REFERENCE] if isinstance(found, str | int) else None


class Request:
    """Headers and body of each message's request."""

    def __init__(self, options: HttpTemplateOptions) -> None:
        headers = {f"headers.{name}": value.get_secret_value() for name, value in options.headers.items()}
        self._headers = Placeholders(headers)
        kind = "json" if options.json_body is not None else "form" if options.form is not None else None
        self._kind = kind
        self._shape = options.json_body if kind == "json" else options.form
        self._body = Placeholders(dict(_texts(kind, self._shape)) if kind else {})

    def __repr__(self) -> str:
        return "Request()"

    def of(self, message: Message) -> tuple[Mapping[str, str], Any]:
        """Both, encoded.

        Raises:
            PermanentFailure: they cannot be made of this message.
        """
        rendered = self._headers.rendered(message)
        headers = {place.removeprefix("headers."): value for place, value in rendered.items()}
        if any(not value.isprintable() for value in headers.values()):
            raise PermanentFailure(Reason.MESSAGE_REJECTED, "a header would hold a line break or a control character")
        if self._kind is None:
            return headers, None
        body = _filled(self._kind, self._shape, self._body.rendered(message))
        if not any(name.lower() == "content-type" for name in headers):
            headers["Content-Type"] = CONTENT_TYPES[self._kind]
        return headers, orjson.dumps(body) if self._kind == "json" else body


def at_path(document: Any, path: str) -> Any:
    """What stands there in a JSON document; `_MISSING` if nothing does."""
    for step in path.split("."):
        if isinstance(document, list) and step.isdecimal() and int(step) < len(document):
            document = document[int(step)]
        elif isinstance(document, dict) and step in document:
            document = document[step]
        else:
            return _MISSING
    return document


def _table(errors: Errors | None) -> Table:
    rules = errors.rules.items() if errors else ()
    words = "as the settings say"
    return Table("http", "settings", words, tuple(Rule(code, meaning, words) for code, meaning in rules))


def _texts(place: str, value: Any) -> Iterator[tuple[str, str]]:
    """The texts in a body, by their places in it."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _texts(f"{place}.{name}", item)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _texts(f"{place}.{index}", item)


def _filled(place: str, value: Any, texts: Mapping[str, str]) -> Any:
    """The body with each of its texts rendered; what is no text stays."""
    if isinstance(value, dict):
        return {name: _filled(f"{place}.{name}", item, texts) for name, item in value.items()}
    if isinstance(value, list):
        return [_filled(f"{place}.{index}", item, texts) for index, item in enumerate(value)]
    return texts[place] if isinstance(value, str) else value


def _climbs(url: str) -> bool:
    return not {".", ".."}.isdisjoint(urlsplit(url).path.split("/"))


def url_part(text: str) -> str:
    """A value as it stands in a URL: it can end neither its step of the path nor its field of the query."""
    return quote(text, safe="")
