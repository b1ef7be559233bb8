"""How often somebody may do something: an allowance for each, that comes back evenly; memory is bounded.

This is the generic cell rate algorithm (ITU-T I.371): all that is kept of a caller is the time at which its allowance
is whole again, and who has a whole allowance need not be kept at all.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Final, Generic, TypeVar

WINDOW_S: Final = 60.0
"""As much as is allowed in this time may come at once."""
MAX_CALLERS: Final = 100_000

Caller = TypeVar("Caller", bound=Hashable)


class Allowances(Generic[Caller]):
    """The allowances of all callers."""

    def __init__(self, most: int = MAX_CALLERS) -> None:
        self._most = most
        self._whole: OrderedDict[Caller, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._whole)

    def take(self, caller: Caller, per_window: int, now: float) -> float:
        """Use one of `per_window`, at the time `now`: 0.0, or the seconds until there is one, and then none is used."""
        whole = max(self._whole.get(caller, now), now) + WINDOW_S / per_window
        # Rounding must not cost the last call of an allowance.
        wait = whole - now - WINDOW_S
        if wait > 1e-6:
            return wait
        self._whole[caller] = whole
        self._whole.move_to_end(caller)
        if len(self._whole) > self._most:
            self._forget(now)
        return 0.0

    def _forget(self, now: float) -> None:
        for caller in [caller for caller, whole in self._whole.items() if whole <= now]:
            del self._whole[caller]
        # So many callers at once that those longest silent have to go; a tenth, so that this stays rare.
        while len(self._whole) > self._most * 9 // 10:
            self._whole.popitem(last=False)
