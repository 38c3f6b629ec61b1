"""The kinds of provider that settings can name: NotiPy's own, and those of other packages.

Another package adds a kind with an entry point of the group `notipy.providers`, whose name is the kind and whose
object is a `ProviderKind`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Final

from pydantic import BaseModel, ValidationError

from channels.file import FileOptions, FileProvider
from channels.smtp import SmtpOptions, SmtpProvider
from channels.surroundings import NOWHERE, Surroundings
from channels.taxonomy import Table
from channels.twilio import ERRORS as TWILIO
from channels.twilio import TwilioOptions, TwilioProvider
from channels.webhook import WebhookOptions, WebhookProvider
from domain.ports import Provider
from domain.text import describe, faults_of
from domain.vocabulary import Channel

GROUP: Final = "notipy.providers"
"""Of entry points."""


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


KINDS: Final[Mapping[str, ProviderKind]] = {
    "smtp": ProviderKind(SmtpOptions, frozenset({Channel.EMAIL}), SmtpProvider),
    "twilio": ProviderKind(TwilioOptions, frozenset({Channel.SMS}), TwilioProvider, TWILIO),
    "webhook": ProviderKind(WebhookOptions, frozenset({Channel.WEBHOOK}), WebhookProvider),
    "file": ProviderKind(FileOptions, frozenset(Channel), FileProvider),
}
"""NotiPy's own."""


@cache
def kinds() -> Mapping[str, ProviderKind]:
    """All of them; NotiPy's own cannot be replaced.

    Raises:
        ValueError: an entry point is no `ProviderKind`, or cannot be loaded.
    """
    found: dict[str, ProviderKind] = {}
    for point in entry_points(group=GROUP):
        try:
            kind = point.load()
        except Exception as error:
            raise ValueError(f"the entry point {point.value} of {GROUP} cannot be loaded: {error}") from error
        if not isinstance(kind, ProviderKind):
            raise ValueError(f"the entry point {point.value} of {GROUP} is no ProviderKind")
        found[point.name] = kind
    return {**found, **KINDS}


def make_provider(
    channel: Channel, name: str, kind: str, options: Mapping[str, Any], surroundings: Surroundings = NOWHERE
) -> Provider:
    """A provider as set.

    Raises:
        ValueError: which setting is wrong, and what it should be; never its value.
    """
    chosen = kinds().get(kind)
    if chosen is None or channel not in chosen.channels:
        known = ", ".join(sorted(other for other, spec in kinds().items() if channel in spec.channels))
        raise ValueError(f"kind: {kind!r} is no kind of provider for {channel}; known: {known}")
    try:
        parsed = chosen.options.model_validate(dict(options))
    except ValidationError as error:
        raise ValueError(describe(faults_of(error))) from None
    return chosen.make(name, parsed, surroundings)
