"""MJML, a language for mails that look alike in every mail reader, to HTML (https://documentation.mjml.io).

It is compiled when a notification is applied. Tags of Jinja2 stay where they are; those between the elements of a body
stand in `<mj-raw>`. Needs the extra `mjml` (the library mrml, by mjml-python): no Node.js, no network.
"""

import re
from typing import Final

from channels.jinja_tags import lost, put_away

_TOKEN: Final = re.compile(r"notipy(\d+)tag")


class MjmlError(Exception):
    """The source cannot be compiled; the message says why."""


def html_of(source: str) -> str:
    """The HTML of a mail, with the tags of the source in it.

    Raises:
        MjmlError: it is no MJML, one of its tags would be lost, or the extra is not installed.
    """
    masked, tags = put_away(source, "notipy{}tag".format)
    html = _compiled(masked)
    found = [int(match[1]) for match in _TOKEN.finditer(html)]
    for tag in lost(tags, found):
        short = tag.text if len(tag.text) <= 60 else f"{tag.text[:57]}..."
        raise MjmlError(f"line {tag.line}: {short} would not stay in its place: put it into <mj-raw>")
    return _TOKEN.sub(lambda match: tags[int(match[1])].text, html)


def _compiled(source: str) -> str:
    try:
        from mjml import mjml2html
    except ImportError:
        raise MjmlError("MJML needs an extra: pip install 'notipy[mjml]'") from None
    try:
        return mjml2html(source, disable_comments=False)
    except ValueError as error:
        raise MjmlError(f"is not usable MJML: {error}") from None
