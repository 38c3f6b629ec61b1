"""Which addresses a stranger may have us call."""

from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels.guard import refused

PRIVATE = [
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "127.0.0.1", "127.255.255.254", "169.254.169.254", "172.16.0.1",
    "172.31.255.255", "192.0.0.1", "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1", "198.51.100.1",
    "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
    "::", "::1", "fe80::1", "fe80::1%eth0", "fec0::1", "fc00::1", "fd12:3456::1", "ff02::1", "100::1",
    "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::127.0.0.1", "::8.8.8.8", "64:ff9b::7f00:1", "64:ff9b::a00:1",
    "64:ff9b:1::808:808", "2002:7f00:1::", "2002:a00:1::1", "2002:c0a8:101::1", "2001::1", "2001:0:4136:e378::1",
    "2001:db8::1", "3fff::1", "2606:4700::5efe:10.0.0.1", "2606:4700::200:5efe:127.0.0.1", "4000::1", "5f00::1",
    "2130706433", "127.1", "0x7f.0.0.1", "0177.0.0.1", "localhost", "",
]  # fmt: skip
PUBLIC = [
    "8.8.8.8", "1.1.1.1", "172.32.0.1", "100.128.0.1", "2001:4860:4860::8888", "2606:4700::1111", "64:ff9b::808:808",
    "2600::1",
]  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_refused(address: str) -> None:
    assert refused(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_allowed(address: str) -> None:
    assert not refused(address)


@given(st.ip_addresses(v=4))
def test_a_wrapped_address_is_judged_like_itself(ip: IPv4Address) -> None:
    packed = f"{int(ip) >> 16:x}:{int(ip) & 0xFFFF:x}"
    assert refused(f"64:ff9b::{packed}") == refused(str(ip))
    assert refused(f"2606:4700::5efe:{packed}") == refused(str(ip))
    if refused(str(ip)):
        assert refused(f"2002:{packed}::1")


@given(st.text())
def test_what_is_no_address_is_refused(text: str) -> None:
    try:
        IPv4Address(text)
    except ValueError:
        if ":" not in text:
            assert refused(text)
