"""Keep memory warm: a virtual machine takes back pages that lie free, and getting them again costs seconds per GiB.

Page cache as ballast does not help where the kernel pages out what is cold, so a reserve is made before each
measurement and handed to the kernel while it runs: what a program takes was free for a moment only.
"""

from __future__ import annotations

import mmap
import threading
from types import TracebackType

_MIB = 1 << 20
_SLICE = 256 * _MIB
_AT_ONCE = 4
_PAUSE_S = 0.25


class Reserve:
    """Present memory of this process, given back slice by slice from the moment the block is entered."""

    def __init__(self, size: int) -> None:
        """Make `size` bytes present; takes as long as the hypervisor needs."""
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
        self._slices = [mmap.mmap(-1, _SLICE, flags=flags) for _ in range(-(-size // _SLICE))]
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._drip, daemon=True)

    def __enter__(self) -> None:
        """Give back 1 GiB at once and 1 GiB a second from now on."""
        for _ in range(min(_AT_ONCE, len(self._slices))):
            self._slices.pop().close()
        self._thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give back the rest."""
        self._ended.set()
        self._thread.join()
        while self._slices:
            self._slices.pop().close()

    def _drip(self) -> None:
        while self._slices and not self._ended.wait(_PAUSE_S):
            self._slices.pop().close()
