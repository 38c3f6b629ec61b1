"""The kinds of provider that settings can name: NotiPy's own, and those of other packages.

Another package adds a kind with an entry point of the group `notipy.providers`, whose name is the kind and whose
object is a `ProviderKind`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

from pydantic import BaseModel, ValidationError

from channels.amqp import AmqpOptions, AmqpProvider
from channels.apns import ERRORS as APNS
from channels.apns import ApnsOptions, ApnsProvider
from channels.apprise import AppriseOptions, AppriseProvider
from channels.console import ConsoleOptions, ConsoleProvider
from channels.discord import ERRORS as DISCORD
from channels.discord import DiscordOptions, DiscordProvider
from channels.fcm import ERRORS as FCM
from channels.fcm import FcmOptions, FcmProvider
from channels.file import FileOptions, FileProvider
from channels.http_template import HttpTemplateOptions, HttpTemplateProvider
from channels.inbox import InboxOptions, InboxProvider
from channels.mailgun import ERRORS as MAILGUN
from channels.mailgun import MailgunOptions, MailgunProvider
from channels.mattermost import ERRORS as MATTERMOST
from channels.mattermost import MattermostOptions, MattermostProvider
from channels.sendgrid import ERRORS as SENDGRID
from channels.sendgrid import SendGridOptions, SendGridProvider
from channels.ses import ERRORS as SES
from channels.ses import SesOptions, SesProvider
from channels.slack import ERRORS as SLACK
from channels.slack import SlackOptions, SlackProvider
from channels.smtp import SmtpOptions, SmtpProvider
from channels.surroundings import NOWHERE, Surroundings
from channels.taxonomy import Table
from channels.teams import ERRORS as TEAMS
from channels.teams import TeamsOptions, TeamsProvider
from channels.telegram import ERRORS as TELEGRAM
from channels.telegram import TelegramOptions, TelegramProvider
from channels.twilio import ERRORS as TWILIO
from channels.twilio import TwilioOptions, TwilioProvider
from channels.vonage import ERRORS as VONAGE
from channels.vonage import VonageOptions, VonageProvider
from channels.webhook import WebhookOptions, WebhookProvider
from channels.webpush import ERRORS as WEBPUSH
from channels.webpush import WebPushOptions, WebPushProvider
from domain.ports import Provider
from domain.text import describe, faults_of
from domain.vocabulary import Channel

GROUP: Final = "notipy.providers"
"""Of entry points."""
PARTS: Final = ("name", "takes", "send", "check", "close")
"""Of a `domain.ports.Provider`."""


@dataclass(frozen=True, slots=True)
class ProviderKind:
    """A kind: its settings, the channels that it serves, and how one is made. Making one opens nothing.

    Attributes:
        options: the model of its settings.
        channels: over which it can send.
        make: from its name, its settings (a `options`), and what it may use of NotiPy.
        errors: what its error codes mean, if it has codes of its own.
    """

    options: type[BaseModel]
    channels: frozenset[Channel]
    make: Callable[[str, Any, Surroundings], Provider]
    errors: Table | None = None


PLAIN_HTTP: Final = frozenset({Channel.SMS, Channel.CHAT, Channel.PUSH, Channel.WEBHOOK})
KINDS: Final[Mapping[str, ProviderKind]] = {
    "smtp": ProviderKind(SmtpOptions, frozenset({Channel.EMAIL}), SmtpProvider),
    "mailgun": ProviderKind(MailgunOptions, frozenset({Channel.EMAIL}), MailgunProvider, MAILGUN),
    "ses": ProviderKind(SesOptions, frozenset({Channel.EMAIL}), SesProvider, SES),
    "sendgrid": ProviderKind(SendGridOptions, frozenset({Channel.EMAIL}), SendGridProvider, SENDGRID),
    "twilio": ProviderKind(TwilioOptions, frozenset({Channel.SMS}), TwilioProvider, TWILIO),
    "vonage": ProviderKind(VonageOptions, frozenset({Channel.SMS}), VonageProvider, VONAGE),
    "fcm": ProviderKind(FcmOptions, frozenset({Channel.PUSH}), FcmProvider, FCM),
    "apns": ProviderKind(ApnsOptions, frozenset({Channel.PUSH}), ApnsProvider, APNS),
    "webpush": ProviderKind(WebPushOptions, frozenset({Channel.PUSH}), WebPushProvider, WEBPUSH),
    "slack": ProviderKind(SlackOptions, frozenset({Channel.CHAT}), SlackProvider, SLACK),
    "teams": ProviderKind(TeamsOptions, frozenset({Channel.CHAT}), TeamsProvider, TEAMS),
    "discord": ProviderKind(DiscordOptions, frozenset({Channel.CHAT}), DiscordProvider, DISCORD),
    "telegram": ProviderKind(TelegramOptions, frozenset({Channel.CHAT}), TelegramProvider, TELEGRAM),
    "mattermost": ProviderKind(MattermostOptions, frozenset({Channel.CHAT}), MattermostProvider, MATTERMOST),
    "webhook": ProviderKind(WebhookOptions, frozenset({Channel.WEBHOOK}), WebhookProvider),
    "inbox": ProviderKind(InboxOptions, frozenset({Channel.INBOX}), InboxProvider),
    "amqp": ProviderKind(AmqpOptions, frozenset(Channel), AmqpProvider),
    "apprise": ProviderKind(AppriseOptions, frozenset({Channel.CHAT}), AppriseProvider),
    "http": ProviderKind(HttpTemplateOptions, PLAIN_HTTP, HttpTemplateProvider),
    "console": ProviderKind(ConsoleOptions, frozenset(Channel), ConsoleProvider),
    "file": ProviderKind(FileOptions, frozenset(Channel), FileProvider),
}
"""NotiPy's own."""


@cache
def kinds() -> Mapping[str, ProviderKind]:
    """All of them; NotiPy's own cannot be replaced.

    Raises:
        ValueError: an entry point cannot be loaded, is no `ProviderKind`, or has the name of another kind; it says
            which package's.
    """
    found = dict(KINDS)
    for point in entry_points(group=GROUP):
        if point.name in found:
            raise ValueError(f"{_named(point)}: there is a kind {point.name!r} already")
        found[point.name] = _loaded(point)
    return found


def _loaded(point: EntryPoint) -> ProviderKind:
    try:
        kind = point.load()
    except Exception as error:
        raise ValueError(f"{_named(point)}: cannot be loaded: {type(error).__name__}: {error}") from error
    if not isinstance(kind, ProviderKind):
        raise ValueError(f"{_named(point)}: should be a ProviderKind, and is a {type(kind).__name__}")
    return kind


def _named(point: EntryPoint) -> str:
    package = point.dist.name if point.dist else "an unknown package"
    return f"the provider {point.name} of the package {package} ({point.value})"


def make_provider(
    channel: Channel, name: str, kind: str, options: Mapping[str, Any], surroundings: Surroundings = NOWHERE
) -> Provider:
    """A provider as set.

    Raises:
        ValueError: which setting is wrong, and what it should be; never its value.
    """
    chosen = KINDS.get(kind) or kinds().get(kind)  # a fault of another package's stops nobody who does not use it
    if chosen is None or channel not in chosen.channels:
        known = ", ".join(sorted(other for other, spec in kinds().items() if channel in spec.channels))
        raise ValueError(f"kind: {kind!r} is no kind of provider for {channel}; known: {known}")
    try:
        parsed = chosen.options.model_validate(dict(options))
    except ValidationError as error:
        raise ValueError(describe(faults_of(error))) from None
    made = chosen.make(name, parsed, surroundings)
    if lacking := [part for part in PARTS if not hasattr(made, part)]:
        raise ValueError(f"kind: {kind!r} makes a provider without {', '.join(lacking)}")
    return made
