"""The providers of a channel: to which of them a delivery goes, and who takes over while one is at fault.

With weights, one of those that can be used is drawn by weight; without, the first in the settings' order that can be
used. One whose circuit is open is left out until it has been asked and a delivery has tried it (`domain.circuit`), so
that traffic comes back to it by itself.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from random import Random
from typing import Any

from domain.circuit import FORGIVEN_AT_MOST, Circuit, Mode, Passage
from domain.event import Recipient
from domain.failures import DeliveryFailure, TransientFailure
from domain.ports import Provider
from domain.rate import Limiter
from domain.vocabulary import Channel


@dataclass(frozen=True, slots=True)
class Member:
    """One provider of a pool.

    Attributes:
        weight: how often it is drawn beside the others; None where the order decides.
        limiter: how fast it may be used; None: as fast as it can be.
    """

    provider: Provider
    circuit: Circuit
    weight: int | None = None
    limiter: Limiter | None = None

    @property
    def name(self) -> str:
        """The provider's; unique within its channel."""
        return self.provider.name

    def takes(self, recipient: Mapping[str, Any]) -> bool:
        """Whether it can reach the recipient; one that cannot even say so does not."""
        try:
            return self.provider.takes(recipient)
        except Exception:  # noqa: BLE001 - another package's code; the delivery fails with a reason, and can be replayed
            return False


@dataclass(frozen=True, slots=True)
class Chosen:
    """The delivery goes to this one; the attempt is made inside its circuit's `passing`."""

    member: Member
    passage: Passage


@dataclass(frozen=True, slots=True)
class Trying:
    """Whether any can be used shows the delivery that tries this one at the moment: choose again when it has."""

    member: Member


@dataclass(frozen=True, slots=True)
class Paused:
    """All that could reach the recipient are left alone; this one is asked first, and nothing is handed out before."""

    member: Member
    until: datetime | None


@dataclass(frozen=True, slots=True)
class Untaken:
    """None of them reaches this kind of address."""


Choice = Chosen | Trying | Paused | Untaken
LONGEST_HELD = timedelta(minutes=5)
NOBODY: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Pool:
    """The members in the order of the settings; at least one."""

    members: Sequence[Member]
    rng: Random = field(default_factory=Random)

    @property
    def why(self) -> str | None:
        """Why nothing is handed to any of them; None while one is used."""
        whys = [member.circuit.why for member in self.members]
        return None if None in whys else "; ".join(map(str, whys))

    @property
    def paused(self) -> Sequence[str]:
        """Which of them are left alone, and why."""
        return [why for member in self.members if (why := member.circuit.why) is not None]

    def choose(self, recipient: Mapping[str, Any], exclude: Collection[str] = NOBODY) -> Choice:
        """Decide, and enter the chosen one's circuit; `exclude`: the names of those that have just been at fault."""
        takers = [member for member in self.members if member.takes(recipient)]
        if not takers:
            return Untaken()
        left = [member for member in takers if member.name not in exclude]
        if usable := [member for member in left if member.circuit.admits]:
            member = self._drawn(usable)
            return Chosen(member, member.circuit.enter())
        for member in left:
            if member.circuit.mode is Mode.TRIAL:
                return Trying(member)
        first = min(takers, key=_asked_at)
        return Paused(first, self._until(first.circuit))

    def plain(self, recipient: Mapping[str, Any]) -> Member | None:
        """The one that `choose` would choose, if it may be used as it is: without trial or limit. None: choose."""
        usable = [member for member in self.members if member.circuit.admits and member.takes(recipient)]
        drawn_from = usable if usable and usable[0].weight is not None else usable[:1]
        if any(member.limiter is not None or member.circuit.mode is not Mode.CLOSED for member in drawn_from):
            return None
        return self._drawn(usable) if usable else None

    def fails_over(
        self,
        failure: DeliveryFailure,
        recipient: Mapping[str, Any],
        tried: Collection[str],
        forgiven: int,
    ) -> bool:
        """Whether another takes the delivery at once: the provider alone was at fault, and nothing was sent.

        `tried`: the names of those that have just been at fault; `forgiven`: how many of its attempts do not count.
        """
        if not (isinstance(failure, TransientFailure) and failure.provider_fault and forgiven < FORGIVEN_AT_MOST):
            return False
        others = (member for member in self.members if member.name not in tried)
        return any(member.circuit.mode is not Mode.OPEN and member.takes(recipient) for member in others)

    def untaken(self, channel: Channel, recipient: Mapping[str, Any]) -> str:
        """What kind of address none of them reaches; never the address."""
        kinds = sorted({str(target.get("provider")) for target in recipient.get("push") or ()})
        kind = Recipient.ADDRESS_FIELDS[channel]
        if channel is Channel.PUSH:
            kind = f"push tokens of {', '.join(kinds)}"
        elif channel is Channel.CHAT:
            kind = _chat(str(recipient.get("chat") or ""))
        names = ", ".join(member.name for member in self.members)
        return f"no provider of channels.{channel} ({names}) takes this kind of address: {kind}"

    def _until(self, circuit: Circuit) -> datetime | None:
        """When it is asked; later where the others keep the channel's consumers at work.

        What they take from the queue for the paused one goes to the database and back each time, so less and less
        often: after half as long as the pause has lasted already, at most `LONGEST_HELD`.
        """
        if circuit.until is None or circuit.since is None or self.why is not None:
            return circuit.until
        now = circuit.now()
        return max(circuit.until, now + min((now - circuit.since) / 2, LONGEST_HELD))

    def _drawn(self, usable: Sequence[Member]) -> Member:
        if len(usable) == 1 or usable[0].weight is None:
            return usable[0]
        return self.rng.choices(usable, [member.weight or 1 for member in usable])[0]


def _chat(address: str) -> str:
    """What can be said of a chat address without telling it: which service it names, or that it is a URL."""
    prefix, named, _ = address.partition(":")
    if "://" in address:
        return "a URL of the recipient's own, which a provider takes only if its settings allow it"
    return f"{prefix}:…" if named and prefix.isalnum() else "one that names no service, such as slack:C0123456789"


def _asked_at(member: Member) -> float:
    """One that is not paused (it has just been at fault) is asked with the next delivery."""
    return member.circuit.until.timestamp() if member.circuit.until is not None else 0.0
