"""A mail server, as RFC 5321 has it, with enhanced status codes (RFC 3463) and a login (RFC 4954)."""

from base64 import b64encode
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email import message_from_bytes, policy
from email.message import EmailMessage
from functools import partial

from channels.surroundings import NOWHERE, Surroundings
from channels.taxonomy import Meaning
from domain.vocabulary import Channel
from tests.conformance.over_http import absent_port
from tests.conformance.subject import TEXT, Fault, Ground, Subject, message
from tests.contract.peers import ScriptedSmtp, scripted_smtp

USER, PASSWORD = "bob", "s@cret-word-of-bobs"
LOGIN = b64encode(f"\0{USER}\0{PASSWORD}".encode()).decode()
EMAIL = "ana.private@example.org"
SENDER = "no-reply@shop.example"


@dataclass(frozen=True)
class Reply:
    """What the server says to a command, or to the message (`BODY`). Nothing: it hangs up; None: it is silent."""

    stage: str
    text: str | None


TAKEN = Reply("BODY", "250 2.0.0 queued as 42")
FAULTS = {
    Fault.SILENT_BEFORE: Reply("DATA", None),
    Fault.LOST_BEFORE: Reply("DATA", ""),
    Fault.SILENT: Reply("BODY", None),
    Fault.LOST: Reply("BODY_READ", ""),  # before the dot that ends it
}


@dataclass(frozen=True)
class SmtpPeer:
    """A server of the tests' own, over a real conversation."""

    script: ScriptedSmtp
    surroundings: Surroundings = NOWHERE

    @property
    def url(self) -> str:
        """With the login."""
        return f"smtp://{USER}:{PASSWORD.replace('@', '%40')}@127.0.0.1:{self.script.port}?tls=none"

    @property
    def connections(self) -> int:
        return self.script.open

    @property
    def opened(self) -> int:
        return self.script.connections

    async def taken(self) -> Sequence[EmailMessage]:
        """The mails, dots at the start of lines undone."""
        raw = [mail.removesuffix(b".\r\n").replace(b"\r\n..", b"\r\n.") for mail in self.script.mails]
        return [message_from_bytes(mail, policy=policy.default) for mail in raw]


@asynccontextmanager
async def mail_server(
    _: Subject, answer: Reply | Fault, __: Ground, *, pipelining: bool = False
) -> AsyncIterator[SmtpPeer]:
    if answer is Fault.ABSENT:
        async with absent_port() as port:
            yield SmtpPeer(ScriptedSmtp(port=port))
        return
    reply = FAULTS[answer] if isinstance(answer, Fault) else answer
    greeting = "250-localhost\r\n250-AUTH PLAIN" + "\r\n250-PIPELINING" * pipelining + "\r\n250 SIZE 30000000"
    replies: dict[str, list[str | None]] = {"EHLO": [greeting], "AUTH": ["235 2.7.0 welcome"]}
    async with scripted_smtp(pipelining=pipelining, **replies | {reply.stage: [reply.text]}) as script:
        yield SmtpPeer(script)


def requested(mail: EmailMessage) -> None:
    assert mail.defects == []
    assert (mail["from"], mail["to"], mail["subject"]) == (f"Shop <{SENDER}>", EMAIL, f"{TEXT}!")
    plain, html = mail.get_body(("plain",)), mail.get_body(("html",))
    assert plain is not None
    assert html is not None
    assert plain.get_content().strip() == TEXT
    assert html.get_content().strip() == f"<p>{TEXT}</p>"


SUBJECTS = [
    Subject(
        kind="smtp",
        channel=Channel.EMAIL,
        options=lambda url, _: {"url": url, "from": f"Shop <{SENDER}>", "max_message_bytes": 100_000},
        message=message(Channel.EMAIL, {"email": EMAIL}),
        address=EMAIL,
        success=TAKEN,
        serve=partial(mail_server, pipelining=pipelining),
        faults=tuple(Fault),
        failures={
            "a login that is wrong": (
                Reply("AUTH", f"535 5.7.8 not {USER} with {PASSWORD}, {LOGIN}"),
                Meaning.CONFIGURATION,
            ),
            "a login that is wanted": (Reply("MAIL", "530 5.7.0 log in first"), Meaning.CONFIGURATION),
            "a sender that is refused": (Reply("MAIL", f"550 5.7.1 {SENDER} is not yours"), Meaning.CONFIGURATION),
            "a server that is busy": (Reply("GREETING", "421 4.3.2 come back later"), Meaning.TRANSIENT),
            "blocked": (Reply("GREETING", "554 5.7.1 your host is not wanted"), Meaning.TRANSIENT),
            "busy after its greeting": (Reply("EHLO", "421 4.3.2 too many of you"), Meaning.TRANSIENT),
            "no message for now": (Reply("DATA", "451 4.3.0 later"), Meaning.TRANSIENT),
            "a server that closes": (Reply("RCPT", "421 4.3.2 closing"), Meaning.TRANSIENT),
            "a fault of the server's": (Reply("RCPT", f"451 4.3.0 <{EMAIL}> later"), Meaning.TRANSIENT),
            "greylisted": (Reply("RCPT", "450 4.7.1 try again in 300 s"), Meaning.TRANSIENT),
            "a mailbox that is full for now": (Reply("RCPT", "452 4.2.2 over quota"), Meaning.TRANSIENT),
            "no room": (Reply("BODY", "452 4.3.1 disk full"), Meaning.TRANSIENT),
            "a mail flood": (Reply("MAIL", "421 4.7.28 you are too fast"), Meaning.RATE_LIMITED),
            "a mail flood, seen in the message": (Reply("BODY", "450 4.7.28 too fast"), Meaning.RATE_LIMITED),
            "no such mailbox": (Reply("RCPT", f"550 5.1.1 <{EMAIL}>: no such user"), Meaning.RECIPIENT),
            "a mailbox that is disabled": (Reply("RCPT", f"550 5.2.1 {EMAIL}"), Meaning.RECIPIENT),
            "not our user": (Reply("RCPT", f"551 {EMAIL} is elsewhere"), Meaning.RECIPIENT),
            "too large, by SIZE": (Reply("MAIL", "552 5.3.4 too big"), Meaning.MESSAGE),
            "too large": (Reply("BODY", "552 5.2.3 too big for this mailbox"), Meaning.MESSAGE),
            "spam": (Reply("BODY", f"554 5.7.1 spam to {EMAIL}"), Meaning.MESSAGE),
            "lost after the dot": (Reply("BODY", ""), Meaning.UNKNOWN),
            "no SMTP": (Reply("BODY", "what?"), Meaning.UNKNOWN),
        },
        requested=requested,
        secrets=(PASSWORD, LOGIN),
        reference="d1/1",
        idempotency=lambda mail: mail["message-id"],
        too_long=message(Channel.EMAIL, {"email": EMAIL}, content={"subject": "s", "text": "x" * 100_000}),
    )
    for pipelining in (False, True)
]
