"""Any of the services that Apprise knows, by their URLs: the library speaks to them, in threads of its own.

A service's answer is for the library alone. It says whether the service has taken the message, and not why it has not:
a service that refuses, one that is not there and one whose answer did not come within the library's own four seconds
are the same to it. So what was not taken may have been sent. Nor does its log tell, at debug level and in each
service's own words: one may have several targets, asked one after the other, and not every one is asked over HTTP.
"""

import asyncio
import logging
import re
import threading
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Annotated, Any, Final, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from channels.chat import KINDS, split
from channels.surroundings import NOWHERE, Surroundings
from domain.duration import Duration
from domain.failures import PermanentFailure, TransientFailure, UnknownOutcome
from domain.message import Accepted, Message
from domain.vocabulary import Reason

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
ADVICE: Final = "the kind apprise needs its library: pip install 'notipy[apprise]'"


class AppriseOptions(BaseModel):
    """Settings of one apprise provider.

    Attributes:
        urls: of services, as Apprise writes them; each message goes to every one.
        allow_recipient_urls: whether a recipient's `chat` may be such a URL, which is used in place of `urls`. Whoever
            publishes events can then have NotiPy call any address, in its own network too.
        timeout: for all services of one message.
        threads: messages that are handed over at once.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    urls: tuple[SecretStr, ...] = ()
    allow_recipient_urls: bool = False
    timeout: Annotated[Duration, Field(gt=timedelta(0))] = timedelta(seconds=30)
    threads: Annotated[int, Field(ge=1, le=100)] = 8

    @model_validator(mode="after")
    def _usable(self) -> Self:
        if not self.urls and not self.allow_recipient_urls:
            raise ValueError("needs urls, or allow_recipient_urls")
        _load()
        for place, url in enumerate(self.urls):
            if _service(url.get_secret_value()) is None:
                raise ValueError(f"urls.{place}: is no URL of a service that Apprise knows")
        return self


class AppriseProvider:
    """Hands messages to services. A service that is asked twice may send twice, and what is repeated is marked."""

    def __init__(self, name: str, options: AppriseOptions, _: Surroundings = NOWHERE) -> None:
        self.name = name
        self._options = options
        self._threads = ThreadPoolExecutor(options.threads, thread_name_prefix=f"apprise-{name}")

    def __repr__(self) -> str:
        return f"AppriseProvider({self.name!r})"

    def takes(self, recipient: Mapping[str, Any]) -> bool:
        """Whose address is for no other service: of `urls`, or a URL of its own where that is allowed."""
        target = self._target(recipient)
        if target is None:
            return False
        return self._options.allow_recipient_urls if "://" in target else bool(self._options.urls)

    async def send(self, message: Message) -> Accepted:
        """Hand it to every service, in a thread.

        Raises:
            TransientFailure: no thread was free in time.
            PermanentFailure: the recipient's URL is none.
            UnknownOutcome: a service does not say that it has taken it, or there was no answer in time.
        """
        urls, own = self._urls(message)
        begun = threading.Event()
        work = self._threads.submit(_hand_over, urls, message.content.get("title", ""), message.content["text"], begun)
        try:
            async with asyncio.timeout(self._options.timeout.total_seconds()):
                taken = await asyncio.wrap_future(work)
        except TimeoutError:
            work.cancel()
            if not begun.is_set():
                told = "all threads are busy with other messages"
                raise TransientFailure(Reason.TIMEOUT, told, provider_fault=True) from None
            raise UnknownOutcome(Reason.TIMEOUT, "no answer in time", provider_fault=own) from None
        return _outcome(taken, own=own)

    async def check(self) -> str:
        """Nothing is asked: a service can only be sent to."""
        return f"Apprise knows all {len(self._options.urls)} services of the settings"

    async def close(self) -> None:
        """What has not begun does not begin any more; a thread that waits for a service is left to its own timeout."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _urls(self, message: Message) -> tuple[Sequence[str], bool]:
        """Where to, and whether the settings say so."""
        given = self._target(message.recipient) or ""
        if self._options.allow_recipient_urls and "://" in given:
            if _service(given) is None:
                raise PermanentFailure(Reason.BAD_ADDRESS, "is no URL of a service that Apprise knows")
            return [given], False
        if not self._options.urls:
            raise PermanentFailure(Reason.BAD_ADDRESS, "the recipient has no URL of a service")
        return [url.get_secret_value() for url in self._options.urls], True

    def _target(self, recipient: Mapping[str, Any]) -> str | None:
        """The address without `apprise:` or the provider's name; None if it is none, or another service's."""
        address = str(recipient.get("chat") or "")
        if _URL.match(address):
            return address
        prefix, target = split(address)
        mine = prefix in {None, "apprise"} or (prefix == self.name and prefix not in KINDS)
        return target if address and mine else None


def _load() -> None:
    """Import the library and all that it knows of services, here and not in the midst of work: it takes a second.

    Raises:
        ValueError: it is not installed.
    """
    # the library's log has URLs, tokens among them, and contents
    logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the library's own, which nobody here can mend
        try:
            _service("json://localhost")
        except ImportError:
            raise ValueError(ADVICE) from None


def _service(url: str) -> Any:
    """Apprise's object for a URL; None if it knows no such service."""
    from apprise import Apprise

    return Apprise.instantiate(url)


def _hand_over(urls: Sequence[str], title: str, text: str, begun: threading.Event) -> Sequence[bool]:
    """In a thread: which of the services have taken it."""
    begun.set()
    return [_notified(url, title, text) for url in urls]


def _notified(url: str, title: str, text: str) -> bool:
    from apprise import NotifyFormat

    try:
        service = _service(url)
        return service is not None and bool(service.notify(body=text, title=title, body_format=NotifyFormat.TEXT))
    except Exception:  # noqa: BLE001 - a plugin may raise anything, with the URL in it
        return False


def _outcome(taken: Sequence[bool], *, own: bool) -> Accepted:
    count = sum(taken)
    if count == len(taken):
        return Accepted(f"taken by {count} of {len(taken)} services")
    if count:
        raise UnknownOutcome(Reason.OUTCOME_UNKNOWN, f"taken by {count} of {len(taken)} services")
    told = f"none of {len(taken)} services says that it has taken it; Apprise does not say why"
    raise UnknownOutcome(Reason.OUTCOME_UNKNOWN, told, provider_fault=own)
