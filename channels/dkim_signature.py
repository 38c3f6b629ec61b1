"""DKIM signatures (RFC 6376; Ed25519: RFC 8463) for mails over plain SMTP.

dkimpy canonicalises, selects and folds headers; cryptography signs: dkimpy's own RSA is written in Python and takes
5.5 ms of the event loop for each mail with a key of 2048 bits, OpenSSL's takes 0.25 ms, which needs no thread.
"""

import asyncio
from base64 import b64encode
from dataclasses import replace
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Final, Self

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SecretStr, model_validator

from channels.mail import Mail

LEAST_BITS: Final = 1024
"""RFC 8301 §3.2: verifiers take no shorter RSA key, and signers should use 2048."""
ONCE_MORE: Final = (b"from", b"to", b"cc", b"reply-to", b"subject")
"""Named once more than they stand there, so that none can be added on the way (RFC 6376 §8.15)."""
THREAD_FROM: Final = 1024 * 1024
"""Bytes of a mail from which its digest is made in a thread: 100 KiB take 0.1 ms."""

_FIELD: Final = b"DKIM-Signature"

Key = RSAPrivateKey | Ed25519PrivateKey


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

    _loaded: Key = PrivateAttr()

    @model_validator(mode="after")
    def _one_key(self) -> Self:
        if (self.key is None) == (self.key_file is None):
            raise ValueError("needs either key or key_file")
        self._loaded = _load(_pem(self.key, self.key_file))
        return self

    @property
    def private_key(self) -> Key:
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


def _load(pem: bytes) -> Key:
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ValueError("the key should be a private key in PEM form, without a password") from None
    if isinstance(key, RSAPrivateKey) and key.key_size >= LEAST_BITS:
        return key
    if isinstance(key, Ed25519PrivateKey):
        return key
    raise ValueError(f"the key should be one for RSA, of {LEAST_BITS} bits at least, or for Ed25519")


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
        algorithm = b"rsa-sha256" if isinstance(self._key, RSAPrivateKey) else b"ed25519-sha256"
        tags = (
            b"v=1",
            b"a=" + algorithm,
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
        if isinstance(self._key, RSAPrivateKey):
            return self._key.sign(hasher.digest(), PKCS1v15(), Prehashed(SHA256()))
        return self._key.sign(hasher.digest())


def _library() -> tuple[Any, Any]:
    try:
        import dkim
        from dkim.canonicalization import CanonicalizationPolicy
    except ImportError:
        raise ValueError("dkim: signing needs dkimpy: pip install 'notipy[dkim]'") from None
    return dkim, CanonicalizationPolicy.from_c_value(b"relaxed/simple")
