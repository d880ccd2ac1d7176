"""Distinguishes public IP addresses from internal ones, including IPv4 addresses embedded in IPv6. Pure."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_network

_NAT64 = ip_network("64:ff9b::/96")
_UNICAST = ip_network("2000::/3")
_REJECTED = tuple(
    ip_network(network)
    for network in (
        "168.63.129.16/32",  # Azure's WireServer: a public address that is served by the machine's own host
        "192.0.0.0/24",  # protocol assignments and Oracle's metadata; Python before 3.12.4 knows only a part
        "192.88.99.0/24",  # 6to4 relays
        "2001::/23",  # protocol assignments, including Teredo
        "2002::/16",  # 6to4
        "3fff::/20",  # documentation, which Python before 3.14 does not know
    )
)
"""Networks rejected in addition to those that `ipaddress` classifies as not global in every Python from 3.11."""


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Return whether `address`, or the IPv4 address embedded in it, is a unicast address on the public internet."""
    inner = unwrapped(address)
    if inner.is_multicast or any(inner in network for network in _REJECTED):
        return False
    return inner.is_global and (inner.version == 4 or inner in _UNICAST)  # noqa: PLR2004 - IPv4


def unwrapped(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """Return the IPv4 address embedded in `address` (IPv4-mapped or NAT64), else `address` itself."""
    if isinstance(address, IPv4Address):
        return address
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address
