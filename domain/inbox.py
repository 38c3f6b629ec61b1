"""A person's inbox inside an application: what is in it, what is done to it, and what is told of both.

The items are kept in the database, which is the truth. What is published to `notipy.inbox` is for whoever looks at
this moment, and may come twice.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from hashlib import sha256
from typing import Any, Final

from pydantic_core import to_json

EXCHANGE: Final = "notipy.inbox"
"""A topic exchange; each recipient's news come under `inbox_key` of the recipient's id."""
MAX_KEY: Final = 200
"""Characters; AMQP takes 255 bytes."""
MAX_IDS: Final = 1000
"""Items that one command names."""
_TAKEN: Final = re.compile(rb"[^A-Za-z0-9_-]")


class Mark(StrEnum):
    """What a person does to an item; each as often as one likes."""

    SEEN = "seen"
    """It was shown in a list."""
    READ = "read"
    """It was opened; so it was seen too."""
    UNREAD = "unread"
    """It is to be read again; out of the archive, if it was there."""
    ARCHIVED = "archived"
    """It is out of the way, and counts neither as unseen nor as unread."""


@dataclass(frozen=True, slots=True)
class InboxItem:
    """One message in a recipient's inbox.

    Attributes:
        id: `<delivery>/<epoch>`.
        recipient: the id of the recipient.
        content: the rendered fields: `title`, `text`.
        at: when it was put there.
    """

    id: str
    recipient: str
    content: Mapping[str, str] = field(repr=False)
    at: datetime
    unseen: bool = True
    unread: bool = True
    archived: bool = False

    def document(self) -> dict[str, Any]:
        """As JSON values."""
        standing = {"unseen": self.unseen, "unread": self.unread, "archived": self.archived}
        return {"id": self.id, "recipient": self.recipient, "at": self.at, **standing, "content": dict(self.content)}


@dataclass(frozen=True, slots=True)
class InboxCounts:
    """How much is in an inbox, its archive left out."""

    items: int
    unseen: int
    unread: int


@dataclass(frozen=True, slots=True)
class Marking:
    """A mark on some items of an inbox.

    Attributes:
        ids: None: all that were there at `at`; what came later is not meant, however late this is carried out.
        at: when the person did it.
    """

    recipient: str
    mark: Mark
    ids: tuple[str, ...] | None
    at: datetime


def inbox_key(recipient: str) -> str:
    """The routing key of a recipient: one word, whatever is in the id, and different for different ids.

    Letters, digits, `-` and `_` stay; every other byte of its UTF-8 is `~` and two hexadecimal digits. So no id can
    hold a dot, or a `*` or `#` with which its browser would listen to others' news. One that becomes too long is
    `~~` and its SHA-256.
    """
    raw = recipient.encode("utf-8", "surrogatepass")
    key = _TAKEN.sub(lambda found: b"~%02X" % found[0][0], raw).decode()
    return key if len(key) <= MAX_KEY else f"~~{sha256(raw).hexdigest()}"


def item_body(item: InboxItem) -> bytes:
    """What is told of a new item: all of it."""
    return to_json({"kind": "added", **item.document()})


def change_body(marking: Marking) -> bytes:
    """What is told of a mark: which, on what, and when."""
    ids: Sequence[str] | str = "all" if marking.ids is None else marking.ids
    return to_json({"kind": str(marking.mark), "recipient": marking.recipient, "ids": ids, "at": marking.at})
