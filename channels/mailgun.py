"""E-mail through Mailgun (`POST /v3/<domain>/messages.mime` of its Messages API)."""

from datetime import timedelta
from typing import Annotated, Final

import aiohttp
from pydantic import Field, SecretStr

from channels.classify import parse_retry_after
from channels.http import Answer
from channels.limits import check_length
from channels.mail import Mail, compose
from channels.mail_api import MailApiOptions, MailApiProvider, answered
from channels.taxonomy import Meaning, Rule, Table, codes_of
from domain.failures import DeliveryFailure, PermanentFailure
from domain.message import Accepted, Message
from domain.vocabulary import Reason

DELIVERY_VARIABLE: Final = "v:notipy-delivery"
"""Mailgun's events about a message carry it in `user-variables`, without the `v:`."""
_TRY_AGAIN: Final = "try again after "

ERRORS: Final = Table(
    provider="mailgun",
    version="2026-11-23",
    source="Mailgun documentation: API overview (response codes), Send via HTTP, Messages API",
    rules=(
        Rule(
            "'from' parameter is not a valid address",
            Meaning.CONFIGURATION,
            "the sender's address is not valid",
            Reason.SENDER_REJECTED,
        ),
        Rule("is not a valid address", Meaning.RECIPIENT, "the address fails RFC 5321 syntax", Reason.BAD_ADDRESS),
        Rule("limit exceeded", Meaning.RATE_LIMITED, "the domain has reached its limit of recipients for now"),
        Rule(
            "is not allowed to send",
            Meaning.CONFIGURATION,
            "the domain or the account is not activated, or is disabled",
            Reason.SENDER_REJECTED,
        ),
        Rule(
            "sandbox subdomains are for test purposes only",
            Meaning.CONFIGURATION,
            "a sandbox domain sends to authorised recipients only",
            Reason.SENDER_REJECTED,
        ),
        Rule("HTTP 404", Meaning.CONFIGURATION, "the domain was not found: its name or the region's base URL is wrong"),
        Rule("HTTP 420", Meaning.RATE_LIMITED, "the domain has reached its limit of recipients for now"),
    ),
)
"""Mailgun has no codes but the statuses: the other rules are words that stand in its `message`, in this order."""


class MailgunOptions(MailApiOptions):
    """Settings of one domain of Mailgun's.

    Attributes:
        base_url: of the region; of the EU: `https://api.eu.mailgun.net`.
        api_key: of the account, or a sending key of the domain.
        domain: that sends, as Mailgun knows it.
        tags: by which Mailgun's statistics group messages.
        test_mode: Mailgun takes messages and does not deliver them.
    """

    base_url: Annotated[str, Field(pattern=r"^https?://[^\s?#]+$")] = "https://api.mailgun.net"
    api_key: Annotated[SecretStr, Field(min_length=1)]
    domain: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+$")]
    tags: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=128)], ...], Field(max_length=10)] = ()
    test_mode: bool = False


class MailgunProvider(MailApiProvider[MailgunOptions]):
    """Sends mail over one domain. Mailgun takes no idempotency key: what is repeated may come twice, and is marked."""

    async def send(self, message: Message) -> Accepted:
        """Hand over one mail, put together as for SMTP.

        Raises:
            DeliveryFailure: as `ERRORS` says; or the message itself rules it out.
        """
        options = self._options
        files = await self._files.of(message, options.timeout)
        mail = compose(message, options.sender, files)
        check_length(len(mail.body), options.max_message_bytes, "bytes")
        answer = await self._post(self._form(message.tag, mail))
        if not answer.ok:
            raise self._failure(answer, alone=not mail.copies)
        return answered(answer.status, str(answer.document.get("id") or "").strip("<>"), mail.left_out)

    async def check(self) -> str:
        """Post no message at all, which Mailgun refuses once key and domain are found good; a sending key may do it."""
        answer = await self._post(aiohttp.FormData({DELIVERY_VARIABLE: "check"}, default_to_multipart=True))
        if answer.ok or answer.status == 400:
            return f"the key is good for {self._options.domain}"
        raise self._failure(answer)

    async def _post(self, form: aiohttp.FormData) -> Answer:
        key = self._options.api_key.get_secret_value()
        return await self._api.request(
            "POST",
            self._options.url(f"/v3/{self._options.domain}/messages.mime"),
            headers={"Authorization": aiohttp.encode_basic_auth("api", key)},
            data=form,
        )

    def _form(self, delivery: str, mail: Mail) -> aiohttp.FormData:
        form = aiohttp.FormData(default_to_multipart=True)
        for recipient in mail.recipients:
            form.add_field("to", recipient)
        form.add_field("message", mail.body, filename="message.mime", content_type="message/rfc822")
        form.add_field(DELIVERY_VARIABLE, delivery)
        for tag in self._options.tags:
            form.add_field("o:tag", tag)
        if self._options.test_mode:
            form.add_field("o:testmode", "yes")
        return form

    def _failure(self, answer: Answer, *, alone: bool = True) -> DeliveryFailure:
        """The words decide, where they are known: they hold addresses, and are left out.

        Args:
            answer: of Mailgun's.
            alone: there are no copies, one of whose addresses may be the bad one.
        """
        said = str(answer.document.get("message", ""))
        codes = (*_known(said), *codes_of(answer.status))
        failure = ERRORS.refusal(codes, answer.told(), self._wait(answer, said))
        if failure.suppress and not alone:
            return PermanentFailure(failure.reason, f"{failure.detail}, or that of a copy")
        return failure

    def _wait(self, answer: Answer, said: str) -> timedelta | None:
        """As the header has it, or the date that ends the words of a 420."""
        _, _, until = said.partition(_TRY_AGAIN)
        return parse_retry_after(answer.headers.get("Retry-After") or until.strip(), self._now())


def _known(said: str) -> list[str]:
    return [rule.code for rule in ERRORS.rules if rule.code.lower() in said.lower()]
