"""A message as RFC 5322 and MIME bytes, ready for `DATA`.

Put together from the standard library's encoders rather than through `EmailMessage`, whose header parser costs
1.8 ms for a small mail (15 times what sending it costs); this takes 0.05 ms. The tests read every kind back with
`email.policy.default` and expect no defect.

A mail is the same, byte for byte, for every attempt of a delivery's epoch.
"""

import re
from base64 import encodebytes
from binascii import b2a_qp
from collections.abc import Sequence
from dataclasses import dataclass, field
from email.header import Header
from email.utils import format_datetime, parseaddr
from typing import Final

from channels.fetch import File
from domain.failures import PermanentFailure
from domain.message import Message
from domain.vocabulary import Reason

_CONTROL = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")
_BODY_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_LINE_END = re.compile(r"\r\n|\r|\n")
_SPECIALS = re.compile(r'[()<>@,:;".\[\]\\]')
_LINE: Final = 76
_PARAMETER: Final = 60
_CRLF: Final = b"\r\n"


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


@dataclass(frozen=True, slots=True)
class Mail:
    """What is handed to the server.

    Attributes:
        needs_utf8: an address in it needs a server with SMTPUTF8 (RFC 6531).
    """

    sender: str = field(repr=False)
    recipient: str = field(repr=False)
    body: bytes = field(repr=False)
    needs_utf8: bool


def parse_sender(text: str) -> Address:
    """Read `Shop <no-reply@shop.example>`.

    Raises:
        ValueError: it is no such thing.
    """
    name, email = parseaddr(text)
    if not email or _CONTROL.search(text) or not re.fullmatch(r"[^@\s]+@[^@\s]+", email):
        raise ValueError("should be an e-mail address, such as Shop <no-reply@shop.example>")
    return address(email, name)


def address(email: str, name: str = "") -> Address:
    """A mailbox, its domain in IDNA.

    Raises:
        ValueError: it cannot be written into an envelope.
    """
    local, at, domain = email.rpartition("@")
    if not local or not at or _CONTROL.search(email + name) or re.search(r"[\s<>]", email):
        raise ValueError("is no e-mail address")
    try:
        ascii_domain = domain if domain.isascii() else domain.encode("idna").decode()
        local.encode()
    except UnicodeError:
        raise ValueError("has a domain that is not one") from None
    return Address(f"{local}@{ascii_domain}", name)


def compose(message: Message, sender: Address, files: Sequence[File]) -> Mail:
    """Write the mail: `text`, `html` or both as alternatives, with the files after them.

    Raises:
        PermanentFailure: the address cannot be used, or a header holds a line break.
    """
    recipient = _recipient(message)
    subject = message.content.get("subject", "")
    if _CONTROL.search(subject):
        raise PermanentFailure(Reason.MESSAGE_REJECTED, "the subject contains a line break or a control character")
    number = message.idempotency_key.replace("/", ".")
    headers = [
        f"From: {_mailbox(sender, 'From')}",
        f"To: {_mailbox(recipient, 'To')}",
        f"Subject: {_unstructured(subject, 'Subject')}",
        f"Date: {format_datetime(message.created_at)}",
        f"Message-ID: <{number}@{sender.domain}>",
        "Auto-Submitted: auto-generated",
        "MIME-Version: 1.0",
    ]
    body = _body(message, files, number)
    return Mail(
        sender=sender.email,
        recipient=recipient.email,
        body=_encoded(headers) + body,
        needs_utf8=sender.needs_utf8 or recipient.needs_utf8,
    )


def _recipient(message: Message) -> Address:
    try:
        return address(str(message.recipient.get("email", "")), str(message.recipient.get("name") or ""))
    except ValueError as error:
        raise PermanentFailure(Reason.BAD_ADDRESS, f"the recipient's address {error}") from None


def _encoded(headers: Sequence[str]) -> bytes:
    return "".join(f"{header}\r\n" for header in headers).encode()


# ---------------------------------------------------------------------------------------------------------------
# Headers
# ---------------------------------------------------------------------------------------------------------------


def _unstructured(text: str, header: str) -> str:
    """A header's text: as it is if it is short ASCII, else in encoded words (RFC 2047), folded."""
    if text.isascii() and len(header) + 2 + len(text) <= _LINE and "=?" not in text:
        return text
    return Header(text, "utf-8", header_name=header).encode(linesep="\r\n")


def _mailbox(mailbox: Address, header: str) -> str:
    if not mailbox.name:
        return mailbox.email
    return f"{_phrase(mailbox.name, header)}\r\n <{mailbox.email}>"


def _phrase(name: str, header: str) -> str:
    if not name.isascii() or len(name) > _LINE - len(header) - 4 or "=?" in name:
        return Header(name, "utf-8", header_name=header).encode(linesep="\r\n")
    if _SPECIALS.search(name) or name != name.strip() or "  " in name:
        escaped = re.sub(r'(["\\])', r"\\\1", name)
        return f'"{escaped}"'
    return name


def _filename(name: str) -> str:
    """The parameter, in the form of RFC 2231: in pieces if it is long, percent-encoded if it is not plain."""
    if name.isascii() and len(name) <= _PARAMETER and name == name.strip() and not _CONTROL.search(name):
        escaped = re.sub(r'(["\\])', r"\\\1", name)
        return f'filename="{escaped}"'
    units = [chr(byte) if chr(byte) in _PLAIN else f"%{byte:02X}" for byte in name.encode(errors="replace")]
    pieces = [units[start : start + _PARAMETER // 3] for start in range(0, len(units), _PARAMETER // 3)]
    texts = ["".join(piece) for piece in pieces]
    if len(texts) == 1:
        return f"filename*=utf-8''{texts[0]}"
    texts[0] = f"utf-8''{texts[0]}"
    return ";\r\n ".join(f"filename*{index}*={text}" for index, text in enumerate(texts))


_PLAIN: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._")


# ---------------------------------------------------------------------------------------------------------------
# Body
# ---------------------------------------------------------------------------------------------------------------


def _body(message: Message, files: Sequence[File], number: str) -> bytes:
    parts = [_text(kind, message.content[field]) for field, kind in _KINDS if field in message.content] or [
        _text("plain", "")
    ]
    content = parts[0] if len(parts) == 1 else _multipart("alternative", parts, f"=_a.{number}")
    if files:
        content = _multipart("mixed", [content, *map(_file, files)], f"=_m.{number}")
    return content


_KINDS: Final = (("text", "plain"), ("html", "html"))
"""RFC 2046 §5.1.4: the plainest alternative first."""


def _multipart(kind: str, parts: Sequence[bytes], boundary: str) -> bytes:
    """No part can hold the boundary: it has `=_`, which `_text` and base64 never leave in a line."""
    mark = f"--{boundary}".encode()
    head = f'Content-Type: multipart/{kind};\r\n boundary="{boundary}"\r\n\r\n'.encode()
    inner = b"".join(mark + _CRLF + part + _CRLF for part in parts)
    return head + inner + mark + b"--" + _CRLF


def _text(kind: str, text: str) -> bytes:
    encoding, body = _transferred(_LINE_END.sub("\n", text))
    charset = "us-ascii" if encoding == "7bit" else "utf-8"
    head = f'Content-Type: text/{kind}; charset="{charset}"\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n'
    return head.encode() + body


def _transferred(text: str) -> tuple[str, bytes]:
    """The text in 7 bits, whatever the server can do: as it is, quoted where it is mostly ASCII, else in base64."""
    if _plain(text):
        return "7bit", text.replace("\n", "\r\n").encode()
    data = text.encode()
    if _BODY_CONTROL.search(text) or len(data) - len(text) > len(text) // 4:
        return "base64", _base64(data.replace(b"\n", _CRLF))
    return "quoted-printable", b2a_qp(data, istext=True).replace(b"\n", _CRLF)


def _plain(text: str) -> bool:
    return (
        text.isascii()
        and "=_" not in text
        and not _BODY_CONTROL.search(text)
        and all(len(line) <= _MAX_PLAIN for line in text.split("\n"))
    )


_MAX_PLAIN: Final = 990
"""RFC 5321 §4.5.3.1.6 allows 998 characters to a line."""


def _file(file: File) -> bytes:
    # A part that is itself a message or has parts must not be in base64 (RFC 2046 §5.2.1): it goes as plain bytes.
    composite = file.content_type.lower().startswith(("multipart/", "message/"))
    kind = "application/octet-stream" if composite else file.content_type
    head = (
        f"Content-Type: {kind}\r\nContent-Transfer-Encoding: base64\r\n"
        f"Content-Disposition: attachment;\r\n {_filename(file.filename)}\r\n\r\n"
    )
    return head.encode() + _base64(file.content)


def _base64(data: bytes) -> bytes:
    return encodebytes(data).replace(b"\n", _CRLF)
