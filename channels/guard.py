"""Where webhooks and attachment URLs may not lead: into the network that NotiPy itself runs in (SSRF).

The check is made on the address of the socket that is about to be connected. So it holds for literal addresses in
any notation, for names, for names that resolve differently each time (DNS rebinding) and for every address of a
name with several.
"""

import socket
import ssl
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any, Final

import aiohttp

_GLOBAL_V6: Final = IPv6Network("2000::/3")
"""All of IPv6 that is assigned for the public; the rest is local, reserved, or IPv4 in another form."""
_NAT64: Final = IPv6Network("64:ff9b::/96")
_RESERVED: Final = (
    IPv4Network("100.64.0.0/10"),  # carriers' shared space, RFC 6598; some clouds serve metadata from it
    IPv4Network("192.0.0.0/24"),  # IETF protocol assignments
    IPv4Network("192.88.99.0/24"),  # 6to4 relays, deprecated
    IPv6Network("2001::/23"),  # IETF protocol assignments, Teredo among them
    IPv6Network("2001:db8::/32"),  # documentation
    IPv6Network("3fff::/20"),  # documentation, RFC 9637
)
_ISATAP: Final = (0x0000_5EFE, 0x0200_5EFE)
"""Upper half of an interface identifier that wraps an IPv4 address, RFC 5214."""


class AddressRefused(OSError):
    """The address that was about to be connected is not a public one."""

    def __init__(self) -> None:
        super().__init__("the address is in a private or reserved network")


def refused(address: str) -> bool:
    """Whether an address is none that a stranger may have us call. What is no IP address is refused too."""
    try:
        return _private(ip_address(address))
    except ValueError:
        return True


def _private(ip: IPv4Address | IPv6Address) -> bool:
    if isinstance(ip, IPv6Address):
        if ip in _NAT64:
            return _private(_last_half(ip))
        if ip not in _GLOBAL_V6 or _wraps_private(ip):
            return True
    special = not ip.is_global or ip.is_multicast or ip.is_reserved
    return special or any(ip in network for network in _RESERVED if network.version == ip.version)


def _wraps_private(ip: IPv6Address) -> bool:
    if ip.sixtofour is not None:
        return _private(ip.sixtofour)
    return (int(ip) >> 32) & 0xFFFF_FFFF in _ISATAP and _private(_last_half(ip))


def _last_half(ip: IPv6Address) -> IPv4Address:
    return IPv4Address(int(ip) & 0xFFFF_FFFF)


def _public_socket(info: tuple[Any, ...]) -> socket.socket:
    """What aiohttp calls with each address just before it connects."""
    family, kind, protocol, _, address = info
    if refused(str(address[0])):
        raise AddressRefused
    return socket.socket(family, kind, protocol)


def address_refused(error: BaseException | None) -> bool:
    """Whether it was the guard that stopped a request, or aiohttp for a host in a number form such as `127.1`."""
    while error is not None:
        if isinstance(error, AddressRefused | aiohttp.InvalidURL):
            return True
        error = error.__cause__
    return False


def guarded_session(
    *, allow_private: bool, connections: int = 0, tls: ssl.SSLContext | bool = True, **options: Any
) -> aiohttp.ClientSession:
    """A session that keeps no cookies, reads no proxy settings and, unless allowed, reaches public addresses only.

    A refused address ends in an error that `address_refused` recognises. `connections`: at once; 0: as many as needed.
    """
    connector = aiohttp.TCPConnector(
        limit=connections,
        ssl=tls,
        # Node and others close an idle connection after 5 s: closing it first loses no request to that race.
        keepalive_timeout=4,
        socket_factory=None if allow_private else _public_socket,
    )
    return aiohttp.ClientSession(
        connector=connector, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False, auto_decompress=False, **options
    )
