"""What is in the recipients' inboxes."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from pymongo import DESCENDING

from domain.group_commit import GroupCommit
from domain.inbox import InboxCounts, InboxItem, Mark, Marking
from storage.database import Database, Document
from storage.writes import insert_all

_CHANGES: Final[Mapping[Mark, Document]] = {
    Mark.SEEN: {"$unset": {"unseen": ""}},
    Mark.READ: {"$unset": {"unseen": "", "unread": ""}},
    Mark.ARCHIVED: {"$unset": {"unseen": "", "unread": ""}, "$set": {"archived": True}},
    Mark.UNREAD: {"$set": {"unread": True, "archived": False}},
}
_STILL: Final[Mapping[Mark, Document]] = {
    Mark.SEEN: {"unseen": True},
    Mark.READ: {"unread": True},
    Mark.ARCHIVED: {"archived": False},
    Mark.UNREAD: {"archived": {"$in": [False, True]}},
}
"""Those of an inbox on which a mark changes anything, by an index."""


class MongoInbox:
    """`domain.ports.Inbox` in the collection `inbox`; `unseen` and `unread` exist only while they are so."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._collection = database.collection("inbox")
        self._inserts: GroupCommit[Document, bool] = GroupCommit(self._insert)

    async def add(self, item: InboxItem) -> bool:
        """Insert with whoever else inserts; the unique `_id` tells what is there already."""
        return await self._inserts.submit(_document(item))

    async def mark(self, marking: Marking) -> None:
        """One update; nobody's but the recipient's own."""
        condition: Document = {"recipient": marking.recipient}
        if marking.ids is None:
            condition |= {"at": {"$lte": marking.at}, **_STILL[marking.mark]}
        else:
            condition["_id"] = {"$in": list(marking.ids)}
        hint = "_id_" if marking.ids is not None else _hint(marking.mark)
        await self._database.run(lambda: self._collection.update_many(condition, _CHANGES[marking.mark], hint=hint))

    async def page(
        self, recipient: str, limit: int, *, archived: bool = False, after: tuple[datetime, str] | None = None
    ) -> Sequence[InboxItem]:
        """The newest first; `after`: when and which was the last of the page before."""
        condition: Document = {"recipient": recipient, "archived": archived}
        if after is not None:
            at, last = after
            condition["$or"] = [{"at": at, "_id": {"$lt": last}}, {"at": {"$lt": at}}]
            condition["at"] = {"$lte": at}
        query = self._collection.find(condition).sort([("at", DESCENDING), ("_id", DESCENDING)]).limit(limit)
        found = await self._database.run(lambda: query.clone().hint("list").to_list(limit))
        return [_item(document) for document in found]

    async def counts(self, recipient: str) -> InboxCounts:
        """Key by key."""
        items = await self._count({"recipient": recipient, "archived": False}, "list")
        unseen = await self._count({"recipient": recipient, "unseen": True}, "unseen")
        return InboxCounts(items, unseen, await self._count({"recipient": recipient, "unread": True}, "unread"))

    async def _count(self, condition: Document, hint: str) -> int:
        return await self._database.run(lambda: self._collection.count_documents(condition, hint=hint))

    async def _insert(self, documents: list[Document]) -> Sequence[bool | Exception]:
        return await insert_all(self._database, self._collection, documents)


def _hint(mark: Mark) -> str:
    return {Mark.SEEN: "unseen", Mark.READ: "unread"}.get(mark, "list")


def _document(item: InboxItem) -> Document:
    standing = {name: True for name in ("unseen", "unread") if getattr(item, name)}
    return {
        "_id": item.id,
        "recipient": item.recipient,
        "content": dict(item.content),
        "at": item.at,
        "archived": item.archived,
        **standing,
    }


def _item(document: Mapping[str, Any]) -> InboxItem:
    return InboxItem(
        id=document["_id"],
        recipient=document["recipient"],
        content=document["content"],
        at=document["at"],
        unseen=document.get("unseen", False),
        unread=document.get("unread", False),
        archived=document["archived"],
    )
