"""Limits how often an address may show a wrong admin token, so that guessing is slow and operators at other addresses are
never locked out.

Above the limit the address is not told whether its token is right. Counts of one window are kept, of at most
``MAX_ADDRESSES``. An attacker with more addresses guesses faster, which a token of 16 bytes withstands.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv6Address, ip_address

MAX_WRONG, WINDOW_S = 5, 10.0
MAX_ADDRESSES = 1024
_IPV6_HOST_BITS = 64
"""Host bits of an IPv6 address (RFC 4291, section 2.5.4). One machine has all addresses of its network."""


class FailedLogins:
    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._ends_at = 0.0
        self._wrong: dict[str, int] = {}

    @property
    def addresses(self) -> int:
        """Addresses that showed a wrong token in this window."""
        return len(self._wrong)

    def may_try(self, remote: str | None) -> bool:
        if self._clock() >= self._ends_at:
            self._wrong.clear()
        return self._wrong.get(_network(remote), 0) < MAX_WRONG

    def was_wrong(self, remote: str | None) -> None:
        if not self._wrong:
            self._ends_at = self._clock() + WINDOW_S
        network = _network(remote)
        if network in self._wrong or len(self._wrong) < MAX_ADDRESSES:
            self._wrong[network] = self._wrong.get(network, 0) + 1


def _network(remote: str | None) -> str:
    try:
        address = ip_address(remote or "")
    except ValueError:
        return ""
    return str(int(address) >> _IPV6_HOST_BITS) if isinstance(address, IPv6Address) else str(address)
