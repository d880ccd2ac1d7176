"""Which IP addresses are hosts of the open internet, also where an IPv4 address is wrapped in an IPv6 one. Pure."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_network

_NAT64 = ip_network("64:ff9b::/96")
_UNICAST = ip_network("2000::/3")
_NEVER = tuple(
    ip_network(network)
    for network in (
        "168.63.129.16/32",  # Azure's WireServer: a public number, answered by the machine's own host
        "192.0.0.0/24",  # protocol assignments, which Python before 3.12.4 knows in part; Oracle's metadata
        "192.88.99.0/24",  # 6to4 relays
        "2001::/23",  # protocol assignments, with Teredo
        "2002::/16",  # 6to4
        "3fff::/20",  # documentation, which Python before 3.14 does not know
    )
)
"""Networks refused beside those that `ipaddress` of every Python from 3.11 on calls not global."""


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Return whether `address` is one host of the open internet, in whatever form an IPv4 address is wrapped."""
    inner = unwrapped(address)
    if inner.is_multicast or any(inner in network for network in _NEVER):
        return False
    return inner.is_global and (inner.version == 4 or inner in _UNICAST)  # noqa: PLR2004 - IPv4


def unwrapped(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """Return the IPv4 address that a packet to `address` ends at, where it is mapped or goes through NAT64."""
    if isinstance(address, IPv4Address):
        return address
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address
