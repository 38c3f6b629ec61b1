"""Settings of an SMTP provider."""

import ssl
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Annotated, Final, Literal
from urllib.parse import parse_qs, unquote, urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, model_validator

from channels.dkim_signature import DkimOptions
from channels.fetch import Limits, MediaRanges
from channels.mail import parse_sender
from domain.duration import Duration

Tls = Literal["none", "starttls", "implicit"]

MEBIBYTE: Final = 1024 * 1024

_PORTS: Final = {"smtp": 25, "smtps": 465}
_TLS_OF_PORT: Final[dict[int, Tls]] = {465: "implicit", 587: "starttls"}


@dataclass(frozen=True, slots=True)
class Server:
    """What the URL says."""

    host: str
    port: int
    tls: Tls
    username: str | None
    password: str | None

    def __repr__(self) -> str:
        return f"Server({self.host}:{self.port}, tls={self.tls})"


def parse_url(url: str) -> Server:
    """Read `smtp://user:password@host:587?tls=none|starttls|implicit`; `smtps://` is implicit TLS.

    Without `tls`, port 587 means STARTTLS and port 465 implicit TLS.

    Raises:
        ValueError: what is wrong with it, without a word of the URL.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or _PORTS[parts.scheme]
    except (ValueError, KeyError):
        raise ValueError("should be smtp://user:password@host:port?tls=starttls, special characters as %XX") from None
    if not parts.hostname or parts.path not in {"", "/"} or parts.fragment:
        raise ValueError("should be smtp://user:password@host:port: special characters of the password as %XX")
    tls = _tls(parts.query, parts.scheme, port)
    username = unquote(parts.username) if parts.username else None
    password = unquote(parts.password) if parts.password is not None else None
    if username is not None and tls == "none" and not parts.query:
        raise ValueError("would send the password unencrypted: add ?tls=starttls or ?tls=implicit (or ?tls=none)")
    return Server(parts.hostname, port, tls, username, password)


def _tls(query: str, scheme: str, port: int) -> Tls:
    options = parse_qs(query, keep_blank_values=True)
    default: Tls = "implicit" if scheme == "smtps" else _TLS_OF_PORT.get(port, "none")
    if set(options) - {"tls"}:
        raise ValueError("has an unknown option after ?: only tls is known")
    match options.get("tls", [default]):
        case ["none" | "starttls" | "implicit" as tls] if scheme == "smtp" or tls == "implicit":
            return tls
        case _:
            raise ValueError("has a wrong tls: none, starttls or implicit (smtps:// is always implicit)")


def _valid_url(value: SecretStr) -> SecretStr:
    parse_url(value.get_secret_value())
    return value


def _valid_sender(value: str) -> str:
    parse_sender(value)
    return value


class SmtpOptions(BaseModel):
    """Settings of one SMTP provider.

    Attributes:
        url: see `parse_url`.
        from_address: `from` in the settings.
        timeout: for each step of a conversation, and for each attachment.
        connections: kept and used at once, at most.
        ca_file: certificate authorities to trust instead of the system's.
        verify: whether the server's certificate is checked.
        max_attachments, max_attachment_bytes, max_message_bytes: how many attachments a message may have, and the bytes
            of each of them and of the whole message as it is sent.
        attachment_types: types of attachments that are sent, such as `image/*`; none: any.
        allow_private: whether attachments may be fetched from private addresses.
        local_hostname: for EHLO, instead of this machine's name.
        dkim: what mails are signed with; nothing where the server does so itself.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    url: Annotated[SecretStr, AfterValidator(_valid_url)]
    from_address: Annotated[str, Field(alias="from"), AfterValidator(_valid_sender)]
    timeout: Annotated[Duration, Field(gt=timedelta(0))] = timedelta(seconds=30)
    connections: Annotated[int, Field(ge=1, le=1000)] = 20
    ca_file: Path | None = None
    verify: bool = True
    local_hostname: Annotated[str, Field(pattern=r"^[A-Za-z0-9.\[\]:-]+$")] | None = None
    max_attachments: Annotated[int, Field(ge=0)] = 10
    max_attachment_bytes: Annotated[int, Field(ge=0)] = 10 * MEBIBYTE
    max_message_bytes: Annotated[int, Field(ge=1024)] = 25 * MEBIBYTE
    attachment_types: MediaRanges = ()
    allow_private: bool = False
    dkim: DkimOptions | None = None

    @model_validator(mode="after")
    def _certificates(self) -> "SmtpOptions":
        if self.ca_file is not None:
            try:
                ssl.create_default_context(cafile=str(self.ca_file))
            except OSError:
                raise ValueError("ca_file should be a readable file with certificates in PEM form") from None
        return self

    @cached_property
    def server(self) -> Server:
        """The URL, read."""
        return parse_url(self.url.get_secret_value())

    @property
    def limits(self) -> Limits:
        """Of attachments. Base64 makes three bytes four, and a little for line ends."""
        room = self.max_message_bytes * 72 // 100
        return Limits(self.max_attachments, self.max_attachment_bytes, room, self.timeout, self.attachment_types)
