"""The use of one limit, of a minute or of a day. Pure: times are passed in."""

from __future__ import annotations

from dataclasses import dataclass

MINUTE_S = 60.0
ROUNDING_S = 1e-6


@dataclass(slots=True)
class Bucket:
    """A token bucket for a limit of one minute, which refills steadily. It keeps what is missing. A limit of None refills it at
    once."""

    used: float = 0.0
    at: float = 0.0

    def wait_s(self, amount: float, limit: int | None, now: float) -> float:
        """Seconds until ``amount`` may be taken; 0: now."""
        if limit is None:
            self.used, self.at = 0.0, now
            return 0.0
        self.used = max(0.0, self.used - (now - self.at) * limit / MINUTE_S)
        self.at = now
        wait_s = (self.used - max(limit - amount, 0.0)) * MINUTE_S / limit
        return wait_s if wait_s > ROUNDING_S else 0.0

    def settle(self, reserved: float, actual: float, limit: int | None, age_s: float) -> None:
        """If too little was reserved, the rest is taken. If too much was, the bucket gets back only what cannot have been
        refilled since: a slow answer would otherwise give back what was refilled already."""
        if actual >= reserved:
            self.used += actual - reserved
        elif limit is not None:
            refilled = age_s * limit / MINUTE_S
            self.used -= max(reserved - refilled, 0.0) - max(actual - refilled, 0.0)
            self.used = max(0.0, self.used)


@dataclass(slots=True)
class Day:
    """Tokens used since midnight UTC."""

    number: int = 0
    used: float = 0.0

    def begin(self, number: int) -> None:
        """A clock that is set back begins no new day."""
        if number > self.number:
            self.number, self.used = number, 0.0

    def has_room(self, amount: float, limit: int | None) -> bool:
        return limit is None or self.used <= max(limit - amount, 0.0)

    def settle(self, reserved: float, actual: float, number: int) -> None:
        """``number``: the day of the reservation. A reservation of yesterday ended with its day."""
        if number == self.number:
            self.used = max(0.0, self.used + actual - reserved)
