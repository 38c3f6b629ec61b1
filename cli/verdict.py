"""Whether `notipy demo` went as it should: what MongoDB, RabbitMQ, the mail server and the metrics say of it."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from cli.parked import Chosen, Done, list_events
from cli.playground import Playground
from cli.watch import Watch
from consumers.app import Core
from consumers.dead_letters import DeadEvent
from consumers.topology import DEAD_EVENTS, dead_queue
from domain.delivery import Delivery
from domain.ports import DeadFilter
from domain.vocabulary import Channel, Reason, State

T = TypeVar("T")
PARKED_EMAIL = dead_queue(Channel.EMAIL)
_PARKING_LOOKS, _LOOK_EVERY = 100, 0.1


@dataclass(frozen=True, slots=True)
class Check:
    """Something that has to be so in the end, and what is so instead."""

    text: str
    holds: bool
    found: str


@dataclass(frozen=True, slots=True)
class DeadLetters:
    """What was parked: mails that failed, how many messages are in their queue, the event that was unusable."""

    failed: Sequence[Delivery]
    messages: int
    event: DeadEvent | None


def refused_mail(since: datetime) -> Chosen:
    """The mail that the demo's server refuses, and nothing that anybody else has parked in the same broker."""
    return Chosen(
        False, DeadFilter(State.FAILED, Channel.EMAIL, Reason.RECIPIENT_REJECTED, "shop", "order.shipped", since), None
    )


async def dead_letters(core: Core, refused: Chosen, rejected: str) -> DeadLetters:
    """Look what was parked. It is recorded first and parked then, so it is waited for a little."""
    failed = [delivery async for delivery in core.deliveries.dead(refused.filter, None)]

    async def messages() -> int:
        return (await core.publisher.counts(PARKED_EMAIL) or (0, 0))[0]

    async def event() -> DeadEvent | None:
        found, _ = await list_events(core, Chosen(True, DeadFilter(since=refused.filter.since), None))
        return next((each for each in found if each.message_id == rejected), None)

    return DeadLetters(failed, await _soon(messages), await _soon(event))


async def checks(play: Playground, watch: Watch, dead: DeadLetters, replayed: Done) -> Sequence[Check]:
    """Everything that has to be so when the last delivery has come to its end."""
    return [*_deliveries(watch), *_parked(dead, replayed), *_sent_once(play, watch), *await _counted(play, watch)]


def _deliveries(watch: Watch) -> Iterator[Check]:
    rows = watch.rows(replayed=True)
    wrong = [row for row in rows if not row.right]
    found = "; ".join(f"{row} (should be {row.expected})" for row in wrong)
    yield Check(f"each of {len(rows)} deliveries ended as it should", not wrong, found)
    surplus = "; ".join(f"{each.event_id} {each.channel} to {each.recipient_key}" for each in watch.surplus())
    yield Check("no other delivery came of these events", not surplus, surplus)


def _parked(dead: DeadLetters, replayed: Done) -> Iterator[Check]:
    failed, treated, removed = len(dead.failed), replayed.treated, replayed.removed
    yield Check(
        f"{PARKED_EMAIL} held the mail refused with 550, until its replay",
        failed == treated == 1 and dead.messages > 0 and removed > 0,
        f"{failed} failed, {dead.messages} in the queue; {treated} replayed, {removed} removed",
    )
    reason = dead.event.reason if dead.event else "nothing"
    yield Check(f"{DEAD_EVENTS} holds the event with the bad address, and says why", reason == "invalid", reason)


def _sent_once(play: Playground, watch: Watch) -> Iterator[Check]:
    """What arrived, counted where it arrived."""
    sent = [row.expected.channel for row in watch.rows(replayed=True) if row.expected.state is State.SENT]
    mails, files = sent.count(Channel.EMAIL), sent.count(Channel.SMS)
    stored, written = len(play.smtp.mails), len(play.files_of(Channel.SMS))
    yield Check(f"the mail server has accepted {mails} mails, one for each delivery", stored == mails, str(stored))
    yield Check(f"{files} SMS was written to a file", written == files, str(written))
    answers = [f"{call.status}{'' if call.verified else ' unsigned'}" for call in play.webhooks.calls]
    same = len({call.webhook_id for call in play.webhooks.calls}) == 1
    yield Check(
        "the webhook was called twice under one id, signed right both times",
        answers == ["503", "204"] and same,
        ", ".join(answers),
    )


async def _counted(play: Playground, watch: Watch) -> Iterable[Check]:
    """What Prometheus would scrape. On a broker that others use as well their events are in it too: not checked."""
    if not play.host.private or play.metrics_url is None:
        return ()
    wanted = {"accepted": len(watch.events), "duplicate": 1, "rejected": 1}
    found = {name: count for name, count in (await _event_counts(play.metrics_url)).items() if count}
    told = ", ".join(f"{count} {name}" for name, count in wanted.items())
    return (Check(f"the metrics count {told} events", found == wanted, str(found)),)


async def _event_counts(url: str) -> Mapping[str, int]:
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        families = list(text_string_to_metric_families(await response.text()))
    samples = [sample for family in families for sample in family.samples if sample.name == "notipy_events_total"]
    return {sample.labels["outcome"]: int(sample.value) for sample in samples}


async def _soon(look: Callable[[], Awaitable[T]]) -> T:
    """What `look` finds as soon as it finds something; in the end nothing."""
    for _ in range(_PARKING_LOOKS):
        if found := await look():
            return found
        await asyncio.sleep(_LOOK_EVERY)
    return await look()
