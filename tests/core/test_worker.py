"""Which URLs are workers, and by what name each is known."""

from __future__ import annotations

import pytest

from router.core.worker import WorkerAddress, parse_address


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://gpu-1:8000", WorkerAddress("http", "gpu-1", 8000)),
        ("http://gpu-1:8000/", WorkerAddress("http", "gpu-1", 8000)),
        ("HTTP://GPU-1:8000", WorkerAddress("http", "gpu-1", 8000)),
        ("http://gpu-1", WorkerAddress("http", "gpu-1", 80)),
        ("https://gpu-1", WorkerAddress("https", "gpu-1", 443)),
        ("http://10.0.0.1:1", WorkerAddress("http", "10.0.0.1", 1)),
        ("http://[fd00::1]:8000", WorkerAddress("http", "fd00::1", 8000)),
    ],
)
def test_a_workers_url_is_an_origin(url: str, address: WorkerAddress) -> None:
    assert parse_address(url) == address
    assert parse_address(address.url) == address


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("gpu-1:8000", "must begin with http:// or https://"),
        ("ftp://gpu-1", "must begin with http:// or https://"),
        ("", "must begin with http:// or https://"),
        ("http://", "names no host"),
        ("http://:8000", "names no host"),
        ("http://gpu-1/v1", "must be an origin only"),
        ("http://gpu-1?x=1", "must be an origin only"),
        ("http://gpu-1#x", "must be an origin only"),
        ("http://user@gpu-1", "must be an origin only"),
        ("http://:password@gpu-1", "must be an origin only"),
        ("http://gpu-1:0", "must name a port from 1 to 65535"),
        ("http://gpu-1:65536", "Port out of range"),
        ("http://gpu-1:x", "Port could not be cast"),
        ("http://[fd00::1", "Invalid IPv6 URL"),
    ],
)
def test_what_is_no_origin_is_refused_with_the_reason(url: str, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        parse_address(url)


def test_a_workers_name_hides_its_address_and_never_changes() -> None:
    """Other replicas, dashboards and clients know workers by these names: another hash would break them all."""
    assert parse_address("http://gpu-1:8000").name == "w-5de3a68b"
    assert parse_address("https://gpu-1:8000").name != parse_address("http://gpu-1:8000").name
