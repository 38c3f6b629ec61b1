"""Which words a recipient gets: content by locale, merged over a channel's own.

Locales are BCP 47 tags; `_` and `-`, and upper and lower case, are alike. The most specific wins, found as RFC 4647
§3.4 (Lookup) has it: `de-AT-1996`, `de-AT`, `de`, and then the channel's own words, which are in `default_locale`.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

LOCALES: Final = "locales"
"""The field of a content that holds what differs in other locales."""
SHARED: Final = " shared"
"""Under which a notification's content carries a `Shared`. No field has such a name, nor can an event bring one."""
_TAG = re.compile(r"[A-Za-z]{2,8}(?:[-_][A-Za-z0-9]{1,8}){0,7}")


@dataclass(frozen=True, slots=True)
class Shared:
    """What the contents of a notification have in common.

    Attributes:
        partials: name and source of the templates that its templates extend, include and import.
        default_locale: the locale of the words that stand outside of `locales`; None: nobody knows.
    """

    partials: tuple[tuple[str, str], ...] = ()
    default_locale: str | None = None


NOTHING_SHARED: Final = Shared()


def check_locale(tag: str) -> str:
    """Return the tag.

    Raises:
        ValueError: it is no locale.
    """
    if not _TAG.fullmatch(tag):
        raise ValueError("is not a locale such as de or pt-BR")
    return tag


def canonical(tag: str) -> str:
    """The one form of a tag by which two are compared."""
    return tag.replace("_", "-").lower()


def lookup(tag: str) -> Iterator[str]:
    """The tag and what it falls back to, the most specific first: `zh-hant-tw`, `zh-hant`, `zh`."""
    parts = canonical(tag).split("-")
    while parts:
        yield "-".join(parts)
        parts.pop()
        if parts and len(parts[-1]) == 1:  # RFC 4647: a singleton goes with what it introduces
            parts.pop()


def merged(content: Mapping[str, Any], *overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A channel's words with others in their place, field by field; a field that is null at last is left out."""
    words = {name: value for name, value in content.items() if name != LOCALES}
    for override in overrides:
        words.update(override)
    return words


def chosen(content: Mapping[str, Any], tag: str | None) -> str | None:
    """Which of a content's locales a recipient of this one is told in; None: in the channel's own words."""
    locales = content.get(LOCALES)
    if not locales or not tag:
        return None
    known = {canonical(name) for name in locales}
    return next((candidate for candidate in lookup(tag) if candidate in known), None)


def localised(content: Mapping[str, Any], tag: str | None) -> tuple[Mapping[str, Any], str | None]:
    """The words for a recipient of this locale, and their locale: None for those outside of `locales`.

    Each field is the most specific one that there is.
    """
    locales = content.get(LOCALES)
    if not locales or not tag:
        return content, None
    known = {canonical(name): words for name, words in locales.items()}
    found = [candidate for candidate in lookup(tag) if candidate in known]
    if not found:
        return content, None
    return merged(content, *(known[candidate] for candidate in reversed(found))), found[0]


def translated(content: Mapping[str, Any], tag: str | None) -> frozenset[str]:
    """The fields whose words for a recipient of this locale are a locale's, and not the channel's own."""
    known = {canonical(name): words for name, words in (content.get(LOCALES) or {}).items()}
    return frozenset(field for candidate in lookup(tag or "") for field in known.get(candidate, ()))


def variant(content: Mapping[str, Any], tag: str) -> dict[str, Any]:
    """The words of one of the locales of a content."""
    below = {name: words for name, words in content[LOCALES].items() if canonical(name) != canonical(tag)}
    return merged(localised({**content, LOCALES: below}, tag)[0], content[LOCALES][tag])
