"""Asks a provider whose circuit is open whether it can be used again."""

import asyncio

import structlog

from consumers.metrics import Metrics
from domain.circuit import Circuit
from domain.failures import DeliveryFailure, TransientFailure, place_of
from domain.ports import Provider
from domain.vocabulary import Channel, Reason

log = structlog.get_logger()
LOOK_SECONDS = 0.2
"""Between two looks at the circuit."""
ANSWER_SECONDS = 30.0
"""That a provider has to answer."""


class Prober:
    """Looks after the circuit of one provider: asks when it is due, and tells of pauses."""

    def __init__(self, channel: Channel, provider: Provider, circuit: Circuit, metrics: Metrics) -> None:
        self._channel = channel
        self._provider = provider
        self._circuit = circuit
        self._metrics = metrics
        self._told: Reason | None = None

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            self.tell()
            if self._circuit.due():
                self._circuit.asked(await self.ask())
            await asyncio.sleep(LOOK_SECONDS)

    async def ask(self) -> DeliveryFailure | None:
        """What stands in the way of using the provider; nothing is sent."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await self._provider.check()
        except DeliveryFailure as failure:
            return failure
        except TimeoutError:
            return TransientFailure(Reason.TIMEOUT, "it did not answer in time", provider_fault=True)
        except Exception as error:  # noqa: BLE001 - the provider's own code; it is asked again
            return TransientFailure(Reason.INTERNAL_ERROR, place_of(error), provider_fault=True)
        return None

    def tell(self) -> None:
        """Show in the metrics, and once in the log, whether the provider is paused and why."""
        circuit = self._circuit
        paused = circuit.told
        if paused == self._told:
            return
        about = {"channel": str(self._channel), "provider": self._provider.name}
        if self._told is not None:
            self._metrics.paused.labels(*about.values(), str(self._told)).set(0)
        if paused is not None:
            self._metrics.paused.labels(*about.values(), str(paused)).set(1)
            log.warning("provider.paused", **about, reason=str(paused), detail=circuit.detail, advice=ADVICE)
        else:
            log.info("provider.resumed", **about)
        self._told = paused


ADVICE = (
    "nothing is lost: another provider of the channel takes over, or its deliveries wait and flow again by themselves; "
    "`notipy doctor` asks it now"
)
