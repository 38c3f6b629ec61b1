"""The catalog: immutable versions of each notification, and which of them are in force."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from domain.notification import Definition, Notification, matching
from storage.database import Database, Document
from storage.writes import insert_all

_CURRENT = "current"


@dataclass(frozen=True, slots=True)
class InForce:
    """The catalog at one revision: name → version."""

    revision: int
    versions: Mapping[str, int]


class CatalogConflict(Exception):
    """Somebody else has changed the catalog meanwhile: nothing was put in force; do it again."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What applying definitions changes."""

    new: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    versions: Mapping[str, int] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        """Nothing changes."""
        return not (self.new or self.changed or self.removed)


class MongoCatalog:
    """`domain.ports.Catalog`: held in memory, refreshed when the revision in the database has moved.

    Versions are immutable and are kept when a notification is removed: deliveries pin them.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._versions = database.collection("notifications")
        self._pointers = database.collection("catalog")
        self._in_force = InForce(-1, {})
        self._current: tuple[Notification, ...] = ()
        self._known: dict[tuple[str, int], Notification] = {}
        self.unreadable: set[str] = set()
        self._matching = lru_cache(maxsize=4096)(self._match)

    def matching(self, topic: str) -> Sequence[Notification]:
        """From memory."""
        return self._matching(topic)

    @property
    def current(self) -> Sequence[Notification]:
        """The notifications in force, by name."""
        return self._current

    async def version(self, name: str, version: int) -> Notification | None:
        """From memory; the database is asked for a version that was not seen before."""
        if (name, version) not in self._known:
            await self._load({name: version})
        return self._known.get((name, version))

    async def refresh(self) -> bool:
        """Take over what is in force now; whether that has changed. One small read where it has not."""
        in_force = await self._read()
        if in_force.revision == self._in_force.revision:
            return False
        await self._load({n: v for n, v in in_force.versions.items() if (n, v) not in self._known})
        self._current = tuple(self._known[item] for item in sorted(in_force.versions.items()) if item in self._known)
        self._in_force = in_force
        self._matching.cache_clear()
        return True

    async def plan(self, definitions: Sequence[Definition], *, prune: bool) -> Plan:
        """Compare the definitions with those in force, without writing."""
        await self.refresh()
        given = {definition.name: definition for definition in definitions}
        current = {notification.name: notification for notification in self._current}
        changed = {n for n in given.keys() & current.keys() if _digest(given[n]) != _digest(current[n].definition)}
        new = given.keys() - current.keys()
        latest = await self._latest(sorted(new | changed))
        return Plan(
            new=tuple(sorted(new)),
            changed=tuple(sorted(changed)),
            unchanged=tuple(sorted((given.keys() & current.keys()) - changed)),
            removed=tuple(sorted(current.keys() - given.keys())) if prune else (),
            versions={name: latest.get(name, 0) + 1 for name in new | changed},
        )

    async def apply(self, definitions: Sequence[Definition], plan: Plan) -> None:
        """Write the new versions, then put them in force in one step.

        Raises:
            CatalogConflict: the catalog is not what the plan was made for.
        """
        if plan.empty:
            return
        given = {definition.name: definition for definition in definitions}
        documents = [_document(given[name], version) for name, version in plan.versions.items()]
        if documents and not all(r is True for r in await insert_all(self._database, self._versions, documents)):
            await self._same_versions(documents)
        kept = {name: version for name, version in self._in_force.versions.items() if name not in plan.removed}
        await self._put_in_force({**kept, **plan.versions})

    async def delete(self, name: str) -> bool:
        """Take a notification out of force; False if it is not in force.

        Raises:
            CatalogConflict: somebody else has changed the catalog meanwhile.
        """
        await self.refresh()
        if name not in self._in_force.versions:
            return False
        await self._put_in_force({n: v for n, v in self._in_force.versions.items() if n != name})
        return True

    def _match(self, topic: str) -> tuple[Notification, ...]:
        return tuple(matching(self._current, topic))

    async def _read(self) -> InForce:
        document = await self._database.run(lambda: self._pointers.find_one({"_id": _CURRENT}))
        if document is None:
            return InForce(0, {})
        return InForce(document["revision"], {item["name"]: item["version"] for item in document["notifications"]})

    async def _load(self, wanted: Mapping[str, int]) -> None:
        ids = [_version_id(name, version) for name, version in wanted.items()]
        query = self._versions.find({"_id": {"$in": ids}})
        for document in await self._database.run(lambda: query.clone().to_list(None)):
            try:
                definition = Definition.model_validate(json.loads(document["definition"]))
            except ValueError:  # written by a newer version, with fields that this one cannot follow
                self.unreadable.add(document["_id"])
                continue
            notification = Notification(version=document["version"], definition=definition)
            self._known[notification.name, notification.version] = notification

    async def _latest(self, names: Sequence[str]) -> Mapping[str, int]:
        """The highest version of each name that was ever written, in force or not."""
        stages: list[Document] = [
            {"$match": {"name": {"$in": list(names)}}},
            {"$group": {"_id": "$name", "version": {"$max": "$version"}}},
        ]
        found = await self._database.run(lambda: self._versions.aggregate(stages).to_list(None))
        return {item["_id"]: item["version"] for item in found}

    async def _same_versions(self, documents: Sequence[Document]) -> None:
        """A version that is there already must be this one: written by an apply that was cut short, or just now."""
        for document in documents:
            stored = await self._database.run(lambda d=document: self._versions.find_one({"_id": d["_id"]}))  # type: ignore[misc]
            if stored is None or stored["digest"] != document["digest"]:
                raise CatalogConflict("the catalog has changed meanwhile; nothing was put in force: apply again")

    async def _put_in_force(self, versions: Mapping[str, int]) -> None:
        revision = self._in_force.revision
        pointers = [{"name": name, "version": version} for name, version in sorted(versions.items())]
        update = {"$set": {"notifications": pointers, "changed_at": datetime.now(UTC), "revision": revision + 1}}

        async def write() -> int:
            if revision == 0:
                first = {"_id": _CURRENT, **update["$set"]}
                return 1 if (await insert_all(self._database, self._pointers, [first]))[0] is True else 0
            result = await self._pointers.update_one({"_id": _CURRENT, "revision": revision}, update)
            return result.matched_count

        if not await self._database.run(write):
            raise CatalogConflict("the catalog has changed meanwhile; nothing was put in force: apply again")
        await self.refresh()


def _version_id(name: str, version: int) -> str:
    return f"{name}/{version}"


def _digest(definition: Definition) -> str:
    return hashlib.sha256(_text(definition).encode()).hexdigest()


def _text(definition: Definition) -> str:
    """Canonical JSON: a definition's keys may hold dots and dollars, which MongoDB's own documents had better not."""
    return json.dumps(definition.document(), sort_keys=True, ensure_ascii=False)


def _document(definition: Definition, version: int) -> dict[str, Any]:
    return {
        "_id": _version_id(definition.name, version),
        "name": definition.name,
        "version": version,
        "digest": _digest(definition),
        "definition": _text(definition),
        "created_at": datetime.now(UTC),
    }
