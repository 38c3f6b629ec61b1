"""Jinja2's tags in a source that another tool works on: put away before, and back in their places after."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

_QUOTED: Final = r"""(?:"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|[^"'])*?"""
TAG: Final = re.compile(
    r"\{%-?\s*raw\s*-?%\}.*?\{%-?\s*endraw\s*-?%\}|\{#.*?#\}|\{\{" + _QUOTED + r"\}\}|\{%" + _QUOTED + r"%\}", re.DOTALL
)
"""A whole `raw` block, a comment, an expression, a statement."""


@dataclass(frozen=True, slots=True)
class Tag:
    """One tag, and the line it stands on."""

    text: str
    line: int

    @property
    def statement(self) -> bool:
        """Whether it steers what is around it, so that its place among others of its kind matters."""
        return self.text.startswith("{%")


def put_away(source: str, token: Callable[[int], str]) -> tuple[str, list[Tag]]:
    """The source with a token in the place of each tag, and the tags."""
    tags: list[Tag] = []

    def away(match: re.Match[str]) -> str:
        tags.append(Tag(match[0], source.count("\n", 0, match.start()) + 1))
        return token(len(tags) - 1)

    return TAG.sub(away, source), tags


def lost(tags: list[Tag], found: list[int]) -> Iterator[Tag]:
    """The tags that are not where they were: gone, or a statement that is there twice or out of its order.

    Args:
        tags: as they were put away.
        found: their numbers, as they stand in what the tool made.
    """
    statements = [number for number in found if tags[number].statement]
    expected = [number for number, tag in enumerate(tags) if tag.statement]
    for number, tag in enumerate(tags):
        if number not in found and not tag.text.startswith("{#"):
            yield tag
            return
    if statements != expected:
        yield next(tags[was] for was, now in zip(expected, (*statements, -1), strict=False) if was != now)
