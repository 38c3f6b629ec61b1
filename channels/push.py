"""What the push services have in common: one device of a recipient, and a rendered message's fields as values."""

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Self

import orjson
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from pydantic import Field, SecretStr, model_validator

from channels.connection_options import ConnectionOptions
from domain.duration import Duration, parse_duration
from domain.failures import PermanentFailure
from domain.identity import named_uuid
from domain.message import Message
from domain.vocabulary import Reason

MAX_TTL: Final = timedelta(days=28)
"""For which a push service keeps a message at most: four weeks at FCM, 30 days at Apple."""
TimeToLive = Annotated[Duration, Field(ge=timedelta(0), le=MAX_TTL)]

_URL = re.compile(r"https?://[^\s/?#]+\S*")
_NUMBER = re.compile(r"\d{1,9}")
_PRIORITIES: Final = frozenset({"high", "normal"})


class SignedOptions(ConnectionOptions):
    """Settings of a push service whose requests an own key signs.

    Attributes:
        private_key: the signing key in PEM; or `private_key_file`, where it is.
        ttl: how long a message is kept for a device that is away, if its content does not say.
    """

    KEY: ClassVar[str]
    """What the key should be."""
    private_key: SecretStr | None = None
    private_key_file: Path | None = None
    ttl: TimeToLive = MAX_TTL

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.private_key is None) == (self.private_key_file is None):
            raise ValueError("needs private_key or private_key_file, one of them")
        self.key()
        return self

    def key(self) -> EllipticCurvePrivateKey:
        """The signing key.

        Raises:
            ValueError: it cannot be read, or is none.
        """
        given = "private_key" if self.private_key else "private_key_file"
        try:
            return self._read(self._text())
        except (OSError, ValueError, TypeError):
            raise ValueError(f"{given} should be {self.KEY}") from None

    def _text(self) -> str:
        if self.private_key is not None:
            return self.private_key.get_secret_value().replace("\\n", "\n")
        return self.private_key_file.read_text(encoding="ascii") if self.private_key_file else ""

    def _read(self, text: str) -> EllipticCurvePrivateKey:
        """Raises ValueError or TypeError: it is no key, or one of another curve."""
        found = load_pem_private_key(text.encode(), None)
        if not isinstance(found, EllipticCurvePrivateKey) or not isinstance(found.curve, SECP256R1):
            raise ValueError("is no P-256 key")
        return found


@dataclass(frozen=True, slots=True, repr=False)
class Push:
    """A rendered push message.

    Attributes:
        token: of the one device that it goes to.
        badge: the number at the app's icon.
        data: for the app, not for the person.
        collapse: a later message with the same word takes this one's place.
        ttl: how long from the event's reception on the service keeps it for a device that is away.
        priority: `high` or `normal`; None: the service's own.
        unique: the same for every attempt of a delivery's epoch, and for nothing else.
    """

    token: str
    title: str | None
    text: str
    image: str | None
    url: str | None
    badge: int | None
    sound: str | None
    data: Mapping[str, Any]
    collapse: str | None
    ttl: timedelta | None
    priority: str | None
    created_at: datetime
    unique: str

    def expires_at(self, default: timedelta) -> datetime:
        """When the service drops it; `default`: its ttl, if it names none."""
        return self.created_at + (default if self.ttl is None else self.ttl)

    def left(self, default: timedelta, now: datetime) -> int:
        """Whole seconds until then; 0, which is "now or never" to every service, once they are over."""
        return max(0, int((self.expires_at(default) - now).total_seconds()))

    def collapse_id(self, most: int, allowed: str) -> str:
        """The word under which it is replaced, in at most `most` of the characters `allowed` (a class of `re`).

        Without one of its own it is the delivery's: what is sent twice for want of an answer is then shown once.
        """
        word = self.collapse or self.unique.replace("-", "")
        if re.fullmatch(rf"[{allowed}]{{1,{most}}}", word):
            return word
        return hashlib.sha256(word.encode()).hexdigest()[:most]


def target(recipient: Mapping[str, Any]) -> Mapping[str, Any]:
    """The device that a delivery goes to; empty if there is none. Planning makes a delivery for each device."""
    targets: Sequence[Mapping[str, Any]] = recipient.get("push") or []
    return dict(targets[0]) if len(targets) == 1 else {}


def takes_target(recipient: Mapping[str, Any], kind: str, name: str) -> bool:
    """Whether the device is reached over this kind of provider, or over this very one."""
    return target(recipient).get("provider") in {kind, name}


def push_of(message: Message) -> Push:
    """The message with its fields read.

    Raises:
        PermanentFailure: `template_error`, a field did not render to what belongs there; `bad_address`, no device.
    """
    content = message.content
    token = target(message.recipient).get("token")
    if not token:
        raise PermanentFailure(Reason.BAD_ADDRESS, "there is not exactly one device to reach")
    return Push(
        token=str(token),
        title=content.get("title") or None,
        text=content.get("text", ""),
        image=_url("image", content),
        url=_url("url", content),
        badge=_badge(content),
        sound=content.get("sound") or None,
        data=_data(content),
        collapse=content.get("collapse") or None,
        ttl=_ttl(content),
        priority=_priority(content),
        created_at=message.created_at,
        unique=named_uuid(message.idempotency_key),
    )


def _url(name: str, content: Mapping[str, str]) -> str | None:
    value = content.get(name, "").strip()
    if value and not _URL.fullmatch(value):
        raise _wrong(name, "an http:// or https:// URL")
    return value or None


def _badge(content: Mapping[str, str]) -> int | None:
    value = content.get("badge", "").strip()
    if value and not _NUMBER.fullmatch(value):
        raise _wrong("badge", "a number, 0 or more")
    return int(value) if value else None


def _data(content: Mapping[str, str]) -> Mapping[str, Any]:
    try:
        found = orjson.loads(content.get("data", "").strip() or "{}")
    except orjson.JSONDecodeError:
        found = None
    if not isinstance(found, dict):
        raise _wrong("data", "a JSON object")
    return found


def _ttl(content: Mapping[str, str]) -> timedelta | None:
    value = content.get("ttl", "").strip()
    if not value:
        return None
    try:
        ttl = parse_duration(float(value) if _NUMBER.fullmatch(value) else value)
    except ValueError:
        raise _wrong("ttl", "a duration such as 30m, 4h or 2d") from None
    return min(ttl, MAX_TTL)


def _priority(content: Mapping[str, str]) -> str | None:
    value = content.get("priority", "").strip()
    if value and value not in _PRIORITIES:
        raise _wrong("priority", "high or normal")
    return value or None


def _wrong(name: str, form: str) -> PermanentFailure:
    return PermanentFailure(Reason.TEMPLATE_ERROR, f"{name}: does not render to {form}")


def seconds(moment: datetime) -> int:
    """A moment in seconds since 1970, rounded up."""
    return math.ceil(moment.timestamp())
