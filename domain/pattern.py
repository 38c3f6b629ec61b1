"""Topic patterns over `<source>.<type>`, with AMQP's meaning: `*` is one word, `#` any number of words."""

import re
from functools import lru_cache

_PATTERN = re.compile(r"^(?:[^\s.*#]+|\*|#)(?:\.(?:[^\s.*#]+|\*|#))*$")


def check_pattern(pattern: str) -> str:
    """Return the pattern if it is one.

    Raises:
        ValueError: a word is empty, or mixes `*` or `#` with other characters.
    """
    if not _PATTERN.match(pattern):
        raise ValueError(
            f"{pattern!r} is not a topic pattern: words joined by dots, each a name, * (one word) or # (any)"
        )
    return pattern


@lru_cache(maxsize=4096)
def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Compile a pattern to a regular expression over topics.

    Each word is matched together with the dot before it, and the topic is given one
    such dot more, so that `#` may stand for no word at all.
    """
    pieces = {"*": r"\.[^.]+", "#": r"(?:\.[^.]+)*"}
    return re.compile("".join(pieces.get(word, r"\." + re.escape(word)) for word in pattern.split(".")))


def matches(pattern: str, topic: str) -> bool:
    """Whether the topic is one that the pattern names."""
    return compile_pattern(pattern).fullmatch("." + topic) is not None
