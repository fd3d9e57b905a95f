"""Where no worker may be."""

from __future__ import annotations

import pytest

from router.core.address import is_forbidden
from router.core.worker import parse_address


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "169.254.0.1",
        "fe80::1",
        "fe80::1%eth0",
        "::ffff:169.254.169.254",
        "fd00:ec2::254",
        "100.100.100.200",
        "metadata.google.internal",
        "Metadata.Google.Internal.",
    ],
)
def test_metadata_services_and_link_local_addresses_are_no_workers(host: str) -> None:
    assert is_forbidden(host)
    url = f"http://[{host}]:80" if ":" in host else f"http://{host}:80"
    with pytest.raises(ValueError, match="no worker may be"):
        parse_address(url)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "10.0.0.7", "::1", "fd00::7", "gpu-1", "metadata-gpu.internal", "8.8.8.8"]
)
def test_anything_else_may_be_one(host: str) -> None:
    assert not is_forbidden(host)
