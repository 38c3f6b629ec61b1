"""E-mail addresses as an envelope and a header take them."""

import re
from dataclasses import dataclass
from email.utils import parseaddr
from typing import Final

CONTROL: Final = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")
"""What may not stand in a header."""
_DOMAIN: Final = re.compile(r"[A-Za-z0-9._-]+|\[[A-Za-z0-9.:]+\]")
"""Of a name, or of an address literal (RFC 5321 §4.1.3)."""


@dataclass(frozen=True, slots=True)
class Address:
    """A mailbox: `email` as it stands in the envelope, its domain in ASCII."""

    email: str
    name: str = ""

    @property
    def domain(self) -> str:
        """What stands after the @."""
        return self.email.rpartition("@")[2]

    @property
    def needs_utf8(self) -> bool:
        """Whether the part before the @ can only be written with SMTPUTF8."""
        return not self.email.isascii()


def parse_sender(text: str) -> Address:
    """Read `Shop <no-reply@shop.example>`.

    Raises:
        ValueError: it is no such thing.
    """
    name, email = parseaddr(text)
    if not email or CONTROL.search(text) or not re.fullmatch(r"[^@\s]+@[^@\s]+", email):
        raise ValueError("should be an e-mail address, such as Shop <no-reply@shop.example>")
    return address(email, name)


def address(email: str, name: str = "") -> Address:
    """A mailbox, its domain in IDNA.

    Raises:
        ValueError: it cannot be written into an envelope.
    """
    local, at, domain = email.rpartition("@")
    if not local or not at or not domain or CONTROL.search(email + name) or re.search(r"[\s<>]", email):
        raise ValueError("is no e-mail address")
    try:
        ascii_domain = domain if domain.isascii() else domain.encode("idna").decode()
        local.encode()
    except UnicodeError:
        raise ValueError("has a domain that is not one") from None
    # looked at last: IDNA makes other characters of some, a space of a cedilla and > of its wide form
    if not _DOMAIN.fullmatch(ascii_domain):
        raise ValueError("has a domain that is not one")
    return Address(f"{local}@{ascii_domain}", name)
