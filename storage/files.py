"""Attachments of events, fetched once for all of an event's deliveries and kept in GridFS by what they hold.

`attachments` says for each event and source which file it is; the file stands in the bucket `files` under its SHA-256
digest, one for all events that brought the same. Retention (`storage/retention.py`) deletes both after their event.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any, Final

from bson import ObjectId
from gridfs.errors import CorruptGridFile, NoFile
from motor.motor_asyncio import AsyncIOMotorGridFSBucket
from pymongo.errors import DuplicateKeyError

from domain.failures import DeliveryFailure, PermanentFailure, TransientFailure
from domain.ports import Now
from domain.token import unique_token
from domain.vocabulary import Reason
from storage.database import Database, Document

BUCKET: Final = "files"
CACHE_BYTES: Final = 64 * 1024 * 1024
"""Of files that a process keeps in memory: a broadcast reads each of its own once, not once for each recipient."""
CACHE_KEYS: Final = 10_000
STORING: Final = timedelta(seconds=30)
"""What putting a fetched file away may take, beside the time that fetching it may."""
TRANSIENT_KEPT, PERMANENT_KEPT = timedelta(seconds=1), timedelta(minutes=1)
"""How long a failure is told to whoever asks next, rather than found out again: the deliveries of a broadcast ask
within a moment, and its server is not asked by each of them. Retries, and an operator's replay, come later."""
FIRST_LOOK, LONGEST_LOOK = 0.05, 1.0
"""Seconds between two looks whether another process has fetched a file, doubled from one to the next."""
GIVE_UP_SECONDS = 1.0
THREAD_FROM: Final = 1024 * 1024
"""Bytes from which a digest is made in a thread."""

Fetch = Callable[[], Awaitable[bytes]]


class MongoFiles:
    """`domain.ports.Files`. For one event loop."""

    def __init__(self, database: Database, now: Now, cache_bytes: int = CACHE_BYTES) -> None:
        self._database = database
        self._now = now
        self._sources = database.collection("attachments")
        self._kept = database.collection(f"{BUCKET}.files")
        self._chunks = database.collection(f"{BUCKET}.chunks")
        self._bucket: AsyncIOMotorGridFSBucket = database.bucket(BUCKET)
        self._recent = _Recent(cache_bytes)
        self._under_way: dict[str, asyncio.Task[bytes]] = {}

    async def once(self, event_key: str, source: str, fetch: Fetch, within: timedelta) -> bytes:
        """From memory, from GridFS, or fetched: by one caller of all processes, for whom the others wait.

        Whoever dies while fetching holds the others up for `within` and `STORING`; then one of them takes over.
        """
        key = f"{event_key}/{source}"
        if (content := self._recent.get(key)) is not None:
            return content
        task = self._under_way.get(key)
        if task is None:
            task = self._under_way[key] = asyncio.create_task(self._obtained(key, fetch, within))
            task.add_done_callback(lambda done: self._ended(key, done))
        return await asyncio.shield(task)  # a caller that gives up takes nothing from the others

    async def close(self) -> None:
        """Stop what is being fetched: another process takes over."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, key: str, task: "asyncio.Task[bytes]") -> None:
        self._under_way.pop(key, None)
        if not task.cancelled():
            task.exception()  # it has been told to whoever still waited

    async def _obtained(self, key: str, fetch: Fetch, within: timedelta) -> bytes:
        pause = FIRST_LOOK
        while True:
            known = await self._database.run(lambda: self._sources.find_one({"_id": key}))
            if known is not None and "file" in known:
                if (content := await self._read(known)) is not None:
                    return self._recent.put(key, known["digest"], content)
            elif known is not None and known["lease_until"] > self._now():
                if "failure" in known:
                    raise _failure(known["failure"])
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_LOOK)
                continue
            token = unique_token()
            if await self._claimed(key, token, known, self._now() + within + STORING):
                return await self._fetched(key, token, fetch)

    # -- the claim on fetching -----------------------------------------------------------------------------------

    async def _claimed(self, key: str, token: str, known: Document | None, until: datetime) -> bool:
        """Win it, if nobody has since `known` was read."""
        claim = {"token": token, "lease_until": until}

        async def take() -> bool:
            try:
                if known is None:
                    await self._sources.insert_one({"_id": key, "at": self._now(), **claim})
                    return True
            except DuplicateKeyError:
                return False
            condition = {"_id": key, "token": known["token"]}
            unset = {"failure": "", "file": "", "digest": ""}
            return (await self._sources.update_one(condition, {"$set": claim, "$unset": unset})).matched_count == 1

        if await self._database.run(take):
            return True
        # also of one's own, where an outage had swallowed the first answer
        found = await self._database.run(lambda: self._sources.find_one({"_id": key}, {"token": 1}))
        return found is not None and found["token"] == token

    async def _fetched(self, key: str, token: str, fetch: Fetch) -> bytes:
        try:
            content = await fetch()
        except DeliveryFailure as failure:
            permanent = isinstance(failure, PermanentFailure)
            about = {"reason": str(failure.reason), "detail": failure.detail, "permanent": permanent}
            await self._failed(key, token, about, PERMANENT_KEPT if permanent else TRANSIENT_KEPT)
            raise
        except BaseException:  # a bug, or this process stops
            await self._given_up(key, token)
            raise
        digest = await _digest(content)
        file = await self._stored(key, digest, content)
        change = {"$set": {"file": file, "digest": digest, "bytes": len(content)}, "$unset": {"lease_until": ""}}
        await self._update({"_id": key, "token": token}, change)
        return self._recent.put(key, digest, content)

    async def _failed(self, key: str, token: str, about: Document, kept: timedelta) -> None:
        change = {"$set": {"failure": about, "lease_until": self._now() + kept}}
        await self._update({"_id": key, "token": token}, change)

    async def _given_up(self, key: str, token: str) -> None:
        """Let another take over at once, if the database is there; else when the lease runs out."""
        with suppress(Exception):
            async with asyncio.timeout(GIVE_UP_SECONDS):
                await self._update({"_id": key, "token": token}, {"$set": {"lease_until": self._now()}})

    async def _update(self, condition: Document, change: Document) -> None:
        await self._database.run(lambda: self._sources.update_one(condition, change))

    # -- the bucket ----------------------------------------------------------------------------------------------

    async def _stored(self, key: str, digest: str, content: bytes) -> ObjectId:
        """The file of this digest. One that is there is marked as used, which keeps retention off it (`files`)."""
        used = {"$set": {"metadata.used_at": self._now()}}
        found: Document | None = await self._database.run(
            lambda: self._kept.find_one_and_update({"filename": digest}, used, projection={"_id": 1})
        )
        if found is not None:
            return found["_id"]  # type: ignore[no-any-return]
        file = ObjectId()
        await self._update({"_id": key}, {"$push": {"uploads": file}})  # first: what is cut short is found and deleted
        await self._database.run(lambda: self._upload(file, digest, content))
        return file

    async def _upload(self, file: ObjectId, digest: str, content: bytes) -> None:
        """Anew each time: an outage may have swallowed the answer to any part of it."""
        await self._kept.delete_one({"_id": file})
        await self._chunks.delete_many({"files_id": file})
        await self._bucket.upload_from_stream_with_id(file, digest, content, metadata={"used_at": self._now()})

    async def _read(self, known: Document) -> bytes | None:
        """The file; None if it is not there any more, or not as it was."""

        async def read() -> bytes | None:
            try:
                stream = await self._bucket.open_download_stream(known["file"])
                return bytes(await stream.read())
            except (NoFile, CorruptGridFile):
                return None

        content = await self._database.run(read)
        return content if content is not None and await _digest(content) == known["digest"] else None


class _Recent:
    """The files that were used last, up to so many bytes of them; what several sources hold alike is kept once."""

    def __init__(self, room: int) -> None:
        self._most = self._room = room
        self._digests: OrderedDict[str, str] = OrderedDict()
        self._contents: OrderedDict[str, bytes] = OrderedDict()

    def get(self, key: str) -> bytes | None:
        """The file of this key, if it is still here."""
        digest = self._digests.get(key)
        if digest is None or digest not in self._contents:
            return None
        self._digests.move_to_end(key)
        self._contents.move_to_end(digest)
        return self._contents[digest]

    def put(self, key: str, digest: str, content: bytes) -> bytes:
        """Keep it, if it is not larger than everything may be; returns it."""
        if len(content) > self._most:
            return content
        self._digests[key] = digest
        if len(self._digests) > CACHE_KEYS:
            self._digests.popitem(last=False)
        if digest not in self._contents:
            self._contents[digest] = content
            self._room -= len(content)
        self._contents.move_to_end(digest)
        while self._room < 0:
            self._room += len(self._contents.popitem(last=False)[1])
        return content


async def _digest(content: bytes) -> str:
    if len(content) < THREAD_FROM:
        return sha256(content).hexdigest()
    return await asyncio.to_thread(lambda: sha256(content).hexdigest())


def _failure(about: Any) -> DeliveryFailure:
    kind = PermanentFailure if about["permanent"] else TransientFailure
    return kind(Reason(about["reason"]), about["detail"])
