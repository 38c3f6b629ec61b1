"""The text of a mail that has HTML alone: what a reader without HTML is shown (RFC 2046 §5.1.4).

By inscriptis, with three things done otherwise: a row of a table becomes a line, for mails are laid out in tables, and
a table drawn in characters can be a thousand times as long as its HTML; lists in lists are not indented, for the same
reason; and of styles only `display: none` counts.
"""

import re
from typing import Any, Final

from inscriptis import get_text
from inscriptis.css_profiles import CSS_PROFILES
from inscriptis.html_properties import Display
from inscriptis.model.attribute import Attribute
from inscriptis.model.config import ParserConfig
from inscriptis.model.html_element import HtmlElement
from inscriptis.model.tag import CustomHtmlTagHandlerMapping

MAX_HTML: Final = 256 * 1024
"""Characters of HTML from which a text is made. It takes some 1.5 ms for each 10 KB, and hostile HTML a second, during
which this process sends nothing else; mail clients clip at 100 KB. A longer mail goes without a text part."""
_CELL: Final = "\ue002"
"""Stands between the cells of a row while spaces are joined: a character for private use."""
_SHOWN: Final = ("http:", "https:", "mailto:", "tel:", "sms:")
_HIDDEN = re.compile(r"display\s*:\s*none", re.IGNORECASE)
_CELLS = re.compile(rf"(?<![ \u00a0])[ \u00a0]*+{_CELL}[ \u00a0{_CELL}]*+")
_TARGET = re.compile(r" <(?:mailto:|tel:|sms:)?([^<>\s]+)>")
_LINES = re.compile(r"\n{3,}")


class _Attributes(Attribute):  # type: ignore[misc]
    """Of an element's own style, whether it is shown: a preheader is not meant for this text."""

    def apply_attributes(self, attributes: Any, html_element: HtmlElement) -> HtmlElement:
        if _HIDDEN.search(attributes.get("style", "")) or "hidden" in attributes:
            html_element.display = Display.none
        return html_element


def _link_starts(state: Any, attributes: Any) -> None:
    target = attributes.get("href", "").strip()
    state.link_target = target if target.lower().startswith(_SHOWN) else ""


def _link_ends(state: Any) -> None:
    """The target in angle brackets, as RFC 3986 (appendix C) recommends for URLs in text."""
    if state.link_target:
        state.tags[-1].write(f" <{state.link_target}>")
        state.link_target = ""


def _cell_ends(state: Any) -> None:
    state.tags[-1].write(_CELL)


def _config() -> ParserConfig:
    blocks = {name: HtmlElement(display=Display.block) for name in ("tr", "ul", "ol")}
    css = {**CSS_PROFILES["strict"], **blocks}
    nothing = dict.fromkeys(("table", "tr", "td", "th"))
    starts = {**nothing, "a": _link_starts}
    ends = {**nothing, "td": _cell_ends, "th": _cell_ends, "a": _link_ends}
    config = ParserConfig(css=css, custom_html_tag_handler_mapping=CustomHtmlTagHandlerMapping(starts, ends))
    config.attribute_handler = _Attributes()
    return config


_CONFIG: Final = _config()


def plain_text(html: str) -> str | None:
    """What can be read in a mail's HTML, links with their targets; None: it is too long, or nested too deeply."""
    if len(html) > MAX_HTML:
        return None
    try:
        text = get_text(html, _CONFIG)
    except RecursionError:
        return None
    lines = (_CELLS.sub("  ", line.lstrip(_CELL)).rstrip() for line in _once(text).splitlines())
    return _LINES.sub("\n\n", "\n".join(lines)).strip("\n") + "\n"


def _once(text: str) -> str:
    """Links whose text is their target are told once."""
    return _TARGET.sub(lambda found: "" if text.endswith(found[1], 0, found.start()) else found[0], text)
