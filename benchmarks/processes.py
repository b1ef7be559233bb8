"""What a side of a run costs: CPU and peak memory of its processes and their children, from /proc."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")
_SAMPLE_S = 0.05


def parse_cpu(stat: str) -> float:
    """CPU seconds in the text of /proc/PID/stat: user and system, its own and of the children it waited for."""
    fields = stat[stat.rindex(")") + 2 :].split()
    return sum(int(field) for field in fields[11:15]) / _TICK


def parse_peak(status: str) -> int:
    """Peak resident bytes (VmHWM) in the text of /proc/PID/status; 0 for a zombie, which has no memory."""
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def family(root: int) -> list[int]:
    """A process and its living descendants."""
    members, unseen = [], [root]
    while unseen:
        pid = unseen.pop()
        members.append(pid)
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                with contextlib.suppress(OSError):
                    unseen += map(int, (task / "children").read_text().split())
    return members


def cpu_seconds(root: int) -> float:
    """CPU of a process and all its descendants, also of those that have ended and were waited for."""
    total = 0.0
    for pid in family(root):
        with contextlib.suppress(OSError):
            total += parse_cpu(Path(f"/proc/{pid}/stat").read_text())
    return total


class PeakMeter:
    """Peak memory of one side, sampled so that processes which end are seen too.

    The kernel's own high-water mark is read, so for a single process that lives to the end the figure is exact. The
    peaks of processes that live at the same time are added: an upper bound, pages they share count twice.
    """

    def __init__(self, root: int) -> None:
        self._root = root
        self._peak = 0
        self._ended = threading.Event()
        for pid in family(root):
            with contextlib.suppress(OSError):
                Path(f"/proc/{pid}/clear_refs").write_text("5")
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        """Bytes at the peak since the meter was made."""
        self._ended.set()
        self._thread.join()
        self._sample()
        return self._peak

    def _run(self) -> None:
        while not self._ended.wait(_SAMPLE_S):
            self._sample()

    def _sample(self) -> None:
        total = 0
        for pid in family(self._root):
            with contextlib.suppress(OSError):
                total += parse_peak(Path(f"/proc/{pid}/status").read_text())
        self._peak = max(self._peak, total)


def settle(roots: list[int], quiet_s: float = 0.5, limit_s: float = 20.0) -> bool:
    """Wait until the processes have hardly used the CPU (2 %) for `quiet_s`; False when they never rest."""
    deadline = time.monotonic() + limit_s
    before = sum(map(cpu_seconds, roots))
    while time.monotonic() < deadline:
        time.sleep(quiet_s)
        now = sum(map(cpu_seconds, roots))
        if now - before <= max(0.02 * quiet_s, 1 / _TICK):
            return True
        before = now
    return False
