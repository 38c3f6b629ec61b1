"""SMS through Twilio's Programmable Messaging (`Messages` resource of its REST API, 2010-04-01)."""

from collections.abc import Mapping
from typing import Annotated, Any, Final

import aiohttp
from pydantic import Field, SecretStr, model_validator

from channels.classify import scrub
from channels.http import Answer, ApiOptions, ApiProvider
from channels.limits import check_length
from channels.taxonomy import Meaning, Rule, Table, codes_of
from domain.failures import DeliveryFailure
from domain.message import Accepted, Message
from domain.vocabulary import Reason

MAX_TEXT: Final = 1600
"""Characters of one message, by Twilio's documentation of `Body`; it is sent in segments."""

ERRORS: Final = Table(
    provider="twilio",
    version="2026-11-23",
    source="Twilio, Error and Warning Dictionary",
    rules=(
        Rule("20003", Meaning.CONFIGURATION, "authentication failed", Reason.AUTHENTICATION),
        Rule("20404", Meaning.CONFIGURATION, "the account was not found", Reason.NOT_CONFIGURED),
        Rule("20429", Meaning.RATE_LIMITED, "too many requests"),
        Rule("21211", Meaning.RECIPIENT, "the number in To is not valid", Reason.BAD_ADDRESS),
        Rule("21212", Meaning.CONFIGURATION, "the number in From is not valid", Reason.SENDER_REJECTED),
        Rule(
            "21408",
            Meaning.RECIPIENT,
            "the account may not send to this region: allow it in Twilio's console",
            suppress=False,  # numbers of other countries are reached
        ),
        Rule("21606", Meaning.CONFIGURATION, "From is no number of the account's", Reason.SENDER_REJECTED),
        Rule("21610", Meaning.RECIPIENT, "the recipient has unsubscribed (STOP)"),
        Rule("21611", Meaning.RATE_LIMITED, "the queue of this From number is full"),
        Rule("21612", Meaning.MESSAGE, "this To cannot be reached from this From"),
        Rule("21614", Meaning.RECIPIENT, "To is no mobile number", Reason.BAD_ADDRESS),
        Rule("21617", Meaning.MESSAGE, "the text is longer than 1600 characters", Reason.MESSAGE_TOO_LARGE),
        Rule("30001", Meaning.RATE_LIMITED, "the queue overflowed"),
        Rule("30002", Meaning.CONFIGURATION, "the account is suspended"),
        Rule(
            "30003",
            Meaning.TRANSIENT,
            "the handset is off or out of reach",
            Reason.MAILBOX_UNAVAILABLE,
            provider_fault=False,
        ),
        Rule("30004", Meaning.RECIPIENT, "the recipient does not want messages, or is blocked"),
        Rule("30005", Meaning.RECIPIENT, "the handset is unknown or no longer exists"),
        Rule("30006", Meaning.RECIPIENT, "a landline, or a carrier that cannot be reached"),
        Rule("30007", Meaning.MESSAGE, "filtered by the carrier", Reason.POLICY_REJECTED),
        Rule("30008", Meaning.TRANSIENT, "unknown error on the way", provider_fault=False),
    ),
)


class TwilioOptions(ApiOptions):
    """Settings of one Twilio account.

    Attributes:
        account_sid: of the account, `AC…`.
        auth_token: of the account; or `api_key` and `api_secret`.
        from_number: `from` in the settings: a number, a short code or an alphanumeric sender.
        messaging_service_sid: in place of `from`: a pool of senders, `MG…`.
        status_callback: where Twilio reports delivery: your own gateway, which forwards it to `notipy.receipts`.
    """

    base_url: Annotated[str, Field(pattern=r"^https?://[^\s?#]+$")] = "https://api.twilio.com"
    account_sid: Annotated[str, Field(pattern=r"^AC[0-9a-zA-Z]{32}$")]
    auth_token: SecretStr | None = None
    api_key: Annotated[str, Field(pattern=r"^SK[0-9a-zA-Z]{32}$")] | None = None
    api_secret: SecretStr | None = None
    from_number: Annotated[str | None, Field(alias="from", min_length=1)] = None
    messaging_service_sid: Annotated[str, Field(pattern=r"^MG[0-9a-zA-Z]{32}$")] | None = None
    status_callback: Annotated[str, Field(pattern=r"^https?://\S+$")] | None = None

    @model_validator(mode="after")
    def _complete(self) -> "TwilioOptions":
        if (self.auth_token is None) == (self.api_key is None or self.api_secret is None):
            raise ValueError("needs auth_token, or api_key and api_secret")
        if (self.from_number is None) == (self.messaging_service_sid is None):
            raise ValueError("needs from or messaging_service_sid, one of them")
        return self

    @property
    def login(self) -> tuple[str, str]:
        """User name and password of the API."""
        if self.auth_token is not None:
            return self.account_sid, self.auth_token.get_secret_value()
        return str(self.api_key), self.api_secret.get_secret_value() if self.api_secret else ""


class TwilioProvider(ApiProvider[TwilioOptions]):
    """Sends SMS over one account. Twilio takes no idempotency key: what is repeated may come twice, and is marked."""

    def takes(self, recipient: Mapping[str, Any]) -> bool:
        """Whoever has a number."""
        return bool(recipient.get("phone"))

    async def send(self, message: Message) -> Accepted:
        """Queue one SMS.

        Raises:
            DeliveryFailure: as `ERRORS` says.
        """
        text = message.content["text"]
        check_length(len(text), MAX_TEXT)
        answer = await self._api.request(
            "POST", self._url("/Messages.json"), headers=self._authorization(), data=self._form(message, text)
        )
        if not answer.ok:
            raise self._failure(answer)
        sid = answer.document.get("sid")
        return Accepted(answer.told(sid), sid)

    async def check(self) -> str:
        """Ask for the account; send nothing."""
        answer = await self._api.request("GET", self._url(".json"), headers=self._authorization())
        if not answer.ok:
            raise self._failure(answer)
        return f"the account is {scrub(str(answer.document.get('status', 'there')))}"

    def _url(self, path: str) -> str:
        return self._options.url(f"/2010-04-01/Accounts/{self._options.account_sid}{path}")

    def _authorization(self) -> Mapping[str, str]:
        return {"Authorization": aiohttp.encode_basic_auth(*self._options.login)}

    def _form(self, message: Message, text: str) -> Mapping[str, str]:
        options = self._options
        sender = {"From": options.from_number, "MessagingServiceSid": options.messaging_service_sid}
        form = {"To": str(message.recipient["phone"]), "Body": text, "StatusCallback": options.status_callback} | sender
        return {name: value for name, value in form.items() if value}

    def _failure(self, answer: Answer) -> DeliveryFailure:
        """Twilio's own code says more than the status; its words hold the number, and are left out."""
        code = str(answer.document.get("code", ""))
        codes = (code, *codes_of(answer.status))
        return ERRORS.refusal(codes, answer.told(code), answer.retry_after(self._now()))
