"""The kinds of provider that settings can name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel, ValidationError

from channels.file import FileOptions, FileProvider
from channels.smtp import SmtpOptions, SmtpProvider
from channels.webhook import WebhookOptions, WebhookProvider
from domain.ports import Provider
from domain.text import describe, faults_of
from domain.vocabulary import Channel


@dataclass(frozen=True, slots=True)
class ProviderKind:
    """A kind: its settings, the channels that it serves, and how one is made. Making one opens nothing."""

    options: type[BaseModel]
    channels: frozenset[Channel]
    make: Callable[[str, Any], Provider]


KINDS: Final[Mapping[str, ProviderKind]] = {
    "smtp": ProviderKind(SmtpOptions, frozenset({Channel.EMAIL}), SmtpProvider),
    "webhook": ProviderKind(WebhookOptions, frozenset({Channel.WEBHOOK}), WebhookProvider),
    "file": ProviderKind(FileOptions, frozenset(Channel), FileProvider),
}


def make_provider(channel: Channel, name: str, kind: str, options: Mapping[str, Any]) -> Provider:
    """A provider as set.

    Raises:
        ValueError: which setting is wrong, and what it should be; never its value.
    """
    chosen = KINDS.get(kind)
    if chosen is None or channel not in chosen.channels:
        known = ", ".join(sorted(other for other, spec in KINDS.items() if channel in spec.channels))
        raise ValueError(f"kind: {kind!r} is no kind of provider for {channel}; known: {known}")
    try:
        parsed = chosen.options.model_validate(dict(options))
    except ValidationError as error:
        raise ValueError(describe(faults_of(error))) from None
    return chosen.make(name, parsed)
