"""Keep memory warm: a virtual machine takes back pages that lie free, and getting them again costs seconds per GiB."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

_MIB = 1 << 20
_LEAVE_FREE = 768 * _MIB


def free_bytes(meminfo: str) -> int:
    """MemFree in the text of /proc/meminfo."""
    for line in meminfo.splitlines():
        if line.startswith("MemFree:"):
            return int(line.split()[1]) * 1024
    return 0


class Ballast:
    """Page cache of a sparse file fills what is free: cheap to reclaim for whoever needs memory, and never idle."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w+b")
        self._filled = 0

    def fill(self) -> None:
        """Read holes until little is free; the first time this takes as long as the hypervisor needs."""
        buffer = bytearray(4 * _MIB)
        while free_bytes(Path("/proc/meminfo").read_text()) > _LEAVE_FREE:
            self._filled += 64 * _MIB
            os.ftruncate(self._file.fileno(), self._filled)
            for offset in range(self._filled - 64 * _MIB, self._filled, len(buffer)):
                os.preadv(self._file.fileno(), [buffer], offset)

    def close(self) -> None:
        """Give the memory back."""
        self._file.truncate(0)
        self._file.close()


def touch(size: int) -> None:
    """Have `size` bytes made present and freed again, at once before they are needed."""
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE):
        pass
