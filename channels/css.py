"""The rules of a mail's `<style>` written into its elements, for readers that drop `<style>`.

This is done when a notification is applied, on the sources of its templates. css-inline only says what each element's
style is: the sources are marked element by element, put together as they will be rendered (a layout with its blocks
filled, files where they are included), and styles are put where the marks were. All else, tags of Jinja2 above all,
stays as it was written, and so does `<style>`, for media queries. Nothing is fetched.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from html import escape
from html.parser import HTMLParser
from typing import Final

from css_inline import CSSInliner, InlineError

from channels.jinja_tags import Tag, put_away

MAX_ASSEMBLED: Final = 4 * 1024 * 1024
"""Characters of a mail whose files are put together: files that include each other often can stand for billions."""
_OPEN, _CLOSE = "\ue000", "\ue001"
"""Around the number of a tag that was put away: characters for private use, which no mail has."""
_MARK: Final = "data-notipy-mark"
_PIECE = re.compile(
    r"<!--.*?-->|<(?P<opaque>style|script)\b[^>]*>(?P<body>.*?)</(?P=opaque)\s*>"
    r"|<(?P<name>[a-z][^\s/>\ue000]*)(?P<attributes>(?:\"[^\"]*\"|'[^']*'|[^\"'>])*)>",
    re.DOTALL | re.IGNORECASE,
)
_AWAY = re.compile(f"{_OPEN}(\\d+){_CLOSE}")
_QUOTED = re.compile(r"\"[^\"]*\"|'[^']*'")
_CHOSEN_BY = re.compile(rf"\s(?:class|id|style)\s*=\s*(?:\"[^\"]*{_OPEN}|'[^']*{_OPEN})", re.IGNORECASE)
_STYLE = re.compile(r"\sstyle\s*=\s*(?:\"[^\"]*\"|'[^']*'|[^\s>]+)", re.IGNORECASE)
_DECLARATIONS = re.compile(r"/\*.*?\*/|\{[^{}]*\}|\[[^\]]*\]", re.DOTALL)
_BY_PLACE = re.compile(r"[+~]|:(?:nth|first|last|only|empty|has|not)\b", re.IGNORECASE)
_STATEMENT = re.compile(r"\{%[-+]?\s*(block|endblock|extends|include|macro|endmacro|set|endset)\b\s*[\"']?([^\"'\s%]*)")
_SUPER = re.compile(r"\{\{[-+]?\s*super\(\)")


@dataclass(frozen=True, slots=True)
class Inlined:
    """Sources with their styles in place.

    Attributes:
        roots, partials: by the names that they were given under.
        left: the root that was left as it is, and why.
    """

    roots: Mapping[str, str]
    partials: Mapping[str, str]
    left: Mapping[str, str] = field(default_factory=dict)


def inlined(roots: Mapping[str, str], partials: Mapping[str, str]) -> Inlined:
    """Write styles into the elements of templates and of the files that they use, where that changes nothing else.

    An element whose class, id or style is written by a tag keeps what it has, and so does one of a file that several
    mails use, if it looks different in them.

    Args:
        roots: the templates of mails, checked.
        partials: the files that they use, by the name that they use.
    """
    if any(_OPEN in source for source in (*roots.values(), *partials.values())):
        return Inlined(roots, partials)
    files = {f"/{name}": _File.of(f"/{name}", source) for name, source in roots.items()}
    files |= {name: _File.of(name, source) for name, source in partials.items()}
    styles, left = _Styles(), {}
    for name in roots:
        if why := styles.add(f"/{name}", files):
            left[name] = why
    done = {name: file.styled(styles.of(name)) for name, file in files.items()}
    return Inlined({name: done[f"/{name}"] for name in roots}, {name: done[name] for name in partials}, left)


@dataclass(slots=True)
class _Styles:
    """What each element looks like, by its mark; None where that depends on the mail."""

    found: dict[str, str | None] = field(default_factory=dict)

    def add(self, root: str, files: Mapping[str, "_File"]) -> str | None:
        """Take in the elements of one mail; returns why that cannot be done."""
        try:
            whole = _Mail(files).text(root)
            if (why := _unsafe(whole, files)) is not None:
                return why
            styles = _read(_AWAY.sub("", whole)) if "<style" in whole.lower() else {}
        except InlineError:
            return "css-inline cannot read it"
        except _TooMuch:
            return "its files are too long together"
        for mark, style in styles.items():
            same = self.found.setdefault(mark, style) == style
            self.found[mark] = style if same else None
        return None

    def of(self, file: str) -> dict[int, str]:
        """The styles of one file's elements, by their numbers."""
        pairs = (mark.rpartition("#") for mark in self.found)
        return {int(number): self.found[f"{name}#{number}"] or "" for name, _, number in pairs if name == file}


def _unsafe(whole: str, files: Mapping[str, "_File"]) -> str | None:
    css = "\n".join(match["body"] for match in _PIECE.finditer(whole) if (match["opaque"] or "").lower() == "style")
    if _OPEN in css:
        return "its <style> is written by tags of the template"
    if any(file.repeats for file in files.values()) and _BY_PLACE.search(_DECLARATIONS.sub(" ", css)):
        return "its <style> chooses elements by their place, which tags of the template change"
    return None


def _read(marked: str) -> dict[str, str]:
    reader = _Marks()
    reader.feed(CSSInliner(keep_style_tags=False, load_remote_stylesheets=False).inline(marked))
    return reader.styles


class _Marks(HTMLParser):
    """The style of each element that has a mark, "" where it has none."""

    def __init__(self) -> None:
        super().__init__()
        self.styles: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        found = dict(attrs)
        if (mark := found.get(_MARK)) is not None:
            self.styles[mark] = found.get("style") or ""


# ---------------------------------------------------------------------------------------------------------------
# One file
# ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Block:
    name: str
    body: "list[_Node]"


@dataclass(frozen=True, slots=True)
class _Include:
    name: str


class _Super:
    """A call of `super()`."""


_Node = str | _Block | _Include | _Super


@dataclass(frozen=True, slots=True)
class _File:
    """A source, its tags put away.

    Attributes:
        nodes: its text, each element marked with the file's name and its number, and what brings other text into it.
        extends: the file whose blocks it fills.
        blocks: its own, by name.
        repeats: it has tags that may leave out or repeat what is between them.
    """

    masked: str
    tags: list[Tag]
    nodes: list[_Node]
    extends: str | None
    blocks: dict[str, list[_Node]]
    repeats: bool

    @classmethod
    def of(cls, name: str, source: str) -> "_File":
        masked, tags = put_away(source, lambda number: f"{_OPEN}{number}{_CLOSE}")
        blocks: dict[str, list[_Node]] = {}
        nodes = _nodes("".join(_marked(name, masked)), tags, blocks)
        words = [(match[1], match[2]) for tag in tags if (match := _STATEMENT.match(tag.text))]
        extends = next((target for word, target in words if word == "extends"), None)
        repeats = any(re.match(r"\{%[-+]?\s*(?:if|for)\b", tag.text) for tag in tags)
        return cls(masked, tags, nodes, extends, blocks, repeats)

    def styled(self, styles: Mapping[int, str]) -> str:
        """The source with styles in its elements."""
        styled = _PIECE.sub(_Counting(styles), self.masked) if any(styles.values()) else self.masked
        return _AWAY.sub(lambda match: self.tags[int(match[1])].text, styled)


def _marked(name: str, masked: str) -> Iterator[str]:
    """The source, each of its elements marked, and tags left between elements only."""
    end = 0
    for number, match in enumerate(_PIECE.finditer(masked)):
        yield masked[end : match.start()]
        if match["name"]:
            mark = escape(f"{name}#{number}")
            yield f'<{match["name"]} {_MARK}="{mark}"{_AWAY.sub("", match["attributes"])}>'
        else:
            yield match[0] if match["opaque"] else _AWAY.sub("", match[0])
        end = match.end()
    yield masked[end:]


def _nodes(marked: str, tags: list[Tag], blocks: dict[str, list[_Node]]) -> list[_Node]:
    levels: list[list[_Node]] = [[]]
    names: list[str] = []
    end = 0
    for away in _AWAY.finditer(marked):
        levels[-1].append(marked[end : away.start()])
        end = away.end()
        text = tags[int(away[1])].text
        statement = _STATEMENT.match(text)
        match statement[1] if statement else "super" if _SUPER.match(text) else None:
            case "block":
                names.append(statement[2] if statement else "")
                levels.append([])
            case "endblock" if names:
                blocks[names[-1]] = body = levels.pop()
                levels[-1].append(_Block(names.pop(), body))
            case "macro":
                levels.append([])
            case "set" if "=" not in text:
                levels.append([])
            case "endmacro" | "endset" if len(levels) > 1:
                levels.pop()  # where it will stand, nobody knows
            case "include":
                levels[-1].append(_Include(statement[2] if statement else ""))
            case "super":
                levels[-1].append(_Super())
            case _:
                levels[-1].append(away[0])  # drops out when all is put together; in a <style> it is a fault
    levels[-1].append(marked[end:])
    return [node for level in levels for node in level]


@dataclass(slots=True)
class _Counting:
    """Puts styles into elements, by the same numbers."""

    styles: Mapping[int, str]
    number: int = -1

    def __call__(self, match: re.Match[str]) -> str:
        self.number += 1
        style = self.styles.get(self.number)
        attributes = match["attributes"] or ""
        if not style or _OPEN in _QUOTED.sub("", attributes) or _CHOSEN_BY.search(attributes):
            return match[0]
        return f'<{match["name"]} style="{escape(style)}"{_STYLE.sub("", attributes)}>'


# ---------------------------------------------------------------------------------------------------------------
# Files put together
# ---------------------------------------------------------------------------------------------------------------


class _TooMuch(Exception):
    """The files are too long together."""


@dataclass(slots=True)
class _Mail:
    """Puts files together as they will be rendered, every way through them taken once."""

    files: Mapping[str, _File]
    length: int = 0

    def text(self, name: str) -> str:
        """A file with its layouts around it.

        Raises:
            _TooMuch: it is longer than `MAX_ASSEMBLED`.
        """
        line = [self.files[name]] if name in self.files else []
        while line and line[-1].extends in self.files:
            line.append(self.files[str(line[-1].extends)])
        return "".join(self._all(line[-1].nodes, line, None)) if line else ""

    def _all(self, nodes: list[_Node], line: list[_File], inside: tuple[str, int] | None) -> Iterator[str]:
        for node in nodes:
            self._count(len(node) if isinstance(node, str) else 1)
            match node:
                case str():
                    yield node
                case _Include(name):
                    yield self.text(name)
                case _Block(name):
                    yield from self._block(name, 0, line)
                case _Super():
                    yield from self._block(inside[0], inside[1] + 1, line) if inside else ()

    def _block(self, name: str, above: int, line: list[_File]) -> Iterator[str]:
        bodies = [file.blocks[name] for file in line if name in file.blocks]
        if above < len(bodies):
            yield from self._all(bodies[above], line, (name, above))

    def _count(self, length: int) -> None:
        self.length += length
        if self.length > MAX_ASSEMBLED:
            raise _TooMuch
