"""How often who may call: one allowance per kind of call and account, and one per network."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from ipaddress import IPv6Address, ip_address, ip_network
from math import ceil

from p2psync.ports import Clock
from relay import config
from relay.allowances import MAX_CALLERS, Allowances
from relay.api.route import Rate
from relay.errors import ApiError


def per_minute(settings: config.Limits, rate: Rate) -> tuple[int, int]:
    """Calls that one account, and one network, may make in a minute."""
    match rate:
        case Rate.STANDARD:
            return settings.standard_per_account, settings.standard_per_address
        case Rate.BULK:
            return settings.bulk_per_account, settings.bulk_per_address
        case Rate.SENSITIVE:
            return settings.sensitive_per_account, settings.sensitive_per_address


class Limiter:
    """The allowances of all callers."""

    def __init__(self, settings: config.Limits, clock: Clock, *, most: int = MAX_CALLERS) -> None:
        self._clock = clock
        self._per_minute: Mapping[Rate, tuple[int, int]] = {rate: per_minute(settings, rate) for rate in Rate}
        self._allowances: Allowances[tuple[Rate, str | bytes]] = Allowances(most)

    def take_address(self, rate: Rate, network: str) -> None:
        """One call from a network. ApiError 429 with `Retry-After` when it has none left."""
        self._take(rate, network, self._per_minute[rate][1])

    def take_account(self, rate: Rate, account_or_device: bytes) -> None:
        """One call of an account, or of a device without one. ApiError 429 with `Retry-After` when it has none left."""
        self._take(rate, account_or_device, self._per_minute[rate][0])

    def _take(self, rate: Rate, caller: str | bytes, per_window: int) -> None:
        wait = self._allowances.take((rate, caller), per_window, self._clock.monotonic())
        if wait:
            retry_after = ceil(wait)
            raise ApiError(
                429,
                "rate-limited",
                f"try again in {retry_after} s",
                headers={"Retry-After": str(retry_after)},
                retry_after=retry_after,
            )


def network_of(client: tuple[str, int] | None) -> str:
    """The network that stands for an address in limits and logs: /24 of IPv4, /48 of IPv6, "" when there is none."""
    return _network(client[0]) if client else ""


@lru_cache(maxsize=4096)
def _network(host: str) -> str:
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return ""
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    prefix = 24 if address.version == 4 else 48
    return str(ip_network((address, prefix), strict=False))
