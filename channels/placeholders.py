"""Templates that stand in a provider's settings: `{{ recipient.phone }}`, `{{ text }}`, `{{ idempotency_key }}`.

They are rendered by the same sandbox as notifications. What is put into them is data: whoever uses them writes the
result as JSON, as a form's field or, encoded, into a URL, and never pastes it into one.
"""

from collections.abc import Callable, Mapping
from typing import Any

from channels.rendering import TemplateRenderer
from domain.failures import PermanentFailure
from domain.message import Message
from domain.ports import TemplateError
from domain.vocabulary import Channel, Reason

Encode = Callable[[str], str]
_ANY = Channel.INBOX
"""A channel must be named to the renderer; none of its rules are about the names that are used here."""


def placeholder_faults(sources: Mapping[str, str]) -> list[str]:
    """The names of those that are no templates; what is wrong is not told, for a secret may stand beside it."""
    renderer = TemplateRenderer()
    return [name for name, source in sources.items() if renderer.check(_ANY, {"value": source})]


class Placeholders:
    """Some templates, rendered for each message. Those without placeholders are taken as they are."""

    def __init__(self, sources: Mapping[str, str]) -> None:
        self._fixed = {name: source for name, source in sources.items() if not _is_template(source)}
        self._templates = {name: source for name, source in sources.items() if _is_template(source)}
        self._renderer = TemplateRenderer()

    def rendered(self, message: Message, encode: Encode = str) -> Mapping[str, str]:
        """Each of them, for this message; `encode`: what is done to every text before it is put in.

        Raises:
            PermanentFailure: a name is missing, or what came out is too large.
        """
        if not self._templates:
            return self._fixed
        context = _encoded(context_of(message), encode)
        return self._fixed | {name: self._one(name, source, context) for name, source in self._templates.items()}

    def _one(self, name: str, source: str, context: Mapping[str, Any]) -> str:
        try:
            return self._renderer.render(_ANY, {"value": source}, context)["value"]
        except TemplateError as error:
            told = str(error).removeprefix("value: ")
            raise PermanentFailure(Reason.TEMPLATE_ERROR, f"the provider's setting {name}: {told}") from None


def context_of(message: Message) -> dict[str, Any]:
    """What placeholders can name: the content's fields, the recipient, and what identifies the message."""
    return {
        "title": "",
        **message.content,
        "recipient": dict(message.recipient),
        "channel": str(message.channel),
        "delivery": message.delivery_id,
        "idempotency_key": message.idempotency_key,
        "created_at": message.created_at.isoformat(),
    }


def _is_template(source: str) -> bool:
    return "{{" in source or "{%" in source or "{#" in source


def _encoded(value: Any, encode: Encode) -> Any:
    if isinstance(value, str):
        return encode(value)
    if isinstance(value, Mapping):
        return {name: _encoded(item, encode) for name, item in value.items()}
    return [_encoded(item, encode) for item in value] if isinstance(value, list | tuple) else value
