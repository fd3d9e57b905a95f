"""Addresses at which no worker may be: clouds give credentials to any client inside that asks there."""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address

METADATA_NAMES = frozenset({"metadata", "metadata.google.internal", "instance-data", "instance-data.ec2.internal"})
METADATA_ADDRESSES = frozenset({"169.254.169.254", "fd00:ec2::254", "100.100.100.200"})
"""AWS, Google, Azure and others; AWS over IPv6; Alibaba. The first is link-local, as are many others."""


def is_forbidden(host: str) -> bool:
    """``host``: a name, or an address with or without a zone. A name is judged as written; its address is judged after it was
    resolved."""
    name = host.rstrip(".").lower()
    if name in METADATA_NAMES:
        return True
    try:
        address = ip_address(name.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.is_link_local or str(address) in METADATA_ADDRESSES
