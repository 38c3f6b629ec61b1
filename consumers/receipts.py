"""The receipts queue: what providers report later, as a gateway forwards it or a bounce mailbox hands it on."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta

import structlog

from channels.receipts import Unreadable, read_receipts
from consumers import codec
from consumers.handlers import incoming
from consumers.metrics import Metrics
from consumers.publisher import Publisher
from consumers.received import Message
from domain.event import Incoming
from domain.receipt import Ignored, NotYet, Receipt, Refine, Refined, Unmatched, Verdict
from domain.text import Fault
from domain.vocabulary import Reason

log = structlog.get_logger()
WHERE = "receipts"
"""The role, and the routing key of what is parked and of what comes back from a retry queue."""
WAITS = 5
"""How often a receipt that came before what it is about is tried again: in the first five retry queues, one after the
other, some eight minutes in all by default."""
AT_ONCE = 50
"""Receipts of one message that are in progress together: SendGrid sends a thousand."""


class ReceiptHandler:
    """Each message is one receipt or many; each of them is decided by itself, and what cannot be used is parked."""

    def __init__(self, refine: Refine, publisher: Publisher, metrics: Metrics, tiers: Sequence[timedelta]) -> None:
        self._refine = refine
        self._publisher = publisher
        self._metrics = metrics
        self._tiers = tiers

    async def __call__(self, message: Message) -> None:
        """Read → refine each → park what is left."""
        try:
            read = await asyncio.to_thread(read_receipts, message.body, message.content_type)  # some take long
        except Unreadable as fault:
            await self._park_whole(message, fault.reason, fault.faults)
            return
        waits, gate = _waits(message), asyncio.Semaphore(AT_ONCE)

        async def one(receipt: Receipt) -> None:
            async with gate:
                await self._one(receipt, waits, bool(message.redelivered))

        await asyncio.gather(*map(one, read.receipts))
        if read.faults:
            await self._park_whole(message, Reason.INVALID, read.faults)

    async def _one(self, receipt: Receipt, waits: int, redelivered: bool) -> None:
        verdict = await self._refine(receipt, redelivered=redelivered)
        self._metrics.received(str(receipt.status), _outcome(verdict, waits))
        match verdict:
            case Refined():
                _log_refined(verdict)
            case NotYet() if waits < WAITS:
                tier = self._tiers[min(waits, len(self._tiers) - 1)]
                await self._publisher.receipt_later(_body(receipt), waits + 1, tier)
            case NotYet(reason, detail) | Unmatched(reason, detail):
                await self._park(receipt, reason, detail)
            case Ignored(why):
                log.debug("receipt.ignored", why=why, status=str(receipt.status))

    async def _park(self, receipt: Receipt, reason: Reason, detail: str) -> None:
        """By itself, in the one form: what came with it has gone its way."""
        faults = [Fault("delivery" if receipt.about else "reference", detail)]
        await self._publisher.reject(Incoming(_body(receipt)), reason, faults, WHERE)
        log.warning("receipt.parked", reason=str(reason), status=str(receipt.status), provider=receipt.provider)

    async def _park_whole(self, message: Message, reason: Reason, faults: Sequence[Fault]) -> None:
        about = {codec.CONTENT_TYPE: message.content_type} if message.content_type else {}
        self._metrics.received("", "unusable")
        await self._publisher.reject(incoming(message), reason, faults, WHERE, about)
        log.warning("receipt.unusable", reason=str(reason), fields=[fault.field for fault in faults[:10]])


def _body(receipt: Receipt) -> bytes:
    return receipt.model_dump_json(exclude_none=True).encode()


def _waits(message: Message) -> int:
    """How often it has waited."""
    waited = message.headers.get(codec.RECEIPT_WAITS)
    return waited if isinstance(waited, int) else 0


def _outcome(verdict: Verdict, waits: int) -> str:
    """A word of a closed list, for the metric."""
    match verdict:
        case Refined(_, _, _, noted):
            return "noted" if noted else "refined"
        case Ignored(why):
            return why
        case NotYet():
            return "waits" if waits < WAITS else "parked"
        case Unmatched():
            return "parked"


def _log_refined(verdict: Refined) -> None:
    delivery, change = verdict.delivery, verdict.change
    log.info(
        f"delivery.{change.state}",
        delivery=delivery.id,
        event_id=delivery.event_id,
        channel=str(delivery.channel),
        reason=str(change.reason),
        provider=change.provider,
        noted=verdict.noted or None,
        suppressed=verdict.suppressed and str(verdict.suppressed),
    )
