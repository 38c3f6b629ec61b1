"""DKIM signatures (RFC 6376; Ed25519: RFC 8463) for mails over plain SMTP.

dkimpy canonicalises, selects and folds headers; `channels.dkim_key` signs, loaded only where there is a key.
"""

import asyncio
from base64 import b64encode
from dataclasses import replace
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SecretStr, model_validator

from channels.mail import Mail

if TYPE_CHECKING:
    from channels.dkim_key import DkimKey

ONCE_MORE: Final = (b"from", b"to", b"cc", b"reply-to", b"subject")
"""Named once more than they stand there, so that none can be added on the way (RFC 6376 §8.15)."""
THREAD_FROM: Final = 1024 * 1024
"""Bytes of a mail from which its digest is made in a thread: 100 KiB take 0.1 ms."""

_FIELD: Final = b"DKIM-Signature"


class DkimOptions(BaseModel):
    """Who signs, and with which key.

    Attributes:
        domain: whose DNS holds the public key; for DMARC that of `from`, or one above it.
        selector: under which: `<selector>._domainkey.<domain>`.
        key: the private key in PEM form, RSA or Ed25519.
        key_file: or the file that it stands in.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    domain: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+$")]
    selector: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*$")]
    key: SecretStr | None = None
    key_file: Path | None = None

    _loaded: "DkimKey" = PrivateAttr()

    @model_validator(mode="after")
    def _one_key(self) -> Self:
        if (self.key is None) == (self.key_file is None):
            raise ValueError("needs either key or key_file")
        from channels.dkim_key import DkimKey

        self._loaded = DkimKey(_pem(self.key, self.key_file))
        return self

    @property
    def private_key(self) -> "DkimKey":
        """The key, read."""
        return self._loaded


def _pem(key: SecretStr | None, file: Path | None) -> bytes:
    if key is not None:
        return key.get_secret_value().strip().encode()
    assert file is not None  # noqa: S101 - one of the two
    try:
        return file.read_bytes()
    except OSError:
        raise ValueError("key_file should be a readable file") from None


class DkimSigner:
    """Signs mails. The signature of a mail is the same for every attempt."""

    def __init__(self, options: DkimOptions) -> None:
        """Raises ValueError where dkimpy is not installed."""
        self._dkim, self._policy = _library()
        self._domain, self._selector = options.domain.encode(), options.selector.encode()
        self._key = options.private_key

    async def signed(self, mail: Mail, at: datetime) -> Mail:
        """The mail with a DKIM-Signature before everything else."""
        if len(mail.body) < THREAD_FROM:
            return self.sign(mail, at)
        return await asyncio.to_thread(self.sign, mail, at)

    def sign(self, mail: Mail, at: datetime) -> Mail:
        """As `signed`, here and now."""
        head, _, body = mail.body.partition(b"\r\n\r\n")
        headers, _ = self._dkim.rfc822_parse(head)
        names = [*(name.lower() for name, _ in headers), *ONCE_MORE]
        digest = sha256(self._policy.canonicalize_body(body if body.endswith(b"\r\n") else body + b"\r\n"))
        value = self._folded(self._value(names, digest.digest(), at))
        signature = b64encode(self._signature(headers, names, value))
        return replace(mail, body=_FIELD + b": " + self._folded(value + signature) + b"\r\n" + mail.body)

    def _folded(self, value: bytes) -> bytes:
        folded: bytes = self._dkim.fold(value, namelen=len(_FIELD) + 2)
        return folded

    def _value(self, names: list[bytes], digest: bytes, at: datetime) -> bytes:
        """The field as far as it is signed itself."""
        tags = (
            b"v=1",
            b"a=" + self._key.algorithm,
            b"c=relaxed/simple",
            b"d=" + self._domain,
            b"s=" + self._selector,
            b"t=%d" % at.timestamp(),
            b"h=" + b" : ".join(names),
            b"bh=" + b64encode(digest),
            b"b=",
        )
        return b"; ".join(tags)

    def _signature(self, headers: list[Any], names: list[bytes], value: bytes) -> bytes:
        hasher, canonical = sha256(), self._policy.canonicalize_headers(headers)
        self._dkim.hash_headers(hasher, self._policy, canonical, names, (_FIELD, b" " + value), {})
        return self._key.sign(hasher.digest())


def _library() -> tuple[Any, Any]:
    try:
        import dkim
        from dkim.canonicalization import CanonicalizationPolicy
    except ImportError:
        raise ValueError("dkim: signing needs dkimpy: pip install 'notipy[dkim]'") from None
    return dkim, CanonicalizationPolicy.from_c_value(b"relaxed/simple")
