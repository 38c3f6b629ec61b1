"""Addresses that nothing more is sent to, and why.

An address is known by `<channel>/<SHA-256 of the normalised address>`: that is what is compared, kept in memory and
logged. The address itself is personal data; it is kept for the operator alone, and only `notipy suppressions` shows it.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

from domain.delivery import Change, Delivery
from domain.event import Recipient
from domain.vocabulary import Channel, Reason, State, SuppressionReason

SOFT_BOUNCES = 5
"""So many deliveries to an address bounced softly, none delivered in between, and it is suppressed."""


@dataclass(frozen=True, slots=True)
class Suppression:
    """One address, and since when, why and by whom it is suppressed.

    Attributes:
        source: `operator`, or the provider that was told so, as `send:<provider>` or `receipt:<provider>`.
        expires_at: from when on it is used again; None: never by itself.
        delivery: whose refusal made it. This one may be replayed, and once sent proves it wrong; None: nothing does.
    """

    channel: Channel
    address: str = field(repr=False)
    reason: SuppressionReason
    source: str
    since: datetime
    expires_at: datetime | None = None
    delivery: str | None = None

    @property
    def key(self) -> str:
        """Under which it is stored."""
        return address_key(self.channel, self.address)

    @property
    def told(self) -> str:
        """Why and since when, in a line; never the address."""
        return f"{self.reason} since {self.since:%Y-%m-%dT%H:%M:%SZ}, by {self.source}"

    def in_force(self, now: datetime) -> bool:
        """Whether it has not expired."""
        return self.expires_at is None or self.expires_at > now

    def outlasts(self, new: "Suppression") -> bool:
        """Whether it stays where `new` is added while it is in force: all that `new` would stop, it does, and as long.

        A refusal takes nobody's place, and what is none takes a refusal's: it may be withdrawn. One that is not kept,
        because an entry that will expire is in force, is met again with the next send after that.
        """
        if new.delivery is not None or self.delivery is not None:
            return new.delivery is not None
        return self.expires_at is None or (new.expires_at is not None and self.expires_at >= new.expires_at)

    def stops(self, delivery: Delivery) -> bool:
        """Whether it holds this delivery back.

        Not the one whose refusal made it: that one is attempted again only where an operator replays it, or where its
        process ended before the refusal was recorded.
        """
        return self.delivery != delivery.id


class Suppressions(Protocol):
    """The suppression list. What is looked up costs no query while the list is small: it is held in memory."""

    async def among(self, keys: Sequence[str]) -> Mapping[str, Suppression]:
        """Those of these keys that are suppressed now, as of a few seconds ago (`storage.suppressions.REFRESH`)."""
        ...

    async def add(self, suppression: Suppression) -> None:
        """Suppress it durably, and at once for this process; one that is in force and outlasts it stays as it is.

        The new one takes the place of any other: of one that expires sooner, so that it is not lost then, and of one
        that names a delivery if it names none itself, so that it is not withdrawn with it.
        """
        ...

    async def withdraw(self, keys: Sequence[str], delivery: str) -> bool:
        """Use these addresses again, so far as this delivery's refusal has suppressed them; whether it had."""
        ...

    async def soft_bounced(self, key: str, ref: str) -> int:
        """Count a soft bounce of the delivery `ref`, once however often it is told; returns how many there are now."""
        ...

    async def forget_soft_bounces(self, key: str) -> None:
        """Something was delivered to the address: the count begins anew."""
        ...


class NothingSuppressed:
    """`Suppressions` of whoever has none."""

    async def among(self, keys: Sequence[str]) -> Mapping[str, Suppression]:  # noqa: ARG002
        """None of them."""
        return {}

    async def add(self, suppression: Suppression) -> None:
        """Nothing is kept."""

    async def withdraw(self, keys: Sequence[str], delivery: str) -> bool:  # noqa: ARG002
        """Nothing was kept."""
        return False

    async def soft_bounced(self, key: str, ref: str) -> int:  # noqa: ARG002
        """Nothing is counted."""
        return 0

    async def forget_soft_bounces(self, key: str) -> None:
        """There is nothing to forget."""


NOTHING_SUPPRESSED = NothingSuppressed()


# ---------------------------------------------------------------------------------------------------------------
# Addresses
# ---------------------------------------------------------------------------------------------------------------


def address_key(channel: Channel, address: str) -> str:
    """`<channel>/<SHA-256 of the normalised address>`."""
    return f"{channel}/{hashlib.sha256(normalised(channel, address).encode()).hexdigest()}"


def normalised(channel: Channel, address: str) -> str:
    """The address as it is compared: of two that reach the same, one form.

    An e-mail address is folded to lower case on both sides of the @: RFC 5321 lets the left one be case-sensitive, and
    no provider makes use of that. Its domain is written in IDNA. So is the host of a URL, which loses what says nothing
    (RFC 3986 §6.2.2 and §6.2.3); of a chat address what stands before the colon is in lower case. Everything else is
    taken as it is: what is behind the colon may be case-sensitive.
    """
    address = address.strip()
    match channel:
        case Channel.EMAIL:
            local, _, domain = address.casefold().rpartition("@")
            return f"{local}@{_ascii(domain)}"
        case Channel.WEBHOOK:
            return _url(address)
        case Channel.CHAT:
            return _chat(address)
        case _:
            return address


def _ascii(domain: str) -> str:
    try:
        return domain if domain.isascii() else domain.encode("idna").decode()
    except UnicodeError:
        return domain


def _url(address: str) -> str:
    """Scheme and host in lower case, without the scheme's own port, with a path, without what is never sent (#…)."""
    try:
        parts = urlsplit(address)
        port, host = parts.port, parts.hostname or ""
    except ValueError:
        return address
    if parts.scheme not in _PORTS or not host:
        return address
    own = f"[{host}]" if ":" in host else _ascii(host)
    place = own if port in (None, _PORTS[parts.scheme]) else f"{own}:{port}"
    user, at, _ = parts.netloc.rpartition("@")
    return urlunsplit((parts.scheme, f"{user}{at}{place}", parts.path or "/", parts.query, ""))


def _chat(address: str) -> str:
    """`<service or provider>:<address>`, an address alone, or a webhook's URL."""
    before, colon, target = address.partition(":")
    if not colon or before.lower() in _PORTS:
        return _url(address)
    return f"{before.lower()}:{_url(target.strip())}"


_PORTS: Mapping[str, int] = {"http": 80, "https": 443}
"""Of the schemes that a webhook's URL has."""


def addresses_of(channel: Channel, recipient: Mapping[str, Any]) -> Sequence[str]:
    """Where the channel reaches the recipient: one address, or of `push` one token for each installation."""
    value = recipient.get(Recipient.ADDRESS_FIELDS[channel])
    if channel is Channel.PUSH:
        return [str(target["token"]) for target in value or ()]
    return [str(value)] if value else []


def keys_of(delivery: Delivery) -> Sequence[str]:
    """The keys of a delivery's addresses."""
    return [address_key(delivery.channel, address) for address in addresses_of(delivery.channel, delivery.recipient)]


# ---------------------------------------------------------------------------------------------------------------
# Before planning and before sending
# ---------------------------------------------------------------------------------------------------------------


async def screen(suppressions: Suppressions, delivery: Delivery) -> Suppression | None:
    """Why its address is suppressed; None: it is not. Whether that stops the delivery, `Suppression.stops` says."""
    keys = keys_of(delivery)
    return hit(keys, await suppressions.among(keys))


async def screen_copies(suppressions: Suppressions, addresses: Sequence[str]) -> frozenset[str]:
    """Those of the addresses of a mail's copies that are suppressed, whoever's refusal did that."""
    keys = {address: address_key(Channel.EMAIL, address) for address in addresses}
    found = await suppressions.among(list(keys.values()))
    return frozenset(address for address, key in keys.items() if key in found)


async def screen_planned(suppressions: Suppressions, batch: Sequence[Delivery]) -> Sequence[Delivery]:
    """Planned deliveries, those to suppressed addresses final at once. One question for all of them."""
    open_ = [delivery for delivery in batch if not delivery.state.final]
    found = await suppressions.among([key for delivery in open_ for key in keys_of(delivery)])
    return [_planned(delivery, found) for delivery in batch] if found else batch


def hit(keys: Sequence[str], found: Mapping[str, Suppression]) -> Suppression | None:
    """What suppresses a delivery with these keys, of what was found.

    Suppressed is what cannot be reached anywhere; planning makes a delivery for each device.
    """
    return found[keys[0]] if found and keys and all(key in found for key in keys) else None


def _planned(delivery: Delivery, found: Mapping[str, Suppression]) -> Delivery:
    suppression = None if delivery.state.final else hit(keys_of(delivery), found)
    if suppression is None:
        return delivery
    change = Change(
        State.SUPPRESSED, delivery.updated_at, Reason.SUPPRESSED_ADDRESS, delivery.epoch, 0, detail=suppression.told
    )
    return replace(delivery, history=()).changed(change, None)


# ---------------------------------------------------------------------------------------------------------------
# What a provider says of an address
# ---------------------------------------------------------------------------------------------------------------


async def suppress_refused(suppressions: Suppressions, delivery: Delivery, provider: str, now: datetime) -> None:
    """A provider has refused the delivery's address as such."""
    reason = _REFUSED.get(delivery.channel, SuppressionReason.REJECTED)
    for address in addresses_of(delivery.channel, delivery.recipient):
        entry = Suppression(delivery.channel, address, reason, f"send:{provider}", now, delivery=delivery.id)
        await suppressions.add(entry)


async def suppress(
    suppressions: Suppressions, delivery: Delivery, reason: SuppressionReason, source: str, now: datetime
) -> None:
    """Send nothing more to where the delivery went, whatever becomes of the delivery itself."""
    for address in addresses_of(delivery.channel, delivery.recipient):
        await suppressions.add(Suppression(delivery.channel, address, reason, source, now))


async def withdraw_refused(suppressions: Suppressions, delivery: Delivery) -> bool:
    """The delivery was sent after all: what its refusal has suppressed is used again. Whether it had."""
    return await suppressions.withdraw(keys_of(delivery), delivery.id)


_REFUSED: Mapping[Channel, SuppressionReason] = {
    Channel.PUSH: SuppressionReason.DEAD_TOKEN,
    Channel.WEBHOOK: SuppressionReason.ENDPOINT_GONE,
}
