"""E-mail through Amazon SES (`SendEmail` with raw content, of its API v2), over aiobotocore."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from datetime import datetime
from typing import Annotated, Any, Final, TypeVar

import aiohttp
from pydantic import Field, SecretStr, model_validator

from channels.classify import connection_failure, parse_retry_after
from channels.fetch import AttachmentFetcher
from channels.http import utc_now
from channels.limits import check_length
from channels.mail import Mail, compose
from channels.mail_api import MailApiOptions, answered
from channels.mail_settings import MEBIBYTE
from channels.surroundings import NOWHERE, Surroundings
from channels.taxonomy import Meaning, Rule, Table, codes_of
from domain.failures import UNSENT, DeliveryFailure, PermanentFailure, TransientFailure, UnknownOutcome
from domain.message import Accepted, Message
from domain.vocabulary import Reason

T = TypeVar("T")
DELIVERY_TAG: Final = "notipy-delivery"
"""SES's events about a message carry it in `mail.tags`."""
OPENING_SECONDS: Final = 20.0
"""For making the client: descriptions of AWS's services are read from disk, credentials perhaps over the network."""

ERRORS: Final = Table(
    provider="ses",
    version="2026-11-23",
    source="Amazon SES API v2 Reference: SendEmail errors, Common Errors; SES Developer Guide: sending quota errors",
    rules=(
        Rule(
            "Email address is not verified",
            Meaning.CONFIGURATION,
            "the sender is not verified",
            Reason.SENDER_REJECTED,
        ),
        Rule(
            "Email address is not verified: the recipient",
            Meaning.RECIPIENT,
            "the account is in the sandbox, and the recipient is not verified",
            suppress=False,  # outside of the sandbox it is as good as any
        ),
        Rule("MessageRejected", Meaning.MESSAGE, "the content is invalid"),
        Rule(
            "MailFromDomainNotVerifiedException",
            Meaning.CONFIGURATION,
            "the sending domain is not verified",
            Reason.SENDER_REJECTED,
        ),
        Rule("AccountSuspendedException", Meaning.CONFIGURATION, "the account may not send any more"),
        Rule("SendingPausedException", Meaning.CONFIGURATION, "sending is paused for the account"),
        Rule("TooManyRequestsException", Meaning.RATE_LIMITED, "too many requests"),
        Rule("ThrottlingException", Meaning.RATE_LIMITED, "the sending rate or the daily quota is reached"),
        Rule("Throttling", Meaning.RATE_LIMITED, "the sending rate or the daily quota is reached"),
        Rule("LimitExceededException", Meaning.RATE_LIMITED, "a limit of the account is reached"),
        Rule("NotFoundException", Meaning.CONFIGURATION, "the configuration set or the identity does not exist"),
        Rule("BadRequestException", Meaning.MESSAGE, "the input is invalid"),
        Rule("ValidationError", Meaning.MESSAGE, "the input is invalid"),
        Rule("RequestEntityTooLargeException", Meaning.MESSAGE, "the request is too large", Reason.MESSAGE_TOO_LARGE),
        Rule("AccessDeniedException", Meaning.CONFIGURATION, "the policy lacks ses:SendEmail", Reason.AUTHENTICATION),
        Rule("AccessDenied", Meaning.CONFIGURATION, "the policy lacks ses:SendEmail", Reason.AUTHENTICATION),
        Rule("NotAuthorized", Meaning.CONFIGURATION, "the credentials do not allow it", Reason.AUTHENTICATION),
        Rule("OptInRequired", Meaning.CONFIGURATION, "the account has no subscription of SES", Reason.AUTHENTICATION),
        Rule("UnrecognizedClientException", Meaning.CONFIGURATION, "no such access key", Reason.AUTHENTICATION),
        Rule("InvalidClientTokenId", Meaning.CONFIGURATION, "no such access key", Reason.AUTHENTICATION),
        Rule("InvalidSignatureException", Meaning.CONFIGURATION, "the secret key is wrong", Reason.AUTHENTICATION),
        Rule("SignatureDoesNotMatch", Meaning.CONFIGURATION, "the secret key is wrong", Reason.AUTHENTICATION),
        Rule("IncompleteSignature", Meaning.CONFIGURATION, "the signature is malformed", Reason.AUTHENTICATION),
        Rule("MissingAuthenticationToken", Meaning.CONFIGURATION, "the request is not signed", Reason.AUTHENTICATION),
        Rule("ExpiredTokenException", Meaning.CONFIGURATION, "the session token has expired", Reason.AUTHENTICATION),
        Rule("ExpiredToken", Meaning.CONFIGURATION, "the session token has expired", Reason.AUTHENTICATION),
        Rule("RequestExpired", Meaning.CONFIGURATION, "this machine's clock is wrong", Reason.AUTHENTICATION),
        Rule("UnknownOperationException", Meaning.CONFIGURATION, "the base URL is none of SES's"),
        Rule("RequestTimeoutException", Meaning.TRANSIENT, "the request did not come in time", Reason.TIMEOUT),
        Rule("InternalFailure", Meaning.TRANSIENT, "SES has a fault"),
        Rule("InternalServiceErrorException", Meaning.TRANSIENT, "SES has a fault"),
        Rule("ServiceUnavailable", Meaning.TRANSIENT, "SES is not available"),
    ),
)
"""Codes as SES writes them; the first is how the words of a `MessageRejected` begin that is about the account. They go
on with the addresses that failed: the second is for those that do not name the sender."""
_UNVERIFIED, _UNVERIFIED_RECIPIENT = (rule.code for rule in ERRORS.rules[:2])


class SesOptions(MailApiOptions):
    """Settings of SES in one region.

    Attributes:
        base_url: in place of the region's own endpoint.
        region: such as `eu-central-1`.
        access_key_id: with `secret_access_key`; without both, the machine's own (AWS's default chain: environment,
            shared files, container or instance role).
        session_token: of temporary credentials.
        configuration_set: by whose name SES publishes events about the message.
    """

    base_url: Annotated[str, Field(pattern=r"^https?://[^\s?#]+$")] | None = None  # type: ignore[assignment]
    region: Annotated[str, Field(pattern=r"^[a-z]{2}(-[a-z]+)+-\d+$")]
    access_key_id: Annotated[str, Field(pattern=r"^\w{16,128}$")] | None = None
    secret_access_key: SecretStr | None = None
    session_token: SecretStr | None = None
    configuration_set: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")] | None = None
    max_message_bytes: Annotated[int, Field(ge=1024)] = 40 * MEBIBYTE

    @model_validator(mode="after")
    def _complete(self) -> "SesOptions":
        if (self.access_key_id is None) != (self.secret_access_key is None):
            raise ValueError("needs access_key_id and secret_access_key, or neither of them")
        return self


class SesProvider:
    """Sends mail through SES. It takes no idempotency key: what is repeated may come twice, and is marked.

    One client is kept. The library's own retries are off: attempts are NotiPy's.
    """

    def __init__(
        self,
        name: str,
        options: SesOptions,
        surroundings: Surroundings = NOWHERE,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        """Open nothing.

        Raises:
            ValueError: aiobotocore is not installed.
        """
        self.name = name
        self._options = options
        self._now = now
        self._sender = options.sender
        self._files = AttachmentFetcher(options.limits, allow_private=options.allow_private, files=surroundings.files)
        self._library = _library()
        self._clients = AsyncExitStack()
        self._client: Any = None
        self._opening = asyncio.Lock()

    def __repr__(self) -> str:
        return f"SesProvider({self.name!r}, {self._options.region!r})"

    def takes(self, recipient: Mapping[str, Any]) -> bool:
        """Whoever has an address."""
        return bool(recipient.get("email"))

    async def send(self, message: Message) -> Accepted:
        """Hand over one mail, put together as for SMTP.

        Raises:
            DeliveryFailure: as `ERRORS` says; or the message itself rules it out.
        """
        files = await self._files.of(message, self._options.timeout)
        mail = compose(message, self._sender, files)
        if mail.needs_utf8:
            raise PermanentFailure(Reason.BAD_ADDRESS, "SES takes ASCII only before the @ (no SMTPUTF8)")
        check_length(len(mail.body), self._options.max_message_bytes, "bytes")
        request = self._request(message, mail)
        try:
            answer = await self._asked(lambda client: client.send_email(**request))
        except self._library.errors.ClientError as error:
            raise self._refusal(error.response) from None
        return answered(answer["ResponseMetadata"]["HTTPStatusCode"], answer.get("MessageId"), mail.left_out)

    async def check(self) -> str:
        """Ask for the account. A policy that allows nothing but sending is no fault: SES has known the credentials."""
        try:
            account = await self._asked(lambda client: client.get_account())
        except self._library.errors.ClientError as error:
            if error.response["Error"].get("Code") not in _DENIED:
                raise self._refusal(error.response) from None
            return f"SES in {self._options.region} knows the credentials; the policy does not let them see the account"
        state = "enabled" if account.get("SendingEnabled", True) else "paused"
        return f"SES in {self._options.region}: sending is {state}"

    async def close(self) -> None:
        """Close the kept connections."""
        self._client = None
        await self._clients.aclose()
        await self._files.close()

    def _request(self, message: Message, mail: Mail) -> Mapping[str, Any]:
        request = {
            "FromEmailAddress": mail.sender,
            "Destination": {"ToAddresses": [mail.recipient], "BccAddresses": list(mail.copies)},  # the envelope
            "Content": {"Raw": {"Data": mail.body}},
            "EmailTags": [{"Name": DELIVERY_TAG, "Value": message.tag}],
            "ConfigurationSetName": self._options.configuration_set,
        }
        return {name: value for name, value in request.items() if value is not None}

    async def _asked(self, call: Callable[[Any], Awaitable[T]]) -> T:
        """One request, within the time that is set.

        Raises:
            ClientError: SES refuses it.
            DeliveryFailure: what an error on the way means.
        """
        errors = self._library.errors
        with UNSENT:
            client = await self._opened()
        try:
            async with asyncio.timeout(self._options.timeout.total_seconds()):
                return await call(client)
        except TimeoutError:
            raise UnknownOutcome(Reason.TIMEOUT, "no answer in time", provider_fault=True) from None
        except (errors.HTTPClientError, errors.ConnectionError) as error:
            raise _on_the_way(error) from None
        except errors.BotoCoreError as error:
            raise self._unprepared(error) from None

    async def _opened(self) -> Any:
        """The client.

        Raises:
            TransientFailure: it cannot be made.
        """
        try:
            async with asyncio.timeout(OPENING_SECONDS):
                return await self._open()
        except TimeoutError:
            detail = "AWS's settings and credentials of this machine were not read in time"
            raise TransientFailure(Reason.TIMEOUT, detail, provider_fault=True) from None
        except self._library.errors.BotoCoreError as error:
            raise self._unprepared(error) from None

    async def _open(self) -> Any:
        """The client, made once; by the library's own means, which read AWS's settings of this machine."""
        async with self._opening:
            if self._client is None:
                made = self._library.session.create_client("sesv2", **self._settings())
                self._client = await self._clients.enter_async_context(made)
        return self._client

    def _settings(self) -> dict[str, Any]:
        options = self._options
        seconds = options.timeout.total_seconds()
        return {
            "region_name": options.region,
            "endpoint_url": options.base_url,
            "aws_access_key_id": options.access_key_id,
            "aws_secret_access_key": _plain(options.secret_access_key),
            "aws_session_token": _plain(options.session_token),
            "verify": str(options.ca_file) if options.ca_file else None,
            "config": self._library.config(
                connect_timeout=seconds / 2,  # so that nobody there is told from no answer
                read_timeout=seconds,
                max_pool_connections=options.connections,
                retries={"total_max_attempts": 1},
                warm_up_loader_caches=True,  # reads the service's description off the event loop
            ),
        }

    def _refusal(self, response: Mapping[str, Any]) -> DeliveryFailure:
        """SES's code decides; its words hold addresses, and are left out."""
        error, about = response.get("Error", {}), response.get("ResponseMetadata", {})
        status, code = int(about.get("HTTPStatusCode", 0)), str(error.get("Code", ""))
        codes = (*self._unverified(str(error.get("Message", ""))), code, *codes_of(status))
        wait = parse_retry_after(about.get("HTTPHeaders", {}).get("retry-after"), self._now())
        return ERRORS.refusal(codes, f"HTTP {status}", wait)

    def _unverified(self, words: str) -> tuple[str, ...]:
        """Whose identity it is that the words call unverified: only the sender's is everybody's."""
        if not words.startswith(_UNVERIFIED):
            return ()
        others = "@" in words and self._sender.email.lower() not in words.lower()
        return (_UNVERIFIED_RECIPIENT if others else _UNVERIFIED,)

    def _unprepared(self, error: Exception) -> DeliveryFailure:
        """Nothing was sent: the library found no credentials, or could not use what it found."""
        lacking = isinstance(error, self._library.no_credentials)
        reason = Reason.AUTHENTICATION if lacking else Reason.NOT_CONFIGURED
        return TransientFailure(reason, f"no request could be made: {type(error).__name__}", provider_fault=True)


_DENIED: Final = frozenset({"AccessDenied", "AccessDeniedException"})


class _Library:
    """What is used of aiobotocore, which is there only where the extra is installed."""

    def __init__(self) -> None:
        from aiobotocore.config import AioConfig
        from aiobotocore.session import get_session
        from botocore import exceptions

        self.config: Any = AioConfig
        self.session: Any = get_session()
        self.errors: Any = exceptions
        for name in ("botocore", "aiobotocore"):  # at DEBUG they write whole requests, with tokens and addresses
            logging.getLogger(name).setLevel(logging.INFO)
        self.no_credentials = (
            exceptions.NoCredentialsError,
            exceptions.PartialCredentialsError,
            exceptions.CredentialRetrievalError,
            exceptions.TokenRetrievalError,
        )


def _library() -> _Library:
    try:
        return _Library()
    except ImportError:
        raise ValueError("the kind ses needs aiobotocore: pip install 'notipy[ses]'") from None


def _plain(secret: SecretStr | None) -> str | None:
    return secret.get_secret_value() if secret is not None else None


def _on_the_way(error: Any) -> DeliveryFailure:
    """What an error of the connection means.

    The library has one class for an error of connecting and for one while the request was under way; its cause tells.
    """
    cause = error.kwargs.get("error", error)
    if isinstance(cause, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
        return connection_failure(cause, "connecting to SES", provider_fault=True, host=getattr(cause, "host", None))
    failure = connection_failure(cause, "waiting for the answer of SES")
    return UnknownOutcome(failure.reason, failure.detail, provider_fault=True)
