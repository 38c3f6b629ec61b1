"""What `notipy apply` makes of a mail's HTML: from MJML, and with its styles in its elements."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from channels.css import inlined
from domain.locales import LOCALES
from domain.vocabulary import Channel


@dataclass(frozen=True, slots=True)
class Styled:
    """A definition's fields with styles inlined.

    Attributes:
        raw: the definition.
        left: the field, and why it was left as it is.
    """

    raw: dict[str, Any]
    left: list[tuple[str, str]]

    @classmethod
    def of(cls, raw: Mapping[str, Any], compiled: frozenset[str]) -> "Styled":
        """Inline the styles of every mail's HTML and of the files that it uses, but not in what was MJML."""
        mails = [(place, words) for place, words in every_content(raw) if place.split(".")[1] == Channel.EMAIL]
        html = {place: words.get("html") for place, words in mails if f"{place}.html" not in compiled}
        result = inlined({p: text for p, text in html.items() if isinstance(text, str)}, raw.get("partials", {}))
        left = [(f"{place}.html", f"styles are not inlined: {why}") for place, why in result.left.items()]
        styled = dict(raw)
        if mails:
            styled["channels"] = {**raw["channels"], Channel.EMAIL: _with(raw["channels"][Channel.EMAIL], result.roots)}
        return cls(styled | ({"partials": dict(result.partials)} if "partials" in raw else {}), left)


def _with(mail: Mapping[str, Any], html: Mapping[str, str]) -> dict[str, Any]:
    """A mail's content with HTML in the place of its own, in each of its locales."""
    place = f"channels.{Channel.EMAIL}"
    words = {**mail, "html": html[place]} if place in html else dict(mail)
    if mail.get(LOCALES):
        words[LOCALES] = {
            tag: {**own, "html": html[f"{place}.{LOCALES}.{tag}"]} if f"{place}.{LOCALES}.{tag}" in html else own
            for tag, own in mail[LOCALES].items()
        }
    return words


def every_content(raw: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The place and the words of each channel, and of each locale of it, however wrong the rest is."""
    channels = raw.get("channels")
    for channel, content in channels.items() if isinstance(channels, dict) else ():
        if not isinstance(content, dict):
            continue
        place = f"channels.{channel}"
        yield place, content
        locales = content.get(LOCALES)
        for tag, words in locales.items() if isinstance(locales, dict) else ():
            if isinstance(words, dict):
                yield f"{place}.{LOCALES}.{tag}", words
