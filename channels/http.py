"""Requests to a provider's HTTP API, over kept connections: what every adapter of such a provider shares."""

import asyncio
import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace, TracebackType
from typing import Annotated, Any, ClassVar, Final, Generic, TypeVar

import aiohttp
import orjson
from pydantic import Field

from channels.classify import connection_failure, parse_retry_after
from channels.connection_options import ConnectionOptions
from channels.guard import address_refused, guarded_session
from channels.surroundings import NOWHERE, Surroundings
from domain.failures import UNBLAMED, UNSENT, DeliveryFailure, PermanentFailure, UnknownOutcome, Unsent
from domain.vocabulary import Reason

USER_AGENT: Final = "NotiPy/0.1"
MAX_ANSWER: Final = 64 * 1024
"""Bytes of an answer that are read; what is longer costs its connection."""


Options = TypeVar("Options", bound=ConnectionOptions)


class ApiOptions(ConnectionOptions):
    """Settings of a provider whose methods have one root.

    Attributes:
        base_url: in place of the provider's own, for a proxy, a region or a test.
    """

    base_url: Annotated[str, Field(pattern=r"^https?://[^\s?#]+$")]

    def url(self, path: str) -> str:
        """The address of one of the provider's methods; `path` begins with a slash."""
        return self.base_url.rstrip("/") + path


@dataclass(frozen=True, slots=True)
class Answer:
    """What the provider answered."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)

    @property
    def ok(self) -> bool:
        """Whether it is a 2xx."""
        return 200 <= self.status < 300

    @property
    def parsed(self) -> Any:
        """The body, read as JSON; None if it is none."""
        try:
            return orjson.loads(self.body)
        except orjson.JSONDecodeError:
            return None

    @property
    def document(self) -> dict[str, Any]:
        """The body, if it is a JSON object; else an empty one."""
        found = self.parsed
        return found if isinstance(found, dict) else {}

    def told(self, word: object = None) -> str:
        """The status in a line, with the provider's own word after it; `word` holds nothing secret."""
        return f"HTTP {self.status} {word or ''}".strip()

    def retry_after(self, now: datetime) -> timedelta | None:
        """How long the provider asks to be left alone, by its header."""
        return parse_retry_after(self.headers.get("Retry-After"), now)


@dataclass(slots=True)
class Progress:
    """How far a request has come; `with` it around the request, whoever cuts that off knows whether anything was sent.

    Attributes:
        unsent: what cuts it off before anything was sent is told; whether that is the provider's fault.
        sent: whether the request may have left; its first byte follows.
    """

    unsent: Unsent = UNSENT
    sent: bool = False

    def __enter__(self) -> None:
        """Nothing is known yet."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Mark a cancellation, unless the request may have left."""
        if not self.sent:
            self.unsent.__exit__(kind, error, trace)


class Api:
    """The connections to one provider. Opens nothing before the first request."""

    _unsent: ClassVar[Unsent] = UNSENT

    def __init__(self, options: ConnectionOptions, headers: Mapping[str, str] | None = None) -> None:
        self._options = options
        self._headers = {"User-Agent": USER_AGENT, "Accept": "application/json"} | dict(headers or {})
        self._session: aiohttp.ClientSession | None = None

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        json: Any = None,
        data: Any = None,
    ) -> Answer:
        """Ask once; redirects are not followed. Any status is an answer: the adapter says what it means.

        Cut off before the first byte of the request was written (a name, a connection, TLS is waited for), it says that
        nothing was sent (`domain.failures.was_unsent`).

        Args:
            method: of HTTP.
            url: the whole address.
            headers: besides those of every request.
            params: of the query.
            json: a body to be written as JSON.
            data: or a body as aiohttp takes it: bytes, a form as a mapping, or `FormData`.

        Raises:
            TransientFailure: nothing was sent.
            UnknownOutcome: the request was on its way, and no answer came.
        """
        progress = Progress(self._unsent)
        body = {"data": orjson.dumps(json)} if json is not None else {"data": data}
        sent = dict(headers or {}) | ({"Content-Type": "application/json"} if json is not None else {})
        try:
            with progress:
                async with self._open().request(
                    method, url, headers=sent, params=params, allow_redirects=False, trace_request_ctx=progress, **body
                ) as response:
                    return Answer(response.status, response.headers, await _body(response))
        except DeliveryFailure:
            raise
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise self._failure(error, sent=progress.sent) from None

    async def close(self) -> None:
        """Close the kept connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _failure(self, error: Exception, *, sent: bool) -> DeliveryFailure:
        """What an error on the way means. The host is the provider's, so it may be named."""
        return _failure(error, sent=sent, host=getattr(error, "host", None))

    def _open(self) -> aiohttp.ClientSession:
        """The session, made where there is a running loop."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._options.connections, ssl=self._tls()),
                timeout=aiohttp.ClientTimeout(total=self._options.timeout.total_seconds()),
                headers=self._headers,
                cookie_jar=aiohttp.DummyCookieJar(),
                trace_configs=[tracing()],
            )
        return self._session

    def _tls(self) -> ssl.SSLContext | bool:
        file = self._options.ca_file
        return ssl.create_default_context(cafile=str(file)) if file else True


def utc_now() -> datetime:
    """The clock of every provider that is given no other."""
    return datetime.now(UTC)


class ApiProvider(Generic[Options]):
    """What every provider with an HTTP API does alike. Opens nothing before the first request."""

    def __init__(
        self,
        name: str,
        options: Options,
        _: Surroundings = NOWHERE,
        now: Callable[[], datetime] = utc_now,
        *,
        api: Api | None = None,
    ) -> None:
        self.name = name
        self._options = options
        self._now = now
        self._api = api or Api(options)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    async def close(self) -> None:
        """Close the kept connections."""
        await self._api.close()


class GuardedApi(Api):
    """Requests to URLs that recipients brought: to public addresses only, and no failure is the provider's fault."""

    _unsent: ClassVar[Unsent] = UNBLAMED

    def __init__(
        self, options: ConnectionOptions, headers: Mapping[str, str] | None = None, *, allow_private: bool
    ) -> None:
        super().__init__(options, {"Accept-Encoding": "identity"} | dict(headers or {}))
        self._allow_private = allow_private

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = guarded_session(
                allow_private=self._allow_private,
                connections=self._options.connections,
                tls=self._tls(),
                timeout=aiohttp.ClientTimeout(total=self._options.timeout.total_seconds()),
                headers=self._headers,
                trace_configs=[tracing()],
            )
        return self._session

    def _failure(self, error: Exception, *, sent: bool) -> DeliveryFailure:
        if address_refused(error):
            return PermanentFailure(Reason.ADDRESS_REFUSED, "the URL is unusable or leads into a private network")
        failure = _failure(error, sent=sent)
        failure.provider_fault = False
        return failure


def tracing() -> aiohttp.TraceConfig:
    """Notes on the request's context (`sent`) that a connection stands and the request is about to be written to it."""
    config = aiohttp.TraceConfig()

    async def note(_session: aiohttp.ClientSession, context: SimpleNamespace, _params: Any) -> None:
        context.trace_request_ctx.sent = True

    config.on_request_headers_sent.append(note)
    return config


async def _body(response: aiohttp.ClientResponse) -> bytes:
    """As much as is of use. The status has said whether it was taken; a body that breaks off changes nothing of it."""
    content = bytearray()
    with suppress(aiohttp.ClientError, OSError, asyncio.TimeoutError):
        async for chunk in response.content.iter_any():
            content += chunk
            if len(content) > MAX_ANSWER:
                break
        else:
            return bytes(content)
    response.close()
    return bytes(content[:MAX_ANSWER])


def _failure(error: Exception, *, sent: bool, host: str | None = None) -> DeliveryFailure:
    if not sent:
        return connection_failure(error, "connecting to the provider", provider_fault=True, host=host)
    failure = connection_failure(error, "waiting for the provider's answer")
    return UnknownOutcome(failure.reason, failure.detail, provider_fault=True)
