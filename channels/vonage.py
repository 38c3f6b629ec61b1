"""SMS through Vonage's SMS API (`POST /sms/json`).

Of Vonage's two, this one says in its answer why a message was refused, with a code for each part. The Messages API
answers 202 to nearly everything and names most of its codes in a callback only, when the attempt is long over.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

import aiohttp
from pydantic import Field, SecretStr

from channels.classify import scrub
from channels.http import Answer, ApiOptions, ApiProvider
from channels.limits import check_length
from channels.segments import Encoding, segments
from channels.taxonomy import Meaning, Rule, Table, codes_of
from domain.failures import DeliveryFailure, UnknownOutcome
from domain.message import Accepted, Message
from domain.vocabulary import Reason

MAX_TEXT: Final = 3200
"""Characters of one message, by Vonage's documentation of `text`; it is sent in segments."""
_TAKEN: Final = "0"

ERRORS: Final = Table(
    provider="vonage",
    version="2026-11-23",
    source="Vonage, SMS API errors (developer.vonage.com/api-errors/sms)",
    rules=(
        Rule("1", Meaning.RATE_LIMITED, "throttled: faster than the account's limit"),
        Rule("2", Meaning.MESSAGE, "a parameter is missing"),
        Rule("3", Meaning.MESSAGE, "a parameter is not valid"),
        Rule("4", Meaning.CONFIGURATION, "the credentials are wrong or disabled", Reason.AUTHENTICATION),
        Rule("5", Meaning.TRANSIENT, "an internal error of the platform"),
        Rule("6", Meaning.MESSAGE, "the platform cannot process it, for example for the number's prefix"),
        Rule("7", Meaning.RECIPIENT, "the number is barred and may get no messages"),
        Rule("8", Meaning.CONFIGURATION, "the account is suspended"),
        Rule("9", Meaning.CONFIGURATION, "the account has no credit left"),
        Rule("10", Meaning.RATE_LIMITED, "more connections at once than the account may have"),
        Rule("11", Meaning.CONFIGURATION, "the account may not use this API"),
        Rule("12", Meaning.MESSAGE, "the message is too long", Reason.MESSAGE_TOO_LARGE),
        Rule("14", Meaning.CONFIGURATION, "the signature is wrong", Reason.AUTHENTICATION),
        Rule(
            "15",
            Meaning.RECIPIENT,
            "the sender may not be used to this country; mostly the USA or Canada, which ask for a number of their own",
            Reason.SENDER_REJECTED,
            suppress=False,
        ),
        Rule("22", Meaning.MESSAGE, "the network code is not valid"),
        Rule("23", Meaning.CONFIGURATION, "the callback URL is not valid"),
        Rule("29", Meaning.RECIPIENT, "a trial account, and the number is not on its list", suppress=False),
        Rule("32", Meaning.CONFIGURATION, "a signature and an API secret together", Reason.AUTHENTICATION),
        Rule("33", Meaning.RECIPIENT, "the number is no longer in use"),
    ),
)


class VonageOptions(ApiOptions):
    """Settings of one Vonage account.

    Attributes:
        api_key: of the account.
        api_secret: of the account.
        from_number: `from` in the settings: a number, or up to 11 letters and digits.
        callback: where Vonage reports delivery, if not to the account's own: your gateway, which forwards it to
            `notipy.receipts`.
    """

    base_url: Annotated[str, Field(pattern=r"^https?://[^\s?#]+$")] = "https://rest.nexmo.com"
    api_key: Annotated[str, Field(min_length=1)]
    api_secret: SecretStr
    from_number: Annotated[str, Field(alias="from", min_length=1)]
    callback: Annotated[str, Field(pattern=r"^https?://\S+$", max_length=100)] | None = None


class VonageProvider(ApiProvider[VonageOptions]):
    """Sends SMS over one account. Vonage takes no idempotency key: what is repeated may come twice, and is marked."""

    def takes(self, recipient: Mapping[str, Any]) -> bool:
        """Whoever has a number."""
        return bool(recipient.get("phone"))

    async def send(self, message: Message) -> Accepted:
        """Queue one SMS. A long one is several at Vonage; its reference is the first one's.

        Raises:
            DeliveryFailure: as `ERRORS` says; an unknown outcome where some of its parts were taken and others not.
        """
        text = message.content["text"]
        check_length(len(text), MAX_TEXT)
        answer = await self._api.request(
            "POST", self._options.url("/sms/json"), headers=self._authorization(), data=self._form(message, text)
        )
        parts = _parts(answer)
        taken = [part for part in parts if _status(part) == _TAKEN]
        if not answer.ok or len(taken) < len(parts) or not parts:
            raise self._failure(answer, parts, len(taken))
        reference = taken[0].get("message-id")
        return Accepted(scrub(answer.told(reference)), reference)

    async def check(self) -> str:
        """Ask for the account's balance; send nothing."""
        url = self._options.url("/account/get-balance")
        answer = await self._api.request("GET", url, headers=self._authorization())
        if not answer.ok:
            raise ERRORS.failure(codes_of(answer.status), answer.told())
        return f"the account has a balance of {scrub(str(answer.document.get('value', 'unknown')))} EUR"

    def _authorization(self) -> Mapping[str, str]:
        login = aiohttp.encode_basic_auth(self._options.api_key, self._options.api_secret.get_secret_value())
        return {"Authorization": login}

    def _form(self, message: Message, text: str) -> Mapping[str, str]:
        form = {
            "from": self._options.from_number,
            "to": str(message.recipient["phone"]).removeprefix("+"),
            "text": text,
            "type": "unicode" if segments(text).encoding is Encoding.UCS_2 else "text",
            "client-ref": message.idempotency_key,  # comes back in the receipt; it stops no repetition
        }
        return form | ({"callback": self._options.callback} if self._options.callback else {})

    def _failure(self, answer: Answer, parts: Sequence[Mapping[str, Any]], taken: int) -> DeliveryFailure:
        """Vonage's own code says more than the status; its words may hold the number, and are left out."""
        if answer.ok and not parts:
            return UnknownOutcome(Reason.OUTCOME_UNKNOWN, f"HTTP {answer.status}, and nothing of it can be read")
        code = next((_status(part) for part in parts if _status(part) != _TAKEN), "")
        if taken:
            told = f"{taken} of {len(parts)} parts were taken, another was refused with status {code}"
            return UnknownOutcome(Reason.OUTCOME_UNKNOWN, told)
        codes = (code, *codes_of(answer.status))
        return ERRORS.refusal(codes, answer.told(f"status {code}"), answer.retry_after(self._now()))


def _parts(answer: Answer) -> Sequence[Mapping[str, Any]]:
    found = answer.document.get("messages")
    return [part for part in found if isinstance(part, dict)] if isinstance(found, list) else []


def _status(part: Mapping[str, Any]) -> str:
    """A short code; what is none is not repeated."""
    status = str(part.get("status", ""))
    return status if status.isascii() and status.isdigit() and len(status) <= 4 else "unreadable"
