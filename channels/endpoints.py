"""The health of recipients' endpoints: one that has done nothing but fail for days is given up.

As Standard Webhooks' implementations do (Svix: after five days). While all answer, nothing is written; a first
failure, and a first answer after it, are.
"""

import asyncio
import hashlib
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Final

from domain.failures import DeliveryFailure, PermanentFailure, UnknownOutcome
from domain.ports import Endpoints, Failing
from domain.vocabulary import Reason

TELL_SECONDS: Final = 10.0
"""After an answer, until the store is told of it, with all that came meanwhile."""
STORE_SECONDS: Final = 1.0
"""For the store, at most: a send does not wait for a database that is away."""
LOOK_AGAIN: Final = timedelta(minutes=10)
"""For so long a process trusts what it knows of a failing endpoint: another one may have had an answer."""
SILENCE: Final = timedelta(days=1)
"""After so long without a failure the next one alone says nothing: one that may be repaired gets another chance."""
KEPT: Final = 10_000
"""Failing endpoints that a process remembers; more cost a look at the store for each failure."""


class EndpointHealth:
    """Of all endpoints of one provider, by their URLs, of which the store gets a digest.

    An answer that any process has had counts, but for those of its last ten seconds if it is killed.
    """

    def __init__(self, store: Endpoints, disable_after: timedelta, now: Callable[[], datetime]) -> None:
        self._store = store
        self._disable_after = disable_after
        self._now = now
        self._answered: set[str] = set()
        self._failing: dict[str, Failing] = {}
        self._condemned: dict[str, str] = {}
        self._telling: asyncio.Task[None] | None = None

    def succeeded(self, url: str) -> None:
        """Note an answer; it costs a digest."""
        key = _key(url)
        self._answered.add(key)
        self._failing.pop(key, None)
        self._condemned.pop(key, None)
        if self._telling is None or self._telling.done():
            self._telling = asyncio.create_task(self._tell_later())

    async def failed(self, url: str, failure: DeliveryFailure) -> DeliveryFailure:
        """Note a failure; what it means, now that this is known: itself, or that the endpoint is given up.

        An unknown outcome counts as a failure but stays what it is: it may have arrived, so that giving up waits for
        the next that certainly has not, or is not sent (`refused`).
        """
        key, maybe_sent = _key(url), isinstance(failure, UnknownOutcome)
        known = await self._hopeless(key, ended=not maybe_sent)
        if known is None:
            return failure
        if maybe_sent:
            self._condemned[key] = failure.detail
            return failure
        return _given_up(known, failure.detail)

    async def refused(self, url: str) -> DeliveryFailure | None:
        """Why nothing is sent to it: it is given up over what may have arrived before; None: send.

        So one that never answers, or is behind a gateway, is given up as well. The store is asked once more: another
        process may have had an answer meanwhile.
        """
        if not self._condemned or (detail := self._condemned.pop(key := _key(url), None)) is None:
            return None
        known = await self._hopeless(key, ended=True)
        return _given_up(known, detail) if known is not None else None

    async def _hopeless(self, key: str, *, ended: bool) -> Failing | None:
        """Since when it has failed, if for too long; None: it has not, or the store cannot tell.

        `ended`: it is given up, and its days begin anew.
        """
        now = self._now()
        try:
            async with asyncio.timeout(STORE_SECONDS):
                known = await self._known(key, now)
                if now - known.since < self._disable_after or now - known.last > SILENCE:
                    return None
                if ended:
                    await self._forget(key)
        except Exception:  # noqa: BLE001 - whatever is wrong with the store, nothing is given up for it
            return None
        return known

    async def close(self) -> None:
        """Tell what is not told yet, but do not wait for a database that is away."""
        if self._telling is not None:
            self._telling.cancel()
            await asyncio.wait([self._telling])
            self._telling = None
        with suppress(Exception):
            async with asyncio.timeout(STORE_SECONDS):
                await self._tell()

    async def _known(self, key: str, now: datetime) -> Failing:
        """By heart; of an endpoint that may be given up, and now and then of any, from the store."""
        known = self._failing.get(key)
        if known is not None and now - known.last < LOOK_AGAIN and now - known.since < self._disable_after:
            return known
        afresh = key in self._answered
        self._answered.discard(key)
        try:
            found = await self._store.failing(key, now, afresh=afresh)
        except BaseException:
            self._answered |= {key} if afresh else set()
            raise
        self._remember(key, Failing(found.since, now))
        return found

    def _remember(self, key: str, known: Failing) -> None:
        if len(self._failing) >= KEPT:
            self._failing.clear()
            self._condemned.clear()
        self._failing[key] = known

    async def _forget(self, key: str) -> None:
        """It starts anew, should an operator take it off the suppression list."""
        self._failing.pop(key, None)
        self._condemned.pop(key, None)
        await self._store.answered([key])

    async def _tell_later(self) -> None:
        while self._answered:
            await asyncio.sleep(TELL_SECONDS)
            await self._tell()

    async def _tell(self) -> None:
        keys, self._answered = self._answered, set()
        try:
            if keys:
                await self._store.answered(keys)
        except BaseException:
            self._answered |= keys
            raise


def _given_up(known: Failing, detail: str) -> PermanentFailure:
    told = f"{detail}; it has only failed since {known.since:%Y-%m-%d %H:%M} UTC: disabled"
    return PermanentFailure(Reason.ENDPOINT_GONE, told, suppress=True)


def _key(url: str) -> str:
    return hashlib.sha256(url.encode(errors="replace")).hexdigest()
