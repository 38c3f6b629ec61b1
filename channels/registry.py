"""The kinds of provider that settings can name: NotiPy's own, and those of other packages.

Another package adds a kind with an entry point of the group `notipy.providers`, whose name is the kind and whose
object is a `ProviderKind`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

from pydantic import BaseModel, ValidationError

from channels.surroundings import NOWHERE, Surroundings
from channels.taxonomy import Table
from domain.ports import Provider
from domain.text import Fault, describe, faults_of
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


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a kind of NotiPy's own is: its module has `<name>Options`, `<name>Provider`, and `ERRORS` if it has any."""

    module: str
    name: str
    channels: frozenset[Channel]

    def load(self) -> ProviderKind:
        """The kind itself."""
        module = import_module(self.module)
        options, make = getattr(module, f"{self.name}Options"), getattr(module, f"{self.name}Provider")
        return ProviderKind(options, self.channels, make, getattr(module, "ERRORS", None))


class _Kinds(Mapping[str, ProviderKind]):
    """Kinds that are loaded when they are used: the libraries of all of them would cost each process some 30 MiB."""

    def __init__(self, places: Mapping[str, "_Place | EntryPoint"]) -> None:
        self._places = places
        self._loaded: dict[str, ProviderKind] = {}

    def __getitem__(self, kind: str) -> ProviderKind:
        if kind not in self._loaded:
            place = self._places[kind]
            self._loaded[kind] = place.load() if isinstance(place, _Place) else _loaded(place)
        return self._loaded[kind]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


_MAIL, _SMS, _PUSH, _CHAT = (frozenset({each}) for each in (Channel.EMAIL, Channel.SMS, Channel.PUSH, Channel.CHAT))
_PLAIN_HTTP: Final = frozenset({Channel.SMS, Channel.CHAT, Channel.PUSH, Channel.WEBHOOK})
_ANY: Final = frozenset(Channel)
_OWN: Final = {
    "smtp": _Place("channels.smtp", "Smtp", _MAIL),
    "mailgun": _Place("channels.mailgun", "Mailgun", _MAIL),
    "ses": _Place("channels.ses", "Ses", _MAIL),
    "sendgrid": _Place("channels.sendgrid", "SendGrid", _MAIL),
    "twilio": _Place("channels.twilio", "Twilio", _SMS),
    "vonage": _Place("channels.vonage", "Vonage", _SMS),
    "fcm": _Place("channels.fcm", "Fcm", _PUSH),
    "apns": _Place("channels.apns", "Apns", _PUSH),
    "webpush": _Place("channels.webpush", "WebPush", _PUSH),
    "slack": _Place("channels.slack", "Slack", _CHAT),
    "teams": _Place("channels.teams", "Teams", _CHAT),
    "discord": _Place("channels.discord", "Discord", _CHAT),
    "telegram": _Place("channels.telegram", "Telegram", _CHAT),
    "mattermost": _Place("channels.mattermost", "Mattermost", _CHAT),
    "webhook": _Place("channels.webhook", "Webhook", frozenset({Channel.WEBHOOK})),
    "inbox": _Place("channels.inbox", "Inbox", frozenset({Channel.INBOX})),
    "amqp": _Place("channels.amqp", "Amqp", _ANY),
    "apprise": _Place("channels.apprise", "Apprise", _CHAT),
    "http": _Place("channels.http_template", "HttpTemplate", _PLAIN_HTTP),
    "console": _Place("channels.console", "Console", _ANY),
    "file": _Place("channels.file", "File", _ANY),
}
KINDS: Final[Mapping[str, ProviderKind]] = _Kinds(_OWN)
"""NotiPy's own."""


@cache
def kinds() -> Mapping[str, ProviderKind]:
    """All of them; NotiPy's own cannot be replaced.

    Raises:
        ValueError: an entry point cannot be loaded, is no `ProviderKind`, or has the name of another kind; it says
            which package's.
    """
    places: dict[str, _Place | EntryPoint] = dict(_OWN)
    for point in entry_points(group=GROUP):
        if point.name in places:
            raise ValueError(f"{_named(point)}: there is a kind {point.name!r} already")
        places[point.name] = point
    found = _Kinds(places)
    for name in places.keys() - _OWN.keys():
        _ = found[name]  # whatever is wrong with it is told now
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


class WrongOptions(ValueError):
    """A provider's own settings are wrong; `faults` says which, and what they should be."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__(describe(faults))
        self.faults = tuple(faults)


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
        raise WrongOptions(faults_of(error)) from None
    made = chosen.make(name, parsed, surroundings)
    if lacking := [part for part in PARTS if not hasattr(made, part)]:
        raise ValueError(f"kind: {kind!r} makes a provider without {', '.join(lacking)}")
    return made
