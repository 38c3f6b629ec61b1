"""Settings of an SMTP provider."""

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Final, Literal
from urllib.parse import parse_qs, unquote, urlsplit

from pydantic import AfterValidator, Field, SecretStr

from channels.dkim_signature import DkimOptions
from channels.mail_settings import MailOptions

Tls = Literal["none", "starttls", "implicit"]

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


class SmtpOptions(MailOptions):
    """Settings of one SMTP provider.

    Attributes:
        url: see `parse_url`.
        timeout: for each step of a conversation, and for each attachment.
        verify: whether the server's certificate is checked.
        local_hostname: for EHLO, instead of this machine's name.
        dkim: what mails are signed with; nothing where the server does so itself.
    """

    url: Annotated[SecretStr, AfterValidator(_valid_url)]
    connections: Annotated[int, Field(ge=1, le=1000)] = 20
    verify: bool = True
    local_hostname: Annotated[str, Field(pattern=r"^[A-Za-z0-9.\[\]:-]+$")] | None = None
    dkim: DkimOptions | None = None

    @cached_property
    def server(self) -> Server:
        """The URL, read."""
        return parse_url(self.url.get_secret_value())
