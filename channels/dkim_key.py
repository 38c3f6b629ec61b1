"""The private key of DKIM signatures.

By cryptography: dkimpy's own RSA is written in Python and takes 5.5 ms of the event loop for each mail with a key of
2048 bits, OpenSSL's takes 0.25 ms, which needs no thread.
"""

from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key

LEAST_BITS: Final = 1024
"""RFC 8301 §3.2: verifiers take no shorter RSA key, and signers should use 2048."""


class DkimKey:
    """A key for RSA (RFC 6376) or Ed25519 (RFC 8463).

    Attributes:
        algorithm: as the tag `a` of a signature names it.
    """

    algorithm: bytes

    def __init__(self, pem: bytes) -> None:
        """Read it; raises ValueError where it is none."""
        try:
            key = load_pem_private_key(pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise ValueError("the key should be a private key in PEM form, without a password") from None
        self._key: RSAPrivateKey | Ed25519PrivateKey
        if isinstance(key, RSAPrivateKey) and key.key_size >= LEAST_BITS:
            self._key, self.algorithm = key, b"rsa-sha256"
        elif isinstance(key, Ed25519PrivateKey):
            self._key, self.algorithm = key, b"ed25519-sha256"
        else:
            raise ValueError(f"the key should be one for RSA, of {LEAST_BITS} bits at least, or for Ed25519")

    def sign(self, digest: bytes) -> bytes:
        """The signature of a SHA-256 digest."""
        if isinstance(self._key, RSAPrivateKey):
            return self._key.sign(digest, PKCS1v15(), Prehashed(SHA256()))
        return self._key.sign(digest)
